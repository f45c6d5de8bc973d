"""Tiny graphs that can be counted by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper
from onnx.shape_inference import infer_shapes

from skdeploy.planning.plain import Plain, read_plain
from tests.graphs.small_files import model_of


def graph(
    nodes: list[Any], weights: dict[str, Any], shape: tuple[int | str, ...], output: str, *, half: bool = False
) -> ir.Model:
    """A graph from ``x`` to ``output``, with shapes inferred where onnx can."""
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    return ir.from_proto(infer_shapes(model_of(nodes, {"x": shape}, {output: None}, weights, dtype=kind)))


def conv(name: str, source: str, weight: str, **attributes: Any) -> Any:
    return helper.make_node("Conv", [source, weight], [f"{name}_y"], name=name, **attributes)


def node(kind: str, name: str, *inputs: str, **attributes: Any) -> Any:
    return helper.make_node(kind, list(inputs), [f"{name}_y"], name=name, **attributes)


def weight(out: int, into: int, kernel: int = 1) -> Any:
    return np.ones((out, into, kernel, kernel), np.float32)


def plain(model: ir.Model, batch: int | None = None) -> Plain:
    return read_plain(model, "tiny.onnx", batch)


def residual() -> ir.Model:
    """Two 1x1 convolutions of 8 channels on 4x4, the second with the skip and ReLU: x -> a -> relu -> b -> + x -> relu."""
    nodes = [
        conv("net.a/Conv", "x", "wa"),
        node("Relu", "net.r/Relu", "net.a/Conv_y"),
        conv("net.b/Conv", "net.r/Relu_y", "wb"),
        node("Add", "net/Add", "net.b/Conv_y", "x"),
        node("Relu", "net/Relu", "net/Add_y"),
    ]
    return graph(nodes, {"wa": weight(8, 8), "wb": weight(8, 8)}, ("n", 8, 4, 4), "net/Relu_y")
