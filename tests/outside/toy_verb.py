"""A verb as somebody else's package would bring it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

HELP = "Print the size of each file of a bundle."


def sizes(
    bundle: Annotated[Path, typer.Argument(help="The bundle.")],
    at_least: Annotated[int, typer.Option(help="Leave out smaller files, in bytes.")] = 0,
) -> None:
    """Print the size of each file of a bundle."""
    from skdeploy.bundle.folder import load_bundle

    for artifact in load_bundle(bundle).manifest.artifacts:
        if artifact.size_bytes >= at_least:
            print(artifact.path, artifact.size_bytes)
