"""A network whose shape computation runs on the CPU beside a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

AZURE = "AzureExecutionProvider"


def network(path: Path, *, named: bool = True, types: bool = True) -> Path:
    """images (n, 3, 8, 8): a convolution, ReLU, and a Reshape to (n, 256) whose shape is computed from the batch."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["images", "kernel"], ["a"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Shape", ["b"], ["s"], name="shape"),
        helper.make_node("Gather", ["s", "zero"], ["n"], name="batch"),
        helper.make_node("Concat", ["n", "rest"], ["target"], name="target", axis=0),
        helper.make_node("Reshape", ["b", "target"], ["rows"], name="reshape"),
    ]
    if not named:
        for node in nodes:
            node.ClearField("name")
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ("n", 3, 8, 8))],
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, ("n", 256))],
        [
            numpy_helper.from_array(random.standard_normal((4, 3, 3, 3)).astype(np.float32), "kernel"),
            numpy_helper.from_array(np.array([0], np.int64), "zero"),
            numpy_helper.from_array(np.array([256], np.int64), "rest"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(model) if types else model, path)
    return path
