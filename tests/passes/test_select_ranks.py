"""Selects over sequences and volumes, and behind shapes that only a run of the graph tells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from skdeploy.passes.find_blocks import example_shapes
from skdeploy.passes.foreign import read_foreign
from skdeploy.passes.select import RewriteSelect
from tests.graphs.foreign import CHANNELS, WIDTH, Block, Classifier, export, live
from tests.graphs.networks import FLOAT32_ERROR, images, relative_error, run, torch_logits

SHAPE = (12, 10)
LAYERS: dict[int, tuple[Callable[..., nn.Module], Callable[..., nn.Module]]] = {
    1: (nn.Conv1d, nn.BatchNorm1d),
    3: (nn.Conv3d, nn.BatchNorm3d),
}


class OfRank(nn.Module):
    """Selective kernels over time (1) or volumes (3), between maps of images."""

    def __init__(self, axes: int, branches: int = 2) -> None:
        super().__init__()
        self.axes, self.count = axes, branches
        conv, norm = LAYERS[axes]
        self.paths = nn.ModuleList(
            nn.Sequential(conv(CHANNELS, CHANNELS, 3, padding=d, dilation=d), norm(CHANNELS), nn.ReLU())
            for d in range(1, branches + 1)
        )
        self.reduce = nn.Sequential(conv(CHANNELS, WIDTH, 1), norm(WIDTH), nn.ReLU())
        self.expand = conv(WIDTH, branches * CHANNELS, 1)

    def maps(self, x: Tensor) -> list[Tensor]:
        flat = x.flatten(2) if self.axes == 1 else x.unsqueeze(2).repeat(1, 1, 3, 1, 1)
        return [path(flat) for path in self.paths]

    def back(self, selected: Tensor, x: Tensor) -> Tensor:
        return selected.reshape(x.shape) if self.axes == 1 else selected.mean(2)

    def weights(self, statistics: Tensor) -> Tensor:
        logits = self.expand(self.reduce(statistics))
        return logits.reshape(-1, self.count, CHANNELS, *[1] * self.axes).softmax(1)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.stack(self.maps(x), 1)
        statistics = maps.sum(1).mean(tuple(range(2, 2 + self.axes)), keepdim=True)
        return self.back((maps * self.weights(statistics)).sum(1), x)


class BranchesFirst(OfRank):
    """Branches stacked before the batch, a pool, and fully connected layers."""

    def __init__(self, axes: int) -> None:
        super().__init__(axes)
        self.fc = nn.Sequential(nn.Linear(CHANNELS, WIDTH), nn.SiLU())
        self.fcs = nn.ModuleList(nn.Linear(WIDTH, CHANNELS) for _ in range(2))
        self.pool = (nn.AdaptiveAvgPool1d if axes == 1 else nn.AdaptiveAvgPool3d)(1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.maps(x)
        z = self.fc(self.pool(first + second).flatten(1))
        weights = torch.stack([layer(z) for layer in self.fcs]).softmax(0)
        weights = weights.reshape(2, -1, CHANNELS, *[1] * self.axes)
        return self.back((torch.stack([first, second]) * weights).sum(0), x)


class FlatVolume(OfRank):
    """A volume's voxels as one axis, contracted by an Einsum."""

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.stack(self.maps(x), 1)
        statistics = maps.sum(1).flatten(2).mean(2)[..., None, None, None]
        weights = self.weights(statistics)[..., 0, 0, 0]
        selected = torch.einsum("nmcp,nmc->ncp", maps.flatten(3), weights)
        return self.back(selected.reshape(maps[:, 0].shape), x)


def of_one_time_step(self: Any, x: Tensor) -> Tensor:
    """Each time step has weights of its own."""
    first, second = self.maps(x)
    weights = torch.stack([first.mean(1), second.mean(1)], 1).softmax(1)[:, :, None]
    selected: Tensor = self.back(first * weights[:, 0] + second * weights[:, 1], x)
    return selected


def over_time_alone(self: Any, x: Tensor) -> Tensor:
    """The mean over depth is missing: each slice of the volume has weights of its own."""
    first, second = self.maps(x)
    weights = torch.stack([first.mean((1, 3, 4)), second.mean((1, 3, 4))], 1).softmax(1)[:, :, None, :, None, None]
    selected: Tensor = self.back(first * weights[:, 0] + second * weights[:, 1], x)
    return selected


SAME: dict[str, nn.Module] = {
    "sequence": OfRank(1),
    "sequence of three branches": OfRank(1, 3),
    "sequences, branches first": BranchesFirst(1),
    "volume": OfRank(3),
    "volume of three branches": OfRank(3, 3),
    "volumes, branches first": BranchesFirst(3),
    "flat volume": FlatVolume(3),
}


@pytest.mark.parametrize(
    ("exporter", "opset"), [("torchscript", 17), pytest.param("dynamo", 18, marks=pytest.mark.slow)]
)
def test_sequences_and_volumes_are_rewritten(exporter: str, opset: int, tmp_path: Path) -> None:
    network = live(Classifier(*SAME.values()))
    model = read_foreign(export(network, tmp_path / "m.onnx", exporter, opset, shape=(3, *SHAPE)))
    rewrite = RewriteSelect()
    rewrite(model)
    assert rewrite.report.near_misses == ()
    assert len(rewrite.report.found) == len(SAME)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    inputs = images(5, *SHAPE)
    assert relative_error(run(model, inputs)["logits"], torch_logits(network, inputs)) < FLOAT32_ERROR
    again = RewriteSelect()
    again(model)
    assert (again.report.found, len(again.report.deployed), again.report.near_misses) == ((), len(SAME), ())


@pytest.mark.parametrize(
    ("axes", "forward", "reason"),
    [(1, of_one_time_step, "takes 2 means of its branches"), (3, over_time_alone, "takes 2 means of its branches")],
)
def test_weights_of_less_than_a_whole_map_are_a_near_miss(
    axes: int, forward: Callable[..., Tensor], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OfRank, "forward", forward)
    model = read_foreign(
        export(live(Classifier(OfRank(axes))), tmp_path / "m.onnx", "torchscript", 17, shape=(3, *SHAPE))
    )
    rewrite = RewriteSelect()
    rewrite(model)
    assert rewrite.report.found == ()
    assert [why for _, why in rewrite.report.near_misses if reason in why]


class Padded(nn.Module):
    """An image-to-image stem: torch's tracing exporter computes the amounts of its padding in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")
        self.rest = Classifier(Block())

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.rest(self.stem(x))
        return logits


def test_a_block_behind_a_computed_padding_is_found_in_a_file_that_nothing_has_folded(tmp_path: Path) -> None:
    network = live(Padded())
    model = ir.load(export(network, tmp_path / "m.onnx", "torchscript", 17, shape=(3, *SHAPE)))
    model.graph.inputs[0].name = "input"
    names = {value.name for value in example_shapes(model)}
    assert all(value.name in names for node in model.graph for value in node.outputs)
    rewrite = RewriteSelect()
    rewrite(model)
    assert len(rewrite.report.found) == 1
    inputs = images(5, *SHAPE)
    assert relative_error(next(iter(run(model, inputs).values())), torch_logits(network, inputs)) < FLOAT32_ERROR
