"""``skdeploy verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def verify(
    bundle: Annotated[Path, typer.Argument(help="The folder that an export made.")],
    images: Annotated[
        Path | None, typer.Option(help="A folder of images, .npz or .npy; default: the card's own parity images.")
    ] = None,
    num_images: Annotated[int, typer.Option(help="How many of them at most.")] = 64,
    json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else there.")
    ] = False,
) -> None:
    """Check a bundle's digests and measure parity again, on every backend that works here. Writes nothing."""
    from skdeploy.cli.console import ConsoleProgress, print_bundle, print_json
    from skdeploy.pipeline import verify as run

    with ConsoleProgress() as progress:
        found, report = run(bundle, images, num_images, progress)
    if json:
        print_json(found, report)
    else:
        print_bundle(found, report)
