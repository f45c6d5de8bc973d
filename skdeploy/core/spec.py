"""A card's content, validated and frozen. Imports pydantic only, so that ``skdeploy --help`` stays fast."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from math import prod
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from skdeploy.core.architecture import AnyNetworkSpec, DescribedSpec, NetworkSpec, Positive
from skdeploy.core.architecture import Frozen as Frozen
from skdeploy.core.errors import UsageError
from skdeploy.core.interface import ArrayInput, DynamicSize
from skdeploy.core.precision import Precision as Precision
from skdeploy.core.precision import Tolerance as Tolerance


def _stays_inside(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in path or "\0" in path or not pure.parts:
        raise ValueError(f"{path!r} is not a path inside its folder")
    return path


def _list_of_tables(inputs: object) -> object:
    if isinstance(inputs, Mapping):
        raise ValueError("is one table; write [[inputs]], or [input] for an image")
    return inputs


InnerPath = Annotated[str, AfterValidator(_stays_inside)]


# What a network takes at a time, in words: an image, or a sample of other inputs. Not written where it is an image: files of
# before there were others stay what they are.
SampleWord = Annotated[Literal["image", "sample"], Field(exclude_if=lambda word: word == "image")]


class CalibrationMethod(StrEnum):
    """How a tensor's range is chosen from what calibration saw of it: ``quant/thresholds.py`` has each one's definition.

    ``auto`` takes the one whose INT8 graph is nearest to FP32 on images held back (``quant/methods.py``).
    """

    AUTO = "auto"
    MINMAX = "minmax"
    PERCENTILE = "percentile"
    ENTROPY = "entropy"
    MSE = "mse"


ClassOrder = Literal["number", "name"]
"The number of a class folder: from its name, or its place in the sorted names, as torchvision's ImageFolder counts."


class TensorSpec(Frozen):
    """A graph's input or output: numpy's name of its dtype, and its shape, where a name is a dynamic dimension."""

    name: str
    dtype: str
    shape: Annotated[tuple[int | str, ...], Field(strict=False)]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"

    @property
    def is_floating(self) -> bool:
        return "float" in self.dtype

    @property
    def channels_axis(self) -> int:
        """Where the channels of images (N, C, H, W) are: last in (N, H, W, 1 or 3), where the second is another number."""
        return 3 if len(self.shape) == 4 and self.shape[3] in (1, 3) and self.shape[1] not in (1, 3) else 1


# An RGB image of 8192 x 8192 takes 0.8 GB as float32, and several are held at once.
MAX_NAME: Final = 255  # bytes of a file name
MAX_PIXELS: Final = 8192
MAX_CHANNELS: Final = 4096  # hyperspectral cameras have some hundreds
INTERFACE: Final = ("image", "image_preprocess", "inputs", "sizes")  # the fields of a ModelSpec that say what goes in
IMAGE: Final = "input"  # the name of the image in every graph
CLASSIFICATION: Final = "classification"  # what a network is for if its card does not say
LOGITS: Final = "logits"  # the output of a network that has classes, in every graph; ``zoo/gates.py`` names the others
Pixels = Annotated[int, Field(ge=1, le=MAX_PIXELS)]
# Pixels are 0..1 before; 1 / std must stay finite in FP16 (largest 65504), in which --embed-preprocess may compute it.
Mean = Annotated[float, Field(ge=-1e4, le=1e4)]
Std = Annotated[float, Field(ge=2e-5, le=1e4)]


class InputSpec(Frozen):
    """The image that the network takes: channels, and height and width in pixels.

    Image files have 1 (grey) or 3 (RGB) channels; images of other numbers come as uint8 arrays.
    """

    channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
    height: Pixels
    width: Pixels

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.channels, self.height, self.width)


class Preprocess(Frozen, allow_inf_nan=False):
    """From an image to the input: resize the shorter side, crop the centre, scale to 0..1, normalise.

    ``resize`` is in pixels. Without it images are only cropped: a resize takes away the noise or blur that a network which
    restores images is for. ``mean`` and ``std`` are per channel of the 0..1 image. ``exif``: whether an image is turned as its
    EXIF orientation says; the loaders of timm and torchvision ignore it.
    """

    resize: Annotated[Pixels | None, Field(exclude_if=lambda resize: resize is None)] = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    # Not written where it is the default: files and digests of before there was a choice stay what they are.
    exif: Annotated[Literal["ignore", "apply"], Field(exclude_if=lambda exif: exif == "ignore")] = "ignore"
    mean: Annotated[tuple[Mean, ...], Field(strict=False)]
    std: Annotated[tuple[Std, ...], Field(strict=False)]


class Assumption(Frozen):
    """A fact that changes what the network computes, that neither weights, card nor user gave, and that skdeploy filled in.

    ``about``: ``architecture`` (strides, pools, dilation, activations, eps) or ``preprocessing`` (size, mean, std, order).
    ``text`` is a noun phrase that fits behind "assumed:", such as ``stride 2 stem``; ``source`` says where the value comes
    from, such as ``the layout timm`` or ``ImageNet's defaults``.
    """

    about: Literal["architecture", "preprocessing"]
    text: str
    source: str

    def __str__(self) -> str:
        return f"assumed: {self.text} ({self.source})"


class AssumedArchitecture(Frozen):
    """Values under ``[network]`` that skdeploy filled in from ``source``, since weights do not show them; None: not assumed.

    ``forward`` is what no key of a card can change: activations, eps, what follows the classifier.
    """

    source: str
    max_pool: bool | None = None
    ceil_mode: bool | None = None
    stem_stride: Positive | None = None
    stage_strides: Annotated[tuple[Positive, ...] | None, Field(strict=False)] = None
    dilations: Annotated[tuple[Positive, ...] | None, Field(strict=False)] = None
    shortcut: Literal["avg_pool", "padded_avg_pool"] | None = None
    split_input: bool | None = None
    forward: str | None = None


class AssumedPreprocessing(Frozen):
    """Values under ``[input]`` and ``[preprocess]`` that skdeploy filled in from ``source``; ``size`` is (height, width)."""

    source: str
    size: Annotated[tuple[Positive, Positive] | None, Field(strict=False)] = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] | None = None
    mean: Annotated[tuple[float, ...] | None, Field(strict=False)] = None
    std: Annotated[tuple[float, ...] | None, Field(strict=False)] = None


class Assumed(Frozen):
    """``[assumed]`` of a card that skdeploy wrote: what a person has still to check. ``zoo/assumed.py`` puts it in words."""

    architecture: AssumedArchitecture | None = None
    preprocessing: AssumedPreprocessing | None = None


class Source(Frozen):
    """Where the architecture, and the weights if any, come from."""

    paper: str
    url: str
    licence: str


class Reference(Frozen, allow_inf_nan=False):
    """Published or computed figures, tests' targets: learnable parameters, multiply-accumulates of one image, accuracy in %."""

    parameters: Annotated[int, Field(ge=1)] | None = None
    macs: Annotated[int, Field(ge=1)] | None = None
    top1_error_224: float | None = None
    top1_error_320: float | None = None
    top1_accuracy: float | None = None


