"""Normalisation inside the graph: raw pixels in, so that no serving code can get it wrong."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from skdeploy.core.spec import Preprocess
from skdeploy.images.dataset import affine
from skdeploy.ir.constants import named_constant
from skdeploy.ir.nodes import new_node

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
        batch, channels, height, width = old.shape
        pixels = ir.val(old.name, ir.DataType.UINT8, ir.Shape([batch, height, width, channels]))
        old.name = f"{MODULE}/image"
        scale, offset = (
            named_constant(graph, f"{MODULE}.{key}", array.reshape(1, -1, 1, 1))
            for key, array in zip(("scale", "offset"), affine(self.preprocess), strict=True)
        )
        value, nodes = pixels, []
        for operator, constants, shape, attributes in (
            ("Cast", [], pixels.shape, {"to": ir.DataType.FLOAT}),
            ("Transpose", [], old.shape, {"perm": (0, 3, 1, 2)}),
            ("Mul", [scale], old.shape, {}),
            ("Add", [offset], old.shape, {}),
        ):
            nodes.append(new_node(operator, [value, *constants], f"{MODULE}/{operator}", shape, attributes=attributes))
            value = nodes[-1].outputs[0]
        old.replace_all_uses_with(value)
        graph.inputs[0] = pixels
        graph.insert_before(graph[0], nodes)
        return ir.passes.PassResult(model, modified=True)
