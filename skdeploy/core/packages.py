"""The packages that only making a bundle takes, the extra ``export``: told at once, not in the middle of the line."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Final

from skdeploy.core.errors import DependencyError

EXTRAS: Final = "export,cpu"  # for ``backends.base.require``
ADVICE: Final = f'install it with: pip install "skdeploy[{EXTRAS}]" (needed to make a bundle, not to run one)'


def require_export(*packages: str) -> None:
    """Raises DependencyError if one of ``packages`` is not installed. None is imported, so a resumed export stays quick."""
    absent = [package for package in packages if not installed(package)]
    if absent:
        raise DependencyError(f"this needs {', '.join(absent)}, not installed here", advice=ADVICE)


def installed(package: str) -> bool:
    """Whether there is something to import under this name; it is not imported."""
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):  # a finder that refuses it; something without a specification in sys.modules
        return False


@dataclass(frozen=True)
class Availability:
    """Whether a backend or compiler works here: its version and devices, or the reason why not and what to install."""

    name: str
    available: bool
    version: str = ""
    device: str = ""
    reason: str = ""
    install: str = ""


def require(module: str, *, extra: str = "") -> ModuleType:
    """Imports a package where it is used. Raises DependencyError that names the extra to install."""
    try:
        return import_module(module)
    except ImportError as error:
        raise DependencyError(
            f"{module} cannot be imported here: {error}",
            advice=f'install it with: pip install "skdeploy[{extra}]"'
            if extra
            else f"install it with: pip install {module}",
        ) from error
