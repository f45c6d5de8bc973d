"""A small classifier with split attention: after "ResNeSt: Split-Attention Networks" (Zhang et al., 2020), section 3.

A grouped convolution makes ``radix`` splits of all channels. A gate reads the mean of their sum, and a softmax over the splits
weighs each channel of each: selective kernels of one kernel size. With ``cardinality`` groups, each group of channels has a
gate of its own, which grouped 1x1 convolutions write as one; its logits then come group by group, and the splits do not.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

CLASSES: Final = 5
STEM: Final = 16
WIDTHS: Final = (16, 32)
SEED: Final = 11


class SplitAttention(nn.Module):
    """(N, C, H, W) to the same; ``view`` stacks the splits on a fifth axis, else they are a list that Python adds up."""

    def __init__(self, width: int, *, radix: int = 2, cardinality: int = 1, view: bool = True) -> None:
        super().__init__()
        self.width, self.radix, self.cardinality, self.view = width, radix, cardinality, view
        groups = radix * cardinality
        squeezed = max(width * radix // 4, 8)
        self.conv = nn.Conv2d(width, width * radix, 3, padding=1, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(width * radix)
        self.squeeze = nn.Conv2d(width, squeezed, 1, groups=cardinality)
        self.squeeze_norm = nn.BatchNorm2d(squeezed)
        self.excite = nn.Conv2d(squeezed, width * radix, 1, groups=cardinality)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        splits = x.chunk(self.radix, 1)
        stacked = x.reshape(x.shape[0], self.radix, self.width, *x.shape[2:])
        total = stacked.sum(1) if self.view else sum(splits)
        assert isinstance(total, Tensor)  # of at least one split
        gate = torch.relu(self.squeeze_norm(self.squeeze(nn.functional.adaptive_avg_pool2d(total, 1))))
        weights = self.over_splits(self.excite(gate))
        if self.view:
            return (stacked * weights.reshape(-1, self.radix, self.width, 1, 1)).sum(1)
        weighted = [weight * split for weight, split in zip(weights.chunk(self.radix, 1), splits, strict=True)]
        return torch.stack(weighted).sum(0)

    def over_splits(self, logits: Tensor) -> Tensor:
        """The softmax: from (group, split, channel) to (split, group, channel)."""
        apart = logits.reshape(logits.shape[0], self.cardinality, self.radix, -1).transpose(1, 2)
        return apart.softmax(1).reshape(logits.shape[0], -1, 1, 1)


class Unit(nn.Module):
    """A bottleneck around it, with a shortcut; average pools reduce the size, as in the paper."""

    def __init__(self, inputs: int, width: int, *, stride: int, cardinality: int, view: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.attend = SplitAttention(width, cardinality=cardinality, view=view)
        self.pool = nn.AvgPool2d(3, stride, 1) if stride > 1 else nn.Identity()
        self.increase = nn.Sequential(nn.Conv2d(width, 2 * width, 1, bias=False), nn.BatchNorm2d(2 * width))
        shrink = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.shortcut = nn.Sequential(shrink, nn.Conv2d(inputs, 2 * width, 1, bias=False), nn.BatchNorm2d(2 * width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.increase(self.pool(self.attend(self.reduce(x)))) + self.shortcut(x))


class SplitAttentionNet(nn.Module):
    """(N, 3, H, W) to (N, 5): three units, one of which reduces the size."""

    def __init__(self, cardinality: int = 1, *, view: bool = True) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, STEM, 3, 2, 1, bias=False), nn.BatchNorm2d(STEM), nn.ReLU())
        first, second = WIDTHS
        self.units = nn.Sequential(
            Unit(STEM, first, stride=1, cardinality=cardinality, view=view),
            Unit(2 * first, second, stride=2, cardinality=cardinality, view=view),
            Unit(2 * second, second, stride=1, cardinality=cardinality, view=not view),
        )
        self.classifier = nn.Linear(2 * second, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.units(self.stem(x)).mean((2, 3)))
        return logits


def build(cardinality: int = 1, *, view: bool = True) -> nn.Module:
    """With random weights, normalised: each normalisation has the statistics of what it reads, for images of noise."""
    torch.manual_seed(SEED)
    network = SplitAttentionNet(cardinality, view=view)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.6, 1.4)
            nn.init.normal_(module.bias, 0, 0.3)
        if isinstance(module, SplitAttention):
            nn.init.normal_(module.excite.weight, 0, 0.4)
    with torch.no_grad():
        network.train()(torch.randn(8, 3, 32, 32))
        assert isinstance(network.classifier, nn.Linear)  # typed as a module of any kind
        network.classifier.bias.zero_()
        network.classifier.weight *= (
            10  # or the logits, which the images hardly change, are small beside their rounding
        )
    return network.eval().requires_grad_(False)


def one_group() -> nn.Module:
    return build(1)


def two_groups() -> nn.Module:
    return build(2, view=False)
