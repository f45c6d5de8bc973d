"""Selective kernel blocks are found however they are written and keep their function; near misses are told why."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from pytorchcv.models.sknet import SKNet as PytorchcvSKNet
from torch import Tensor, nn

from skdeploy.core.errors import PassError, UsageError
from skdeploy.passes import select
from skdeploy.passes.foreign import read_foreign
from skdeploy.passes.select import RewriteSelect, SelectReport
from skdeploy.passes.simplify import simplify
from tests.conftest import TinySpec
from tests.graphs.foreign import (
    CHANNELS,
    PORTS,
    WIDTH,
    Block,
    ChannelMajor,
    Classifier,
    SeparateLayers,
    Sliced,
    SplitInput,
    branch,
    export,
    in_pairs,
    live,
    simplify_file,
    squeeze,
)
from tests.graphs.networks import FLOAT32_ERROR, Array, card, images, relative_error, run, torch_logits, traced

# The oldest and newest opset of the old exporter, and the newest of torch.export's; what lies between is slow.
QUICK_EXPORTS = (("torchscript", 11, True), ("torchscript", 20, False), ("dynamo", 21, False))
EXPORTS = [
    pytest.param(*case, marks=[] if case in QUICK_EXPORTS else pytest.mark.slow)
    for case in (
        *itertools.product(["torchscript"], [11, 13, 17, 18, 20], [False, True]),
        *itertools.product(["dynamo"], [18, 21], [False, True]),  # 20 is as 18
    )
]
SHAPE = (12, 10)  # of the images that the networks of tests/graphs/foreign.py are exported with


def rewritten(model: ir.Model) -> SelectReport:
    rewrite = RewriteSelect()
    result = rewrite(model)
    assert result.modified == bool(rewrite.report.found)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return rewrite.report


def ranks(model: ir.Model) -> set[int]:
    inferred = onnx.shape_inference.infer_shapes(ir.to_proto(model), strict_mode=True, data_prop=True)
    return {len(info.type.tensor_type.shape.dim) for info in inferred.graph.value_info}


def torch_difference(model: ir.Model, network: nn.Module, inputs: Array) -> float:
    return relative_error(run(model, inputs)["logits"], torch_logits(network, inputs))


@pytest.fixture(scope="module")
def all_ports() -> nn.Module:
    torch.manual_seed(0)
    return live(Classifier(*(make() for make in PORTS.values())))


@pytest.fixture(scope="module")
def file_of_all_ports(all_ports: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """Exported once: torch.export takes seconds."""
    folder = tmp_path_factory.mktemp("ports")

    @cache
    def file(exporter: str, opset: int) -> Path:
        return export(all_ports, folder / f"{exporter}-{opset}.onnx", exporter, opset)

    return file


@pytest.mark.parametrize(("exporter", "opset", "simplified"), EXPORTS)
def test_the_block_of_every_port_is_rewritten(
    all_ports: nn.Module, file_of_all_ports: Callable[[str, int], Path], exporter: str, opset: int, simplified: bool
) -> None:
    file = file_of_all_ports(exporter, opset)
    model = read_foreign(simplify_file(file) if simplified else file)
    report = rewritten(model)
    assert len(report.found) == len(PORTS)
    assert (report.deployed, report.near_misses) == ((), ())
    if not (exporter == "dynamo" and simplified):  # onnx-simplifier drops the metadata with the modules' names
        assert report.found == tuple(f"blocks.{index}" for index in range(len(PORTS)))
    inputs = images(5, *SHAPE)
    assert torch_difference(model, all_ports, inputs) < FLOAT32_ERROR
    assert max(ranks(model)) <= 4
    operators = [node.op_type for node in model.graph]
    assert operators.count("Sigmoid") == sum("three" not in port for port in PORTS)
    assert operators.count("Softmax") == sum("three" in port for port in PORTS)
    again = rewritten(model)
    assert (again.found, len(again.deployed), again.near_misses) == ((), len(PORTS), ())


@pytest.mark.parametrize("port", [name for name in PORTS if "three" not in name])
def test_a_block_of_two_branches_has_fewer_nodes_afterwards(port: str, tmp_path: Path) -> None:
    network = live(Classifier(PORTS[port]()))
    model = simplify(read_foreign(export(network, tmp_path / "m.onnx", "torchscript", 17, simplified=True)))
    before = len(model.graph)
    assert len(rewritten(model).found) == 1
    assert len(model.graph) < before
    assert "ReduceSum" not in {node.op_type for node in model.graph}


@pytest.mark.parametrize("batch", [1, 2])
def test_a_fixed_batch_stays_fixed(batch: int, tmp_path: Path) -> None:
    network = live(Classifier(SplitInput(), SeparateLayers(3)))
    model = read_foreign(export(network, tmp_path / "m.onnx", "torchscript", 17, batch=batch))
    assert len(rewritten(model).found) == 2
    assert torch_difference(model, network, images(batch, *SHAPE)) < FLOAT32_ERROR


@pytest.mark.parametrize("exporter", [pytest.param("dynamo", marks=pytest.mark.slow), "torchscript"])
def test_pytorchcvs_network_is_rewritten(exporter: str, tmp_path: Path) -> None:
    network = live(PytorchcvSKNet(channels=[[64], [64, 64]], init_block_channels=8, in_size=(56, 56), num_classes=5))
    model = read_foreign(export(network, tmp_path / "m.onnx", exporter, shape=(3, 56, 56)))
    report = rewritten(model)
    assert report.found == tuple(f"features.stage{s}.unit{u}.body.conv2" for s, u in ((1, 1), (2, 1), (2, 2)))
    assert not report.near_misses
    assert torch_difference(model, network, images(3, 56, 56)) < FLOAT32_ERROR


def test_new_nodes_are_named_after_the_block_and_typed(tmp_path: Path) -> None:
    model = read_foreign(export(live(Classifier(Sliced())), tmp_path / "m.onnx", "torchscript", 17))
    rewritten(model)
    new = next(node for node in model.graph if node.op_type == "Sigmoid")
    assert new.name == "blocks.0/Sigmoid"
    names = [node.name for node in model.graph]
    assert len(names) == len(set(names))
    values = [value for node in model.graph for value in node.outputs if node.name.startswith("blocks.0/")]
    assert all(value.dtype is not None and value.shape is not None for value in values)


@pytest.mark.parametrize(
    ("exporter", "branches"),
    [("dynamo", 2), pytest.param("dynamo", 3, marks=pytest.mark.slow), ("torchscript", 2), ("torchscript", 3)],
)
def test_our_own_graphs_are_in_deploy_form_already(tiny_spec: TinySpec, branches: int, exporter: str) -> None:
    from skdeploy.passes.trace_options import TraceOptions

    model = traced(card(tiny_spec(branches)), TraceOptions(exporter=exporter))
    before = ir.to_proto(model).SerializeToString()
    report = rewritten(model)
    assert len(report.deployed) == 3
    assert (report.found, report.near_misses) == ((), ())
    assert ir.to_proto(model).SerializeToString() == before


def product_used_elsewhere(block: Block, x: Tensor) -> Tensor:
    first, second = block.maps(x)
    weights = block.weigh((first + second).mean((2, 3), keepdim=True))
    product = first * weights[:, 0]
    return torch.relu(product + second * weights[:, 1]) * torch.tanh(product)


def pixel_weights(block: Block, x: Tensor) -> Tensor:
    maps = torch.stack(block.maps(x), 1)
    return (maps * torch.stack([m.sum(1, keepdim=True) for m in block.maps(x)], 1).softmax(1)).sum(1)


def sigmoids_of_pixels(block: Block, x: Tensor) -> Tensor:
    """Places choose between the branches, as in LSKNet."""
    first, second = block.maps(x)
    share = torch.stack([first.mean(1), second.amax(1)], 1).sigmoid()
    return first * share[:, 0:1] + second * share[:, 1].unsqueeze(1)


def weights_for_no_maps(block: Block, x: Tensor) -> Tensor:
    first, _ = block.maps(x)
    return first + torch.tanh(block.weigh(first.mean((2, 3), keepdim=True))[:, 0])


MOVED = [*range(1, CHANNELS), 0]
NEAR_MISSES: dict[str, tuple[Block, str]] = {
    "sigmoids": (Block(weigh=lambda block, s: in_pairs(block.logits(s)).sigmoid()),
                 "its weights are sigmoids, which do not sum to one"),
    "doubled once": (Block(combine=lambda _, a, b, v, w: a * (2 * v) + b * w),
                     "it is not the sum of 2 maps, each by its own weight"),
    "one map twice": (Block(combine=lambda _, a, b, v, w: a * v + a * w),
                      "it is not the sum of 2 maps, each by its own weight"),
    "crossed groups": (Block(combine=lambda _, a, b, v, w: a * v + b * w[:, MOVED]),
                       "one channel is weighed by numbers that no softmax made sum to one"),
    "small branch": (Block(maps=lambda block, x: (block.first(x), block.second(x).mean((2, 3), keepdim=True).relu())),
                     "the branches' shapes differ: "),
    "permuted branch": (Block(combine=lambda _, a, b, v, w: a * v + b[:, [3, 1, 0, 2, 7, 5, 4, 6]] * w),
                        "a branch is not a run of channels of one tensor, but 6 of them"),
    "mixed images": (Block(combine=lambda _, a, b, v, w: a * v[[1, 0, 2]] + b * w[[1, 0, 2]]),
                     "it mixes the images of a batch"),
    "statistics of the input": (Block(fuse=lambda _, a, b, x: x.mean((2, 3), keepdim=True)),
                                "its logits do not come from a mean of its branches alone"),
    "statistics of one branch": (Block(fuse=lambda _, a, b, x: a.mean((2, 3), keepdim=True)),
                                 "are not the sum of the 2 branches"),
    "one axis": (Block(fuse=lambda _, a, b, x: (a + b).mean(2, keepdim=True)[..., :1]),
                 "does not take the mean over height and width of its branches: Slice"),
    "product used elsewhere": (Block(forward=product_used_elsewhere), "which would go, is used by Tanh blocks.0/Tanh too"),
    "weights of pixels": (Block(forward=pixel_weights), "its weights differ from pixel to pixel"),
    "sigmoids of pixels": (Block(forward=sigmoids_of_pixels), "its weights are sigmoids that differ from pixel to pixel"),
    "weights for no maps": (Block(forward=weights_for_no_maps), "its weights go into Tanh"),
}  # fmt: skip


@pytest.mark.parametrize(("block", "reason"), NEAR_MISSES.values(), ids=NEAR_MISSES)
def test_a_near_miss_is_left_alone_and_told(block: Block, reason: str, tmp_path: Path) -> None:
    network = live(Classifier(block))
    model = read_foreign(export(network, tmp_path / "m.onnx", "torchscript", 17, batch=3))
    before = ir.to_proto(model).SerializeToString()
    report = rewritten(model)
    assert (report.found, report.deployed) == ((), ())
    assert [name.startswith("blocks.0") for name, _ in report.near_misses] == [True]
    assert reason in report.near_misses[0][1]
    assert ir.to_proto(model).SerializeToString() == before


def test_the_block_that_the_near_misses_spoil_is_found(tmp_path: Path) -> None:
    model = read_foreign(export(live(Classifier(Block())), tmp_path / "m.onnx", "torchscript", 17, simplified=True))
    assert rewritten(model).found == ("blocks.0",)


def test_a_product_that_is_an_output_of_the_graph_is_told(tmp_path: Path) -> None:
    model = read_foreign(export(live(Classifier(Block())), tmp_path / "m.onnx", "torchscript", 17, simplified=True))
    products = [node for node in model.graph if node.op_type == "Mul"]
    model.graph.outputs.append(products[0].outputs[0])
    (miss,) = rewritten(model).near_misses
    assert "is an output of the graph" in miss[1]


def test_weights_and_statistics_that_are_outputs_of_the_graph_stay(tmp_path: Path) -> None:
    model = read_foreign(export(live(Classifier(Block())), tmp_path / "m.onnx", "torchscript", 17, simplified=True))
    made = {node.op_type: node.outputs[0] for node in model.graph}
    kept = [made["Softmax"], made["ReduceMean"]]
    model.graph.outputs.extend(kept)
    before = run(model, images(3, *SHAPE))
    assert len(rewritten(model).found) == 1
    after = run(model, images(3, *SHAPE))
    assert list(before) == list(after)
    assert all(relative_error(after[name], before[name]) < FLOAT32_ERROR for name in before)


class SqueezeExcite(nn.Module):
    """Attention over channels and a shortcut: sigmoids that weigh a map, and no select."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate = branch(), nn.Sequential(squeeze(), nn.Conv2d(WIDTH, CHANNELS, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y * self.gate(y.mean((2, 3), keepdim=True)) + x


