"""Shapes that a graph computes from its batch, written as constants."""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_ir as ir

from skdeploy.ir.constants import constant, known
from skdeploy.ir.nodes import maker, operand, operands

Size = int | str  # a number, or the name of a free one


class FoldReshapes(ir.passes.InPlacePass):
    """For x of (N, 64), ``x.reshape(x.shape[0], 2, -1)`` becomes ``x.reshape(0, 2, 32)``, where 0 keeps the batch.

    Shape inference multiplies no free sizes, so what follows has unknown sizes, and slices of it are computed. Legal when

    1. all sizes of x are known but one, which has a name;
    2. of the sizes asked for one has that name, read from the shape of any tensor; at most one is -1; the others are known and
       not 0, which would copy a size of x;
    3. the product of the known sizes is that of x's, with a whole number for -1, and not 0;
    4. 0 has its usual meaning (no ``allowzero``).

    Then the free size is what is left, whatever it is. It is 0 on the axis where x has it, so that shape inference knows it
    again, and -1 on another.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            sizes = _sizes(node)
            if sizes is not None:
                fixed = constant(model.graph, f"{node.outputs[0].name}_sizes", np.array(sizes, np.int64))
                node.replace_input_with(1, fixed)
                modified = True
        return ir.passes.PassResult(model, modified)


def _sizes(node: ir.Node) -> list[int] | None:
    """Return a constant shape for a Reshape whose sizes are computed; None if there is none."""
    if (node.domain, node.op_type) != ("", "Reshape") or node.attributes.get_int("allowzero", 0) != 0:
        return None
    if known(operand(node, 1)) is not None:
        return None
    asked, own = _items(operand(node, 1)), _shape(operand(node, 0))
    if asked is None or own is None:
        return None
    names = [size for size in own if isinstance(size, str)]
    if len(names) != 1 or [size for size in asked if isinstance(size, str)] != names:
        return None
    total = prod(size for size in own if isinstance(size, int))
    numbers = [size for size in asked if isinstance(size, int)]
    product = prod(size for size in numbers if size != -1)
    rest = total // product if product > 0 else 0
    if numbers.count(-1) > 1 or rest * product != total or total == 0 or (-1 not in numbers and rest != 1):
        return None
    kept = 0 if asked.index(names[0]) == own.index(names[0]) else -1
    return [kept if isinstance(size, str) else rest if size == -1 else size for size in asked]


def _items(value: ir.Value) -> list[Size] | None:
    """The elements of a tensor of sizes, one after the other."""
    array = known(value)
    if array is not None:
        return [int(size) for size in array.reshape(-1)]
    node = maker(value)
    if node is None or node.domain != "":
        return None
    match node.op_type:
        case "Shape":
            shape = _shape(operand(node, 0))
            start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(shape or []))
            return None if shape is None else shape[start:end]
        case "Gather":
            of, indices = _items(operand(node, 0)), known(operand(node, 1))
            if of is None or indices is None or any(not -len(of) <= index < len(of) for index in indices.flat):
                return None
            return [of[int(index)] for index in indices.flat]
        case "Squeeze" | "Unsqueeze" | "Reshape" | "Identity":
            return _items(operand(node, 0))
        case "Concat":
            parts = [_items(part) for part in operands(node)]
            return None if None in parts else [size for part in parts for size in part or []]
    return None


def _shape(value: ir.Value) -> list[Size] | None:
    """The sizes of a tensor, if each is known or has a name."""
    if value.shape is None:
        return None
    sizes = [size if isinstance(size, int) else size.value for size in value.shape]
    return None if None in sizes else [size for size in sizes if size is not None]
