"""pppLang's SKNet for CIFAR: all convolutions biased, no activation inside a unit but the branches', a norm after select."""

from __future__ import annotations

from torch import Tensor, nn

from skdeploy.core.architecture import LinearSKNetSpec, SelectiveKernelSpec, StageSpec
from skdeploy.core.errors import CardError
from skdeploy.zoo.fold import fold_into_next
from skdeploy.zoo.selective_kernel import ConvNormAct, selective_kernel
from skdeploy.zoo.sknet import conv_shortcut
from skdeploy.zoo.trunk import ResidualUnit, Trunk


class LinearSKUnit(ResidualUnit):
    """1x1 reduce, selective kernel convolution, norm, 1x1 expand, plus the shortcut, ReLU: (N, in, H, W) -> (N, out, ...)."""

    absorbed = ("norm",)

    def __init__(self, in_channels: int, stage: StageSpec, stride: int, kernels: SelectiveKernelSpec) -> None:
        super().__init__()
        middle, out_channels = stage.middle_channels, stage.out_channels
        self.reduce = ConvNormAct(in_channels, middle, 1, bias=True, activation=False)
        self.sk = selective_kernel(kernels, middle, middle, stride, stage.gate_width)
        self.norm: nn.Module = nn.BatchNorm2d(middle)
        self.expand = ConvNormAct(middle, out_channels, 1, bias=True, activation=False)
        self.shortcut = conv_shortcut(in_channels, out_channels, stride, bias=True)
        self.relu = nn.ReLU(inplace=True)

    def fold_own(self) -> None:
        """The norm goes into the 1x1 convolution after it."""
        if isinstance(self.norm, nn.BatchNorm2d):
            fold_into_next(self.norm, self.expand.conv)
            self.norm = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(self.norm(self.sk(self.reduce(x))))
        activated: Tensor = self.relu(y + self.shortcut(x))
        return activated


class LinearSKNet(Trunk):
    """(N, C, H, W) -> logits (N, classes). Raises CardError for a deep stem: the family's is one convolution."""

    def __init__(self, spec: LinearSKNetSpec, in_channels: int) -> None:
        def unit(channels: int, stage: StageSpec, stride: int, _first: bool) -> LinearSKUnit:
            return LinearSKUnit(channels, stage, stride, spec.selective_kernel)

        if spec.stem.deep:
            raise CardError("the stem of linear_sknet is one convolution", advice="remove stem.deep from the card")
        width, kernel = spec.stem.channels, spec.stem.kernel
        first = ConvNormAct(in_channels, width, kernel, stride=spec.stem.stride, bias=True, activation=False)
        super().__init__(spec, first, unit)
