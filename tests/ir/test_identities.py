"""Adding zero and multiplying by one go; what looks like it and is not stays."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from skdeploy.ir.identities import DropIdentities
from skdeploy.passes.foreign import read_foreign
from skdeploy.passes.select import RewriteSelect
from tests.graphs.foreign import CHANNELS, WIDTH, Classifier, SplitInput, branch, export, live, squeeze
from tests.graphs.networks import FLOAT32_ERROR, images, relative_error, run, torch_logits
from tests.graphs.small_files import model_of

ONE_ZERO = np.zeros((2, 3), np.float64)
ONE_ZERO[1, 2] = 1


def model(kind: str, left: str, right: str, constant: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> ir.Model:
    """input (2, 3) float64 -> ``kind`` -> Neg -> y."""
    nodes = [
        helper.make_node(kind, [left, right], ["m"], name="middle"),
        helper.make_node("Neg", ["m"], ["y"], name="neg"),
    ]
    return ir.from_proto(model_of(nodes, {"input": [2, 3]}, {"y": None}, {"c": constant}, dtype=TensorProto.DOUBLE))


@pytest.mark.parametrize(
    ("kind", "left", "right", "constant", "goes"),
    [
        ("Add", "input", "c", np.zeros(()), True),
        ("Add", "c", "input", np.zeros((1, 1)), True),
        ("Sub", "input", "c", np.zeros(()), True),
        ("Mul", "c", "input", np.ones(1), True),
        ("Div", "input", "c", np.ones(()), True),
        ("Sub", "c", "input", np.zeros(()), False),  # -x
        ("Div", "c", "input", np.ones(()), False),  # 1 / x
        ("Mul", "input", "c", np.zeros(()), False),
        ("Add", "input", "c", np.ones(()), False),
        ("Add", "input", "c", ONE_ZERO, False),
        ("Add", "input", "c", np.zeros((1, 1, 1)), False),  # has another rank
        ("Add", "input", "c", np.zeros((4, 2, 3)), False),  # is broadcast
    ],
)
def test_only_identities_go_and_the_function_stays(
    kind: str, left: str, right: str, constant: np.ndarray[tuple[int, ...], np.dtype[np.float64]], goes: bool
) -> None:
    changed = model(kind, left, right, constant)
    result = DropIdentities()(changed)
    assert result.modified == goes
    assert ("middle" in [node.name for node in changed.graph]) != goes
    inputs = np.random.default_rng(0).standard_normal((2, 3))
    expected = run(model(kind, left, right, constant), inputs)["y"]
    assert np.array_equal(run(changed, inputs)["y"], expected)


class SumWithZero(nn.Module):
    """Its gate adds the branches with Python's ``sum``, which begins with zero; with ReLU in place, TorchScript keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.paths = nn.ModuleList(branch(k) for k in (1, 2))
        for path in self.paths:
            path[2] = nn.ReLU(inplace=True)  # type: ignore[operator]  # a ModuleList gives Modules
        self.reduce, self.expand = squeeze(), nn.Conv2d(WIDTH, 2 * CHANNELS, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = [path(x) for path in self.paths]
        pooled = nn.functional.adaptive_avg_pool2d(sum(maps), 1)
        weights = self.expand(self.reduce(pooled)).view(-1, 2, CHANNELS, 1, 1).softmax(1)
        selected: torch.Tensor = maps[0] * weights[:, 0] + maps[1] * weights[:, 1]
        return selected


def test_a_block_whose_sum_begins_with_zero_is_found(tmp_path: Path) -> None:
    network = live(Classifier(SumWithZero()))
    file = export(network, tmp_path / "m.onnx", "torchscript", 17)
    sums = [node for node in onnx.load(file).graph.node if node.op_type == "Add"]
    assert (
        len(sums) == 4
    )  # 0 + first, + second, the selected ones, the shortcut: else the exporter leaves no zero to find
    found = read_foreign(file)
    rewrite = RewriteSelect()
    rewrite(found)
    assert len(rewrite.report.found) == 1
    inputs = images(2, 12, 10)
    assert relative_error(run(found, inputs)["logits"], torch_logits(network, inputs)) < FLOAT32_ERROR


class Padded(nn.Module):
    """A classifier behind a convolution whose pads TorchScript computes in the graph."""

    def __init__(self, mode: Literal["reflect", "replicate"]) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1, padding_mode=mode)
        self.rest = Classifier(SplitInput())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.rest(self.first(x))
        return found


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_a_block_behind_computed_pads_is_found(tmp_path: Path, mode: Literal["reflect", "replicate"]) -> None:
    network = live(Padded(mode))
    found = read_foreign(export(network, tmp_path / "m.onnx", "torchscript", 17))
    rewrite = RewriteSelect()
    rewrite(found)
    assert len(rewrite.report.found) == 1
    pad = next(node for node in found.graph if node.op_type == "Pad")
    assert pad.inputs[1].is_initializer()
    inputs = images(2, 12, 10)
    assert relative_error(run(found, inputs)["logits"], torch_logits(network, inputs)) < FLOAT32_ERROR
