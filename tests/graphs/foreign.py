"""Selective kernel convolutions as the popular ports write them, in our own words and as small as they get, and their
exports.

Each takes (N, 8, H, W) to (N, 8, H, W) with two branches unless told otherwise. What differs is what ``passes/select.py`` must
see through: how branches are joined, how the gate is shaped, how the softmax is laid out and how the sum is taken.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx
import onnxsim
import torch
from torch import Tensor, nn

CHANNELS = 8
WIDTH = 6  # of the gate's bottleneck


def branch(kernel: int = 1, *, inputs: int = CHANNELS, outputs: int = CHANNELS, groups: int = 1) -> nn.Sequential:
    """Convolution 3x3 with dilation ``kernel``, normalisation and ReLU."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=kernel, dilation=kernel, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def squeeze(activation: nn.Module | None = None) -> nn.Sequential:
    """The first layer of the gate, as a convolution."""
    return nn.Sequential(nn.Conv2d(CHANNELS, WIDTH, 1, bias=False), nn.BatchNorm2d(WIDTH), activation or nn.ReLU())


class SplitInput(nn.Module):
    """timm: each branch takes half of the input, branches stacked, softmax on rank 5, multiplied and summed."""

    def __init__(self) -> None:
        super().__init__()
        self.paths = nn.ModuleList(branch(k, inputs=CHANNELS // 2) for k in (1, 2))
        self.reduce, self.expand = squeeze(), nn.Conv2d(WIDTH, 2 * CHANNELS, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        halves = torch.split(x, CHANNELS // 2, 1)
        maps = torch.stack([path(half) for path, half in zip(self.paths, halves, strict=True)], dim=1)
        logits = self.expand(self.reduce(maps.sum(1).mean((2, 3), keepdim=True)))
        batch, channels, height, width = logits.shape
        weights = torch.softmax(logits.view(batch, 2, channels // 2, height, width), dim=1)
        return torch.sum(maps * weights, dim=1)


class Concatenated(nn.Module):
    """pppLang, ResearchingDexter and others: concatenated and viewed as a stack, any number of branches, grouped."""

    def __init__(self, branches: int = 2, groups: int = 4) -> None:
        super().__init__()
        self.count = branches
        self.paths = nn.ModuleList(branch(m + 1, groups=groups) for m in range(branches))
        self.pool, self.reduce = nn.AdaptiveAvgPool2d(1), squeeze()
        self.expand = nn.Conv2d(WIDTH, branches * CHANNELS, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        maps = torch.cat([path(x) for path in self.paths], dim=1)
        maps = maps.view(batch, self.count, CHANNELS, maps.shape[2], maps.shape[3])
        logits = self.expand(self.reduce(self.pool(torch.sum(maps, dim=1)))).view(batch, self.count, CHANNELS)
        weights = torch.softmax(logits, 1).view(batch, self.count, CHANNELS, 1, 1)
        return torch.sum(maps * weights, dim=1)


class SeparateLayers(nn.Module):
    """developer0hye and syt2: one biased Linear a branch, stacked; the mean is taken twice; branches are added in a loop."""

    def __init__(self, branches: int = 2) -> None:
        super().__init__()
        self.convs = nn.ModuleList(branch(m + 1) for m in range(branches))
        self.fc = nn.Sequential(nn.Linear(CHANNELS, WIDTH), nn.ReLU())
        self.fcs = nn.ModuleList(nn.Linear(WIDTH, CHANNELS) for _ in range(branches))

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.cat([conv(x).unsqueeze(1) for conv in self.convs], dim=1)
        z = self.fc(torch.sum(maps, dim=1).mean(-1).mean(-1))
        vectors = torch.cat([layer(z).unsqueeze(1) for layer in self.fcs], dim=1)
        weights = torch.softmax(vectors, dim=1).unsqueeze(-1).unsqueeze(-1)
        return (maps * weights).sum(dim=1)


class Sliced(nn.Module):
    """PytorchInsight: rows of the softmax sliced, each multiplied with its branch, and added."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.grouped = branch(1), branch(1, groups=4)
        self.pool, self.reduce = nn.AdaptiveAvgPool2d(1), squeeze()
        self.expand = nn.Conv2d(WIDTH, 2 * CHANNELS, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.dense(x), self.grouped(x)
        logits = self.expand(self.reduce(self.pool(first + second)))
        weights = torch.softmax(logits.unsqueeze(1).view(-1, 2, CHANNELS, 1, 1), 1)
        return first * weights[:, 0:1].squeeze(1) + second * weights[:, 1:2].squeeze(1)


class ChannelMajor(nn.Module):
    """Keras ports: a dense layer whose rows are channel-major, softmax over the last axis, transposed afterwards."""

    def __init__(self, branches: int = 2) -> None:
        super().__init__()
        self.count = branches
        self.paths = nn.ModuleList(branch(m + 1) for m in range(branches))
        self.reduce = nn.Sequential(nn.Linear(CHANNELS, WIDTH, bias=False), nn.ReLU())
        self.expand = nn.Linear(WIDTH, branches * CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        maps = [path(x) for path in self.paths]
        total = maps[0]
        for other in maps[1:]:
            total = total + other
        logits = self.expand(self.reduce(torch.flatten(nn.functional.adaptive_avg_pool2d(total, 1), 1)))
        weights = logits.reshape(-1, CHANNELS, self.count).softmax(-1).permute(2, 0, 1)[..., None, None]
        selected = maps[0] * weights[0]
        for m in range(1, self.count):
            selected = selected + maps[m] * weights[m]
        return selected


class LastAxis(nn.Module):
    """Stacked on the last axis, softmax there, one weight left out: V = a U1 + (1 - a) U2 with the same softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.paths = nn.ModuleList(branch(k) for k in (1, 2))
        self.reduce, self.expand = squeeze(), nn.Conv2d(WIDTH, 2 * CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.stack([path(x) for path in self.paths], dim=-1)
        logits = self.expand(self.reduce(maps.sum(-1).mean((2, 3), keepdim=True)))
        first = logits.view(-1, 2, CHANNELS).softmax(1)[:, 0].view(-1, CHANNELS, 1, 1)
        return first * maps[..., 0] + (1 - first) * maps[..., 1]


class TwoStreams(nn.Module):
    """The port of SimCLRv2: one convolution makes the channels of both branches, which are chunked and stacked."""

    def __init__(self) -> None:
        super().__init__()
        self.both = branch(1, outputs=2 * CHANNELS)
        self.reduce, self.expand = squeeze(), nn.Conv2d(WIDTH, 2 * CHANNELS, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.stack(self.both(x).chunk(2, dim=1), dim=0)
        logits = self.expand(self.reduce(maps.sum(0).mean((2, 3), keepdim=True)))
        weights = torch.stack(logits.chunk(2, dim=1), dim=0).softmax(0)
        return (maps * weights).sum(0)


class Block(nn.Module):
    """A select. ``parts`` write some of it in another way, or spoil it: modules, or functions of the block and their data."""

    def __init__(self, **parts: nn.Module | Callable[..., object]) -> None:
        super().__init__()
        self.first, self.second = branch(1), branch(2)
        self.reduce, self.expand = squeeze(), nn.Conv2d(WIDTH, 2 * CHANNELS, 1)
        for name, part in parts.items():
            setattr(self, name, part if isinstance(part, nn.Module) else partial(part, self))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.maps(x)
        weights = self.weigh(self.fuse(first, second, x))
        return self.combine(first, second, weights[:, 0], weights[:, 1])

    def maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x), self.second(x)

    def fuse(self, first: Tensor, second: Tensor, _x: Tensor) -> Tensor:
        return (first + second).mean((2, 3), keepdim=True)

    def weigh(self, statistics: Tensor) -> Tensor:
        return in_pairs(self.logits(statistics)).softmax(1)

    def logits(self, statistics: Tensor) -> Tensor:
        return self.expand(self.reduce(statistics))

    def combine(self, first: Tensor, second: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return first * a + second * b


def in_pairs(logits: Tensor) -> Tensor:
    """(N, 2, C, 1, 1)."""
    return logits.reshape(-1, 2, CHANNELS, 1, 1)


class Classifier(nn.Module):
    """Two units around a block, with a shortcut, so that V is used by a convolution and an Add: (N, 3, H, W) -> (N, 5)."""

    def __init__(self, *blocks: nn.Module, softmax: bool = False) -> None:
        super().__init__()
        self.stem = branch(1, inputs=3)
        self.blocks = nn.ModuleList(blocks)
        self.merges = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 1) for _ in blocks)
        self.classifier = nn.Linear(CHANNELS, 5)
        self.softmax = softmax

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block, merge in zip(self.blocks, self.merges, strict=True):
            x = torch.relu(merge(block(x)) + x)
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits.softmax(1) if self.softmax else logits


PORTS = {
    "timm": SplitInput,
    "concatenated": Concatenated,
    "three branches": lambda: Concatenated(3, groups=8),
    "separate layers": SeparateLayers,
    "three separate layers": lambda: SeparateLayers(3),
    "sliced": Sliced,
    "channel-major": ChannelMajor,
    "three channel-major": lambda: ChannelMajor(3),
    "last axis": LastAxis,
    "two streams": TwoStreams,
}


def live(network: nn.Module) -> nn.Module:
    """As after training: normalisations shift and scale, gates decide. In eval mode."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.uniform_(-0.5, 0.5, generator=generator)
                module.running_mean.uniform_(-0.5, 0.5, generator=generator)  # type: ignore[union-attr]  # it keeps statistics
                module.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]  # it keeps statistics
            elif isinstance(module, (nn.Conv2d, nn.Linear)):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
                if module.bias is not None:
                    module.bias.normal_(0, 0.5, generator=generator)
    return network.eval().requires_grad_(False)


def export(
    network: nn.Module,
    path: Path,
    exporter: str = "torchscript",
    opset: int = 18,
    *,
    simplified: bool = False,
    batch: int | None = None,
    shape: tuple[int, int, int] = (3, 12, 10),
    names: tuple[str, str] = ("image", "scores"),
    free_size: bool = False,
) -> Path:
    """torch.onnx as anyone would call it, and onnx-simplifier if asked for. The batch is free unless given.

    torchscript can leave the size free too.
    """
    example = torch.zeros(batch or 2, *shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if exporter == "dynamo":
            dims = None if batch else ({0: torch.export.Dim("n")},)
            program = torch.onnx.export(
                network, (example,), dynamo=True, opset_version=opset, input_names=[names[0]], output_names=[names[1]],
                dynamic_shapes=dims, verbose=False,
            )  # fmt: skip
            assert program is not None
            proto = program.model_proto
        else:
            buffer = io.BytesIO()
            axes = None if batch else {name: {0: "n"} for name in names}
            if axes and free_size:
                axes[names[0]] |= {2: "h", 3: "w"}
            torch.onnx.export(
                network, (example,), buffer, dynamo=False, opset_version=opset, input_names=[names[0]],
                output_names=[names[1]], dynamic_axes=axes,
            )  # fmt: skip
            proto = onnx.load_from_string(buffer.getvalue())
    onnx.save(proto, path)
    return simplify_file(path) if simplified else path


def simplify_file(path: Path) -> Path:
    """onnx-simplifier's version of a file, beside it."""
    proto, _ = onnxsim.simplify(onnx.load(path))
    simplified = path.with_stem(f"{path.stem}.simplified")
    onnx.save(proto, simplified)
    return simplified
