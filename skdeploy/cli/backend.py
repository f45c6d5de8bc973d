"""The options that choose a backend, for verbs that run artifacts: what each takes, every backend says itself."""

from __future__ import annotations

from typing import Annotated

import typer

from skdeploy.backends import BACKENDS, DEFAULT, backend

_TAKES = {name: backend(name).HELP for name in BACKENDS}

Backend = Annotated[
    str | None,
    typer.Option(metavar="ID", help=f"What runs the bundle: {', '.join(BACKENDS)}.  [default: {DEFAULT}]"),
]
BackendOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help=f"O{'; o'.join(f'f {name}: {takes}' for name, takes in _TAKES.items() if takes)}; may be given again.",
    ),
]
