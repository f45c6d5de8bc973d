"""SKNet, the paper's own trunk (section 3.2, Table 1): a ResNeXt whose grouped 3x3 convolutions are selective kernel ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skdeploy.spec import ModelSpec, NetworkSpec, SelectiveKernelSpec
from skdeploy.zoo.selective_kernel import ConvNormAct, selective_kernel


class SKUnit(nn.Module):
    """1x1 reduce, selective kernel convolution, 1x1 expand, plus the shortcut: (N, in, H, W) -> (N, out, H / s, W / s)."""

    def __init__(
        self, in_channels: int, middle_channels: int, out_channels: int, stride: int, kernels: SelectiveKernelSpec
    ) -> None:
        super().__init__()
        self.reduce = ConvNormAct(in_channels, middle_channels, 1)
        self.sk = selective_kernel(kernels, middle_channels, middle_channels, stride)
        self.expand = ConvNormAct(middle_channels, out_channels, 1, activation=False)
        keeps_shape = stride == 1 and in_channels == out_channels
        self.shortcut: nn.Module = (
            nn.Identity() if keeps_shape else ConvNormAct(in_channels, out_channels, 1, stride=stride, activation=False)
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(self.sk(self.reduce(x)))
        activated: Tensor = self.relu(y + self.shortcut(x))
        return activated


class SKNet(nn.Module):
    """Stem, stages of SK units, global average pool, classifier: (N, C, H, W) -> logits (N, classes)."""

    def __init__(self, spec: NetworkSpec, in_channels: int) -> None:
        super().__init__()
        self.stem = ConvNormAct(in_channels, spec.stem.channels, spec.stem.kernel, stride=spec.stem.stride)
        self.pool: nn.Module = nn.MaxPool2d(3, 2, 1) if spec.stem.max_pool else nn.Identity()
        stages: list[nn.Module] = []
        channels = spec.stem.channels
        for stage in spec.stages:
            units = []
            for index in range(stage.units):
                stride = stage.stride if index == 0 else 1
                units.append(SKUnit(channels, stage.middle_channels, stage.out_channels, stride, spec.selective_kernel))
                channels = stage.out_channels
            stages.append(nn.Sequential(*units))
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(channels, spec.classes)

    def forward(self, x: Tensor) -> Tensor:
        features = self.stages(self.pool(self.stem(x)))
        pooled = nn.functional.adaptive_avg_pool2d(features, 1).flatten(1)
        logits: Tensor = self.classifier(pooled)
        return logits


def meta_network(spec: ModelSpec) -> SKNet:
    """The network of a card without memory for its weights: to count, and to assign weights to."""
    with torch.device("meta"):
        return SKNet(spec.network, spec.input.channels)


def initialise(model: nn.Module, seed: int) -> None:
    """Fills ``model`` with the same random weights on every machine, scaled so that an untrained network stays finite in FP16.

    Convolutions follow He et al. 2015 (fan-out). The last batch normalisation of each unit starts at 0.2 instead of 1: with 1,
    the variance doubles in every unit and SKNet-101 leaves FP16's range before it is trained.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01, generator=generator)
            nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, SKUnit):
            nn.init.constant_(module.expand.bn.weight, 0.2)
