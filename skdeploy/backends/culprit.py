"""The node that a message of a checker or a runtime is about, or that makes numbers that are not finite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

from skdeploy.backends.base import Array
from skdeploy.backends.onnxruntime import OnnxRuntimeSession
from skdeploy.core.packages import require
from skdeploy.ir.large import Portable, is_outside
from skdeploy.ir.onnx_file import PROBLEMS, inside, shown_node

FLOATS: Final = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16})


def about(message: str, proto: ModelProto) -> str:
    """The message in one line, after the node that it is about, with its operator.

    That is the node whose name comes first in it, before those of its inputs, or else the first that ONNX Runtime does not
    load alone. Some messages are about the graph as a whole: they stay as they are.
    """
    text = " ".join(message.split())
    named = [node for node in inside(proto, NodeProto) if node.name and node.name in text]
    first = min(named, key=lambda node: (text.index(node.name), -len(node.name)), default=None)
    node = first or _refused_alone(proto)
    return f"{told(node)}: {text}" if node is not None else text


def told(node: NodeProto) -> str:
    """Name a node for messages about its graph."""
    return f"node {shown_node(node)} ({node.op_type})"


def not_finite(graph: Portable, feeds: Mapping[str, Array], output: str) -> NodeProto | None:
    """The first node on the way to ``output`` that makes the NaN or infinity in it."""
    proto = _typed(graph.proto)
    kinds = {value.name: value.type.tensor_type.elem_type for value in proto.graph.value_info}
    makers = {name: node for node in proto.graph.node for name in node.output if name}
    seen = {name for name in makers if kinds.get(name) in FLOATS}
    proto.graph.output.extend(value for value in proto.graph.value_info if value.name in seen)
    with OnnxRuntimeSession(Portable(proto.SerializeToString(), graph.weights), "cpu", None) as session:
        values = session.run(dict(feeds))
    broken = output
    while broken in makers:
        test = np.isnan if bool(np.isnan(values[broken]).any()) else np.isinf
        before = [name for name in makers[broken].input if name in values and bool(test(values[name]).any())]
        if not before:
            return makers[broken]
        broken = before[0]
    return None


def _refused_alone(proto: ModelProto) -> NodeProto | None:
    try:
        proto = _typed(proto)
    except PROBLEMS:
        return None  # without types, nodes cannot be loaded alone
    ort = require("onnxruntime", extra="cpu")
    options = ort.SessionOptions()
    options.log_severity_level = 4  # the message has been given
    for node, alone in _alone(proto):
        try:
            ort.InferenceSession(alone.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception:  # noqa: BLE001  (ONNX Runtime's exceptions have no common base)
            return node
    return None


def _alone(proto: ModelProto) -> Iterator[tuple[NodeProto, ModelProto]]:
    """Each node of the graph whose inputs' types are known and whose weights are in the model, and a model of it only."""
    graph = proto.graph
    values = {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        inner = [one for one in inside(node, NodeProto) if one is not node]
        read = dict.fromkeys(name for one in (node, *inner) for name in one.input)
        made = {name for one in inner for name in one.output}
        if any(name and name not in values and name not in constants for name in node.input):
            continue
        if any(is_outside(constants[name]) for name in read if name in constants):
            continue
        alone = onnx.helper.make_graph(
            [node],
            "alone",
            [values[name] for name in read if name in values and name not in constants and name not in made],
            [values.get(name, ValueInfoProto(name=name)) for name in node.output if name],
            [constants[name] for name in read if name in constants],
        )
        yield node, onnx.helper.make_model(alone, opset_imports=proto.opset_import, ir_version=proto.ir_version)


def _typed(proto: ModelProto) -> ModelProto:
    """A copy of the model, with the types and shapes that can be inferred."""
    return onnx.shape_inference.infer_shapes(proto, data_prop=True)
