"""A layer's weight by its output channels: where they are, and the weight with them first."""

from __future__ import annotations

from math import prod
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

CONVOLUTIONS: Final = frozenset({"Conv", "ConvTranspose"})
WEIGHTED: Final = CONVOLUTIONS | {"Gemm", "MatMul"}


def groups_of(node: ir.Node) -> int:
    return node.attributes.get_int("group", 1) if node.op_type in CONVOLUTIONS else 1


def output_axis(node: ir.Node) -> int:
    """The axis of a weight's output channels: 1 for a MatMul's, and a Gemm's without transB, which are (I, O); and for a
    ConvTranspose's, (I, O / groups, ...), where it has those of one group.
    """
    if node.op_type == "Gemm":
        return int(not node.attributes.get_int("transB", 0))
    return int(node.op_type in ("MatMul", "ConvTranspose"))


def rows_first(node: ir.Node, weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weight with its output channels first: (O, I / groups, ...), as a convolution has it."""
    if node.op_type == "ConvTranspose":
        groups = groups_of(node)
        inputs, outputs, *kernel = weight.shape
        by_group = weight.reshape(groups, inputs // groups, outputs, *kernel)
        return np.moveaxis(by_group, 2, 1).reshape(groups * outputs, inputs // groups, *kernel)
    return weight.T if output_axis(node) else weight


def along_inputs(node: ir.Node, shape: tuple[int, ...], factors: NDArray[Any]) -> NDArray[Any]:
    """A factor for each input channel of a layer (I,), in a shape that broadcasts with its weight."""
    if node.op_type == "Conv":
        by_group = factors.reshape(groups_of(node), -1)
        return _spread(np.repeat(by_group, shape[0] // groups_of(node), axis=0), shape)  # (O, I / groups)
    return _spread(factors[:, None], shape) if output_axis(node) else factors[None, :]


def along_outputs(node: ir.Node, shape: tuple[int, ...], factors: NDArray[Any]) -> NDArray[Any]:
    """A factor for each output channel of a layer (O,), in a shape that broadcasts with its weight."""
    if node.op_type == "ConvTranspose":
        by_group = factors.reshape(groups_of(node), -1)
        return _spread(np.repeat(by_group, shape[0] // groups_of(node), axis=0), shape)  # (I, O / groups)
    return factors[None, :] if output_axis(node) else _spread(factors[:, None], shape)


def taps_at_a_place(node: ir.Node) -> int:
    """By how much a kernel's taps must be divided to have those that meet in one place of the output, on average.

    A transposed convolution of stride s writes each input to s times as many places in each direction.
    """
    return prod(node.attributes.get_ints("strides", [1])) if node.op_type == "ConvTranspose" else 1


def _spread(factors: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    return factors.reshape(*factors.shape, *[1] * (len(shape) - factors.ndim))
