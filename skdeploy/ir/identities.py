"""Remove what no runtime needs: sums with zero, as Python's ``sum()`` begins, and known sizes."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from skdeploy.ir.constants import constant
from skdeploy.ir.nodes import maker

NEUTRAL: Final = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0}


class DropIdentities(ir.passes.InPlacePass):
    """Takes away ``x + 0``, ``0 + x``, ``x - 0``, ``x * 1``, ``1 * x``, ``x / 1``, and a Transpose that undoes the one before.

    The function is the same to the bit, but for the sign of a zero: -0 + 0 is +0. Legal when

    1. every element of the constant is the neutral one, and for Sub and Div it is the second operand;
    2. the constant has one element and no more dimensions than x, or both shapes are known and x has the result's: so nothing
       is broadcast, and the shape stays;
    3. the result is not an output of the graph, whose name would go.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            kept = _kept(node)
            if kept is not None and not node.outputs[0].is_graph_output():
                before = maker(node.inputs[0]) if node.op_type == "Transpose" else None
                node.outputs[0].replace_all_uses_with(kept)
                model.graph.remove(node, safe=True)
                if before is not None and not before.outputs[0].uses() and not before.outputs[0].is_graph_output():
                    model.graph.remove(before, safe=True)
                modified = True
        return ir.passes.PassResult(model, modified)


class FoldKnownSizes(ir.passes.InPlacePass):
    """A size that is read from a shape becomes a constant: ``x.shape[2]``, where only the batch is free.

    Constant folding knows whole shapes only. A Gather of a Shape is replaced where

    1. the rank of the Shape's input is known, and the Shape takes all of it (no ``start``, no ``end``);
    2. the Gather's indices are constant and none is out of bounds;
    3. each size that it takes is known;
    4. the result is not an output of the graph, whose name would go.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            sizes, old = _known_sizes(node), node.outputs[0]
            if sizes is not None:
                old.replace_all_uses_with(constant(model.graph, f"{old.name}_known", sizes))
                model.graph.remove(node, safe=True)
                modified = True
        return ir.passes.PassResult(model, modified)


def _known_sizes(node: ir.Node) -> NDArray[np.int64] | None:
    if node.op_type != "Gather" or node.domain != "" or node.outputs[0].is_graph_output():
        return None
    of, taken = node.inputs
    shape = maker(of)
    tensor = None if taken is None else ir.convenience.get_const_tensor(taken)
    if shape is None or (shape.domain, shape.op_type) != ("", "Shape") or shape.attributes or tensor is None:
        return None
    whole = shape.inputs[0]
    dims, indices = None if whole is None else whole.shape, tensor.numpy()
    if dims is None or any(not -len(dims) <= index < len(dims) for index in indices.flat):
        return None
    sizes = [size for index in indices.flat if isinstance(size := dims[int(index)], int)]
    return np.array(sizes, np.int64).reshape(indices.shape) if len(sizes) == indices.size else None


def _kept(node: ir.Node) -> ir.Value | None:
    """The value that is the result: an operand, or what a Transpose before has turned."""
    if (node.op_type, node.domain) == ("Transpose", ""):
        return _turned_back(node)
    neutral = NEUTRAL.get(node.op_type) if node.domain == "" else None
    if neutral is None or len(node.inputs) != 2:
        return None
    first, second = node.inputs
    pairs = [(first, second)] if node.op_type in ("Sub", "Div") else [(first, second), (second, first)]
    for value, other in pairs:
        if value is None or other is None or other.const_value is None or other.is_graph_input():
            continue
        array = other.const_value.numpy()
        if array.size and bool(np.all(array == neutral)) and _keeps_shape(value, array.shape, node.outputs[0]):
            return value
    return None


def _turned_back(node: ir.Node) -> ir.Value | None:
    before = maker(node.inputs[0])
    if before is None or (before.op_type, before.domain) != ("Transpose", ""):
        return None
    first, second = (each.attributes.get_ints("perm", ()) for each in (before, node))
    undone = len(first) == len(second) > 0 and all(first[axis] == index for index, axis in enumerate(second))
    return before.inputs[0] if undone else None


def _keeps_shape(value: ir.Value, constant: tuple[int, ...], result: ir.Value) -> bool:
    if value.shape is None:
        return False
    if all(size == 1 for size in constant):
        return len(constant) <= len(value.shape)
    known = all(isinstance(size, int) for size in value.shape)
    return known and result.shape is not None and tuple(value.shape) == tuple(result.shape)
