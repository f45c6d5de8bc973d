"""A network for 32 x 32 images as people make one of a known port: its keys, but a 3x3 stem without stride and no pool.

Written here from the paper's formulas, not with skdeploy's modules, so that it can be compared with.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv_norm(
    inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class SelectiveKernels(nn.Module):
    def __init__(self, channels: int, stride: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(conv_norm(channels, channels, 3, stride, d, groups=2) for d in dilations)
        self.fc = conv_norm(channels, 32, 1)
        self.fcs = nn.ModuleList(nn.Conv2d(32, channels, 1) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.stack([conv(x) for conv in self.convs])
        squeezed = self.fc(maps.sum(0).mean((2, 3), keepdim=True))
        weights = torch.stack([fc(squeezed) for fc in self.fcs]).softmax(0)
        return (weights * maps).sum(0)


class Unit(nn.Module):
    def __init__(self, inputs: int, middle: int, outputs: int, stride: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1 = conv_norm(inputs, middle, 1)
        self.conv2_sk = SelectiveKernels(middle, stride, dilations)
        self.conv3 = conv_norm(middle, outputs, 1)[:2]
        self.shortcut = conv_norm(inputs, outputs, 1, stride)[:2]

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv3(self.conv2_sk(self.conv1(x))) + self.shortcut(x))


class CifarNetwork(nn.Module):
    """(N, 3, H, W) -> (N, 5) logits."""

    def __init__(
        self, stem_stride: int = 1, strides: tuple[int, int] = (1, 2), dilations: tuple[int, ...] = (1, 2)
    ) -> None:
        super().__init__()
        self.basic_conv = conv_norm(3, 8, 3, stem_stride)
        self.stage_1 = nn.Sequential(Unit(8, 8, 16, strides[0], dilations))
        self.stage_2 = nn.Sequential(Unit(16, 16, 24, strides[1], dilations))
        self.classifier = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.stage_2(self.stage_1(self.basic_conv(x))).mean((2, 3)))
        return logits


def trained(network: CifarNetwork | None = None, seed: int = 0) -> CifarNetwork:
    """With statistics and affine parameters as training leaves them, none at its initial value."""
    network = network or CifarNetwork()
    random = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=random)
            module.bias.data.normal_(0, 0.2, generator=random)
            module.running_mean = torch.randn(module.num_features, generator=random) * 0.1
            module.running_var = torch.rand(module.num_features, generator=random) + 0.5
        elif isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data.normal_(0, 0.3, generator=random)
    return network.eval().requires_grad_(False)
