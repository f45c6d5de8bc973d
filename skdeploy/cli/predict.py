"""``skdeploy predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skdeploy.cli.backend import Backend, BackendOption


def predict(
    bundle: Annotated[Path, typer.Argument(help="The folder that an export made.")],
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    everything: Annotated[
        bool,
        typer.Option("--all", help="By torch, every graph and every engine that runs here, not only the last graph."),
    ] = False,
    backend: Backend = None,
    backend_option: BackendOption = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else there.")
    ] = False,
) -> None:
    """Print the five likeliest classes of each image, with their probabilities."""
    import sys

    from skdeploy.accuracy.facts import read_facts
    from skdeploy.accuracy.predict import predict as run
    from skdeploy.accuracy.verdict import decide_verdict
    from skdeploy.bundle.folder import load_bundle

    found = run(bundle, images, everything=everything, backend=backend, backend_options=backend_option or ())
    opened = load_bundle(bundle)
    if opened.manifest.verdict == "failed":
        print(f"! {decide_verdict(read_facts(opened)).text}", file=sys.stderr)
    if json:
        print(found.model_dump_json(indent=2))
        return
    from rich.markup import escape
    from rich.table import Table

    from skdeploy.cli.console import output_console

    console = output_console()
    for image in found.images:
        console.print(escape(image.image), style="italic", soft_wrap=True)
        table = Table(box=None, pad_edge=False)
        for prediction in image.predictions:
            table.add_column(
                escape(
                    prediction.artifact
                    if prediction.artifact == prediction.backend
                    else f"{prediction.artifact} on {prediction.backend}"
                ),
                overflow="fold",
            )
        for guesses in zip(*(prediction.top for prediction in image.predictions), strict=True):
            table.add_row(*(f"{guess.probability:7.2%}  {escape(guess.label)}" for guess in guesses))
        console.print(table)
    for absent in found.not_run:
        console.print(
            f"[yellow]not run here:[/yellow] {escape(absent.artifact)}: {escape(absent.reason)}", soft_wrap=True
        )
    for assumption in found.assumptions:
        console.print(f"[yellow]![/yellow] {escape(str(assumption))}", soft_wrap=True)
