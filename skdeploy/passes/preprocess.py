"""Normalisation inside the graph: raw pixels in, so that no serving code can get it wrong."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir

from skdeploy.core.spec import Preprocess
from skdeploy.images.dataset import affine

MODULE: Final = "preprocess"


class EmbedPreprocess(ir.passes.InPlacePass):
    """Replaces the input float32 (N, C, H, W) by uint8 (N, H, W, C): cast, transpose, one multiply-add per channel.

    ``(x / 255 - mean) / std = x * 1 / (255 std) - mean / std``: the same multiply-add that ``images.dataset.normalise`` does in
    float32, so logits are equal to those of inputs prepared outside. It is not folded into the first convolution, whose zero
    padding means "mean" after normalisation but "black" before.
    """

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.preprocess = preprocess

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        old = graph.inputs[0]
        assert old.shape is not None  # trace.py's own graph: shaped and named
        assert old.name is not None
        name = old.name
        batch, channels, height, width = old.shape
        old.name = f"{MODULE}/Add"
        pixels = ir.Value(
            name=name, type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape([batch, height, width, channels])
        )
        scale, offset = (
            ir.Value(name=f"{MODULE}.{key}", const_value=ir.tensor(array.reshape(1, -1, 1, 1), name=f"{MODULE}.{key}"))
            for key, array in zip(("scale", "offset"), affine(self.preprocess), strict=True)
        )
        for parameter in (scale, offset):
            assert parameter.const_value is not None
            parameter.dtype = parameter.const_value.dtype
            parameter.shape = ir.Shape(np.asarray(parameter.const_value.numpy()).shape)
            graph.register_initializer(parameter)
        cast = _node("Cast", [pixels], {"to": ir.DataType.FLOAT}, ir.Shape([batch, height, width, channels]))
        planes = _node("Transpose", [cast.outputs[0]], {"perm": (0, 3, 1, 2)}, old.shape)
        scaled = _node("Mul", [planes.outputs[0], scale], {}, old.shape)
        added = _node("Add", [scaled.outputs[0], offset], {}, old.shape)
        old.replace_all_uses_with(added.outputs[0])
        graph.inputs[0] = pixels
        first = graph[0]
        graph.insert_before(first, [cast, planes, scaled, added])
        return ir.passes.PassResult(model, modified=True)


def _node(
    op_type: str, inputs: list[ir.Value], attributes: dict[str, int | tuple[int, ...]], shape: ir.Shape
) -> ir.Node:
    name = f"{MODULE}/{op_type}"
    node = ir.node(op_type, inputs, attributes=attributes, name=name)
    output = node.outputs[0]
    output.name, output.shape, output.type = name, shape, ir.TensorType(ir.DataType.FLOAT)
    return node
