"""Print the versions of everything that Captioner and its extras need, as they are installed here.

After `make check test`, `.venv/bin/python scripts/constraints.py > constraints.txt`: what passed the tests is
what `pip install --constraint constraints.txt` gives to others. With --runtime, the extras are left out.
"""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HEADER = "# What the tests passed with, by scripts/constraints.py: pip install --constraint constraints.txt"


def installed_closure(requirements: list[str]) -> dict[str, str]:
    """Name and version of all that requirements need, so far as it is installed."""
    waiting, seen = [(line, "") for line in requirements], set[tuple[str, str]]()
    versions: dict[str, str] = {}
    while waiting:
        line, extra = waiting.pop()
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue  # an extra that is not installed here
        versions[name] = found.version.partition("+")[0]
        for pair in {(name, extra) for extra in ("", *requirement.extras)} - seen:
            seen.add(pair)
            waiting += [(line, pair[1]) for line in found.requires or []]
    return versions


if __name__ == "__main__":
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [] if "--runtime" in sys.argv else project["optional-dependencies"].values()
    lists = [project["dependencies"], *extras]
    pins = installed_closure([line for lines in lists for line in lines])
    pins.pop(project["name"], None)
    print(HEADER, *(f"{name}=={pins[name]}" for name in sorted(pins)), sep="\n")
