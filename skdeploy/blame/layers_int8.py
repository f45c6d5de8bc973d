"""INT8 tensors in the network's own terms: what was taken from them, and what they can hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import onnx_ir as ir

from skdeploy.blame.layers import Pair
from skdeploy.blame.layers_graph import ROUNDED
from skdeploy.ir.constants import array_of
from skdeploy.ir.nodes import maker, operand
from skdeploy.ir.qdq import DEQUANTIZE, INT8_MIN
from skdeploy.parity.cause import Int8Range
from skdeploy.quant.quantize import placed_by, shifts
from skdeploy.quant.ranges import Ranges
from skdeploy.quant.steps import rounded_step

INT8_MAX: Final = 127


def offsets(
    model: ir.Model, ranges: Ranges, keep: Iterable[str], *, keep_grouped: bool, half: bool
) -> dict[str, float]:
    """Return the offset subtracted from each shifted tensor when ``model``, the equalized FP32 graph, was quantized.

    Computed from the ranges and not from the INT8 graph, whose scales may be what is wrong.
    """
    if not ranges.algorithm.shift:
        return {}
    placement = placed_by(model, ranges.algorithm, keep, keep_grouped=keep_grouped)
    return {
        name: shift.offset * float(rounded_step(np.asarray(shift.step), half=half))
        for name, shift in shifts(model, placement, ranges).items()
    }


def int8_range(model: ir.Model, pair: Pair) -> tuple[Int8Range | None, ir.Node | None]:
    """Return the range that an INT8 tensor can hold, in the reference's terms, and the node that quantizes it; None, None for
    another tensor.
    """
    wanted = pair.found.removesuffix(ROUNDED)
    node = next((node for node in model.graph for value in node.outputs if value.name == wanted), None)
    if node is None or node.op_type != DEQUANTIZE:
        return None, None
    step = float(array_of(operand(node, 1)).reshape(-1)[0])
    return Int8Range(INT8_MIN * step + pair.offset, INT8_MAX * step + pair.offset), maker(node.inputs[0])
