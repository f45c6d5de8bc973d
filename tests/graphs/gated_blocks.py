"""Selective kernel blocks with unusual gates, as other people write them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.graphs.foreign import CHANNELS, WIDTH, Block, branch, in_pairs, squeeze

CONVOLUTIONS = [nn.Conv1d(CHANNELS, WIDTH, 1), nn.ReLU(), nn.Conv1d(WIDTH, 2 * CHANNELS, 1)]


def interleaved(block: Block, statistics: Tensor) -> Tensor:
    """Logits channel by channel: a branch's are no slice of them."""
    return block.logits(statistics).reshape(-1, CHANNELS, 2).softmax(-1).permute(0, 2, 1)[..., None, None]


def with_shortcut(block: Block, statistics: Tensor) -> Tensor:
    """The statistics are read twice."""
    first, second = block.logits(statistics).chunk(2, 1)
    return torch.stack([first + statistics, second * statistics.sigmoid()], 1).softmax(1)


def einsum(_: Block, first: Tensor, second: Tensor, a: Tensor, b: Tensor) -> Tensor:
    weights = torch.stack([a, b], 1)[..., 0, 0]
    return torch.einsum("bmchw,bmc->bchw", torch.stack([first, second], 1), weights)


def matmul(_: Block, first: Tensor, second: Tensor, a: Tensor, b: Tensor) -> Tensor:
    maps = torch.stack([first, second], 2).flatten(3)  # (N, C, M, HW)
    weights = torch.stack([a, b], 2).reshape(-1, CHANNELS, 1, 2)
    return (weights @ maps).reshape(first.shape)