class WeightsSpec(Frozen):
    """Trained weights that come with the card; ``file`` is relative to the card's folder."""

    file: InnerPath
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class ModelSpec(Frozen, allow_inf_nan=False):
    """A validated card. ``docs`` of every key: models/README.md."""

    schema_version: Annotated[Literal[1], Field(alias="schema")]
    name: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9_.-]*(/[a-z0-9][a-z0-9_.-]*)?$", max_length=MAX_NAME)]
    summary: str
    network: AnyNetworkSpec
    # A network of images has these two, read as ``spec.input`` and ``spec.preprocess``; any other has ``inputs``.
    image: Annotated[InputSpec | None, Field(alias="input", exclude_if=lambda image: image is None)] = None
    image_preprocess: Annotated[
        Preprocess | None, Field(alias="preprocess", exclude_if=lambda given: given is None)
    ] = None
    inputs: Annotated[
        tuple[ArrayInput, ...],
        Field(strict=False, exclude_if=lambda inputs: not inputs),
        BeforeValidator(_list_of_tables),
    ] = ()
    sizes: Annotated[dict[str, DynamicSize], Field(exclude_if=lambda sizes: not sizes)] = Field(default={})
    tolerance: dict[Precision, Tolerance]
    source: Source
    reference: Reference = Reference()
    weights: WeightsSpec | None = None
    labels: Annotated[tuple[str, ...], Field(strict=False)] = ()
    class_order: ClassOrder | None = None
    # ``parity/tasks.py`` knows the tasks. Files and digests of before there was a choice stay what they are.
    task: Annotated[str, Field(exclude_if=lambda task: task == CLASSIFICATION)] = CLASSIFICATION
    # What the network gives, the batch first. An export records it, unless that is ``logits`` alone.
    outputs: Annotated[tuple[TensorSpec, ...], Field(strict=False, exclude_if=lambda outputs: not outputs)] = ()
    class_output: Annotated[str, Field(exclude_if=lambda name: not name)] = ""  # of several; default: the first
    parity_images: InnerPath = "photographs"
    training: dict[str, str | int | float] = Field(default={})
    assumed: Assumed = Assumed()

    @property
    def input(self) -> InputSpec:
        """The image that the network takes. Raises UsageError for a network of other inputs."""
        if self.image is None:
            raise self._no_images()
        return self.image

    @property
    def preprocess(self) -> Preprocess:
        """How an image becomes the input. Raises UsageError for a network of other inputs."""
        if self.image_preprocess is None:
            raise self._no_images()
        return self.image_preprocess

    @property
    def shorter_side(self) -> int:
        """The side that images are resized to. Networks with classes have one."""
        assert self.preprocess.resize is not None  # ``_check_image`` has seen it
        return self.preprocess.resize

    @property
    def takes_images(self) -> bool:
        return self.image is not None

    @property
    def sample_word(self) -> SampleWord:
        return "image" if self.image is not None else "sample"

    @property
    def taken(self) -> tuple[TensorSpec, ...]:
        """The inputs of the network, the batch first."""
        if self.image is not None:
            return (TensorSpec(name=IMAGE, dtype="float32", shape=("batch", *self.image.shape)),)
        return tuple(TensorSpec(name=each.name, dtype=each.dtype, shape=("batch", *each.shape)) for each in self.inputs)

    @property
    def shown_inputs(self) -> str:
        """The inputs in words, such as ``left: float32[3, 32, 32]; right: float32[3, 32, 32]``."""
        if self.image is not None:
            return f"images of {self.image.channels} channels"
        return "; ".join(map(str, self.inputs))

    def usual_shape(self, shape: tuple[int | str, ...]) -> tuple[int, ...]:
        """A shape of one sample with the usual sizes for its free dimensions."""
        return tuple(self.sizes[size].usual if isinstance(size, str) else size for size in shape)

    @property
    def usual_sizes(self) -> dict[str, int]:
        """The usual sizes of free dimensions, by name."""
        return {name: size.usual for name, size in self.sizes.items()}

    def with_usual(self, sizes: Mapping[str, int]) -> Self:
        """The same network with other usual sizes of its free dimensions."""
        changed = {name: size.model_copy(update={"usual": sizes[name]}) for name, size in self.sizes.items()}
        return self.model_copy(update={"sizes": changed})

    @property
    def one_size(self) -> tuple[int, int] | dict[str, int]:
        """The size of one sample where a graph leaves it open: (height, width) of the image, or sizes by name."""
        return (self.image.height, self.image.width) if self.image is not None else self.usual_sizes

    @property
    def places(self) -> int:
        """How large a sample is: the pixels of an image, or the numbers of all inputs over three, as many as an image has."""
        if self.image is not None:
            return self.image.height * self.image.width
        return max(1, sum(prod(self.usual_shape(each.shape)) for each in self.inputs) // 3)

    def _no_images(self) -> UsageError:
        return UsageError(
            f"this is for networks that take images; {self.name} takes {self.shown_inputs}",
            advice="leave it out, or describe the input as an image: [input] and [preprocess] of the card",
        )

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """The same spec with changes, by the keys of a card."""
        aliases = {field.alias: name for name, field in type(self).model_fields.items() if field.alias}
        changes = {aliases.get(key, key): value for key, value in (update or {}).items()}
        return super().model_copy(update=changes, deep=deep)

    @property
    def architecture(self) -> DescribedSpec:
        """The numbers of a network that a card describes; there are none for an ONNX file or a module of the user's own."""
        assert isinstance(self.network, DescribedSpec)  # callers come from a card
        return self.network

    @property
    def given(self) -> tuple[TensorSpec, ...]:
        """The outputs that are compared: those that were recorded, else ``logits`` (batch, classes)."""
        return self.outputs or (TensorSpec(name=LOGITS, dtype="float32", shape=("batch", self.network.classes)),)

    @property
    def class_tensor(self) -> TensorSpec:
        """The output that tells the class of a sample: logits (N, classes), or class numbers (N,) or (N, 1)."""
        return next((output for output in self.given if output.name == self.class_output), self.given[0])

    @property
    def gives_numbers(self) -> bool:
        """Whether a classifier gives class numbers in place of logits, so that there is neither a top-5 nor a probability."""
        return not self.class_tensor.is_floating

    def of_network(self, network: NetworkSpec, assumed: Assumed) -> ModelSpec:
        """The spec of another network of the same kind. Labels that name other classes than it has are left out."""
        labels = self.labels if len(self.labels) == network.classes else ()
        return self.model_copy(update={"network": network, "assumed": assumed, "labels": labels})

    @model_validator(mode="after")
    def _consistent(self) -> ModelSpec:
        if self.inputs:
            self._check_arrays()
        else:
            self._check_image()
        if self.task == CLASSIFICATION and not self.network.classes:
            raise ValueError("network.classes: missing; a network without classes needs another task")
        if self.class_output and self.outputs and self.class_output not in (one.name for one in self.outputs):
            raise ValueError(f"class_output: {self.class_output!r} is not one of the outputs")
        if self.labels and self.network.classes and len(self.labels) != self.network.classes:
            raise ValueError(f"{len(self.labels)} labels, but {self.network.classes} classes")
        return self

    def _check_image(self) -> None:
        for key, table in (("input", self.image), ("preprocess", self.image_preprocess)):
            if table is None:
                raise ValueError(f"[{key}] is missing; a network that does not take images has [[inputs]] instead")
        if self.sizes:
            raise ValueError("[sizes] belongs to [[inputs]]; images have one size, and --dynamic-size frees it")
        channels = self.input.channels
        for key in ("mean", "std"):
            given = len(getattr(self.preprocess, key))
            if given != channels:
                raise ValueError(f"preprocess.{key} has {given} values, but the input has {channels} channels")
        resize = self.preprocess.resize
        if resize is None and self.task == CLASSIFICATION:
            raise ValueError(
                "preprocess.resize: missing; only networks without classes take images that are not resized"
            )
        if resize is not None and resize < max(self.input.height, self.input.width):
            raise ValueError(f"preprocess.resize {resize} is smaller than the input")

    def _check_arrays(self) -> None:
        if self.image is not None or self.image_preprocess is not None:
            raise ValueError("[[inputs]] takes the place of [input] and [preprocess]: leave those out")
        if isinstance(self.network, DescribedSpec):
            raise ValueError(f"[[inputs]] is for ONNX files and modules; {self.network.family} takes images: [input]")
        names = [each.name for each in self.inputs]
        if len(set(names)) < len(names):
            raise ValueError(f"two of the [[inputs]] have the same name: {', '.join(names)}")
        used = {size for each in self.inputs for size in each.shape if isinstance(size, str)}
        if "batch" in used:
            raise ValueError("the shape under [[inputs]] is that of one sample: leave the batch out")
        for name in sorted(used ^ self.sizes.keys()):
            known = (
                f"sizes.{name} is not a dimension of any input" if name in self.sizes else f"sizes.{name} is missing"
            )
            raise ValueError(f'{known}; [sizes.frames] with usual = 200 belongs to shape = [80, "frames"]')
