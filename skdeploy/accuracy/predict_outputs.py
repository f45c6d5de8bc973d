"""``skdeploy predict`` of networks that give neither classes nor images: the outputs of each sample as arrays, in an .npz."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from skdeploy.accuracy.streaming import open_all
from skdeploy.backends.base import Array
from skdeploy.backends.logits import check_outputs, run_images
from skdeploy.bundle.folder import Bundle, load_bundle
from skdeploy.bundle.runners import Runner, last_graph, runner_on
from skdeploy.core.errors import ParityError, UsageError
from skdeploy.core.files import written_whole
from skdeploy.core.spec import Assumption, Frozen
from skdeploy.images.dataset import printable
from skdeploy.images.feeds import RUN_BATCH
from skdeploy.images.named import Named, check_readable, named_samples


class OutputFigures(Frozen):
    """One output of one sample: its shape without the batch, and what its values are like; None without any values."""

    name: str
    shape: Annotated[tuple[int, ...], Field(strict=False)]
    least: float | None
    mean: float | None
    largest: float | None


class SampleOutputs(Frozen):
    """The outputs of one sample, and the file that they were written to, if any."""

    sample: str
    written: str | None
    outputs: Annotated[tuple[OutputFigures, ...], Field(strict=False)]


class PredictedOutputs(Frozen):
    """All samples in the order given, through one artifact."""

    artifact: str
    backend: str
    samples: Annotated[tuple[SampleOutputs, ...], Field(strict=False)]
    assumptions: Annotated[tuple[Assumption, ...], Field(strict=False)] = ()


def predict_outputs(
    folder: Path,
    given: Sequence[Path],
    output: Path | None = None,
    *,
    overwrite: bool = False,
    backend: str | None = None,
    backend_options: Sequence[str] = (),
) -> PredictedOutputs:
    """Run samples or images, files or all in a folder, through the last graph or ``backend``.

    With ``output``, a folder, each gets an .npz there, with its outputs by name and without the batch. Every sample is read
    once before the first is run, so that what cannot be read is known before anything is written.

    Raises UsageError for samples that cannot be used, and for a file that exists already unless ``overwrite``; ParityError for
    outputs that are not finite; IntegrityError, DependencyError, EngineError.
    """
    bundle = load_bundle(folder)
    bundle.check_complete()
    spec = bundle.manifest.model
    samples = named_samples(given, spec)
    places = None if output is None else output_places(samples, output, ".npz", overwrite=overwrite)
    check_readable(samples, spec)
    runner = chosen_runner(bundle, backend, backend_options)
    rows: list[SampleOutputs] = []
    for each, outputs in outputs_of(runner, samples):
        written = None
        if places is not None:
            with written_whole(places[len(rows)]) as partial, partial.open("wb") as file:
                np.savez(file, **outputs)  # type: ignore[arg-type]  # numpy's stub takes a name for its own option
            written = printable(str(places[len(rows)]))
        figures = tuple(_figures(name, value) for name, value in outputs.items())
        rows.append(SampleOutputs(sample=each.name, written=written, outputs=figures))
    return PredictedOutputs(
        artifact=runner.name, backend=runner.backend, samples=tuple(rows), assumptions=bundle.manifest.assumptions
    )


def chosen_runner(bundle: Bundle, backend: str | None, options: Sequence[str] = ()) -> Runner:
    """The last graph, or what ``backend`` runs. Raises UsageError."""
    if options and backend is None:
        raise UsageError("--backend-option requires --backend")
    return last_graph(bundle) if backend is None else runner_on(bundle, backend, tuple(options))


def outputs_of(runner: Runner, samples: Sequence[Named]) -> Iterator[tuple[Named, dict[str, Array]]]:
    """Each sample with its outputs by name, without the batch. Raises ParityError for outputs that are not finite."""
    spec = runner.spec
    with open_all([runner], []) as (((_, session),), _):
        fixed = session.inputs[0].shape[0]
        size = fixed if isinstance(fixed, int) else RUN_BATCH
        for start in range(0, len(samples), size):
            some = samples[start : start + size]
            rows = [(each, each.read_whole(spec)) for each in some]
            for _, of_one_size in groupby(rows, key=lambda row: (row[1].dtype, row[1].shape)):
                together = list(of_one_size)
                outputs = run_images(session, np.stack([row for _, row in together]), spec, size)
                if problems := check_outputs(outputs, len(together), spec):
                    raise ParityError(
                        f"{runner.shown} gives no usable outputs from {together[0][0].name} on: {problems[0]}",
                        advice="check the artifact with `skdeploy verify`: the weights or the precision do not suit this "
                        "sample",
                    )
                for at, (each, _) in enumerate(together):
                    yield each, {wanted.name: outputs[wanted.name][at] for wanted in spec.given}


def output_places(samples: Sequence[Named], output: Path, suffix: str, *, overwrite: bool) -> list[Path]:
    """Where the output of each sample is written: below ``output``, by its name or its path in the folder that was given.

    Raises UsageError for two samples with one place, and for a file that exists already unless ``overwrite``.
    """
    places: dict[Path, Named] = {}
    inputs = [file for each in samples if (file := each.file) is not None and file.exists()]
    for each in samples:
        place = (output / each.below).with_suffix(suffix)
        if place in places:
            raise UsageError(
                f"{places[place].name} and {each.name} would both be written to {place}", advice="rename one of them"
            )
        places[place] = each
        if place.exists() and (not overwrite or any(place.samefile(file) for file in inputs)):
            raise UsageError(
                f"{place} {'is one of the inputs' if overwrite else 'already exists'}",
                advice="give another folder with --output" + ("" if overwrite else ", or add --overwrite"),
            )
    return list(places)


def _figures(name: str, value: Array) -> OutputFigures:
    wide, empty = value.astype(np.float64), not value.size
    return OutputFigures(
        name=name,
        shape=value.shape,
        least=None if empty else float(wide.min()),
        mean=None if empty else float(wide.mean()),
        largest=None if empty else float(wide.max()),
    )
