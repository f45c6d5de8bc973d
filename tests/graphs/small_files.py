"""ONNX models of a few nodes, and files of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

Shapes = Mapping[str, Sequence[int | str | None] | None]


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Shapes,
    outputs: Shapes,
    constants: Mapping[str, Any] | None = None,
    *,
    dtype: int = TensorProto.FLOAT,
    result: int | None = None,
    opset: int = 19,
) -> ModelProto:
    """A model of these nodes, its inputs of type ``dtype``, its outputs of ``result``; None where a shape is not declared."""
    declared = [
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()]
        for kind, shapes in ((dtype, inputs), (result or dtype, outputs))
    ]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(nodes, "small", *declared, tensors)
    version = 10 if opset >= 21 else 9
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=version)


def save(path: Path, *what: Any, **types: int) -> Path:
    """The file of ``model_of``."""
    onnx.save(model_of(*what, **types), path)
    return path


def write(path: Path, nodes: list[onnx.NodeProto], **constants: object) -> Path:
    """x (n, 3, 4, 4) -> ``nodes`` -> y (n, classes)."""
    return save(path, nodes, {"x": ["n", 3, 4, 4]}, {"y": ["n", None]}, constants)


def node(kind: str, *names: str, name: str = "", **attributes: object) -> onnx.NodeProto:
    """A node that makes the last of ``names`` of the others."""
    *read, made = names
    return helper.make_node(kind, read, [made], name=name or f"the_{made}", **attributes)
