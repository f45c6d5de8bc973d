"""Measures the rounding of all INT8 weights on calibration images, for a ranges file."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from skdeploy.core import cpu
from skdeploy.core.progress import Progress
from skdeploy.core.spec import ModelSpec
from skdeploy.images.reading import ahead
from skdeploy.ir.constants import weight_of
from skdeploy.ir.nodes import operand
from skdeploy.passes.exact_input import MIDDLE, PIXELS
from skdeploy.quant.blas import one_thread
from skdeploy.quant.moments import Batches, Moments, Rows, rows_in_turn
from skdeploy.quant.observe import MOST_WORKERS
from skdeploy.quant.quantize import CORRECTED, Quantized, Shared, quantize
from skdeploy.quant.ranges import Ranges
from skdeploy.quant.rounding import as_text, rounded_weight

# 96 were tried, and add nothing: on the four references the SQNR of the default is 0.01 to 0.14 dB better with 48.
ROUNDING_IMAGES: Final = 48


def measure_rounding(
    model: ir.Model,
    spec: ModelSpec,
    ranges: Ranges,
    batches: Batches,
    images: int,
    shared: Shared,
    tell: Progress,
) -> dict[str, str]:
    """The rounding of each weight that can be INT8, by the layer's name. ``ranges`` are those of rounding to nearest."""
    tell.update(f"rounds weights by {images} images")
    made = quantize(model, spec, ranges, half=False, shared=shared)
    nodes = {node.name or "": node for node in shared.prepared.graph}

    def rounded(found: tuple[str, Rows]) -> tuple[str, str]:
        name, rows = found
        node, nearest = nodes[name], shared.nearest[name]
        levels = rounded_weight(node, weight_of(node), nearest, second_moments(node, rows.moments()))
        return name, as_text(levels, nearest)

    def second_moments(node: ir.Node, moments: Moments) -> NDArray[np.float64]:
        """About what the layer's bias makes up for."""
        if ranges.algorithm.bias_correction and node.op_type in CORRECTED:
            return moments.covariance
        return moments.about(_zero(node, made, moments, spec))

    every = rows_in_turn(made.model, made.placement.weighted, batches, images)
    workers = min(cpu.cores(), MOST_WORKERS)
    # Layers are rounded beside each other: much of it is work of one thread, and none depends on another.
    with one_thread():
        return dict(ahead(rounded, every, workers, workers))


def _zero(node: ir.Node, made: Quantized, moments: Moments, spec: ModelSpec) -> NDArray[np.float64]:
    """The integers that stand for zero in what a layer reads, (G, K)."""
    name = operand(node, 0).name or ""
    zero = np.zeros(moments.sums.shape)
    if name == PIXELS:
        mean = 255 * np.asarray(spec.preprocess.mean, np.float64) - MIDDLE
        return zero + np.repeat(mean, zero.size // len(mean))  # of one group
    return zero - (round(made.offsets[name] / made.scales[name]) if name in made.offsets else 0)
