"""SKNet, the paper's own trunk (section 3.2, Table 1): a ResNeXt whose grouped 3x3 convolutions are selective kernel ones."""

from __future__ import annotations

from torch import Tensor, nn

from skdeploy.core.architecture import SelectiveKernelSpec, SKNetSpec, StageSpec
from skdeploy.zoo.selective_kernel import ConvNormAct, selective_kernel
from skdeploy.zoo.trunk import ResidualUnit, Trunk, stem


class SKUnit(ResidualUnit):
    """1x1 reduce, selective kernel convolution, 1x1 expand, plus the shortcut: (N, in, H, W) -> (N, out, H / s, W / s).

    ``basic``: without reduce, and expand is 3x3.
    """

    def __init__(
        self,
        in_channels: int,
        stage: StageSpec,
        stride: int,
        kernels: SelectiveKernelSpec,
        shortcut: nn.Module,
        *,
        basic: bool = False,
    ) -> None:
        super().__init__()
        middle = stage.middle_channels
        self.reduce = nn.Identity() if basic else ConvNormAct(in_channels, middle, 1)
        self.sk = selective_kernel(kernels, in_channels if basic else middle, middle, stride, stage.gate_width)
        self.expand = ConvNormAct(middle, stage.out_channels, 3 if basic else 1, activation=False)
        self.shortcut = shortcut
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(self.sk(self.reduce(x)))
        activated: Tensor = self.relu(y + self.shortcut(x))
        return activated


class SKNet(Trunk):
    """(N, C, H, W) -> logits (N, classes)."""

    def __init__(self, spec: SKNetSpec, in_channels: int) -> None:
        def unit(channels: int, stage: StageSpec, stride: int, _first: bool) -> SKUnit:
            shortcut = conv_shortcut(channels, stage.out_channels, stride)
            return SKUnit(channels, stage, stride, spec.selective_kernel, shortcut)

        super().__init__(spec, stem(spec.stem, in_channels), unit)


def conv_shortcut(in_channels: int, out_channels: int, stride: int, *, bias: bool = False) -> nn.Module:
    """Nothing where the shape is kept, else a 1x1 convolution with the stride."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return ConvNormAct(in_channels, out_channels, 1, stride=stride, bias=bias, activation=False)
