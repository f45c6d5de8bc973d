"""Weights as INT8: a scale for each output channel, and the bias that makes up for what rounding does to the mean."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from skdeploy.core.errors import CalibrationError
from skdeploy.core.patterns import module_of
from skdeploy.ir.constants import weight_of
from skdeploy.ir.qdq import QuantizedWeight
from skdeploy.passes.equalize import output_axis, rows_first
from skdeploy.quant.steps import LARGEST_HALF, SMALLEST_HALF, rounded_step

WEIGHT_MAX: Final = 127  # and -127: a kernel that multiplies by -w needs both
# Scales to try, relative to that of the largest weight. Smaller ones clip, which pays where a channel has thousands of weights;
# with larger ones the few weights of a small kernel may lie nearer to the levels.
RATIOS: Final = np.linspace(1.05, 0.8, 26)
LARGEST_WEIGHT: Final = WEIGHT_MAX * LARGEST_HALF / float(RATIOS[0])


def quantize_weight(node: ir.Node, *, least_error: bool = True, half: bool = True) -> QuantizedWeight:
    """The weight of a Conv, Gemm or MatMul as INT8, per output channel.

    ``least_error`` chooses each channel's scale for the least squared error, from 1.05 to 0.8 of the one that makes its largest
    weight 127; else it is that one. ``half``: scales must be FP16 numbers (``steps.py``).
    Raises CalibrationError where FP16 has no number for the scale: a weight that is too large, or all of them too small.
    """
    array = rows_first(node, weight_of(node)).astype(np.float32)
    rows = array.reshape(len(array), -1)
    largest = np.abs(rows).max(axis=1)
    if half and largest.max() > LARGEST_WEIGHT:
        raise CalibrationError(
            f"{node.name} has a weight of {largest.max():.4g}: its INT8 step would be above FP16's largest number",
            advice="export with --int8-fallback fp32, or keep this layer out of INT8: --int8-keep "
            f"{module_of(node.name)!r}",
        )
    if half and 0 < largest.max() < WEIGHT_MAX * SMALLEST_HALF:
        raise CalibrationError(
            f"the weights of {node.name} are at most {largest.max():.3g}: their INT8 steps are too small for FP16",
            advice="export with --int8-fallback fp32, or keep this layer out of INT8: --int8-keep "
            f"{module_of(node.name)!r}",
        )
    scales = rounded_step(largest / WEIGHT_MAX, half=half)
    if least_error:
        scales = _least_error(rows, largest, scales, half=half)
    values = _rounded(rows, scales).astype(np.int8).reshape(array.shape)
    axis = output_axis(node)
    return QuantizedWeight(np.ascontiguousarray(values.T) if axis else values, scales, axis)


def raised_rows(node: ir.Node, array: NDArray[np.float64]) -> int:
    """How many output channels of a weight have INT8 steps below what FP16 holds; those of zeros have none to lose."""
    rows = rows_first(node, array)
    largest = np.abs(rows.reshape(len(rows), -1)).max(axis=1)
    return int(np.count_nonzero((largest > 0) & (largest < WEIGHT_MAX * SMALLEST_HALF)))


def dequantized(weight: QuantizedWeight) -> NDArray[np.float32]:
    """The value of the INT8 weight, in the weight's shape."""
    shape = [1] * weight.values.ndim
    shape[weight.axis] = -1
    return weight.values.astype(np.float32) * weight.scales.reshape(shape)


def mean_change(node: ir.Node, error: NDArray[np.float64], mean: NDArray[np.float32]) -> NDArray[np.float64]:
    """The change of each output channel's mean (O,) from an error of the weight, for inputs of mean (I,).

    E[sum_i e_oi x_i] = sum_i e_oi E[x_i]; the padding of convolutions, where x is zero, is not accounted for.
    """
    rows = rows_first(node, error)
    taps = rows.reshape(*rows.shape[:2], -1).sum(axis=2)  # (O, I / groups)
    groups = node.attributes.get_int("group", 1) if node.op_type == "Conv" else 1
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
