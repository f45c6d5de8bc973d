"""A network whose shape computation runs on the CPU beside a GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from tests.graphs.small_files import model_of

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
    kernel = random.standard_normal((4, 3, 3, 3)).astype(np.float32)
    constants = {"kernel": kernel, "zero": np.array([0]), "rest": np.array([256])}
    model = model_of(nodes, {"images": ("n", 3, 8, 8)}, {"rows": ("n", 256)}, constants)
    onnx.save(onnx.shape_inference.infer_shapes(model) if types else model, path)
    return path


def written(path: Path, graph: str) -> Path:
    """An ONNX file of a graph in ONNX's text form."""
    onnx.save(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 19]> {graph}'), path)
    return path
