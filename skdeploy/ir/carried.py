"""Nodes that carry integers on: each value that they give comes from one value that they read, and the graph says which."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from skdeploy.ir.nodes import integers, operand, operands

Array = NDArray[Any]
Move = Callable[[Array], Array]

# They keep the order of the values; only the shape changes.
RESHAPES: Final = frozenset({"Squeeze", "Unsqueeze", "Reshape", "Flatten", "Identity", "Cast"})
ARRANGES: Final = frozenset({"Transpose", "Gather", "Slice"})
# Value by value. Where other operands are constants, what one value gives depends on that value alone.
BY_VALUE: Final = frozenset(
    {"Not", "Neg", "Abs", "Sign", "Clip", "Add", "Sub", "Mul", "Div", "Mod", "Min", "Max", "Equal", "Greater", "Less"}
    | {"GreaterOrEqual", "LessOrEqual", "And", "Or", "Xor", "Where", "Round", "Floor", "Ceil"}
)


class NotCarriedError(Exception):
    """A node that makes a value of several, or of one that the graph does not tell; its text says why."""


def source_and_move(node: ir.Node, *, shape_matters: bool) -> tuple[ir.Value, Move]:
    """The tensor whose values a node carries on, and the same change of place for an array of that tensor's shape.

    The array stands for the values: where they land, and not what becomes of them. ``shape_matters``: what follows needs the
    shape that the node gives, and not only the order. Raises NotCarriedError.
    """
    read = [value for value in operands(node) if ir.convenience.get_const_tensor(value) is None]
    if node.op_type == "Reshape":
        read = read[:1]  # its shape may be computed: what matters is the one that the graph shows
    if len(set(read)) != 1:
        raise NotCarriedError(f"{_shown(node)} makes values of {len(set(read))} tensors")
    if node.op_type in RESHAPES:
        return read[0], _reshaped(node, shape_matters=shape_matters)
    if node.op_type in BY_VALUE:
        return read[0], _broadcast(node)
    if node.op_type == "Transpose":
        order = list(node.attributes.get_ints("perm", []))
        return read[0], lambda array: array.transpose(order or None)
    if node.op_type == "Gather":
        return read[0], _gathered(node, read[0])
    if node.op_type == "Slice":
        return read[0], _sliced(node)
    raise NotCarriedError(f"{_shown(node)} lies between it and the numbers that decide")


def _reshaped(node: ir.Node, *, shape_matters: bool) -> Move:
    if not shape_matters or node.op_type in ("Identity", "Cast"):
        return lambda array: array
    shape = node.outputs[0].shape
    sizes = [] if shape is None else [size if isinstance(size, int) else -1 for size in shape]
    if shape is None or sizes.count(-1) > 1:
        raise NotCarriedError(f"the graph does not say what shape {_shown(node)} gives")
    return lambda array: array.reshape(sizes)


def _broadcast(node: ir.Node) -> Move:
    """Of values that constants are broadcast to, or that are broadcast to a larger constant."""
    constants = [ir.convenience.get_const_tensor(value) for value in operands(node)]
    shapes = [tuple(constant.numpy().shape) for constant in constants if constant is not None]
    return lambda array: np.broadcast_to(array, np.broadcast_shapes(array.shape, *shapes))


def _gathered(node: ir.Node, read: ir.Value) -> Move:
    """Chosen values; or with the values as indices what a constant table has for them, as a colour for each class."""
    axis = node.attributes.get_int("axis", 0)
    if read is node.inputs[0]:
        indices = _constant(node, 1)
        return lambda array: np.take(array, indices, axis)
    table = _constant(node, 0)
    before, after = table.shape[:axis] if axis >= 0 else (), table.shape[axis % table.ndim + 1 :]
    if before or axis % table.ndim:
        raise NotCarriedError(f"{_shown(node)} reads a table along its axis {axis}")
    return lambda array: np.broadcast_to(array.reshape((*array.shape, *(1 for _ in after))), (*array.shape, *after))


def _sliced(node: ir.Node) -> Move:
    starts, ends = integers(node, 1, "starts"), integers(node, 2, "ends")
    if not starts or not ends:
        raise NotCarriedError(f"{_shown(node)} computes which part it takes")
    axes, steps = integers(node, 3, "axes"), integers(node, 4, "steps")
    if axes is None or steps is None:
        raise NotCarriedError(f"{_shown(node)} computes which part it takes")
    axes, steps = axes or list(range(len(starts))), steps or [1] * len(starts)

    def part(array: Array) -> Array:
        found: list[slice] = [slice(None)] * array.ndim
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            size = array.shape[axis]
            # ONNX counts below 0 from the end, as Python does; with a negative step, an end beyond the first is before it.
            stop = None if step < 0 and end < -size else end
            found[axis] = slice(start, stop, step)
        return array[tuple(found)]

    return part


def _constant(node: ir.Node, index: int) -> Array:
    tensor = ir.convenience.get_const_tensor(operand(node, index))
    if tensor is None:
        raise NotCarriedError(f"{_shown(node)} computes which values it takes")
    return tensor.numpy()


def _shown(node: ir.Node) -> str:
    return f"the node {node.name} ({node.op_type})" if node.name else f"a node {node.op_type}"
