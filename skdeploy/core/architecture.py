"""What a card says under ``[network]``: one spec for each family of networks, and the parts that families share.

Imports pydantic only, like ``spec.py``.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Far above any published network (21,841 classes; 12,288 channels), far below what would ask for terabytes.
MAX_COUNT: Final = 1 << 20
Positive = Annotated[int, Field(ge=1, le=MAX_COUNT)]
# Wider than that, the taps of a 3x3 kernel lie outside every map of an image that is allowed.
Dilation = Annotated[int, Field(ge=1, le=256)]
OddKernel = Annotated[int, Field(ge=1, le=15)]


class Frozen(BaseModel):
    """Immutable, and strict: an unknown key or a number in quotes is an error, not a guess."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_by_name=True)


class BranchSpec(Frozen):
    """One branch of a selective kernel convolution: kernel 3 with dilation 2 is the paper's K5."""

    kernel: OddKernel
    dilation: Dilation = 1
    groups: Positive = 1
    activation: bool = True
    bias: bool = False

    @model_validator(mode="after")
    def _kernel_is_odd(self) -> BranchSpec:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel {self.kernel} is even: branches of one unit could not keep the same size")
        return self


class GateSpec(Frozen):
    """How fuse's FC and select's FC are made; the paper's has batch normalisation and ReLU between them, and no biases."""

    norm: bool = True
    bias: bool = False
    select_bias: bool = False


class SelectiveKernelSpec(Frozen):
    """SK[M, G, r] with L of the paper's section 3.1: M is the number of branches, r ``reduction``, L ``min_width``.

    ``split_input`` gives each branch its own share of the input channels instead of all of them.
    """

    branches: Annotated[tuple[BranchSpec, ...], Field(min_length=1, strict=False)]
    reduction: Positive = 16
    min_width: Positive = 32
    fuse: Literal["attention", "sum"] = "attention"
    gate: GateSpec = GateSpec()
    split_input: bool = False

    def gate_width(self, channels: int) -> int:
        """d = max(C / r, L)."""
        return max(channels // self.reduction, self.min_width)


class StemSpec(Frozen):
    """The first convolution, and whether a 3x3 max pool of stride 2 follows it.

    ``deep`` are the widths of further 3x3 convolutions before it, the first of which then has the stride. ``ceil_mode`` is
    Caffe's pool: no padding, and the last window may hang over the edge.
    """

    channels: Positive
    kernel: OddKernel
    stride: Positive
    max_pool: bool
    ceil_mode: bool = False
    deep: Annotated[tuple[Positive, ...], Field(strict=False)] = ()


class StageSpec(Frozen):
    """A run of units of equal width; the first one has the stride. ``gate_width`` overrides d = max(C / r, L)."""

    units: Positive
    middle_channels: Positive
    out_channels: Positive
    stride: Positive
    gate_width: Positive | None = None


class TrunkSpec(Frozen):
    """Stem, stages of residual units, global average pool, classifier: what the families below have in common."""

    stem: StemSpec
    stages: Annotated[tuple[StageSpec, ...], Field(min_length=1, strict=False)]
    selective_kernel: SelectiveKernelSpec
    classes: Positive

    @property
    def total_stride(self) -> int:
        """Input pixels for each pixel of the last map."""
        stride = self.stem.stride * (2 if self.stem.max_pool else 1)
        for stage in self.stages:
            stride *= stage.stride
        return stride


class SKNetSpec(TrunkSpec):
    """The paper's own network (section 3.2, Table 1)."""

    family: Literal["sknet"] = "sknet"


class SKResNetSpec(TrunkSpec):
    """A ResNet whose 3x3 convolution is a selective kernel one: the second of a bottleneck, the first of a basic block.

    ``shortcut`` is what changes the shape: a 1x1 convolution with the stride; a 2x2 average pool and a 1x1 convolution
    (ResNet-D); or the same with zeros padded right and below, in every first unit (SimCLRv2).
    """

    family: Literal["resnet"] = "resnet"
    block: Literal["basic", "bottleneck"]
    shortcut: Literal["conv", "avg_pool", "padded_avg_pool"] = "conv"


class LinearSKNetSpec(TrunkSpec):
    """pppLang's variant: biased convolutions, no activation but the branches' and the last, a second norm after select."""

    family: Literal["linear_sknet"] = "linear_sknet"


class ShuffleStageSpec(Frozen):
    """A run of ShuffleNetV2 units; the first one halves the size."""

    units: Positive
    channels: Positive


class SKShuffleNetSpec(Frozen):
    """ShuffleNetV2 (Ma et al., ECCV 2018) whose 3x3 depthwise convolutions are selective kernel ones (the paper's Table 5)."""

    family: Literal["shufflenet_v2"] = "shufflenet_v2"
    stem_channels: Positive
    stages: Annotated[tuple[ShuffleStageSpec, ...], Field(min_length=1, strict=False)]
    head_channels: Positive
    selective_kernel: SelectiveKernelSpec
    classes: Positive

    @property
    def total_stride(self) -> int:
        """Input pixels for each pixel of the last map: stem and pool halve the size, and so does each stage."""
        return int(4 * 2 ** len(self.stages))


NetworkSpec = Annotated[SKNetSpec | SKResNetSpec | LinearSKNetSpec | SKShuffleNetSpec, Field(discriminator="family")]


class GraphSpec(Frozen):
    """A network that comes as an ONNX file. Its card says what the file must give."""

    family: Literal["onnx"] = "onnx"
    classes: Positive
    total_stride: Positive = 1


class ModuleSpec(Frozen):
    """A network that a function of the user's own builds. Its card says what the module must give.

    ``factory`` is ``package.module:function``. No code runs from a card: the command line names the function, and a card that
    names one too must name the same.
    """

    family: Literal["module"] = "module"
    factory: str | None = None
    classes: Positive
    total_stride: Positive = 1


AnyNetworkSpec = Annotated[
    SKNetSpec | SKResNetSpec | LinearSKNetSpec | SKShuffleNetSpec | GraphSpec | ModuleSpec,
    Field(discriminator="family"),
]