@pytest.mark.parametrize("exporter", [pytest.param("dynamo", marks=pytest.mark.slow), "torchscript"])
def test_a_graph_without_blocks_is_not_touched_and_nothing_is_told(exporter: str, tmp_path: Path) -> None:
    network = live(Classifier(SqueezeExcite(), SqueezeExcite(), branch(), softmax=True))
    model = read_foreign(export(network, tmp_path / "m.onnx", exporter))
    before = ir.to_proto(model).SerializeToString()
    assert rewritten(model) == SelectReport()
    assert ir.to_proto(model).SerializeToString() == before


def plant(monkeypatch: pytest.MonkeyPatch, method: str, change: Callable[..., object]) -> None:
    real = getattr(select._Writing, method)
    monkeypatch.setattr(select._Writing, method, lambda self, *args: change(lambda *a: real(self, *a), self, *args))


PLANTED: dict[str, tuple[str, Callable[..., object]]] = {
    "branches swapped": ("select", lambda real, _, maps, weights: real(maps[::-1], weights)),
    "one branch's mean forgotten": ("statistics", lambda real, _, maps: real(maps[:1])),
    "weights a hundredth off": ("_layer", lambda real, _, z, weight, *rest: real(z, weight * 1.01, *rest)),
    "bias forgotten": ("_layer", lambda real, _, z, weight, bias, *rest: real(z, weight, bias * 0, *rest)),
    "channels moved": ("_layer", lambda real, _, z, weight, *rest: real(z, np.roll(weight, 1, 0), *rest)),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_wrong_rewrite_is_caught(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = read_foreign(export(live(Classifier(ChannelMajor())), tmp_path / "m.onnx", "torchscript", 17))
    plant(monkeypatch, *PLANTED[name])
    with pytest.raises(PassError, match=r"rewriting the select changed the function: blocks\.0/Add.* differs by"):
        RewriteSelect()(model)


def test_a_rewrite_that_does_not_run_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = read_foreign(export(live(Classifier(ChannelMajor())), tmp_path / "m.onnx", "torchscript", 17))
    plant(monkeypatch, "_layer", lambda real, _, z, weight, bias, *rest: real(z, weight[:-1], bias[:-1], *rest))
    with pytest.raises(PassError, match="rewriting the select broke the graph"):
        RewriteSelect()(model)


def test_an_old_opset_is_refused(tmp_path: Path) -> None:
    path = export(live(Classifier(SplitInput())), tmp_path / "m.onnx", "torchscript", 11)
    with pytest.raises(UsageError, match="needs opset 13, not 11"):
        RewriteSelect()(ir.load(path))
