"""GroupNormalization in operators that every opset, runtime and compiler has.

ONNX defined it twice. Opset 18 has a scale and a bias per group, which no framework trains, so it is deprecated and no checker
takes it; opset 21 has them per channel. Exporters have also written per-channel numbers into files of opset 18 to 20: what they
meant is plain from the count. Both become

    Reshape (N, groups, values) -> InstanceNormalization -> Reshape to the shape of X -> Mul -> Add

which is ONNX's own definition of it: InstanceNormalization of a group as one channel normalises over the group. Numbers per
group are InstanceNormalization's own scale and bias, and need no Mul and Add.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, numpy_helper

from skdeploy.core.errors import ExportError

NAME: Final = "GroupNormalization"
PER_CHANNEL: Final = 21  # the first opset with numbers per channel
EPSILON: Final = 1e-5  # of both definitions, where the node does not say
Sizes = list[int | None]


def replace_group_normalization(proto: ModelProto, path: Path) -> None:
    """Replaces each GroupNormalization of the graph. Raises ExportError, naming the node, for one without a meaning."""
    graphs = [graph for graph in _graphs(proto.graph) if any(node.op_type == NAME for node in graph.node)]
    if not graphs:
        return
    opset = max(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    shapes = _shapes(proto)
    names = {name for graph in _graphs(proto.graph) for name in _names(graph)}
    for graph in graphs:
        nodes: list[NodeProto] = []
        for node in graph.node:
            nodes += _replaced(node, graph, shapes, names, opset, path) if node.op_type == NAME else [node]
        del graph.node[:]
        graph.node.extend(nodes)


def _replaced(
    node: NodeProto, graph: GraphProto, shapes: dict[str, Sizes], names: set[str], opset: int, path: Path
) -> list[NodeProto]:
    read, scale, bias = node.input
    attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    groups, epsilon = attributes["num_groups"], attributes.get("epsilon", EPSILON)
    sizes = shapes.get(read, [])
    shown = f"{path}: the node {node.name or node.output[0]} ({NAME})"
    if len(sizes) < 3 or not isinstance(sizes[1], int):
        raise ExportError(
            f"{shown} reads {read}, whose number of channels is not known", advice="export it with fixed channels"
        )
    channels = sizes[1]
    counts = [shapes.get(name, [None])[0] for name in (scale, bias)]
    by_group = counts == [groups, groups] and opset < PER_CHANNEL
    if channels % groups or not (by_group or counts == [channels, channels]):
        raise ExportError(
            f"{shown} has {groups} groups, {channels} channels, and scale and bias of "
            f"{' and '.join(str(length or 'unknown') for length in counts)} values",
            advice=f"export it again with scale and bias per channel, in opset {PER_CHANNEL} or later",
        )
    made = node.output[0]
    parts: list[NodeProto] = []

    def free(wanted: str) -> str:
        name = next(name for number in count() if (name := f"{made}_{wanted}{number or ''}") not in names)
        names.add(name)
        return name

    def constant(wanted: str, array: np.ndarray) -> str:
        graph.initializer.append(numpy_helper.from_array(array, free(wanted)))
        return graph.initializer[-1].name

    def add(operator: str, *inputs: str, output: str = "", **given: Any) -> str:
        part = onnx.helper.make_node(operator, inputs, [output or free(operator)], **given)
        scope, slash, _ = node.name.rpartition("/")
        part.name = f"{scope}{slash}{operator}" if slash else free(operator)
        part.metadata_props.extend(node.metadata_props)
        parts.append(part)
        return str(part.output[0])

    grouped = add("Reshape", read, constant("grouped", np.array([0, groups, -1])))
    kind = np.float32
    factors = (
        (scale, bias)
        if by_group
        else (constant("one", np.ones(groups, kind)), constant("zero", np.zeros(groups, kind)))
    )
    normal = add("InstanceNormalization", grouped, *factors, epsilon=epsilon)
    free_sizes = [size for size in sizes[1:] if size is None]
    if len(free_sizes) > 1:
        shape = add("Shape", read)
    else:
        shape = constant("shape", np.array([0, *(-1 if size is None else size for size in sizes[1:])]))
    if by_group:
        add("Reshape", normal, shape, output=made)
        return parts
    normal = add("Reshape", normal, shape)
    column = constant("column", np.array([-1, *[1] * (len(sizes) - 2)]))
    scaled = add("Mul", normal, add("Reshape", scale, column))
    add("Add", scaled, add("Reshape", bias, column), output=made)
    return parts


def _shapes(proto: ModelProto) -> dict[str, Sizes]:
    """The known sizes of all tensors, None for those that are free: GroupNormalization keeps the shape of X."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    for graph in _graphs(copy.graph):
        for node in graph.node:
            if node.op_type == NAME:
                node.op_type = "Identity"
                del node.input[1:]
                del node.attribute[:]
    found = onnx.shape_inference.infer_shapes(copy)
    shapes: dict[str, Sizes] = {}
    for graph in _graphs(found.graph):
        for value in (*graph.input, *graph.value_info, *graph.output):
            if value.type.tensor_type.HasField("shape"):
                dims = value.type.tensor_type.shape.dim
                shapes[value.name] = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
        shapes.update({tensor.name: list(tensor.dims) for tensor in graph.initializer})
    return shapes


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def _names(graph: GraphProto) -> Iterator[str]:
    yield from (value.name for value in graph.input)
    yield from (tensor.name for tensor in graph.initializer)
    for node in graph.node:
        yield node.name
        yield from node.output
