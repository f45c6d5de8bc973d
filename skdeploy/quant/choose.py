"""Runs the INT8 graph of each calibration method on images held back, one graph after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from skdeploy.backends.logits import run_batches
from skdeploy.backends.onnxruntime import OnnxRuntimeSession
from skdeploy.core import cpu
from skdeploy.core.errors import CalibrationError
from skdeploy.core.progress import Progress
from skdeploy.core.spec import ModelSpec
from skdeploy.images.dataset import Dataset
from skdeploy.images.feeds import RUN_BATCH, batches_of
from skdeploy.images.reading import ahead, read_crops
from skdeploy.ir.deciding import with_sources
from skdeploy.ir.large import portable
from skdeploy.quant.methods import FALLBACK, Choice, chosen, going_on, looks, with_rounding_of
from skdeploy.quant.observe import MOST_WORKERS
from skdeploy.quant.quantize import Shared, quantize
from skdeploy.quant.ranges import Ranges

# Of FP32's outputs that are kept to compare with: 64 images of 512 x 512 x 3 would take 200 MB, and 20 tell as much.
MOST_BYTES: Final = 64 << 20

# Pixels of the images in a run: 8 of 64 x 64, one of 224 x 224, whose INT8 takes a sixth less time than in batches of 8.
RUN_PLACES: Final = RUN_BATCH * 64 * 64

Floats = NDArray[np.float64]
Outputs = list[NDArray[np.floating]]


@dataclass
class _Squares:
    """Sums of squares of each output: an image after another, (images, outputs)."""

    rows: list[Floats] = field(default_factory=list)

    def add(self, outputs: Outputs) -> None:
        """Takes some more images."""
        self.rows.extend(np.stack([_squares(values) for values in outputs], axis=1))

    def __len__(self) -> int:
        return len(self.rows)


class _Graph:
    """A graph whose floating-point outputs, and what decides others, are asked for, as ONNX Runtime takes it."""

    def __init__(self, model: ir.Model) -> None:
        with with_sources(model) as sources:
            self.names = tuple(sources.values())
            self.portable = portable(model)


class _Reference:
    """FP32's outputs of the first images, as many as were asked for so far, until they have ``MOST_BYTES``."""

    def __init__(self, spec: ModelSpec, images: Dataset) -> None:
        self.spec, self.images = spec, images
        self.parts: list[Outputs] = []
        self.signals = _Squares()
        self.full = False

    def reach(self, end: int, graph: _Graph) -> None:
        """Have ``end`` images, or fewer where memory or images end. Raises CalibrationError."""
        for outputs in _outputs(graph, self.spec, self.images.take(range(len(self.signals), end))):
            if not all(np.isfinite(values).all() for values in outputs):
                raise CalibrationError(
                    f"{self.spec.name} gives outputs in FP32 that are not finite, so no method can be scored by them",
                    advice="check the weights with `skdeploy verify`, or choose the method with --calib-method",
                )
            self.parts.append(outputs)
            self.signals.add(outputs)
            if sum(values.nbytes for part in self.parts for values in part) >= MOST_BYTES:
                self.full = True
                break

    def of(self, start: int, end: int) -> Outputs:
        """The outputs of some images."""
        return [np.concatenate(arrays)[start:end] for arrays in zip(*self.parts, strict=True)]


class _Trials:
    """The errors of the candidates' graphs so far, image after image.

    While one graph runs, another thread makes the next one. It is opened afterwards: two at a time are more memory than any
    other part of calibration takes.
    """

    def __init__(self, model: ir.Model, ranges: Mapping[str, Ranges], reference: _Reference, shared: Shared) -> None:
        self.model, self.ranges, self.reference, self.shared = model, ranges, reference, shared
        self.graphs: dict[str, ir.Model] = {"": model}
        self.errors: dict[str, _Squares] = {}

    def reach(self, names: Sequence[str], end: int, tell: Callable[[str], None]) -> None:
        """Runs FP32 and then these up to image ``end``, or to where FP32's outputs end."""
        reference = self.reference
        first = [""] if end > len(reference.signals) and not reference.full else []
        late = [name for name in names if len(self.errors.setdefault(name, _Squares())) < end]
        made = ahead(self._made, [*first, *late], 1, 1)
        with closing(made):
            for name, graph in zip([*first, *late], made, strict=True):
                tell(name)
                if name:
                    self._run(name, end, graph)
                else:
                    reference.reach(end, graph)

    def _made(self, name: str) -> _Graph:
        if name not in self.graphs:
            made = quantize(self.model, self.reference.spec, self.ranges[name], half=False, shared=self.shared)
            self.graphs[name] = made.model
        return _Graph(self.graphs[name])

    def _run(self, name: str, end: int, graph: _Graph) -> None:
        reference, errors = self.reference, self.errors[name]
        at, end = len(errors), min(end, len(reference.signals))
        for outputs in _outputs(graph, reference.spec, reference.images.take(range(at, end))):
            beside = reference.of(at, at + len(outputs[0]))
            errors.add([np.subtract(*both, dtype=np.float64) for both in zip(outputs, beside, strict=True)])
            at += len(outputs[0])

    def noise(self, name: str) -> list[float]:
        """The error of each image by the signal of all that the candidate ran on."""
        rows = self.errors[name].rows
        return noise_of_images(rows, self.reference.signals.rows[: len(rows)])


