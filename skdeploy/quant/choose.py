"""Runs the INT8 graph of each calibration method on images held back, one graph after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
from skdeploy.quant.methods import FALLBACK, FIRST_PART, GIVEN_UP, Choice, chosen, with_rounding_of
from skdeploy.quant.observe import MOST_WORKERS
from skdeploy.quant.quantize import quantize
from skdeploy.quant.ranges import Ranges

# Of FP32's outputs that are kept to compare with: 64 images of 512 x 512 x 3 would take 200 MB, and 20 tell as much.
MOST_BYTES: Final = 64 << 20

# Pixels of the images in a run: 8 of 64 x 64, one of 224 x 224, whose INT8 takes a sixth less time than in batches of 8.
RUN_PLACES: Final = RUN_BATCH * 64 * 64

Outputs = list[NDArray[np.floating]]


@dataclass
class _Trial:
    """A candidate's graph and the noise to signal that it has made so far, image after image."""

    model: ir.Model
    noise: list[float] = field(default_factory=list)

    @property
    def total(self) -> float:
        return sum(self.noise)


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
    tell.update(f"FP32 on {len(images)} images held back")
    reference = _reference(model, spec, images)
    scored = len(reference[0])
    if not all(np.isfinite(values).all() for values in reference):
        raise CalibrationError(
            f"{spec.name} gives outputs in FP32 that are not finite, so no method can be scored by them",
            advice="check the weights with `skdeploy verify`, or choose the method with --calib-method",
        )
    trials: dict[str, _Trial] = {}

    def advance(name: str, end: int, bound: float) -> None:
        """Runs a candidate up to image ``end``, or until it has made more noise than ``bound``."""
        trial = trials[name]
        start, noise = len(trial.noise), trial.total
        tell.update(f"ranges by {name} on images {start + 1} to {end} of {scored} held back")
        outputs = _outputs(trial.model, spec, images.take(range(start, end)))
        for more in noise_of_images(reference, outputs, start):
            trial.noise.append(more)
            noise += more
            if noise > bound:
                return

    part, whole = FIRST_PART
    first = min(scored, -(-part * scored // whole))
    for name, ranges in candidates.items():
        made = quantize(model, spec, ranges, half=False, nearest=nearest, prepared=prepared)
        nearest = made.nearest
        trials[name] = _Trial(made.model)
        advance(name, first, np.inf)
    least = np.inf
    for name in sorted(trials, key=lambda name: trials[name].total):
        bound = GIVEN_UP * least
        if first < scored and trials[name].total <= bound:
            advance(name, scored, bound)
        if len(trials[name].noise) == scored:
            least = min(least, trials[name].total)
    choice = chosen({name: trial.noise for name, trial in trials.items()}, scored, fitted)
    best = str(choice.candidate)
    if best in unrounded:
        plain = f"{best} with weights to nearest"
        made = quantize(model, spec, unrounded[best], half=False, nearest=nearest, prepared=prepared)
        trials[plain] = _Trial(made.model)
        advance(plain, first, np.inf)
        if trials[plain].total < sum(trials[best].noise[:first]):
            advance(plain, scored, trials[best].total)
        choice = with_rounding_of(choice, trials[best].noise, trials[plain].noise)
    return choice, nearest


def _reference(model: ir.Model, spec: ModelSpec, images: Dataset) -> Outputs:
    """FP32's outputs of the first images, until they have ``MOST_BYTES``."""
    parts: list[Outputs] = []
    for outputs in _outputs(model, spec, images):
        parts.append(outputs)
        if sum(values.nbytes for part in parts for values in part) >= MOST_BYTES:
            break
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


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


def noise_of_images(reference: Outputs, found: Iterator[Outputs], start: int) -> Iterator[float]:
    """Yield the error of each image, from image ``start`` on, by the signal of all images.

    Of several outputs, the mean of their noise to signal, so that large ones do not outweigh others.
    """
    signals = [max(float(_squares(values).sum()), np.finfo(np.float64).tiny) for values in reference]
    for outputs in found:
        images = len(outputs[0])
        errors = [
            _squares(np.subtract(ours, right[start : start + images], dtype=np.float64)) / signal
            for ours, right, signal in zip(outputs, reference, signals, strict=True)
        ]
        start += images
        yield from np.mean(errors, axis=0).tolist()


def _squares(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """The sum of squares of each image, (N,)."""
    squares: NDArray[np.float64] = np.square(values.reshape(len(values), -1), dtype=np.float64).sum(axis=1)
    return squares
