"""The rounding of a network's weights by ``gptq.py``: measured on an INT8 graph, kept as text, and put into another one.

What is kept is how far each integer is from rounding to nearest, which is 0 for most. So a ranges file has all that the INT8
graph needs, whatever stays out of it and whatever the rest of it is.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from skdeploy.core.errors import CalibrationError
from skdeploy.ir.qdq import QuantizedWeight
from skdeploy.ir.rows import groups_of, output_axis
from skdeploy.quant.gptq import round_columns
from skdeploy.quant.weights import WEIGHT_MAX

# Beside FP16 a smaller step is rounded to fewer bits, and the integers of the same weight are others: such rows are rounded to
# nearest, in every graph.
SMALLEST_EXACT: Final = float(np.finfo(np.float16).smallest_normal)
CALIBRATE: Final = "calibrate again: skdeploy calibrate"
DEFLATE: Final = 6  # level 9 saves a tenth of the text, and takes ten times as long

Floats = NDArray[np.float64]


def rounded_weight(node: ir.Node, array: NDArray[Any], nearest: QuantizedWeight, moments: Floats) -> NDArray[np.int8]:
    """The integers of a layer's weight ``array``, in its own shape, with the steps of ``nearest``.

    ``moments`` are those of its inputs, (G, K, K), about what its bias makes up for.
    """
    rows = _to_rows(node, array.astype(np.float64))
    steps = np.broadcast_to(nearest.scales.astype(np.float64).reshape(-1), (rows.shape[0] * rows.shape[1],))
    levels = round_columns(rows, steps.reshape(rows.shape[:2]), moments, WEIGHT_MAX)
    small = steps.reshape(*rows.shape[:2], 1) < SMALLEST_EXACT
    return _from_rows(node, np.where(small, _to_rows(node, nearest.values), levels), array.shape)


def as_text(values: NDArray[np.int8], nearest: QuantizedWeight) -> str:
    """The differences from rounding to nearest: a byte each, modulo 256, deflated, in base 64."""
    difference = values.view(np.uint8) - nearest.values.view(np.uint8)
    return base64.b64encode(zlib.compress(difference.tobytes(), DEFLATE)).decode()


def with_rounding(node: ir.Node, nearest: QuantizedWeight, rounding: Mapping[str, str]) -> QuantizedWeight:
    """The weight of a layer with the integers that a ranges file has for it. Raises CalibrationError if none there fit."""
    text, shape = rounding.get(node.name or ""), nearest.values.shape
    if text is None:
        raise CalibrationError(
            f"the ranges have no rounding of the weight of {node.name}: they were calibrated for other layers",
            advice=f"{CALIBRATE}, or with --weight-rounding nearest",
        )
    try:
        content = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), prod(shape) + 1)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise CalibrationError(
            f"the rounding of {node.name} in the ranges is broken: {error}", advice=CALIBRATE
        ) from error
    if len(content) != prod(shape):
        raise CalibrationError(
            f"the rounding in the ranges is not that of {node.name}, which has {prod(shape):,} weights",
            advice=CALIBRATE,
        )
    values = nearest.values.view(np.uint8) + np.frombuffer(content, np.uint8).reshape(shape)
    return replace(nearest, values=np.maximum(values.view(np.int8), -WEIGHT_MAX))


def _to_rows(node: ir.Node, array: NDArray[Any]) -> NDArray[Any]:
    """A weight as (G, rows, K): what is multiplied with the K inputs of a group."""
    groups = groups_of(node)
    if node.op_type == "ConvTranspose":  # (I, O / G, taps): each tap of an output has a row of its own
        return array.reshape(groups, array.shape[0] // groups, -1).transpose(0, 2, 1)
    rows = array.T if output_axis(node) else array
    return rows.reshape(groups, len(rows) // groups, -1)


def _from_rows(node: ir.Node, rows: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.int8]:
    if node.op_type == "ConvTranspose":
        back = rows.transpose(0, 2, 1).reshape(shape)
    else:
        back = rows.reshape(shape[::-1]).T if output_axis(node) else rows.reshape(shape)
    return np.ascontiguousarray(back, np.int8)
