"""Sums with zero and products with one: Python's ``sum()`` begins with zero, and exporters leave it in the graph."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir

NEUTRAL: Final = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0}


class DropIdentities(ir.passes.InPlacePass):
    """Takes away ``x + 0``, ``0 + x``, ``x - 0``, ``x * 1``, ``1 * x`` and ``x / 1``.

    The function is the same to the bit, but for the sign of a zero: -0 + 0 is +0. Legal when

    1. every element of the constant is the neutral one, and for Sub and Div it is the second operand;
    2. the constant has one element and no more dimensions than x, or both shapes are known and x has the result's: so nothing
       is broadcast, and the shape stays;
    3. the result is no output of the graph, whose name would go.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            kept = _kept(node)
            if kept is None or node.outputs[0].is_graph_output():
                continue
            node.outputs[0].replace_all_uses_with(kept)
            model.graph.remove(node, safe=True)
            modified = True
        return ir.passes.PassResult(model, modified)


def _kept(node: ir.Node) -> ir.Value | None:
    """The operand that is the result."""
    neutral = NEUTRAL.get(node.op_type) if node.domain == "" else None
    if neutral is None or len(node.inputs) != 2:
        return None
    first, second = node.inputs
    pairs = [(first, second)] if node.op_type in ("Sub", "Div") else [(first, second), (second, first)]
    for value, constant in pairs:
        if value is None or constant is None or constant.const_value is None or constant.is_graph_input():
            continue
        array = constant.const_value.numpy()
        if array.size and bool(np.all(array == neutral)) and _keeps_shape(value, array.shape, node.outputs[0]):
            return value
    return None


def _keeps_shape(value: ir.Value, constant: tuple[int, ...], result: ir.Value) -> bool:
    if value.shape is None:
        return False
    if all(size == 1 for size in constant):
        return len(constant) <= len(value.shape)
    known = all(isinstance(size, int) for size in value.shape)
    return known and result.shape is not None and tuple(value.shape) == tuple(result.shape)
