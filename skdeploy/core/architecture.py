"""The ``[network]`` part of a card: one spec for each family of networks, and the parts that families share.

What else a family is, ``zoo/__init__.py`` says. Imports pydantic only, like ``spec.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

# Far above any published network (21,841 classes; 12,288 channels), far below what would ask for terabytes.
MAX_COUNT: Final = 1 << 20
Positive = Annotated[int, Field(ge=1, le=MAX_COUNT)]
# Of a network that is a file or a module: 0, which is not written, if it has no classes.
NoneOrMore = Annotated[int, Field(ge=0, le=MAX_COUNT, exclude_if=lambda count: count == 0)]
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
            raise ValueError(
                f"kernel {self.kernel} is even: the branches of a unit must have odd kernels to keep the same size"
            )
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


class NetworkSpec(Frozen):
    """A network of any family."""

    family: str
    classes: Positive

    if TYPE_CHECKING:  # a field in some families, computed in others

        @property
        def total_stride(self) -> int:
            """Input pixels for each pixel of the last map."""

    def normal_form(self) -> dict[str, Any]:
        """The network as JSON, the same for two specs that describe one network."""
        return self.model_dump(mode="json")


class DescribedSpec(NetworkSpec):
    """A network whose card is enough to build it."""

    selective_kernel: SelectiveKernelSpec

    @property
    def depths(self) -> tuple[int, ...]:
        """Units of each stage, where it has stages."""
        return ()


class TrunkSpec(DescribedSpec):
    """Stem, stages of residual units, global average pool, classifier: what several families have in common."""

    stem: StemSpec
    stages: Annotated[tuple[StageSpec, ...], Field(min_length=1, strict=False)]

    @property
    def depths(self) -> tuple[int, ...]:
        return tuple(stage.units for stage in self.stages)

    @classmethod
    def of_shapes(cls, shapes: Mapping[str, tuple[int, ...]], **trunk: Any) -> Self:
        """The spec of a checkpoint's canonical shapes. Its trunk is read already; a family that has more reads the rest."""
        del shapes
        return cls(**trunk)

    @property
    def shortcuts(self) -> Literal["conv", "avg_pool", "padded_avg_pool"]:
        """The form of a shortcut that changes the shape."""
        return "conv"

    def normal_form(self) -> dict[str, Any]:
        """Gate widths are written out, and what a sum has no use for is left out."""
        content, kernels = super().normal_form(), self.selective_kernel
        gated = kernels.fuse == "attention" and len(kernels.branches) > 1
        for stage, row in zip(self.stages, content["stages"], strict=True):
            row["gate_width"] = (stage.gate_width or kernels.gate_width(stage.middle_channels)) if gated else None
        del content["selective_kernel"]["reduction"], content["selective_kernel"]["min_width"]
        if not gated:
            content["selective_kernel"] |= {"fuse": "sum", "gate": None}
        return content

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

    @property
    def shortcuts(self) -> Literal["conv", "avg_pool", "padded_avg_pool"]:
        return self.shortcut

    def normal_form(self) -> dict[str, Any]:
        """A bottleneck ResNet with plain shortcuts and an SKNet are one network."""
        content = super().normal_form()
        if self.block == "bottleneck" and self.shortcut == "conv":
            del content["block"], content["shortcut"]
            content["family"] = "sknet"
        return content


class LinearSKNetSpec(TrunkSpec):
    """pppLang's variant: biased convolutions, no activation but the branches' and the last, a second norm after select."""

    family: Literal["linear_sknet"] = "linear_sknet"


class ShuffleStageSpec(Frozen):
    """A run of ShuffleNetV2 units; the first one halves the size."""

    units: Positive
    channels: Positive


class SKShuffleNetSpec(DescribedSpec):
    """ShuffleNetV2 (Ma et al., ECCV 2018) whose 3x3 depthwise convolutions are selective kernel ones (the paper's Table 5)."""

    family: Literal["shufflenet_v2"] = "shufflenet_v2"
    stem_channels: Positive
    stages: Annotated[tuple[ShuffleStageSpec, ...], Field(min_length=1, strict=False)]
    head_channels: Positive

    @property
    def depths(self) -> tuple[int, ...]:
        return tuple(stage.units for stage in self.stages)

    @property
    def total_stride(self) -> int:
        """Input pixels for each pixel of the last map: stem and pool halve the size, and so does each stage."""
        return int(4 * 2 ** len(self.stages))


class GraphSpec(NetworkSpec):
    """A network that comes as an ONNX file. Its card says what the file must give."""

    family: Literal["onnx"] = "onnx"
    classes: NoneOrMore = 0
    total_stride: Positive = 1


class ModuleSpec(NetworkSpec):
    """A network that a function of the user's own builds. Its card says what the module must give.

    ``factory`` is ``package.module:function``. No code runs from a card: the command line names the function, and a card that
    names one too must name the same.
    """

    family: Literal["module"] = "module"
    classes: NoneOrMore = 0
    factory: str | None = None
    total_stride: Positive = 1


SPECS: Final[dict[str, type[NetworkSpec]]] = {
    "sknet": SKNetSpec,
    "resnet": SKResNetSpec,
    "linear_sknet": LinearSKNetSpec,
    "shufflenet_v2": SKShuffleNetSpec,
    "onnx": GraphSpec,
    "module": ModuleSpec,
}


def read_network(value: Any) -> NetworkSpec:
    """The spec that a table describes, by its ``family``. Raises pydantic's ValidationError and PydanticCustomError."""
    if isinstance(value, NetworkSpec):
        return value
    family = value.get("family") if isinstance(value, Mapping) else None
    if family is None:
        raise PydanticCustomError("no_family", "family: missing")
    if family not in SPECS:
        known = ", ".join(map(repr, SPECS))
        raise PydanticCustomError("family", "family: must be one of {known}", {"known": known, "family": family})
    return SPECS[family].model_validate(value)


class _ByFamily:
    """Makes pydantic read a network by ``read_network``, and its JSON Schema a choice of all families."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        del source, handler
        as_it_is = core_schema.simple_ser_schema("any")
        return core_schema.no_info_plain_validator_function(read_network, serialization=as_it_is)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        del schema
        specs: dict[Any, CoreSchema] = {family: spec.__pydantic_core_schema__ for family, spec in SPECS.items()}
        return handler(core_schema.tagged_union_schema(specs, discriminator="family"))


AnyNetworkSpec = Annotated[NetworkSpec, _ByFamily()]
