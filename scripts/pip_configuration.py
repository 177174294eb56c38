"""Write the whole of pip's configuration here to the file given, and print the local paths that it names."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path


def read_configuration() -> dict[str, str]:
    """Option and value, from all of pip's files and variables; what pip lists last, it prefers."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    pairs = (line.partition("=") for line in sorted(lines, key=lambda line: line.startswith(":env:")))
    return {name.rpartition(".")[2]: str(ast.literal_eval(value)) for name, _, value in pairs}


def local_paths(values: list[str]) -> list[Path]:
    """The files and folders among the values' words; of an index's folder the parent, where its files are."""
    words = [word for value in values for word in value.split()]
    indexes = {Path(word.removeprefix("file://")).parent for word in words if word.startswith("file://")}
    others = {Path(word) for word in words if word.startswith("/")}
    return sorted(path for path in indexes | others if path.exists())


if __name__ == "__main__":
    configuration = read_configuration()
    options = [f"{name} = {' '.join(value.split())}" for name, value in configuration.items()]
    Path(sys.argv[1]).write_text("\n".join(["[global]", *options, ""]), encoding="utf-8")
    print(*local_paths(list(configuration.values())), sep="\n")
