"""ShuffleNetV2 (Ma et al., ECCV 2018) with selective kernel convolutions for its depthwise ones (SKNet paper, Table 5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skdeploy.core.architecture import SelectiveKernelSpec, SKShuffleNetSpec
from skdeploy.core.errors import CardError
from skdeploy.zoo.selective_kernel import ConvNormAct, selective_kernel


class SKShuffleUnit(nn.Module):
    """Half of the channels passes, half goes through 1x1, depthwise selective kernel, 1x1: (N, C, H, W) -> (N, C, H, W).

    With stride 2 nothing passes: the other half is the input through a depthwise 3x3 and a 1x1, and the size halves. Raises
    CardError for channels that have no half, and for branches with groups of their own.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, kernels: SelectiveKernelSpec) -> None:
        super().__init__()
        if out_channels % 2:
            raise CardError(
                f"a ShuffleNetV2 stage cannot split {out_channels} channels in half", advice="choose an even number"
            )
        if any(branch.groups != 1 for branch in kernels.branches):
            raise CardError(
                "ShuffleNetV2's branches are depthwise, with as many groups as channels",
                advice="remove groups from the card",
            )
        half = out_channels // 2
        self.stride = stride
        self.passed: nn.Module = nn.Identity()
        if stride > 1:
            self.passed = nn.Sequential(
                ConvNormAct(in_channels, in_channels, 3, stride=stride, groups=in_channels, activation=False),
                ConvNormAct(in_channels, half, 1),
            )
        self.reduce = ConvNormAct(in_channels if stride > 1 else half, half, 1)
        depthwise = tuple(branch.model_copy(update={"groups": half}) for branch in kernels.branches)
        self.sk = selective_kernel(kernels.model_copy(update={"branches": depthwise}), half, half, stride)
        self.expand = ConvNormAct(half, half, 1)

    def forward(self, x: Tensor) -> Tensor:
        passed, worked = (x, x) if self.stride > 1 else x.chunk(2, 1)
        return shuffle(torch.cat([self.passed(passed), self.expand(self.sk(self.reduce(worked)))], 1))


def shuffle(x: Tensor) -> Tensor:
    """Interleaves the two halves of the channels: (N, C, H, W) -> (N, C, H, W), by way of rank 4."""
    channels, height, width = x.shape[1:]
    pairs = x.reshape(-1, 2, channels // 2, height * width).transpose(1, 2)
    return pairs.reshape(-1, channels, height, width)


class SKShuffleNetV2(nn.Module):
    """(N, C, H, W) -> logits (N, classes)."""

    def __init__(self, spec: SKShuffleNetSpec, in_channels: int) -> None:
        super().__init__()
        self.stem = ConvNormAct(in_channels, spec.stem_channels, 3, stride=2)
        self.pool = nn.MaxPool2d(3, 2, 1)
        stages: list[nn.Module] = []
        channels = spec.stem_channels
        for stage in spec.stages:
            units: list[nn.Module] = []
            for index in range(stage.units):
                units.append(SKShuffleUnit(channels, stage.channels, 2 if index == 0 else 1, spec.selective_kernel))
                channels = stage.channels
            stages.append(nn.Sequential(*units))
        self.stages = nn.Sequential(*stages)
        self.head = ConvNormAct(channels, spec.head_channels, 1)
        self.classifier = nn.Linear(spec.head_channels, spec.classes)

    def forward(self, x: Tensor) -> Tensor:
        features = self.head(self.stages(self.pool(self.stem(x))))
        pooled = nn.functional.adaptive_avg_pool2d(features, 1).flatten(1)
        logits: Tensor = self.classifier(pooled)
        return logits
