"""The options that choose a backend, for verbs that run artifacts: what each takes, every backend says itself."""

from __future__ import annotations

from typing import Annotated

import typer

from skdeploy.backends import BACKENDS, DEFAULT, backend
from skdeploy.core.panel import Panel

_TAKES = {name: backend(name).HELP for name in BACKENDS}

Backend = Annotated[
    str | None,
    typer.Option(
        metavar="ID",
        help=f"Backend that runs the bundle: {', '.join(BACKENDS)}.  [default: {DEFAULT}]",
        rich_help_panel=Panel.ENGINE,
    ),
]
BackendOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="Option of the backend, repeatable; "
        + "; ".join(f"for {name}: {takes}" for name, takes in _TAKES.items() if takes)
        + ".",
        rich_help_panel=Panel.ENGINE,
    ),
]
