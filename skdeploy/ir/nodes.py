"""Nodes of a graph: what they read, and new ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

FLOAT32, FLOAT16, BFLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16


def new_node(
    operator: str,
    inputs: Sequence[ir.Value],
    name: str,
    shape: Iterable[Any] | None,
    dtype: ir.DataType | None = FLOAT32,
    attributes: Mapping[str, Any] | None = None,
) -> ir.Node:
    """A node with one output, which has the node's name. It is in no graph yet."""
    output = ir.val(name, dtype, None if shape is None else ir.Shape(shape))
    return ir.node(operator, inputs, attributes, outputs=[output], name=name)


def operand(node: ir.Node, index: int) -> ir.Value:
    """An input that ONNX requires of the node, or that the caller has seen."""
    value = node.inputs[index]
    assert value is not None
    return value


def optional(node: ir.Node, index: int) -> ir.Value | None:
    """An input that may be left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def operands(node: ir.Node) -> list[ir.Value]:
    """The inputs that are not left out."""
    return [value for value in node.inputs if value is not None]


def maker(value: ir.Value | None) -> ir.Node | None:
    """The node that makes a value; None for inputs, constants, and inputs of a node that are left out."""
    return None if value is None else value.producer()


def only_one_reads(value: ir.Value) -> bool:
    """Whether one input of one node reads the value, and nobody outside the graph."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def is_point(value: ir.Value) -> bool:
    """Whether a value is (N, C, 1, 1)."""
    return value.shape is not None and len(value.shape) == 4 and tuple(value.shape[2:]) == (1, 1)


def integers(node: ir.Node, index: int, attribute: str) -> list[int] | None:
    """A list that opsets moved from an attribute to an input; empty if there is neither, None if it is computed."""
    value = optional(node, index)
    if attribute in node.attributes or value is None:
        return list(node.attributes.get_ints(attribute, []))
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else [int(item) for item in np.atleast_1d(tensor.numpy())]
