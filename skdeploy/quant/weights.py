"""Weights as INT8: a scale for each output channel, and the bias that makes up for what rounding does to the mean.

The weight of a transposed convolution gets one scale. For a scale a channel, NVIDIA's own words disagree on the axis: its
engineers say that the kernels take one an input channel (TensorRT issues 1694 and 2380) and Model Optimizer writes axis 0,
which no INT8 sum can factor out; ONNX Runtime writes axis 1, the output channels of one group. One scale means the same to all.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from skdeploy.core.errors import CalibrationError
from skdeploy.core.patterns import module_of, modules_pattern
from skdeploy.ir.constants import weight_of
from skdeploy.ir.qdq import QuantizedWeight
from skdeploy.ir.rows import groups_of, output_axis, rows_first, taps_at_a_place
from skdeploy.quant.steps import LARGEST_HALF, SMALLEST_HALF, rounded_step

WEIGHT_MAX: Final = 127  # and -127: a kernel that multiplies by -w needs both
# Scales to try, relative to that of the largest weight. Smaller ones clip, which pays where a channel has thousands of weights;
# with larger ones the few weights of a small kernel may lie nearer to the levels.
RATIOS: Final = np.linspace(1.05, 0.8, 26)
FP32_FALLBACK: Final = "--int8-fallback fp32"
BESIDE_FP32: Final = f"export with {FP32_FALLBACK}, or keep what FP16 does not hold in FP32: --keep-fp32 '"
LARGEST_WEIGHT: Final = WEIGHT_MAX * LARGEST_HALF / float(RATIOS[0])


def quantize_weight(
    node: ir.Node, *, least_error: bool = True, half: bool = True, by_channel: bool = False
) -> QuantizedWeight:
    """The weight of a Conv, Gemm or MatMul as INT8, per output channel; of a ConvTranspose with one, unless ``by_channel``.

    ``least_error`` chooses each channel's scale for the least squared error, from 1.05 to 0.8 of the one that makes its largest
    weight 127; else it is that one. ``half``: scales must be FP16 numbers (``steps.py``).
    Raises CalibrationError where FP16 has no number for the scale: a weight that is too large, or all of them too small.
    """
    array = _stored(node, weight_of(node), by_channel).astype(np.float32)
    rows = _scaled_alike(node, array, by_channel)
    largest = np.abs(rows).max(axis=1)
    if half and (problem := _not_held(node, float(largest.max()))):
        raise CalibrationError(problem, advice=BESIDE_FP32 + modules_pattern([module_of(node.name)]) + "'")
    scales = rounded_step(largest / WEIGHT_MAX, half=half)
    if least_error:
        scales = _least_error(rows, largest, scales, half=half)
    values = _rounded(rows, scales).astype(np.int8)
    if _has_one_scale(node, by_channel):
        return QuantizedWeight(values.reshape(weight_of(node).shape), scales[0], None)
    axis = output_axis(node)
    return QuantizedWeight(np.ascontiguousarray(np.moveaxis(values.reshape(array.shape), 0, axis)), scales, axis)


def weight_not_held(node: ir.Node) -> str:
    """Why FP16 holds no INT8 step for a layer's weights; empty where it does."""
    return _not_held(node, float(np.abs(weight_of(node)).max()))


def _not_held(node: ir.Node, largest: float) -> str:
    if largest > LARGEST_WEIGHT:
        return f"{node.name} has a weight of {largest:.4g}: its INT8 step would be above FP16's largest number"
    if 0 < largest < WEIGHT_MAX * SMALLEST_HALF:
        return f"the weights of {node.name} are at most {largest:.3g}: their INT8 steps are too small for FP16"
    return ""


def raised_rows(node: ir.Node, array: NDArray[np.float64], *, by_channel: bool = False) -> int:
    """How many output channels of a weight have INT8 steps below what FP16 holds; those of zeros have none to lose."""
    largest = np.abs(_scaled_alike(node, _stored(node, array, by_channel), by_channel)).max(axis=1)
    return int(np.count_nonzero((largest > 0) & (largest < WEIGHT_MAX * SMALLEST_HALF)))


def _has_one_scale(node: ir.Node, by_channel: bool) -> bool:
    return node.op_type == "ConvTranspose" and not by_channel


def _stored(node: ir.Node, weight: NDArray[np.float64], by_channel: bool) -> NDArray[np.float64]:
    """With what has one scale first: an output channel; all of it where there is one scale, which stays as it is."""
    return weight if _has_one_scale(node, by_channel) else np.moveaxis(weight, output_axis(node), 0)


def _scaled_alike(node: ir.Node, array: NDArray[Any], by_channel: bool) -> NDArray[Any]:
    """A row for each scale."""
    return array.reshape(1 if _has_one_scale(node, by_channel) else len(array), -1)


def dequantized(weight: QuantizedWeight) -> NDArray[np.float32]:
    """The value of the INT8 weight, in the weight's shape."""
    if weight.axis is None:
        return weight.values.astype(np.float32) * weight.scales
    shape = [1] * weight.values.ndim
    shape[weight.axis] = -1
    return weight.values.astype(np.float32) * weight.scales.reshape(shape)


def mean_change(node: ir.Node, error: NDArray[np.float64], mean: NDArray[np.float32]) -> NDArray[np.float64]:
    """The change of each output channel's mean (O,) from an error of the weight, for inputs of mean (I,).

    E[sum_i e_oi x_i] = sum_i e_oi E[x_i]; the padding of convolutions, where x is zero, is not accounted for. Of a transposed
    convolution, a place of the output gets a share of the kernel's taps, and the mean is that over all places.
    """
    rows = rows_first(node, error)
    taps = rows.reshape(*rows.shape[:2], -1).sum(axis=2) / taps_at_a_place(node)  # (O, I / groups)
    groups = groups_of(node)
    by_group = mean.astype(np.float64).reshape(groups, -1)
    change: NDArray[np.float64] = np.einsum("goi,gi->go", taps.reshape(groups, -1, taps.shape[1]), by_group).reshape(-1)
    return change


def _least_error(
    rows: NDArray[np.float32], largest: NDArray[np.float32], scales: NDArray[np.float32], *, half: bool
) -> NDArray[np.float32]:
    # By a power of two for each row, which is exact: squares of small weights would be zero in float32.
    exponent = -np.frexp(largest)[1]
    rows = np.ldexp(rows, exponent[:, None])
    best = scales
    least = np.full(len(rows), np.inf, np.float32)
    for ratio in RATIOS:
        candidate = rounded_step(ratio * largest / WEIGHT_MAX, half=half)
        step = np.ldexp(candidate, exponent)
        difference = _rounded(rows, step)
        difference *= step[:, None]
        difference -= rows
        error = np.einsum("ij,ij->i", difference, difference)
        better = error < least
        best, least = np.where(better, candidate, best), np.minimum(error, least)
    return best


def _rounded(rows: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    quotient = rows / scales[:, None]
    np.rint(quotient, out=quotient)
    return np.clip(quotient, -WEIGHT_MAX, WEIGHT_MAX, out=quotient)
