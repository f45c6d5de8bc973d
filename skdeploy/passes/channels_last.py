"""Selects with the channels last, as Keras and tf2onnx write them, turned to channels first for the rest of the line."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from skdeploy.ir.constants import Names, constant
from skdeploy.ir.nodes import integers
from skdeploy.passes.labels import Form
from skdeploy.passes.moves import in_order


def first_to_last(rank: int) -> list[int]:
    """The order of axes that makes (N, H, W, C) of (N, C, H, W)."""
    return [0, *range(2, rank), 1]


def last_to_first(rank: int) -> list[int]:
    """The order of axes that makes (N, C, H, W) of (N, H, W, C)."""
    return [0, rank - 1, *range(1, rank - 1)]


def has_channels_last(form: Form) -> bool:
    """Whether its last axis, and no other but the batch, is not one of a map's sizes."""
    return form.spatial == tuple(range(1, len(form.shape) - 1))


def with_channels_first(form: Form) -> Form:
    """(N, C, H, W) of (N, H, W, C)."""
    order = last_to_first(len(form.shape))
    return in_order(form, order, tuple(form.shape[axis] for axis in order))


def is_only_turned(value: ir.Value) -> bool:
    """Whether all that reads it is a Transpose to channels first, so that the search finds it there."""
    rank = len(value.shape) if value.shape is not None else 0
    return not value.is_graph_output() and all(_turns(node, rank) for node, _ in value.uses())


def turn(model: ir.Model, value: ir.Value) -> None:
    """Put a Transpose to channels first behind ``value``, and one back before all that reads it.

    Those that turn it to channels first themselves go, and a mean over all pixels reads channels first, so that the second
    Transpose is needed by other operators only. ``value`` is not an output of the graph.
    """
    producer, shape = value.producer(), value.shape
    assert producer is not None  # it is computed
    assert shape is not None  # shapes were inferred at reading
    rank, names = len(shape), Names(model.graph)
    first_name, last_name = (names.free(f"{value.name}_{which}") for which in ("channels_first", "channels_last"))
    order, uses = last_to_first(rank), list(value.uses())
    turned = ir.val(first_name, value.dtype, ir.Shape([shape[axis] for axis in order]))
    back = ir.val(last_name, value.dtype, shape)
    nodes = [
        ir.node("Transpose", [value], {"perm": order}, outputs=[turned], name=first_name),
        ir.node("Transpose", [turned], {"perm": first_to_last(rank)}, outputs=[back], name=last_name),
    ]
    model.graph.insert_after(producer, nodes)
    for node, index in uses:
        made = node.outputs[0]
        if _turns(node, rank) and not made.is_graph_output():
            made.replace_all_uses_with(turned)
        elif _is_mean_of_pixels(node, rank):
            node.replace_input_with(0, turned)
            axes = np.arange(2, rank, dtype=np.int64)
            node.replace_input_with(1, constant(model.graph, f"{made.name}_axes", axes))
        else:
            node.replace_input_with(index, back)


def _turns(node: ir.Node, rank: int) -> bool:
    return node.op_type == "Transpose" and list(node.attributes.get_ints("perm", ())) == last_to_first(rank)


def _is_mean_of_pixels(node: ir.Node, rank: int) -> bool:
    """Whether it gives (N, C), whose axes no longer say where the pixels were. Of opset 18 or later, with axes as an input."""
    if node.op_type != "ReduceMean" or len(node.inputs) < 2 or node.attributes.get_int("keepdims", True):
        return False
    axes = integers(node, 1, "axes") or []
    return sorted(axis % rank for axis in axes) == list(range(1, rank - 1))
