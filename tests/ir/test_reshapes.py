"""Reshapes to the batch and known sizes ask for constants; any others stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from torch import Tensor, nn

from skdeploy.ir.nodes import operand
from skdeploy.ir.reshapes import FoldReshapes
from skdeploy.passes.foreign import read_foreign
from tests.graphs.foreign import Classifier, export
from tests.graphs.networks import FLOAT32_ERROR, images, relative_error, run, torch_logits


class Turned(nn.Module):
    """Eight channels that are turned by a reshape and its inverse."""

    def __init__(self, turn: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.turn = turn

    def forward(self, x: Tensor) -> Tensor:
        return self.turn(x).reshape(x.shape)


FOLDED: dict[str, Callable[[Tensor], Tensor]] = {
    "rest": lambda x: x.view(x.shape[0], 2, 4, -1).transpose(1, 2),
    "all known": lambda x: x.view(x.shape[0], 2, 4, 12, 10).transpose(1, 2),
    "of another tensor": lambda x: x.relu().view((2 * x).size(0), -1, 2).flip(1),
}
LEFT: dict[str, Callable[[Tensor], Tensor]] = {
    # The batch times two: no size of the graph has its name.
    "product with the batch": lambda x: x.view(x.shape[0] * 2, 4, -1).flip(1),
}


@pytest.mark.parametrize("exporter", ["torchscript", pytest.param("dynamo", marks=pytest.mark.slow)])
def test_a_reshape_that_asks_for_the_batch_asks_for_constants(exporter: str, tmp_path: Path) -> None:
    network = Classifier(*map(Turned, FOLDED.values())).eval().requires_grad_(False)
    model = read_foreign(export(network, tmp_path / "m.onnx", exporter, 19))
    reshapes = [node for node in model.graph if node.op_type == "Reshape"]
    assert all(operand(node, 1).const_value is not None for node in reshapes)
    assert "Shape" not in {node.op_type for node in model.graph}
    for batch in (1, 5):
        inputs = images(batch, 12, 10)
        assert relative_error(run(model, inputs)["logits"], torch_logits(network, inputs)) < FLOAT32_ERROR


def test_other_reshapes_stay(tmp_path: Path) -> None:
    network = Classifier(*map(Turned, LEFT.values())).eval().requires_grad_(False)
    model = read_foreign(export(network, tmp_path / "m.onnx", "torchscript", 19))
    assert any(operand(node, 1).const_value is None for node in model.graph if node.op_type == "Reshape")
    inputs = images(5, 12, 10)
    assert relative_error(run(model, inputs)["logits"], torch_logits(network, inputs)) < FLOAT32_ERROR


def reshape(asked: list[int | str], own: list[int | str], **attributes: int) -> ir.Model:
    """x, of the sizes ``own``, reshaped to ``asked``; names are free sizes, read from a tensor that has them."""
    names = [size for size in [*own, *asked] if isinstance(size, str)]
    sources = [onnx.helper.make_tensor_value_info(f"of_{name}", 1, [name]) for name in dict.fromkeys(names)]
    nodes = [onnx.helper.make_node("Shape", [f"of_{name}"], [f"size_{name}"]) for name in dict.fromkeys(names)]
    parts = [f"size_{size}" if isinstance(size, str) else f"number_{size}" for size in asked]
    numbers = [
        onnx.numpy_helper.from_array(np.array([n]), f"number_{n}") for n in {n for n in asked if isinstance(n, int)}
    ]
    nodes.append(onnx.helper.make_node("Concat", parts, ["sizes"], axis=0))
    nodes.append(onnx.helper.make_node("Reshape", ["x", "sizes"], ["y"], **attributes))
    x, y = onnx.helper.make_tensor_value_info("x", 1, own), onnx.helper.make_tensor_value_info("y", 1, None)
    graph = onnx.helper.make_graph(nodes, "g", [x, *sources], [y], numbers)
    return ir.from_proto(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)]))


@pytest.mark.parametrize(
    ("asked", "own", "found"),
    [
        (["n", 2, -1], ["n", 64], [0, 2, 32]),
        (["n", 64], ["n", 8, 8], [0, 64]),
        ([8, "n", -1], ["n", 64], [8, -1, 8]),
        (["n", 3, -1], ["n", 64], None),  # 64 is not a multiple of 3
        (["n", 2, 2], ["n", 64], None),
        (["n", -1, -1], ["n", 64], None),
        (["n", 0, -1], ["n", 64], None),  # copies a size
        (["m", 2, -1], ["n", 64], None),  # the size of another tensor
        (["n", "n", -1], ["n", 64], None),
        (["n", 2, -1], ["n", "w"], None),  # two free sizes
        (["n", -1], ["n", 0], None),
    ],
)
def test_only_sizes_that_are_known_are_written(
    asked: list[int | str], own: list[int | str], found: list[int] | None
) -> None:
    model = reshape(asked, own)
    assert FoldReshapes()(model).modified == (found is not None)
    sizes = operand(list(model.graph)[-1], 1).const_value
    assert (None if sizes is None else sizes.numpy().tolist()) == found


def test_zeros_that_mean_zero_are_left() -> None:
    assert not FoldReshapes()(reshape(["n", 2, -1], ["n", 64], allowzero=1)).modified
