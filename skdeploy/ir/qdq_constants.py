"""The type of integers that a Q/DQ node of a file has, and the constant that it stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from skdeploy.ir.constants import known
from skdeploy.ir.nodes import maker, operand, optional
from skdeploy.ir.qdq import DEQUANTIZE, QUANTIZE

INT8, UINT8 = ir.DataType.INT8, ir.DataType.UINT8


def kind_of(node: ir.Node) -> ir.DataType | None:
    """The type of the integers: the zero point's, else what is dequantized, else what ONNX says where nothing else does."""
    zero = optional(node, 2)
    if zero is not None:
        return zero.dtype if zero.dtype is not None else ir.DataType.from_numpy(np.asarray(known(zero)).dtype)
    if node.op_type == DEQUANTIZE:
        return operand(node, 0).dtype
    chosen = node.attributes.get_int("output_dtype", 0)
    return ir.DataType(chosen) if chosen else UINT8


def is_constant(value: ir.Value) -> bool:
    """A constant, or one that is quantized."""
    node = maker(value)
    if node is not None and node.op_type == QUANTIZE:
        value = operand(node, 0)
    return known(value) is not None


def dequantized(node: ir.Node) -> NDArray[Any]:
    """The constant that a DequantizeLinear makes; the float one that it was made of, where that is there."""
    source = maker(operand(node, 0))
    if source is not None and source.op_type == QUANTIZE:
        return numbers_of(source.inputs[0])
    integers, scale = numbers_of(node.inputs[0]), numbers_of(node.inputs[1])
    zero = optional(node, 2)
    points = np.zeros(1, np.int64) if zero is None else numbers_of(zero).astype(np.int64)
    shifted = integers.astype(np.int64) - along_axis(node, points, integers.ndim)
    made: NDArray[Any] = shifted.astype(np.float32) * along_axis(node, scale, integers.ndim)
    return made


def along_axis(node: ir.Node, factors: NDArray[Any], rank: int) -> NDArray[Any]:
    """Factors in a shape that broadcasts with what the node reads."""
    if factors.size == 1:
        return factors.reshape(())
    shape = [1] * rank
    shape[node.attributes.get_int("axis", 1)] = -1
    spread: NDArray[Any] = factors.reshape(shape)
    return spread


def numbers_of(value: ir.Value | None) -> NDArray[Any]:
    """The numbers of a value that is known."""
    array = known(value)
    assert array is not None  # callers have asked
    return array
