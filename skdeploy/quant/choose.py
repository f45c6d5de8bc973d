"""Runs the INT8 graph of each calibration method on images held back, one graph after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from skdeploy.backends.logits import outputs_by_batch
from skdeploy.backends.metrics import sqnr_db
from skdeploy.backends.onnxruntime import OnnxRuntimeSession
from skdeploy.core.errors import CalibrationError
from skdeploy.core.progress import Progress
from skdeploy.core.spec import ModelSpec
from skdeploy.images.dataset import Dataset
from skdeploy.images.reading import read_crops
from skdeploy.ir.deciding import with_sources
from skdeploy.ir.large import portable
from skdeploy.ir.qdq import QuantizedWeight
from skdeploy.quant.methods import FALLBACK, FIRST_ROUND, LAST_ROUND, Choice, Round, chosen, ranked
from skdeploy.quant.quantize import quantize
from skdeploy.quant.ranges import Ranges

# Of FP32's outputs that are kept to compare with: 64 images of 512 x 512 x 3 would take 200 MB, and 20 tell as much.
MOST_BYTES: Final = 64 << 20

Outputs = list[NDArray[np.floating]]


def choose(
    model: ir.Model,
    spec: ModelSpec,
    candidates: Mapping[str, Ranges],
    images: Dataset,
    batch: int,
    fitted: int,
    tell: Progress,
) -> tuple[Choice, Mapping[str, QuantizedWeight] | None]:
    """The best of the candidates on images that they were not fitted to, and the weights that all their graphs share.

    Raises CalibrationError for outputs of FP32 that are not finite.
    """
    if not len(images):
        return Choice(method=FALLBACK.method, percentile=FALLBACK.percentile), None
    tell.update(f"FP32 on {len(images)} images held back")
    reference = _outputs(model, spec, images, batch, MOST_BYTES)
    scored = len(reference[0])
    if not all(np.isfinite(values).all() for values in reference):
        raise CalibrationError(
            f"{spec.name} gives outputs in FP32 that are not finite, so no method can be scored by them",
            advice="check the weights with `skdeploy verify`, or choose the method with --calib-method",
        )
    part, whole = FIRST_ROUND
    first = min(scored, -(-part * scored // whole))
    nearest: Mapping[str, QuantizedWeight] | None = None
    found: dict[str, Outputs] = {name: [] for name in candidates}
    rounds: list[Round] = []
    for start, end in ((0, first), (first, scored)):
        if start == end:
            break
        names = ranked(rounds[-1].scores)[:LAST_ROUND] if rounds else list(candidates)
        for name in names:
            tell.update(f"ranges by {name} on images {start + 1} to {end} of {scored} held back")
            made = quantize(model, spec, candidates[name], half=False, nearest=nearest)
            nearest = made.nearest
            more = _outputs(made.model, spec, images.take(range(start, end)), batch, None)
            found[name] = [np.concatenate(pair) for pair in zip(found[name], more, strict=True)] if start else more
        scores = {name: round(score_db([each[:end] for each in reference], found[name]), 2) for name in names}
        rounds.append(Round(images=end, scores=scores))
    return chosen(rounds, fitted), nearest


def _outputs(model: ir.Model, spec: ModelSpec, images: Dataset, batch: int, most: int | None) -> Outputs:
    """The floating-point outputs, and what decides others, in the graph's order, of the first images, until they have ``most``
    bytes.
    """
    parts: list[Outputs] = []
    crops = (crop.pixels for _, crop in read_crops(images, spec))
    with with_sources(model) as sources, OnnxRuntimeSession(portable(model), "cpu", None) as session:
        for outputs, _ in outputs_by_batch(session, crops, spec, batch):
            parts.append([outputs[name] for name in sources.values()])
            if most is not None and sum(values.nbytes for part in parts for values in part) >= most:
                break
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def score_db(reference: Sequence[NDArray[np.floating]], found: Sequence[NDArray[np.floating]]) -> float:
    """The SQNR of outputs in dB: of several outputs, by the mean of their noise to signal, so that large ones do not outweigh
    others.
    """
    noise = [_noise(one, other) for one, other in zip(reference, found, strict=True)]
    return sqnr_db(1.0, float(np.mean(noise)))


def _noise(reference: NDArray[np.floating], found: NDArray[np.floating]) -> float:
    signal = float(np.sum(np.square(reference, dtype=np.float64)))
    error = float(np.sum(np.square(np.subtract(found, reference, dtype=np.float64))))
    return error / max(signal, np.finfo(np.float64).tiny)
