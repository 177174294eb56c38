"""Print the versions of everything that Captioner and its extras need, as they are installed here.

After `make check test`, `.venv/bin/python scripts/constraints.py > constraints.txt`: what passed the tests is
what `pip install --constraint constraints.txt` gives to others.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HEADER = "# What the tests passed with, by scripts/constraints.py: pip install --constraint constraints.txt"


def installed_closure(name: str) -> dict[str, str]:
    """Name and version of all that a distribution needs, with all its extras, so far as it is installed."""
    root = distribution(name)
    extras = root.metadata.get_all("Provides-Extra") or []
    waiting = [(name, extra) for extra in ("", *extras)]
    seen, versions = set(waiting), {}
    while waiting:
        parent, extra = waiting.pop()
        for line in distribution(parent).requires or []:
            requirement = Requirement(line)
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            child = canonicalize_name(requirement.name)
            try:
                versions[child] = distribution(child).version.partition("+")[0]
            except PackageNotFoundError:
                continue  # an extra that is not installed here
            found = {(child, child_extra) for child_extra in ("", *requirement.extras)} - seen
            waiting += found
            seen |= found
    versions.pop(canonicalize_name(name), None)
    return versions


if __name__ == "__main__":
    pins = installed_closure("captioner")
    print(HEADER, *(f"{name}=={pins[name]}" for name in sorted(pins)), sep="\n")
