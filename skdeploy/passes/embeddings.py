"""Sees from an ONNX file that it gives embeddings: its first output is divided by its own length."""

from __future__ import annotations

from typing import Final

from onnx import ModelProto, NodeProto

# What exporters put between a length and the division: a smallest length, and the shape of what is divided.
BETWEEN: Final = frozenset({"Clip", "Max", "Add", "Expand", "Identity", "Unsqueeze", "Reshape", "Cast"})


def is_normalised(proto: ModelProto) -> bool:
    """Whether the first output is an L2 normalisation: LpNormalization, or x / ReduceL2(x) as torch exports it."""
    makers = {name: node for node in proto.graph.node for name in node.output}
    name = proto.graph.output[0].name if proto.graph.output else ""
    last = makers.get(name)
    while last is not None and last.op_type == "Identity":
        last = makers.get(last.input[0])
    if last is None:
        return False
    if last.op_type == "LpNormalization":
        return _attribute(last, "p", 2) == 2
    if last.op_type != "Div":
        return False
    length = makers.get(last.input[1])
    while length is not None and length.op_type in BETWEEN:
        length = makers.get(length.input[0])
    return length is not None and length.op_type == "ReduceL2" and length.input[0] == last.input[0]


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((int(each.i) for each in node.attribute if each.name == name), default)
