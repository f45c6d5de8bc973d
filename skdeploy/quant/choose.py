"""Runs the INT8 graph of each calibration method on images held back, one graph after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
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
from skdeploy.ir.qdq import QuantizedWeight
from skdeploy.quant.methods import FALLBACK, Choice, chosen, going_on, looks, with_rounding_of
from skdeploy.quant.observe import MOST_WORKERS
from skdeploy.quant.quantize import quantize
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


class _Reference:
    """FP32's outputs of the first images, as many as were asked for so far, until they have ``MOST_BYTES``."""

    def __init__(self, model: ir.Model, spec: ModelSpec, images: Dataset) -> None:
        self.model, self.spec, self.images = model, spec, images
        self.parts: list[Outputs] = []
        self.signals = _Squares()
        self.full = False

    def reach(self, end: int) -> int:
        """Have ``end`` images, or fewer where memory or images end. How many there are. Raises CalibrationError."""
        if end > len(self.signals) and not self.full:
            for outputs in _outputs(self.model, self.spec, self.images.take(range(len(self.signals), end))):
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
        return len(self.signals)

    def of(self, start: int, end: int) -> Outputs:
        """The outputs of some images."""
        return [np.concatenate(arrays)[start:end] for arrays in zip(*self.parts, strict=True)]


@dataclass
class _Trial:
    """A candidate's graph and its errors so far, image after image."""

    model: ir.Model
    errors: _Squares = field(default_factory=_Squares)

    def reach(self, end: int, reference: _Reference) -> None:
        """Runs up to image ``end``."""
        start = len(self.errors)
        if end > start:
            right = reference.of(start, end)
            at = 0
            for outputs in _outputs(self.model, reference.spec, reference.images.take(range(start, end))):
                beside = [values[at : at + len(outputs[0])] for values in right]
                self.errors.add([np.subtract(*both, dtype=np.float64) for both in zip(outputs, beside, strict=True)])
                at += len(outputs[0])

    def noise(self, reference: _Reference) -> list[float]:
        """The error of each image by the signal of all that the candidate ran on."""
        return noise_of_images(self.errors.rows, reference.signals.rows[: len(self.errors)])


def choose(
    model: ir.Model,
    spec: ModelSpec,
    candidates: Mapping[str, Ranges],
    unrounded: Mapping[str, Ranges],
    images: Dataset,
    fitted: int,
    nearest: Mapping[str, QuantizedWeight] | None,
    prepared: ir.Model,
    tell: Progress,
) -> tuple[Choice, Mapping[str, QuantizedWeight] | None]:
    """The best of the candidates on images that they were not fitted to, and the weights to nearest that their graphs share.

    ``unrounded`` are the same with weights rounded to nearest, where the candidates have others; the best is tried so too.
    ``prepared`` is the graph that they all quantize.

    Raises CalibrationError for outputs of FP32 that are not finite.
    """
    if not len(images):
        return Choice(method=FALLBACK.method, percentile=FALLBACK.percentile), nearest
    reference = _Reference(model, spec, images)
    trials: dict[str, _Trial] = {}

    def reach(name: str, ranges: Ranges, end: int) -> list[float]:
        """The noise of a graph up to image ``end``."""
        nonlocal nearest
        if name not in trials:
            made = quantize(model, spec, ranges, half=False, nearest=nearest, prepared=prepared)
            nearest = made.nearest
            trials[name] = _Trial(made.model)
        tell.update(f"ranges by {name} on {end} of {len(images)} images held back")
        trials[name].reach(end, reference)
        return trials[name].noise(reference)

    left, scored = list(candidates), 0
    for look in looks(len(images)):
        tell.update(f"FP32 on {look} of {len(images)} images held back")
        scored = reference.reach(look)
        noise = {name: reach(name, candidates[name], scored) for name in left}
        left = going_on(noise)
        if scored < look or len(left) == 1:
            break
    choice = chosen({name: trial.noise(reference) for name, trial in trials.items()}, scored, fitted)
    best = str(choice.candidate)
    if best in unrounded:
        rounded, plain = trials[best], f"{best} with weights to nearest"
        found: list[float] = []
        for look in looks(len(images)):
            found = reach(plain, unrounded[best], min(look, scored))
            beside = noise_of_images(rounded.errors.rows[: len(found)], reference.signals.rows[: len(found)])
            if len(found) == scored or sum(found) >= sum(beside):
                break
        choice = with_rounding_of(choice, rounded.noise(reference), found)
    return choice, nearest


def _outputs(model: ir.Model, spec: ModelSpec, images: Dataset) -> Iterator[Outputs]:
    """The floating-point outputs, and what decides others, in the graph's order, a few images at a time.

    Each worker takes its own images through the graph: of large ones, one at a time stays in the cache.
    """
    crops = (crop.pixels for _, crop in read_crops(images, spec))
    threads = cpu.cores()
    workers = min(threads, MOST_WORKERS)
    size = min(RUN_BATCH, max(1, RUN_PLACES // spec.places))
    with with_sources(model) as sources, ExitStack() as stack:
        session = stack.enter_context(OnnxRuntimeSession(portable(model), "cpu", threads - workers + 1))
        batches = batches_of(crops, spec, session.inputs, size)
        runs = ahead(lambda batch: next(run_batches(session, [batch])), batches, workers, workers)
        stack.callback(runs.close)  # before the session: threads may be in it
        for outputs, _ in runs:
            yield [outputs[name] for name in sources.values()]


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
