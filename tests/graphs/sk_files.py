"""A classifier with one selective kernel as an ONNX file of any opset, written by hand: no exporter, no names of modules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

CLASSES, SIDE, WIDTH = 5, 16, 8


def classifier(
    opset: int, *, batch: int | str = "N", norm: int = 0, squeeze: bool = False, activation: str = "Relu"
) -> ModelProto:
    """x (batch, 3, 16, 16) -> y (batch, 5).

    ``norm``: a GroupNormalization of two groups with scale and bias of so many values. ``squeeze``: the maps are made rows by a
    Squeeze without axes. ``activation``: of the first layer.
    """
    made = _Made(opset)
    features = made.node("Conv", "x", made.weight(WIDTH, 3, 3, 3), pads=[1] * 4)
    if norm:
        features = made.node("GroupNormalization", features, made.weight(norm), made.weight(norm), num_groups=2)
    features = made.node(activation, features)
    branches = [
        made.node("Relu", made.node("Conv", features, made.weight(WIDTH, WIDTH, 3, 3), pads=[d] * 4, dilations=[d] * 2))
        for d in (1, 2)
    ]
    pooled = made.node("GlobalAveragePool", made.node("Add", *branches))
    narrow = made.node("Relu", made.node("Conv", pooled, made.weight(4, WIDTH, 1, 1)))
    rows = [made.axis("Unsqueeze", made.node("Conv", narrow, made.weight(WIDTH, 4, 1, 1))) for _ in branches]
    gates = made.softmax(made.node("Concat", *rows, axis=1))
    chosen = [
        made.node("Mul", branch, made.axis("Squeeze", made.part(gates, index))) for index, branch in enumerate(branches)
    ]
    pooled = made.node("GlobalAveragePool", made.node("Add", *chosen))
    flat = made.node("Squeeze" if squeeze else "Flatten", pooled)
    made.node("Gemm", flat, made.weight(CLASSES, WIDTH), made.weight(CLASSES), transB=1, output="y")
    return made.model(["x", batch, 3, SIDE, SIDE], ["y", batch, CLASSES])


def save(path: Path, proto: ModelProto) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


class _Made:
    """Nodes as each opset writes them: axes, starts and ends moved from attributes to inputs, and softmax changed."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)

    def weight(self, *shape: int) -> str:
        """He's normal numbers: activations keep their size."""
        fan = int(np.prod(shape[1:])) or 1
        values = self.random.standard_normal(shape) * np.sqrt(2 / fan)
        return self._constant(values.astype(np.float32))

    def _constant(self, values: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(values, f"c{len(self.constants)}"))
        return self.constants[-1].name

    def node(self, kind: str, *inputs: str, output: str = "", **attributes: object) -> str:
        made = output or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [made], **attributes))
        return made

    def axis(self, kind: str, value: str) -> str:
        if self.opset < 13:
            return self.node(kind, value, axes=[1])
        return self.node(kind, value, self._constant(np.array([1])))

    def part(self, value: str, index: int) -> str:
        if self.opset < 10:
            return self.node("Slice", value, axes=[1], starts=[index], ends=[index + 1])
        return self.node("Slice", value, *(self._constant(np.array([number])) for number in (index, index + 1, 1)))

    def softmax(self, value: str) -> str:
        if self.opset >= 13:
            return self.node("Softmax", value, axis=1)
        last = self.node("Transpose", value, perm=[0, 3, 4, 2, 1])  # it flattens what is before the axis
        return self.node("Transpose", self.node("Softmax", last, axis=4), perm=[0, 4, 3, 1, 2])

    def model(self, taken: Sequence[str | int], given: Sequence[str | int]) -> ModelProto:
        values = [
            helper.make_tensor_value_info(str(name), onnx.TensorProto.FLOAT, shape) for name, *shape in (taken, given)
        ]
        version = helper.find_min_ir_version_for([helper.make_opsetid("", self.opset)])
        if version < 4:  # weights are inputs with defaults
            values[1:1] = [
                helper.make_tensor_value_info(one.name, one.data_type, list(one.dims)) for one in self.constants
            ]
        graph = helper.make_graph(self.nodes, "sk", values[:-1], values[-1:], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=version)
