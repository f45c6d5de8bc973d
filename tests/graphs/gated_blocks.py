"""Selective kernel blocks with unusual gates, as other people write them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.graphs.foreign import CHANNELS, WIDTH, Block, branch


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
