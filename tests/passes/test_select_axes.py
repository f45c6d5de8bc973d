"""Selects whose weights belong to the rows of a map, its columns or time steps, and not to its channels."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from skdeploy.passes.foreign import read_foreign
from skdeploy.passes.select import RewriteSelect
from tests.graphs.float64 import ROUNDING, SideBySide, rewritten_in_float64
from tests.graphs.foreign import CHANNELS, WIDTH, Block, Classifier, branch, export, live
from tests.graphs.networks import FLOAT32_ERROR, images, relative_error, run, torch_logits

SIZES = (CHANNELS, 6, 5)  # those of ``tests.graphs.float64.SHAPE``: no two alike


class Along(nn.Module):
    """A selective kernel block over ``axis`` of (N, C, H, W), its branches stacked before the batch."""

    def __init__(self, axis: int, branches: int = 2) -> None:
        super().__init__()
        self.axis, self.size = axis, SIZES[axis - 1]
        self.others = tuple(other for other in (1, 2, 3) if other != axis)
        self.paths = nn.ModuleList(branch(m + 1) for m in range(branches))
        self.reduce = nn.Sequential(nn.Linear(self.size, WIDTH), nn.ReLU())
        self.expand = nn.ModuleList(nn.Linear(WIDTH, self.size) for _ in range(branches))

    def placed(self, weights: Tensor) -> Tensor:
        """(M, N, size) with the size at the axis of the maps."""
        return weights.reshape(*weights.shape[:2], *(self.size if axis == self.axis else 1 for axis in (1, 2, 3)))

    def statistics(self, maps: list[Tensor]) -> Tensor:
        return sum(maps[1:], maps[0]).mean(self.others)

    def forward(self, x: Tensor) -> Tensor:
        maps = [path(x) for path in self.paths]
        z = self.reduce(self.statistics(maps))
        weights = torch.stack([layer(z) for layer in self.expand]).softmax(0)
        return (self.placed(weights) * torch.stack(maps)).sum(0)


class Permuted(Along):
    """The mean as an average pool over the permuted sum."""

    def statistics(self, maps: list[Tensor]) -> Tensor:
        permuted = (maps[0] + maps[1]).permute(0, self.axis, *self.others)
        return nn.functional.adaptive_avg_pool2d(permuted, 1).view(permuted.shape[0], self.size)


class Rest(Along):
    """One sigmoid, one minus it, and half the sum as statistics."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = (path(x) for path in self.paths)
        weight = self.expand[0](self.reduce((first + second).mean(self.others) / 2)).sigmoid()
        first_weight = self.placed(weight[None])[0]
        return first_weight * first + (1 - first_weight) * second


class OfFirst(Along):
    def statistics(self, maps: list[Tensor]) -> Tensor:
        return maps[0].mean(self.others)


class Unequal(Along):
    def statistics(self, maps: list[Tensor]) -> Tensor:
        return (maps[0] + 2 * maps[1]).mean(self.others)


class OfChannels(Along):
    """The gate sees the channels; its weights are the rows'."""

    def __init__(self) -> None:
        super().__init__(2)
        self.reduce = nn.Sequential(nn.Linear(CHANNELS, WIDTH), nn.ReLU())

    def statistics(self, maps: list[Tensor]) -> Tensor:
        return (maps[0] + maps[1]).mean((2, 3))


class RowsOfTime(nn.Module):
    """Over a sequence (N, C, T): a weight for each time step."""

    def __init__(self) -> None:
        super().__init__()
        self.paths = nn.ModuleList(nn.Conv1d(CHANNELS, CHANNELS, 3, padding=d, dilation=d) for d in (1, 2))
        steps = SIZES[1] * SIZES[2]
        self.reduce, self.expand = nn.Linear(steps, WIDTH), nn.Linear(WIDTH, 2 * steps)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.stack([path(x.flatten(2)) for path in self.paths], 1)
        logits = self.expand(self.reduce(maps.sum(1).mean(1)).relu())
        weights = logits.reshape(-1, 2, 1, SIZES[1] * SIZES[2]).softmax(1)
        return (maps * weights).sum(1).reshape(x.shape)


SAME: dict[str, nn.Module] = {
    "rows": Along(2),
    "columns": Along(3),
    "rows of three branches": Along(2, 3),
    "permuted rows": Permuted(2),
    "permuted columns": Permuted(3),
    "rest": Rest(2),
    "time steps": RowsOfTime(),
    "channels": Along(1),
}


def test_the_rewrite_is_exact(tmp_path: Path) -> None:
    found, error = rewritten_in_float64(live(SideBySide(*SAME.values())), tmp_path)
    assert len(found) == len(SAME)
    assert error < ROUNDING


@pytest.mark.parametrize("opset", [13, 18])
def test_selects_of_all_axes_stand_in_one_network(opset: int, tmp_path: Path) -> None:
    network = live(Classifier(*SAME.values(), Block()))
    model = read_foreign(export(network, tmp_path / "m.onnx", "torchscript", opset, shape=(3, *SIZES[1:])))
    rewrite = RewriteSelect()
    rewrite(model)
    assert rewrite.report.near_misses == ()
    assert len(rewrite.report.found) == len(SAME) + 1
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    inputs = images(5, *SIZES[1:])
    assert relative_error(run(model, inputs)["logits"], torch_logits(network, inputs)) < FLOAT32_ERROR
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("Softmax") == 1  # of three branches
    again = RewriteSelect()
    again(model)
    assert (again.report.found, again.report.near_misses) == ((), ())


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (OfFirst(2), "are not the sum of the 2 branches"),
        (Unequal(2), "weigh the branches by 1.0, 2.0"),
        (OfChannels(), "does not take the mean over all axes but the batch and 2 of its branches"),
    ],
)
def test_another_function_is_left_alone_with_the_true_reason(block: nn.Module, reason: str, tmp_path: Path) -> None:
    model = read_foreign(export(live(Classifier(block)), tmp_path / "m.onnx", "torchscript", 17, shape=(3, *SIZES[1:])))
    rewrite = RewriteSelect()
    rewrite(model)
    assert rewrite.report.found == ()
    (why,) = [why for _, why in rewrite.report.near_misses]
    assert reason in why
