"""ResNets with selective kernel convolutions: timm's, the paper author's PyTorch ones, and SimCLRv2's.

Bottlenecks are ``SKUnit``s. A basic block has its selective kernel convolution first, as timm's ``skresnet18`` does.
"""

from __future__ import annotations

from torch import nn

from skdeploy.core.architecture import SKResNetSpec, StageSpec
from skdeploy.zoo.selective_kernel import ConvNormAct
from skdeploy.zoo.sknet import SKUnit, conv_shortcut
from skdeploy.zoo.trunk import ResidualUnit, Trunk, stem


class PooledShortcut(nn.Sequential):
    """A 2x2 average pool with the stride, then a 1x1 convolution: (N, in, H, W) -> (N, out, H / s, W / s).

    ``padded``: zeros right and below are averaged in, at any stride (SimCLRv2). Otherwise a window that hangs over the edge
    averages what it sees, and at stride 1 there is no pool (ResNet-D, He et al. 2019, as timm has it).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, padded: bool) -> None:
        super().__init__()
        if padded:
            self.pad = nn.ZeroPad2d((0, 1, 0, 1))
            self.pool = nn.AvgPool2d(2, stride)
        elif stride > 1:
            self.pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)
        self.project = ConvNormAct(in_channels, out_channels, 1, activation=False)


class SKResNet(Trunk):
    """(N, C, H, W) -> logits (N, classes)."""

    def __init__(self, spec: SKResNetSpec, in_channels: int) -> None:
        def shortcut(channels: int, stage: StageSpec, stride: int, first: bool) -> nn.Module:
            keeps_shape = stride == 1 and channels == stage.out_channels
            if spec.shortcut == "conv":
                return conv_shortcut(channels, stage.out_channels, stride)
            if spec.shortcut == "avg_pool":
                return (
                    nn.Identity() if keeps_shape else PooledShortcut(channels, stage.out_channels, stride, padded=False)
                )
            return PooledShortcut(channels, stage.out_channels, stride, padded=True) if first else nn.Identity()

        def unit(channels: int, stage: StageSpec, stride: int, first: bool) -> ResidualUnit:
            changed = shortcut(channels, stage, stride, first)
            return SKUnit(channels, stage, stride, spec.selective_kernel, changed, basic=spec.block == "basic")

        super().__init__(spec, stem(spec.stem, in_channels), unit)