def tiled(_: Block, first: Tensor, second: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Weights repeated for each pixel."""
    size = first.shape[2:]
    return (torch.stack([first, second], 1) * torch.stack([a, b], 1).repeat(1, 1, 1, *size)).sum(1)


def expanded(_: Block, first: Tensor, second: Tensor, a: Tensor, b: Tensor) -> Tensor:
    weights = torch.stack([a.expand_as(first), b.expand_as(second)], 1)
    return (torch.stack([first, second], 1) * weights).sum(1)


def upsampled(_: Block, first: Tensor, second: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Of one pixel, any interpolation makes equal ones."""
    size = first.shape[2:]
    return first * nn.functional.interpolate(a, size) + second * nn.functional.interpolate(b, size, mode="bilinear")


def with_ellipsis(_: Block, first: Tensor, second: Tensor, a: Tensor, b: Tensor) -> Tensor:
    weights = torch.stack([a, b], 1)[..., 0, 0]
    return torch.einsum("nmc...,nmc->nc...", torch.stack([first, second], 1), weights)


def residual(block: Block, x: Tensor) -> Tensor:
    """The sum of the maps is used once more."""
    first, second = block.maps(x)
    total = first + second
    weights = block.weigh(total.mean((2, 3), keepdim=True))
    return first * weights[:, 0] + second * weights[:, 1] + total


def weights_too(block: Block, x: Tensor) -> Tensor:
    """So are the weights, and the stack of the maps."""
    maps = torch.stack(block.maps(x), 1)
    weights = block.weigh(maps.sum(1).mean((2, 3), keepdim=True))
    return (maps * weights).sum(1) * weights[:, 0].tanh() + maps.tanh().sum(1)


def from_the_left(block: Block, x: Tensor) -> Tensor:
    """Added to a shortcut map by map, so that no tensor is the select alone."""
    first, second = block.maps(x)
    weights = block.weigh((first + second).mean((2, 3), keepdim=True))
    return x + first * weights[:, 0] + second * weights[:, 1]


def before_the_activation(block: Block, x: Tensor) -> Tensor:
    """a relu(x) = relu(a x), since weights are not negative."""
    first, second = (nn.functional.leaky_relu(path[:2](x), 0.1) for path in (block.first, block.second))
    weights = block.weigh((first + second).mean((2, 3), keepdim=True))
    plain = (path[:2](x) for path in (block.first, block.second))
    one, other = (nn.functional.leaky_relu(m * w, 0.1) for m, w in zip(plain, weights.unbind(1), strict=True))
    return one + other


class Interleaved(Block):
    """The maps are every second channel of one tensor, or two runs each."""

    def __init__(self, runs: int) -> None:
        super().__init__()
        self.both, self.runs = branch(1, outputs=2 * CHANNELS), runs

    def maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = self.both(x).unflatten(1, (self.runs, 2, CHANNELS // self.runs)).unbind(2)
        return first.flatten(1, 2), second.flatten(1, 2)


def by_hand(block: Block, statistics: Tensor) -> Tensor:
    """The hyperbolic tangent keeps the exponentials of these untrained logits finite."""
    powers = in_pairs(block.logits(statistics).tanh().exp())
    return powers / powers.sum(1, keepdim=True)


def safely_by_hand(block: Block, statistics: Tensor) -> Tensor:
    """The largest logit is taken from all of them first."""
    logits = in_pairs(block.logits(statistics))
    powers = torch.exp(logits - logits.amax(1, keepdim=True))
    return powers / powers.sum(1, keepdim=True)


def two_quotients(block: Block, statistics: Tensor) -> Tensor:
    """Each weight by itself."""
    first, second = block.logits(statistics).tanh().chunk(2, 1)
    total = first.exp() + second.exp()
    return torch.stack([first.exp() / total, second.exp() / total], 1)


def shares_of_softplus(block: Block, statistics: Tensor) -> Tensor:
    """Positive numbers divided by their sum, without an exponential."""
    numbers = in_pairs(nn.functional.softplus(block.logits(statistics).tanh()))
    return numbers / numbers.sum(1, keepdim=True)


def shares_of_sigmoids(block: Block, statistics: Tensor) -> Tensor:
    """By a factor, one over the sum."""
    numbers = in_pairs(block.logits(statistics).tanh().sigmoid())
    return numbers * numbers.sum(1, keepdim=True).reciprocal()


def shares_of_powers(block: Block, statistics: Tensor) -> Tensor:
    """Each weight by itself, powers of two."""
    first, second = (2.0 ** logits.tanh() for logits in block.logits(statistics).chunk(2, 1))
    return torch.stack([first / (first + second), second / (second + first)], 1)


def less_the_logarithm(block: Block, statistics: Tensor) -> Tensor:
    logits = in_pairs(block.logits(statistics))
    return torch.exp(logits - logits.logsumexp(1, keepdim=True))


def two_sigmoids(block: Block, statistics: Tensor) -> Tensor:
    """sigmoid(-x) = 1 - sigmoid(x)."""
    first, second = block.logits(statistics).chunk(2, 1)
    return torch.stack([torch.sigmoid(first - second), torch.sigmoid(second - first)], 1)


def sigmoid_by_hand(block: Block, statistics: Tensor) -> Tensor:
    first, second = block.logits(statistics).tanh().chunk(2, 1)
    weight = 1 / (1 + torch.exp(second - first))
    return torch.stack([weight, 1 - weight], 1)


def by_norm(block: Block, statistics: Tensor) -> Tensor:
    """The sum of positive numbers is their 1-norm."""
    powers = in_pairs(block.logits(statistics).tanh().exp())
    return powers / powers.norm(1, dim=1, keepdim=True)


class BottleneckEach(Block):
    """Each branch's logits have a bottleneck of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.ModuleList(
            nn.Sequential(nn.Conv2d(CHANNELS, WIDTH, 1), nn.ReLU(), nn.Conv2d(WIDTH, CHANNELS, 1)) for _ in range(2)
        )

    def weigh(self, statistics: Tensor) -> Tensor:
        return torch.stack([gate(statistics) for gate in self.gates], 1).softmax(1)


class Branches(nn.Module):
    """Many of them; logits with groups, softmax by hand or not."""

    def __init__(self, count: int, *, by_hand: bool) -> None:
        super().__init__()
        self.count, self.by_hand = count, by_hand
        self.paths = nn.ModuleList(branch(1) for _ in range(count))
        self.reduce, self.expand = squeeze(), nn.Conv2d(WIDTH, count * CHANNELS, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.stack([path(x) for path in self.paths], 1)
        logits = self.expand(self.reduce(maps.sum(1).mean((2, 3), keepdim=True)))
        logits = logits.reshape(-1, self.count, CHANNELS, 1, 1).tanh()
        weights = (powers := logits.exp()) / powers.sum(1, keepdim=True) if self.by_hand else logits.softmax(1)
        return (maps * weights).sum(1)


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
    # TResNet's pool.
    "pool of flattened maps": Block(fuse=lambda _, a, b, x: (a + b).flatten(2).mean(-1)[..., None, None]),
    "sum over size": Block(fuse=lambda _, a, b, x: (a + b).sum((2, 3), keepdim=True) / (a.shape[2] * a.shape[3])),
    "sum of flattened maps times a factor": Block(
        fuse=lambda _, a, b, x: ((a + b).flatten(2).sum(2) * (1 / (a.shape[2] * a.shape[3])))[..., None, None]
    ),
    "mean over branches": Block(fuse=lambda _, a, b, x: torch.stack([a, b], 1).mean(1).mean((2, 3), keepdim=True)),
    "mean over branches and pixels": Block(
        fuse=lambda _, a, b, x: torch.stack([a, b], 1).mean((1, 3, 4))[..., None, None]
    ),
    "temperature": Block(weigh=lambda block, s: in_pairs(block.logits(s) / 3).softmax(1)),
    "sigmoid before softmax": Block(weigh=lambda block, s: in_pairs(block.logits(s).sigmoid()).softmax(1)),
    "ReLU before softmax": Block(weigh=lambda block, s: in_pairs(block.logits(s).relu()).softmax(1)),
    "SiLU": Block(reduce=squeeze(nn.SiLU())),
    "GELU": Block(reduce=squeeze(nn.GELU())),
    "Hardswish": Block(reduce=squeeze(nn.Hardswish())),
    "Mish": Block(reduce=squeeze(nn.Mish())),
    "PReLU": Block(reduce=squeeze(nn.PReLU(WIDTH))),
    "groups": Block(expand=nn.Conv2d(WIDTH, 2 * CHANNELS, 1, groups=2)),
    "interleaved groups": Block(expand=nn.Conv2d(WIDTH, 2 * CHANNELS, 1, groups=2), weigh=interleaved),
    "LayerNorm of the logits": Block(
        norm=nn.LayerNorm(2 * CHANNELS),
        weigh=lambda block, s: in_pairs(block.norm(block.logits(s).flatten(1))).softmax(1),
    ),
    "Conv1d": Block(
        gate=nn.Sequential(*CONVOLUTIONS), weigh=lambda block, s: in_pairs(block.gate(s.flatten(2))).softmax(1)
    ),
    "shortcut in the gate": Block(weigh=with_shortcut),
    "a bottleneck for each branch": BottleneckEach(),
    "Einsum": Block(combine=einsum),
    "MatMul": Block(combine=matmul),
    "weights tiled": Block(combine=tiled),
    "weights expanded": Block(combine=expanded),
    "weights upsampled": Block(combine=upsampled),
    "Einsum with an ellipsis": Block(combine=with_ellipsis),
    "mean of the weighted maps": Block(combine=lambda _, a, b, v, w: torch.stack([a * v, b * w], 1).mean(1)),
    "residual": Block(forward=residual),
    "added from the left": Block(forward=from_the_left),
    "before the activation": Block(forward=before_the_activation),
    "every second channel": Interleaved(CHANNELS),
    "two runs of channels": Interleaved(2),
    "softmax by hand": Block(weigh=by_hand),
    "softmax by hand, less the largest": Block(weigh=safely_by_hand),
    "two quotients": Block(weigh=two_quotients),
    "shares of Softplus": Block(weigh=shares_of_softplus),
    "shares of sigmoids": Block(weigh=shares_of_sigmoids),
    "shares of powers": Block(weigh=shares_of_powers),
    "log-softmax": Block(weigh=lambda block, s: in_pairs(block.logits(s)).log_softmax(1).exp()),
    "less the logarithm of the sum": Block(weigh=less_the_logarithm),
    "two sigmoids": Block(weigh=two_sigmoids),
    "sigmoid by hand": Block(weigh=sigmoid_by_hand),
    "divided by a norm": Block(weigh=by_norm),
    "ten branches": Branches(10, by_hand=False),
    "ten branches by hand": Branches(10, by_hand=True),
    "three branches": ThreeBranches(),
}
