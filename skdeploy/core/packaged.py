"""The folders of data that the wheel carries, and a checkout has at its top."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def packaged(folder: str) -> Path:
    """The folder ``models`` or ``calibration``: inside the installed package, or at the top of a checkout."""
    inside = Path(str(resources.files("skdeploy"))) / folder
    return inside if inside.is_dir() else inside.parent.parent / folder
