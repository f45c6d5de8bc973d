"""The common part of residual families: stem, stages of units, global average pool and classifier. Each family has its own
unit.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from skdeploy.core.architecture import StageSpec, StemSpec, TrunkSpec
from skdeploy.zoo.selective_kernel import ConvNormAct


class ResidualUnit(nn.Module):
    """A unit whose output is its input, or a shortcut of it, plus what it computes.

    ``expand`` comes just before the addition: its normalisation says how loud the unit is beside its shortcut.
    """

    expand: ConvNormAct


# (input channels, stage, stride, whether it is the stage's first) -> a unit: (N, in, H, W) -> (N, out, H / stride, W / stride)
MakeUnit = Callable[[int, StageSpec, int, bool], ResidualUnit]


class Trunk(nn.Module):
    """(N, C, H, W) -> logits (N, classes)."""

    def __init__(self, spec: TrunkSpec, stem: nn.Module, make_unit: MakeUnit) -> None:
        super().__init__()
        self.stem = stem
        self.pool = pool(spec.stem)
        stages: list[nn.Module] = []
        channels = spec.stem.channels
        for stage in spec.stages:
            units: list[nn.Module] = []
            for index in range(stage.units):
                units.append(make_unit(channels, stage, stage.stride if index == 0 else 1, index == 0))
                channels = stage.out_channels
            stages.append(nn.Sequential(*units))
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(channels, spec.classes)

    def forward(self, x: Tensor) -> Tensor:
        features = self.stages(self.pool(self.stem(x)))
        pooled = nn.functional.adaptive_avg_pool2d(features, 1).flatten(1)
        logits: Tensor = self.classifier(pooled)
        return logits


def stem(spec: StemSpec, in_channels: int) -> nn.Module:
    """One convolution, or several 3x3 ones of which the first has the stride: (N, C, H, W) -> (N, S, H / s, W / s)."""
    if not spec.deep:
        return ConvNormAct(in_channels, spec.channels, spec.kernel, stride=spec.stride)
    layers: list[nn.Module] = []
    channels = in_channels
    for index, width in enumerate((*spec.deep, spec.channels)):
        layers.append(ConvNormAct(channels, width, spec.kernel, stride=spec.stride if index == 0 else 1))
        channels = width
    return nn.Sequential(*layers)


def pool(spec: StemSpec) -> nn.Module:
    """The 3x3 max pool of stride 2, in PyTorch's or in Caffe's manner, or nothing."""
    if not spec.max_pool:
        return nn.Identity()
    return nn.MaxPool2d(3, 2, 0, ceil_mode=True) if spec.ceil_mode else nn.MaxPool2d(3, 2, 1)
