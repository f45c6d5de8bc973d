"""The packages that only making a bundle takes, the extra ``export``: told at once, not in the middle of the line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Final
from urllib.parse import urlsplit
from urllib.request import url2pathname

from skdeploy.core.errors import DependencyError

EXTRAS: Final = "export,cpu"  # for ``backends.base.require``


def install_command(extra: str, *, on_device: bool = False) -> str:
    """The command that installs an extra: from the folder that pip took skdeploy from, if it did, else from an index.

    ``on_device``: it is typed on another machine, in a clone there.
    """
    folder = folder_of_install()
    if folder is None:
        return f'pip install "skdeploy[{extra}]"'
    return f'pip install -e "{"." if on_device else folder}[{extra}]"'


def folder_of_install() -> Path | None:
    """The folder that pip installed skdeploy from, such as a clone; None for a wheel, an index or a repository's address."""
    try:
        origin = metadata.distribution("skdeploy").read_text("direct_url.json")
    except metadata.PackageNotFoundError:  # run from a folder, not installed
        return None
    record = json.loads(origin or "{}")
    return Path(url2pathname(urlsplit(record["url"]).path)) if "dir_info" in record else None


def install_advice(extra: str) -> str:
    """The same, as advice."""
    return f"install it with: {install_command(extra)}"


def export_advice() -> str:
    """The extras that make bundles."""
    return f"{install_advice(EXTRAS)} (needed to make a bundle, not to run one)"


def require_export(*packages: str) -> None:
    """Raises DependencyError if one of ``packages`` is not installed. None is imported, so a resumed export stays quick."""
    absent = [package for package in packages if not installed(package)]
    if absent:
        raise DependencyError(f"this needs {', '.join(absent)}, not installed here", advice=export_advice())


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
            advice=install_advice(extra) if extra else f"install it with: pip install {module}",
        ) from error
