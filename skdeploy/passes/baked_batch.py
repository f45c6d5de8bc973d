"""The node that bakes the batch of the exporter's example into a graph: a constant shape whose first size is a number."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from skdeploy.ir.large import is_outside


def baking_node(proto: ModelProto) -> tuple[NodeProto, list[int]] | None:
    """The first Reshape or Expand of what the input makes to a constant shape that fixes the batch, with that shape.

    A Reshape does where no size is open: neither 0, the size that was there, nor -1, the rest. An Expand does with a first size
    above 1. None if the graph has no such node.
    """
    shapes = dict(_lists(proto))
    moving = {value.name for value in proto.graph.input} - {tensor.name for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if not moving.intersection(node.input):
            continue
        moving.update(node.output)
        if node.op_type not in ("Reshape", "Expand") or len(node.input) < 2 or node.input[0] not in moving:
            continue
        shape = shapes.get(node.input[1], [])
        if not shape:
            continue
        if shape[0] > 1 if node.op_type == "Expand" else all(size > 0 for size in shape):
            return node, shape
    return None


def _lists(proto: ModelProto) -> Iterator[tuple[str, list[int]]]:
    """The constant lists of integers, by name."""
    tensors = [(tensor.name, tensor) for tensor in proto.graph.initializer]
    for node in proto.graph.node:
        if node.op_type == "Constant":
            tensors += [(node.output[0], each.t) for each in node.attribute if each.name == "value"]
            yield from ((node.output[0], list(each.ints)) for each in node.attribute if each.name == "value_ints")
    for name, tensor in tensors:
        if tensor.data_type == TensorProto.INT64 and len(tensor.dims) == 1 and not is_outside(tensor):
            yield name, numpy_helper.to_array(tensor).tolist()
