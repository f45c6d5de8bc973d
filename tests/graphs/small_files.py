"""ONNX files of a few nodes, named after what they make."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper


def write(path: Path, nodes: list[onnx.NodeProto], **constants: object) -> Path:
    """x (n, 3, 4, 4) -> ``nodes`` -> y (n, classes)."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", None])],
        [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()],
    )
    proto: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    path.write_bytes(proto.SerializeToString())
    return path


def node(kind: str, *names: str, perm: list[int] | None = None) -> onnx.NodeProto:
    return helper.make_node(kind, list(names[:-1]), [names[-1]], name=f"the_{names[-1]}", perm=perm)
