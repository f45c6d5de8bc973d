"""Selects whose pool, gate or sum is written in another way: rewritten where that is the same function, and told where not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from skdeploy.passes.foreign import read_foreign
from skdeploy.passes.select import RewriteSelect
from tests.graphs.foreign import (
    CHANNELS,
    WIDTH,
    Block,
    Classifier,
    branch,
    export,
    live,
)
from tests.graphs.networks import (
    FLOAT32_ERROR,
    images,
    relative_error,
    run,
    torch_logits,
)

SHAPE = (12, 10)


class Flattened(Block):
    """TResNet's pool."""

    def fuse(self, first: Tensor, second: Tensor) -> Tensor:
        return (first + second).flatten(2).mean(-1)[..., None, None]


class SumOverSize(Block):
    def fuse(self, first: Tensor, second: Tensor) -> Tensor:
        return (first + second).sum((2, 3), keepdim=True) / (first.shape[2] * first.shape[3])


class FlattenedSum(Block):
    def fuse(self, first: Tensor, second: Tensor) -> Tensor:
        return ((first + second).flatten(2).sum(2) * (1 / (first.shape[2] * first.shape[3])))[..., None, None]


class MeanOfBranches(Block):
    def fuse(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.stack([first, second], 1).mean(1).mean((2, 3), keepdim=True)


class MeanOfAll(Block):
    """Branches and pixels in one mean."""

    def fuse(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.stack([first, second], 1).mean((1, 3, 4))[..., None, None]


class Temperature(Block):
    def weigh(self, statistics: Tensor) -> Tensor:
        logits: Tensor = self.expand(self.reduce(statistics)) / 3
        return logits.reshape(-1, 2, CHANNELS, 1, 1).softmax(1)


class LogitsOf(Block):
    """An activation between the last layer and the softmax."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def weigh(self, statistics: Tensor) -> Tensor:
        logits: Tensor = self.activation(self.expand(self.reduce(statistics)))
        return logits.reshape(-1, 2, CHANNELS, 1, 1).softmax(1)


class ReducedBy(Block):
    """Another activation in the bottleneck."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.reduce[2] = activation


class GroupedLayer(Block):
    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(WIDTH, 2 * CHANNELS, 1, groups=2)


class InterleavedGroups(GroupedLayer):
    """Logits channel by channel: a branch's are no slice of them."""

    def weigh(self, statistics: Tensor) -> Tensor:
        logits: Tensor = self.expand(self.reduce(statistics)).reshape(-1, CHANNELS, 2).softmax(-1)
        return logits.permute(0, 2, 1)[..., None, None]


class NormalisedLogits(Block):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * CHANNELS)

    def weigh(self, statistics: Tensor) -> Tensor:
        logits: Tensor = self.norm(self.expand(self.reduce(statistics)).flatten(1))
        return logits.reshape(-1, 2, CHANNELS, 1, 1).softmax(1)


class Conv1dGate(Block):
    def __init__(self) -> None:
        super().__init__()
        self.first_layer, self.last_layer = nn.Conv1d(CHANNELS, WIDTH, 1), nn.Conv1d(WIDTH, 2 * CHANNELS, 1)

    def weigh(self, statistics: Tensor) -> Tensor:
        logits: Tensor = self.last_layer(torch.relu(self.first_layer(statistics.flatten(2))))
        return logits.reshape(-1, 2, CHANNELS, 1, 1).softmax(1)


class GateWithShortcut(Block):
    """The statistics are read twice."""

    def weigh(self, statistics: Tensor) -> Tensor:
        first, second = self.expand(self.reduce(statistics)).chunk(2, 1)
        return torch.stack([first + statistics, second * statistics.sigmoid()], 1).softmax(1)


class BottleneckEach(Block):
    """Each branch's logits have a bottleneck of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.ModuleList(
            nn.Sequential(nn.Conv2d(CHANNELS, WIDTH, 1), nn.ReLU(), nn.Conv2d(WIDTH, CHANNELS, 1)) for _ in range(2)
        )

    def weigh(self, statistics: Tensor) -> Tensor:
        return torch.stack([gate(statistics) for gate in self.gates], 1).softmax(1)


class EinsumSelect(Block):
    def combine(self, first: Tensor, second: Tensor, a: Tensor, b: Tensor) -> Tensor:
        weights = torch.stack([a, b], 1)[..., 0, 0]
        return torch.einsum("bmchw,bmc->bchw", torch.stack([first, second], 1), weights)


class MatMulSelect(Block):
    def combine(self, first: Tensor, second: Tensor, a: Tensor, b: Tensor) -> Tensor:
        maps = torch.stack([first, second], 2).flatten(3)  # (N, C, M, HW)
        weights = torch.stack([a, b], 2).reshape(-1, CHANNELS, 1, 2)
        return (weights @ maps).reshape(first.shape)


class SoftmaxByHand(Block):
    """The hyperbolic tangent keeps the exponentials of these untrained logits finite."""

    def weigh(self, statistics: Tensor) -> Tensor:
        powers: Tensor = self.expand(self.reduce(statistics)).tanh().exp().reshape(-1, 2, CHANNELS, 1, 1)
        return powers / powers.sum(1, keepdim=True)


class SafeSoftmaxByHand(Block):
    """The largest logit is taken from all of them first."""

    def weigh(self, statistics: Tensor) -> Tensor:
        logits = self.expand(self.reduce(statistics)).reshape(-1, 2, CHANNELS, 1, 1)
        powers = torch.exp(logits - logits.amax(1, keepdim=True))
        return powers / powers.sum(1, keepdim=True)


class TwoQuotients(Block):
    """Each weight by itself."""

    def weigh(self, statistics: Tensor) -> Tensor:
        first, second = self.expand(self.reduce(statistics)).tanh().chunk(2, 1)
        total = first.exp() + second.exp()
        return torch.stack([first.exp() / total, second.exp() / total], 1)


class ThreeBranches(nn.Module):
    """A mean over three branches, and sigmoids before the softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.paths = nn.ModuleList(branch(k) for k in (1, 2, 3))
        self.reduce, self.expand = nn.Linear(CHANNELS, WIDTH), nn.Linear(WIDTH, 3 * CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.stack([path(x) for path in self.paths], 1)
        z = nn.functional.silu(self.reduce(maps.mean((1, 3, 4))))
        weights = self.expand(z).sigmoid().reshape(-1, CHANNELS, 3).softmax(2)
        return torch.einsum("ncm,nmcij->ncij", weights, maps)


SAME: dict[str, nn.Module] = {
    "pool of flattened maps": Flattened(),
    "sum over size": SumOverSize(),
    "sum of flattened maps times a factor": FlattenedSum(),
    "mean over branches": MeanOfBranches(),
    "mean over branches and pixels": MeanOfAll(),
    "temperature": Temperature(),
    "sigmoid before softmax": LogitsOf(nn.Sigmoid()),
    "ReLU before softmax": LogitsOf(nn.ReLU()),
    "SiLU": ReducedBy(nn.SiLU()),
    "GELU": ReducedBy(nn.GELU()),
    "Hardswish": ReducedBy(nn.Hardswish()),
    "Mish": ReducedBy(nn.Mish()),
    "PReLU": ReducedBy(nn.PReLU(WIDTH)),
    "groups": GroupedLayer(),
    "interleaved groups": InterleavedGroups(),
    "LayerNorm of the logits": NormalisedLogits(),
    "Conv1d": Conv1dGate(),
    "shortcut in the gate": GateWithShortcut(),
    "a bottleneck for each branch": BottleneckEach(),
    "Einsum": EinsumSelect(),
    "MatMul": MatMulSelect(),
    "softmax by hand": SoftmaxByHand(),
    "softmax by hand, less the largest": SafeSoftmaxByHand(),
    "two quotients": TwoQuotients(),
    "three branches": ThreeBranches(),
}


@pytest.mark.parametrize(
    ("exporter", "opset"),
    [("torchscript", 13), ("torchscript", 20), pytest.param("dynamo", 18, marks=pytest.mark.slow)],
)
def test_every_gate_of_the_same_function_is_rewritten(exporter: str, opset: int, tmp_path: Path) -> None:
    network = live(Classifier(*SAME.values()))
    model = read_foreign(export(network, tmp_path / "m.onnx", exporter, opset, shape=(3, *SHAPE)))
    rewrite = RewriteSelect()
    rewrite(model)
    assert rewrite.report.near_misses == ()
    assert len(rewrite.report.found) == len(SAME)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert [node.op_type for node in model.graph if node.op_type == "Softmax"] == ["Softmax"]  # of the three branches
    inputs = images(5, *SHAPE)
    assert relative_error(run(model, inputs)["logits"], torch_logits(network, inputs)) < FLOAT32_ERROR
    again = RewriteSelect()
    again(model)
    assert (again.report.found, len(again.report.deployed), again.report.near_misses) == ((), len(SAME), ())


class UnequalBranches(Block):
    def fuse(self, first: Tensor, second: Tensor) -> Tensor:
        return (first * 0.25 + second * 0.75).mean((2, 3), keepdim=True)


class SumAndMaximum(Block):
    def fuse(self, first: Tensor, second: Tensor) -> Tensor:
        return (first + second).mean((2, 3), keepdim=True) + (first + second).amax((2, 3), keepdim=True)


class HalfOfThePixels(Block):
    def fuse(self, first: Tensor, second: Tensor) -> Tensor:
        return (first + second).flatten(2)[..., ::2].mean(-1)[..., None, None]


class PaddedPool(Block):
    """One window at the map's corner, not the whole map."""

    def fuse(self, first: Tensor, second: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(first + second, SHAPE, stride=SHAPE, padding=(6, 5))[..., :1, :1]


class GateReadsInput(Block):
    """The gate is another function of the image too."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.maps(x)
        weights = self.weigh(self.fuse(first, second) + x.mean((2, 3), keepdim=True))
        return self.combine(first, second, weights[:, 0], weights[:, 1])


class TwoMeans(Block):
    """The gate reads the sum of the branches, and one of them again."""

    def fuse(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.tanh(super().fuse(first, second)) + first.mean((2, 3), keepdim=True)


class EinsumOfPixels(Block):
    def combine(self, first: Tensor, second: Tensor, a: Tensor, b: Tensor) -> Tensor:
        weights = torch.stack([a, b], 1).expand(-1, -1, -1, *first.shape[2:])
        return torch.einsum("bmchw,bmchw->bchw", torch.stack([first, second], 1), weights)


class EinsumOverChannels(Block):
    def combine(self, first: Tensor, second: Tensor, a: Tensor, b: Tensor) -> Tensor:
        weights = torch.stack([a, b], 1)[..., 0, 0]
        mixed = torch.einsum("bmchw,bmc->bhw", torch.stack([first, second], 1), weights)
        return mixed[:, None] + first


class ExponentialsWithEpsilon(Block):
    """Weights that sum to a little less than one."""

    def weigh(self, statistics: Tensor) -> Tensor:
        powers: Tensor = self.expand(self.reduce(statistics)).tanh().exp().reshape(-1, 2, CHANNELS, 1, 1)
        return powers / (powers.sum(1, keepdim=True) + 1e-3)


class RowWeights(Block):
    """One weight for each row of the map (as for each frequency of a spectrogram)."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.maps(x)
        weights = torch.stack([first.mean((1, 3)), second.mean((1, 3))], 1).softmax(1)[:, :, None, :, None]
        return first * weights[:, 0] + second * weights[:, 1]


class Sequences(nn.Module):
    """Selective kernels over time."""

    def __init__(self) -> None:
        super().__init__()
        self.paths = nn.ModuleList(nn.Conv1d(CHANNELS, CHANNELS, 3, padding=d, dilation=d) for d in (1, 2))
        self.expand = nn.Linear(CHANNELS, 2 * CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.stack([path(x.flatten(2)) for path in self.paths])
        weights: Tensor = self.expand(maps.sum(0).mean(2)).reshape(-1, 2, CHANNELS, 1).softmax(1).transpose(0, 1)
        return (maps * weights).sum(0).reshape(x.shape)


OTHER: list[tuple[type[nn.Module], str]] = [
    (UnequalBranches, "weigh the branches by 0.25, 0.75"),
    (SumAndMaximum, "ReduceMax blocks.1/ReduceMax: blocks.1/ReduceMax is not a sum or a mean of the branches"),
    (HalfOfThePixels, "does not take the mean over height and width of its branches: Slice"),
    (PaddedPool, "an average pool that is not over the whole map"),
    (GateReadsInput, "/Relu_4 is not a sum or a mean of the branches"),
    (TwoMeans, "its gate takes 2 means of its branches"),
    (EinsumOfPixels, "its weights go into Einsum: "),
    (EinsumOverChannels, "its weights go into "),
    (ExponentialsWithEpsilon, "which is not their sum alone"),
    (RowWeights, "its weights differ from row to row"),
    (Sequences, "has rank 3; only maps of images, (N, C, H, W), are searched"),
]


def test_near_cases_of_another_function_are_left_alone_and_told_why(tmp_path: Path) -> None:
    network = live(Classifier(*(make() for make, _ in OTHER)))
    model = read_foreign(export(network, tmp_path / "m.onnx", "torchscript", 17, shape=(3, *SHAPE)))
    before = ir.to_proto(model).SerializeToString()
    rewrite = RewriteSelect()
    rewrite(model)
    assert (rewrite.report.found, rewrite.report.deployed) == ((), ())
    told = {name.partition("/")[0]: why for name, why in rewrite.report.near_misses}
    for index, (make, reason) in enumerate(OTHER):
        assert reason in told.get(f"blocks.{index}", ""), make.__name__
    assert ir.to_proto(model).SerializeToString() == before


def test_a_sum_over_pixels_of_a_free_size_is_told(tmp_path: Path) -> None:
    """Another size has another factor: sum / size is a mean only where the size is known."""
    network = live(Classifier(SumOverSize()))
    file = export(network, tmp_path / "m.onnx", "torchscript", 17, shape=(3, *SHAPE), free_size=True)
    rewrite = RewriteSelect()
    rewrite(read_foreign(file))
    ((where, why),) = rewrite.report.near_misses
    assert rewrite.report.found == ()
    assert where == "blocks.0"
    assert "it adds up maps whose size is not fixed" in why


def test_known_sizes_are_folded_where_only_the_batch_is_free(tmp_path: Path) -> None:
    network = live(Classifier(SumOverSize()))
    file = export(network, tmp_path / "m.onnx", "torchscript", 17, shape=(3, *SHAPE))
    assert "Shape" in {node.op_type for node in onnx.load(file).graph.node}  # or there is nothing to fold
    divisor = next(node for node in read_foreign(file).graph if node.op_type == "Div").inputs[1]
    assert divisor is not None
    assert divisor.const_value is not None
    assert np.array_equal(divisor.const_value.numpy(), 120)