def choose(
    model: ir.Model,
    spec: ModelSpec,
    candidates: Mapping[str, Ranges],
    unrounded: Mapping[str, Ranges],
    images: Dataset,
    fitted: int,
    shared: Shared,
    tell: Progress,
) -> Choice:
    """The best of the candidates on images that they were not fitted to.

    ``unrounded`` are the same with weights rounded to nearest, where the candidates have others; the best is tried so too.

    Raises CalibrationError for outputs of FP32 that are not finite.
    """
    if not len(images):
        return Choice(method=FALLBACK.method, percentile=FALLBACK.percentile)
    plain = {_to_nearest(name): ranges for name, ranges in unrounded.items()}
    reference = _Reference(spec, images)
    trials = _Trials(model, {**candidates, **plain}, reference, shared)

    def reach(names: Sequence[str], end: int) -> dict[str, list[float]]:
        """The noise of graphs up to image ``end``."""
        shown = f"on {end} of {len(images)} images held back"
        trials.reach(names, end, lambda name: tell.update(f"{f'ranges by {name}' if name else 'FP32'} {shown}"))
        return {name: trials.noise(name) for name in names}

    left, noise = list(candidates), dict[str, list[float]]()
    for look in looks(len(images)):
        found = reach(left, look)
        noise |= found
        left = going_on(found)
        if reference.full or len(left) == 1:
            break
    scored = len(reference.signals)
    choice = chosen(noise, scored, fitted)
    best = str(choice.candidate)
    if best in unrounded:
        name = _to_nearest(best)
        rounded = trials.errors[best].rows
        for look in looks(len(images)):
            to_nearest = reach([name], min(look, scored))[name]
            count = len(to_nearest)
            beside = noise_of_images(rounded[:count], reference.signals.rows[:count])
            if count == scored or sum(to_nearest) >= sum(beside):
                break
        choice = with_rounding_of(choice, noise[best], to_nearest)
    return choice


def _to_nearest(name: str) -> str:
    return f"{name} with weights to nearest"


def _outputs(graph: _Graph, spec: ModelSpec, images: Dataset) -> Iterator[Outputs]:
    """The outputs in the graph's order, a few images at a time.

    Each worker takes its own images through the graph: of large ones, one at a time stays in the cache.
    """
    crops = (crop.pixels for _, crop in read_crops(images, spec))
    size = min(RUN_BATCH, max(1, RUN_PLACES // spec.places))
    threads = cpu.cores()
    workers = min(threads, MOST_WORKERS)
    with OnnxRuntimeSession(graph.portable, "cpu", threads - workers + 1) as session, ExitStack() as stack:
        batches = batches_of(crops, spec, session.inputs, size)
        runs = ahead(lambda batch: next(run_batches(session, [batch])), batches, workers, workers)
        stack.callback(runs.close)  # before the session: threads may be in it
        for outputs, _ in runs:
            yield [outputs[name] for name in graph.names]


def noise_of_images(errors: Sequence[Floats], signals: Sequence[Floats]) -> list[float]:
    """The error of each image, by the signal of all; both are sums of squares of each output.

    Of several outputs, the mean of their noise to signal, so that large ones do not outweigh others.
    """
    signal = np.maximum(np.sum(signals, axis=0), np.finfo(np.float64).tiny)
    found: list[float] = np.mean(np.asarray(errors) / signal, axis=1).tolist()
    return found


def _squares(values: NDArray[np.floating]) -> Floats:
    """The sum of squares of each image, (N,)."""
    squares: Floats = np.square(values.reshape(len(values), -1), dtype=np.float64).sum(axis=1)
    return squares
