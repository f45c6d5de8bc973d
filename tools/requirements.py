"""Prints what pyproject.toml requires, with the extras named, one a line: to be installed before the code is copied."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extras: list[str]) -> list[str]:
    """The dependencies of the project itself and of each extra. Raises KeyError for an extra that is not there."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    named = project["optional-dependencies"]
    return [*project["dependencies"], *(line for extra in extras for line in named[extra])]


if __name__ == "__main__":
    print("\n".join(requirements(Path("pyproject.toml"), sys.argv[1:])))
