"""The function of a graph in float64, before its selects are rewritten and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import Tensor, nn

from skdeploy.passes.find_blocks import find_blocks
from skdeploy.passes.foreign import read_foreign
from skdeploy.passes.select import BlockWriter
from tests.graphs.foreign import branch, export

SHAPE: Final = (6, 5)
EPS: Final = float(np.finfo(np.float64).eps)
# A block adds up at most 100 numbers, four times one after the other; the logits, whose error is that of the weights, are below
# 100. That is 4 eps x 100, and a few times as much for terms that are larger than their sum.
ROUNDING: Final = 2000 * EPS


class SideBySide(nn.Module):
    """The mean of each block's V, all of the same input: no block is fed the rounding errors of another."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.stem, self.blocks = branch(1, inputs=3), nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return torch.cat([block(x).mean((2, 3)) for block in self.blocks], 1)


def in_float64(model: ir.Model) -> ir.Model:
    """The same graph with every float32 as a float64."""
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]
    for tensor in (
        *proto.graph.initializer,
        *(a.t for node in proto.graph.node for a in node.attribute if a.HasField("t")),
    ):
        if tensor.data_type == onnx.TensorProto.FLOAT:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def logits(model: ir.Model, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
    ran: Any = ReferenceEvaluator(ir.to_proto(model)).run(None, {model.graph.inputs[0].name or "": inputs})
    assert ran[0].dtype == np.float64
    result: NDArray[np.float64] = ran[0]
    return result


def rewritten_in_float64(network: nn.Module, path: Path) -> tuple[list[str], float]:
    """The modules that were rewritten, and how much the logits differ, relative to the largest."""
    model = in_float64(read_foreign(export(network, path / "m.onnx", "torchscript", 17, shape=(3, *SHAPE))))
    inputs = np.random.default_rng(5).standard_normal((3, 3, *SHAPE))
    before = logits(model, inputs)
    blocks = find_blocks(model).blocks
    writer = BlockWriter(model.graph)
    for block in blocks:
        writer.rewrite(block)
    RemoveUnusedNodesPass()(model)
    after = logits(model, inputs)
    return [block.name for block in blocks], float(np.abs(after - before).max() / np.abs(before).max())
