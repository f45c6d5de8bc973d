"""``skdeploy predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skdeploy.cli.arguments import BundleFolder, Json
from skdeploy.cli.backend import Backend, BackendOption


def predict(
    bundle: BundleFolder,
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of images.")],
    everything: Annotated[
        bool,
        typer.Option("--all", help="Use torch, every graph and every engine that runs here, not only the last graph."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder to write to: a PNG for each image. For restoration and segmentation networks.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files in --output.")] = False,
    backend: Backend = None,
    backend_option: BackendOption = None,
    json: Json = False,
) -> None:
    """Print the five most likely classes of each image, or write the images or masks that the network gives.

    Examples:
        skdeploy predict build/mynet-int8 cat.png
        skdeploy predict build/mynet-int8 cat.png dog.png --all
    """
    from skdeploy.accuracy.facts import read_facts
    from skdeploy.accuracy.predict import predict as run
    from skdeploy.accuracy.verdict import decide_verdict
    from skdeploy.bundle.folder import load_bundle
    from skdeploy.cli.console import write_json
    from skdeploy.core.errors import UsageError
    from skdeploy.report.terminal import Terminal
    from skdeploy.report.voice import voice

    if output is not None:
        _write(bundle, images, output, overwrite, backend, backend_option or [], as_json=json, everything=everything)
        return
    if overwrite:
        raise UsageError("--overwrite requires --output")
    found = run(bundle, images, everything=everything, backend=backend, backend_options=backend_option or ())
    opened = load_bundle(bundle)
    if opened.manifest.verdict == "failed":
        voice().note(decide_verdict(read_facts(opened)).text)
    if json:
        write_json(found)
        return
    terminal = Terminal()
    for image in found.images:
        likeliest = image.predictions[-1].top[0]
        terminal.brief(f"{image.image}: {likeliest.label} {likeliest.probability:.2%}")
        terminal.title(image.image)
        columns = [
            by.artifact if by.artifact == by.backend else f"{by.artifact} on {by.backend}" for by in image.predictions
        ]
        guesses = zip(*(by.top for by in image.predictions), strict=True)
        terminal.table(columns, [[f"{one.probability:7.2%}  {one.label}" for one in row] for row in guesses])
    for absent in found.not_run:
        terminal.warn(f"{absent.artifact}: {absent.reason}", "not run here:")
    for assumption in found.assumptions:
        terminal.warn(str(assumption))


def _write(
    bundle: Path,
    images: list[Path],
    output: Path,
    overwrite: bool,
    backend: str | None,
    backend_options: list[str],
    *,
    as_json: bool,
    everything: bool,
) -> None:
    from skdeploy.accuracy.facts import read_facts
    from skdeploy.accuracy.predict_images import write_images
    from skdeploy.accuracy.verdict import decide_verdict
    from skdeploy.bundle.folder import load_bundle
    from skdeploy.cli.console import write_json
    from skdeploy.core.errors import UsageError
    from skdeploy.report.terminal import Terminal
    from skdeploy.report.voice import voice

    if everything:
        raise UsageError(
            "--all and --output cannot be used together", advice="write the images of one at a time: --backend"
        )
    found = write_images(bundle, images, output, overwrite=overwrite, backend=backend, backend_options=backend_options)
    opened = load_bundle(bundle)
    if opened.manifest.verdict == "failed":
        voice().note(decide_verdict(read_facts(opened)).text)
    if as_json:
        write_json(found)
        return
    terminal = Terminal()
    height, width = found.size
    terminal.headline(
        f"{len(found.written)} images written to {output} by {found.artifact} on {found.backend}, "
        f"each of the {height} x {width} pixels that the network sees"
    )
    for image in found.written:
        terminal.say(f"{image.image} -> {image.written}")
    for assumption in found.assumptions:
        terminal.warn(str(assumption))
