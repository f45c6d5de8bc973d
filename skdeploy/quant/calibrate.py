"""Calibration images to a ranges file: what is run over them, in which order, and what is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from skdeploy.graph.exact_input import PIXELS
from skdeploy.graph.placement import place
from skdeploy.progress import Progress, Silent
from skdeploy.quant.audit import Audit, moved
from skdeploy.quant.dataset import Dataset, Pixels
from skdeploy.quant.duplicates import Fingerprints
from skdeploy.quant.feeds import RUN_BATCH, batches_of
from skdeploy.quant.observe import Observation, observe
from skdeploy.quant.quantize import prepare, ranged_tensors
from skdeploy.quant.ranges import Algorithm, CalibrationData, Ranges
from skdeploy.quant.reading import Unreadable, read_crops
from skdeploy.quant.thresholds import DEFAULT_PERCENTILE, SHIFTED, SYMMETRIC
from skdeploy.quant.weights import SMALLEST_SCALE
from skdeploy.spec import CalibrationMethod, ModelSpec, TensorSpec

ALGORITHM_VERSION: Final = 1
# Images whose channel maxima equalize: the factors are set by how channels compare, and that is known early.
EQUALIZING_IMAGES: Final = 64


@dataclass(frozen=True)
class CalibrationSettings:
    """How to calibrate; ``asked`` is the number of images wanted, for the audit, and ``batch`` how many are fed at a time."""

    algorithm: Algorithm
    asked: int
    batch: int = RUN_BATCH


def calibrate(
    model: ir.Model,
    inputs: tuple[TensorSpec, ...],
    spec: ModelSpec,
    dataset: Dataset,
    settings: CalibrationSettings,
    *,
    evaluation: Fingerprints | None = None,
    progress: Progress | None = None,
) -> Ranges:
    """The ranges of an FP32 graph's tensors on these images, and the audit of the images.

    Two passes: the largest magnitudes of channels on the first images, if they are to be equalized, and then, in the graph as it
    will be quantized, the ranges on all of them. Each image is decoded when it is fed, and a batch is in memory at a time.

    Raises CalibrationError: unreadable images above 1 %, a tensor that is not finite (which, and for which image).
    """
    tell = progress or Silent()
    algorithm = settings.algorithm
    audit = Audit(dataset, spec, settings.asked)
    used: list[int] = []

    def feed(note: Callable[[Unreadable], object] | None, count: int) -> Iterator[tuple[dict[str, NDArray[np.generic]], int]]:
        used.clear()
        crops = _noted(read_crops(dataset, spec, note), used, None if note is None else audit)
        yield from batches_of(islice(crops, count), spec, inputs, settings.batch)

    def name_of(position: int) -> str:
        return dataset.name_of(used[position])

    maxima: dict[str, NDArray[np.float32]] = {}
    few = min(EQUALIZING_IMAGES, len(dataset))
    if algorithm.equalize:
        placed = ranged_tensors(model, place(model))
        tell.update(f"channels, on {few} images")
        first = observe(
            model,
            list(placed.values()),
            feed(None, few),
            few,
            method=CalibrationMethod.MINMAX,
            channel_maxima=list(placed.values()),
            name_of=name_of,
        )
        maxima = {key: _channels(first[name].channel_max) for key, name in placed.items()}
    prepared = prepare(model, spec, algorithm, maxima)
    names = ranged_tensors(prepared, place(prepared))
    read = {value.name for node in prepared.graph if node.op_type in ("Conv", "Gemm") for value in node.inputs[:1] if value}
    image = ranged_tensors(model, place(model)).get("input")
    means = {key: name for key, name in names.items() if name in read or key == "input"}
    if PIXELS in read and image is not None:
        means["input"] = image
    done = 0

    def advance(images: int) -> None:
        nonlocal done
        done += images
        tell.update(f"{done} of {len(dataset)} images")

    found = observe(
        prepared,
        list(names.values()),
        feed(audit.skip, len(dataset)),
        len(dataset),
        method=algorithm.method,
        percentile=algorithm.percentile or DEFAULT_PERCENTILE,
        means=list(means.values()),
        advance=advance,
        name_of=name_of,
    )
    ranges = {key: _range(found[name]) for key, name in names.items()}
    report = audit.finish(
        evaluation,
        moved({key: found[name].early_threshold for key, name in names.items()}, {key: ranges[key][2] for key in ranges}),
    )
    return Ranges.of(
        model,
        spec,
        CalibrationData(name=dataset.name, sha256=dataset.digest, images=len(used), random=dataset.random),
        algorithm,
        ranges,
        channel_maxima=maxima,
        channel_means={key: _channels(found[name].channel_mean) for key, name in means.items()},
        audit=report.model_dump(mode="json"),
    )


def _noted(crops: Iterable[tuple[int, object]], used: list[int], audit: Audit | None) -> Iterator[Pixels]:
    """The pixels of the crops, and by the way their places in the data set and what the audit wants of them."""
    from skdeploy.quant.images import Crop

    for index, crop in crops:
        assert isinstance(crop, Crop)
        used.append(index)
        if audit is not None:
            audit.add(index, crop)
        yield crop.pixels


def _range(seen: Observation) -> tuple[float, float, float, float | None]:
    """(minimum, maximum, threshold, shifted threshold); a tensor that was all zero gets the smallest range there is."""
    return (
        seen.minimum,
        seen.maximum,
        _guarded(seen.threshold, seen, SYMMETRIC),
        None if seen.shifted_threshold is None else _guarded(seen.shifted_threshold, seen, SHIFTED),
    )


def _guarded(threshold: float, seen: Observation, levels: int) -> float:
    """No scale may be zero: a percentile can be, where nearly all values are, and then the largest magnitude stands in."""
    return max(threshold or max(-seen.minimum, seen.maximum), levels * SMALLEST_SCALE)


def _channels(values: NDArray[np.float32] | None) -> NDArray[np.float32]:
    assert values is not None  # it was asked for
    return values


def dead_tensors(ranges: Ranges) -> Mapping[str, float]:
    """Tensors that were zero on every image, with the range that guards them."""
    return {name: found.threshold for name, found in ranges.tensors.items() if found.minimum == found.maximum == 0}
