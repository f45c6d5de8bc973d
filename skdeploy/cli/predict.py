"""``skdeploy predict``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skdeploy.cli.arguments import BundleFolder, Json
from skdeploy.cli.backend import Backend, BackendOption

if TYPE_CHECKING:
    from skdeploy.accuracy.predict import Predicted
    from skdeploy.accuracy.predict_images import WrittenImages
    from skdeploy.accuracy.predict_outputs import PredictedOutputs
    from skdeploy.report.terminal import Terminal


def predict(
    bundle: BundleFolder,
    images: Annotated[list[Path], typer.Argument(help="Image files, .npz or .npy samples, or folders of them.")],
    everything: Annotated[
        bool,
        typer.Option("--all", help="Use torch, every graph and every engine that runs here, not only the last graph."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder to write to: a PNG for each image from networks that give images or masks; from others an .npz with "
            "each output by its name.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files in --output.")] = False,
    backend: Backend = None,
    backend_option: BackendOption = None,
    json: Json = False,
) -> None:
    """Print the five most likely classes of each image or sample, or write the images, masks or arrays that the network gives.

    Examples:
        skdeploy predict build/mynet-int8 cat.png
        skdeploy predict build/mynet-int8 cat.png dog.png --all
    """
    from skdeploy.accuracy.facts import read_facts
    from skdeploy.accuracy.predict import predict as run
    from skdeploy.accuracy.predict_images import gives_pictures, write_images
    from skdeploy.accuracy.predict_outputs import predict_outputs
    from skdeploy.accuracy.verdict import decide_verdict
    from skdeploy.bundle.folder import load_bundle
    from skdeploy.cli.console import write_json
    from skdeploy.core.errors import UsageError
    from skdeploy.parity.tasks import task_of
    from skdeploy.report.voice import voice

    if overwrite and output is None:
        raise UsageError("--overwrite requires --output")
    opened, options = load_bundle(bundle), tuple(backend_option or ())
    spec = opened.manifest.model
    if output is None and gives_pictures(spec):
        raise UsageError(f"{spec.name} gives images, which predict writes to a folder", advice="give --output FOLDER")
    found: Predicted | PredictedOutputs | WrittenImages
    if output is None and task_of(spec).has_classes:
        found = run(bundle, images, everything=everything, backend=backend, backend_options=options)
    elif everything:
        raise UsageError("--all is for printing classes", advice="run one artifact at a time: --backend")
    elif output is not None and gives_pictures(spec):
        found = write_images(bundle, images, output, overwrite=overwrite, backend=backend, backend_options=options)
    else:
        found = predict_outputs(bundle, images, output, overwrite=overwrite, backend=backend, backend_options=options)
    if opened.manifest.verdict == "failed":
        voice().note(decide_verdict(read_facts(opened)).text)
    if json:
        write_json(found)
        return
    _show(found, output)


def _show(found: Predicted | PredictedOutputs | WrittenImages, output: Path | None) -> None:
    from skdeploy.accuracy.predict import Predicted
    from skdeploy.accuracy.predict_outputs import PredictedOutputs
    from skdeploy.report.blocks import counted
    from skdeploy.report.terminal import Terminal

    terminal = Terminal()
    if isinstance(found, Predicted):
        _show_classes(terminal, found)
    elif isinstance(found, PredictedOutputs):
        _show_outputs(terminal, found, output)
    else:
        height, width = found.size
        terminal.headline(
            f"{counted(len(found.written), 'image')} written to {output} by {found.artifact} on {found.backend}, "
            f"each of the {height} x {width} pixels that the network sees"
        )
        for image in found.written:
            terminal.say(f"{image.image} -> {image.written}")
    for assumption in found.assumptions:
        terminal.warn(str(assumption))


def _show_classes(terminal: Terminal, found: Predicted) -> None:
    for image in found.images:
        likeliest = image.predictions[-1].top[0]
        terminal.brief(f"{image.image}: {likeliest.label}{_chance(likeliest.probability, ' {:.2%}')}")
        terminal.title(image.image)
        columns = [
            by.artifact if by.artifact == by.backend else f"{by.artifact} on {by.backend}" for by in image.predictions
        ]
        guesses = zip(*(by.top for by in image.predictions), strict=True)
        terminal.table(
            columns, [[f"{_chance(one.probability, '{:7.2%}  ')}{one.label}" for one in row] for row in guesses]
        )
    for absent in found.not_run:
        terminal.warn(f"{absent.artifact}: {absent.reason}", "not run here:")


def _chance(probability: float | None, form: str) -> str:
    """Nothing of a network that gives class numbers."""
    return "" if probability is None else form.format(probability)


def _show_outputs(terminal: Terminal, found: PredictedOutputs, output: Path | None) -> None:
    """A row for each sample: the shape and the range of each output."""
    from skdeploy.core.significant import significant

    by = f"{found.artifact} on {found.backend}"
    count = f"{len(found.samples)} sample{'s' if found.samples[1:] else ''}"
    terminal.headline(f"{count} through {by}" + (f", written to {output}" if output is not None else ""))
    names = [each.name for each in found.samples[0].outputs]
    rows = []
    for sample in found.samples:
        cells = [sample.sample]
        for each in sample.outputs:
            shape = "x".join(map(str, each.shape)) or "scalar"
            values = (each.least, each.mean, each.largest)
            shown = "no values" if None in values else " ".join(significant(value or 0.0) for value in values)
            cells.append(f"{shape}: {shown}")
        rows.append([*cells, *([sample.written] if sample.written is not None else [])])
    terminal.table(["sample", *names, *(["written"] if output is not None else [])], rows, whole=("sample",))
    terminal.say("of each output: its shape, and its least, mean and largest value", style="dim")
