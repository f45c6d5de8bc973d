"""Options of an export, checked for contradictions before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Final

from skdeploy import engines
from skdeploy.core.errors import UsageError
from skdeploy.core.options import Flag, StationOptions, flags_given
from skdeploy.core.panel import Panel
from skdeploy.core.precision import PRECISIONS
from skdeploy.core.spec import MAX_PIXELS, ModelSpec, Precision
from skdeploy.engines.options import BuildOptions, require_capability, require_taken
from skdeploy.line.accuracy_options import AccuracyOptions
from skdeploy.line.station import RewriteOptions
from skdeploy.passes.read_options import ReadOptions
from skdeploy.passes.trace_options import TraceOptions

ASSUME_IMAGENET: Final = "Confirm that ImageNet's preprocessing is right when no card gives one."

MAX_SEED: Final = 2**63 - 1  # torch's generators take 64 bits
DEFAULT_PROFILE: Final = (1, 8, 32)
DEFAULT_IMAGES: Final = 64
NO_ENGINE: Final = "no engine: "  # how the note begins that an engine built later takes back


@dataclass(frozen=True)
class BuildRequest(BuildOptions):
    """Options of ``skdeploy build``, by the same names, and the compiler that they are for."""

    target: Annotated[
        str,
        Flag("Compiler of the engine; auto: TensorRT if there is a GPU, else TensorRT-RTX.", choices=engines.targets),
    ] = field(default=engines.AUTO, kw_only=True)


@dataclass(frozen=True)
class SourceOptions:
    """Which network, and with which weights. ``card`` belongs to an ONNX file or a module; ``assume_imagenet`` confirms
    ImageNet's preprocessing where none was given.
    """

    panel: ClassVar[Panel] = Panel.INPUT
    model: str
    _: KW_ONLY
    card: Annotated[
        str | None, Flag("Card for an .onnx file or a module: preprocessing, labels, tolerances, image size.")
    ] = None
    assume_imagenet: Annotated[bool, Flag(ASSUME_IMAGENET)] = False
    weights: Annotated[
        str | None,
        Flag(
            "Checkpoint in any known layout, or hf://owner/name.  [default: the card's weights, else random ones]",
            kept=False,
        ),
    ] = None
    task: Annotated[
        str | None,
        Flag(
            "What the outputs are: classification, image-to-image, segmentation, features or raw.  [default: the card's "
            "task, else by the shapes of the outputs]",
            metavar="TASK",
            kept=False,
        ),
    ] = None
    labels: Annotated[
        Path | None,
        Flag("Text file with one class name per line, in the order of the logits.", kept=False),
    ] = None
    classes: Annotated[int | None, Flag("Number of classes; weights with another number are refused.", kept=False)] = (
        None
    )
    read: ReadOptions = field(default_factory=ReadOptions)
    seed: Annotated[int, Flag("Seed for random weights, used if there are no trained ones.", kept=False)] = 0

    def check_source(self) -> None:
        """Raises UsageError for a seed that torch does not take, and for outputs that are not names."""
        if not 0 <= self.seed <= MAX_SEED:
            raise UsageError(f"--seed {self.seed}: must be from 0 to {MAX_SEED}")
        self.read.check()


@dataclass(frozen=True)
class ExportOptions(SourceOptions):
    """Options of ``skdeploy export``, by the same names; those of a station are a model of its own.

    ``output`` None means ``build/<model>-<precision>``; ``profile`` is (min, opt, max) batch of the engine, None for
    (1, 8, 32) or the fixed batch; ``image_size`` is (height, width) in pixels, None for the card's; ``images`` None means the
    card's own parity images, of which at most ``num_images`` are used. ``rewrites`` are the options of passes for hardware, by
    their names in ``line.rewrites.REWRITES``; a pass whose options are at their defaults does not run. ``lowering`` are those
    of precisions, by their names in ``line.formats.FORMATS``; only those of ``precision`` may be given.
    ``reference`` (``package.module:function``) and ``golden`` (an .npz) are what the artifacts are compared with, in place of
    our own network: ``parity/witness.py``.
    """

    precision: Precision = Precision.FP32
    _: KW_ONLY
    output: Annotated[
        Path | None,
        Flag(
            "Folder for the bundle.  [default: build/MODEL-PRECISION]",
            ("--output", "-o"),
            kept=False,
            panel=Panel.OUTPUT,
        ),
    ] = None
    target: Annotated[
        str,
        Flag(
            "Compiler of the engine; auto: TensorRT if there is a GPU, else TensorRT-RTX if installed; onnx: no engine.",
            kept=False,
            panel=Panel.ENGINE,
            choices=engines.targets,
        ),
    ] = engines.AUTO
    device: Annotated[
        str | None,
        Flag(
            "Choose engine and batches for this device, such as orin-nano, and print what to do on it.",
            ("--for",),
            metavar="DEVICE",
            kept=False,
            panel=Panel.ENGINE,
        ),
    ] = None
    trace: TraceOptions = field(default_factory=TraceOptions)
    profile: tuple[int, int, int] | None = None
    image_size: tuple[int, int] | None = None
    simplify: Annotated[
        bool, Flag("Run onnx-simplifier and check its result.", ("--simplify/--no-simplify",), panel=Panel.GRAPH)
    ] = True
    workspace_bytes: int | None = None
    compute_capabilities: Annotated[
        tuple[str, ...],
        Flag(
            "Compute capability of a GPU that the TensorRT-RTX engine must run on, such as 8.9; repeatable.",
            ("--compute-capability",),
            metavar="X.Y",
            kept=False,
            panel=Panel.ENGINE,
        ),
    ] = ()
    rewrites: Mapping[str, RewriteOptions] = field(default_factory=dict)
    lowering: Mapping[str, StationOptions] = field(default_factory=dict)
    accuracy: AccuracyOptions = field(default_factory=AccuracyOptions)
    images: Annotated[
        Path | None,
        Flag(
            "Images or samples for the parity and headroom checks: a folder, .npz or .npy.  [default: those of --data or "
            "--calib, else the card's]",
            kept=False,
            panel=Panel.PARITY,
        ),
    ] = None
    num_images: Annotated[int, Flag("Use at most this many images or samples.", kept=False, panel=Panel.PARITY)] = (
        DEFAULT_IMAGES
    )
    reference: Annotated[
        str | None,
        Flag(
            "Compare with the network that your own function returns; this runs your code.",
            metavar="MODULE:FUNCTION",
            kept=False,
            panel=Panel.PARITY,
        ),
    ] = None
    golden: Annotated[
        Path | None,
        Flag(
            "Compare with inputs and outputs that your training code saved as .npz; see docs/how-to/prove.md.",
            kept=False,
            panel=Panel.PARITY,
        ),
    ] = None

    @property
    def of_precision(self) -> StationOptions:
        """The options of the precision that is asked for."""
        from skdeploy.line.formats import FORMATS  # with its stations, which a build does not take

        return self.lowering.get(self.precision) or FORMATS[self.precision].options()

    def check(self) -> None:
        """Raises UsageError for what cannot be or contradicts itself."""
        self.check_source()
        for asked in (self.of_precision, self.trace, *self.rewrites.values()):
            asked.check()
        if not self.model.endswith(".onnx"):  # a file may have scales of its own, and is asked when it is read
            self.of_precision.check_source(self.model, has_scales=False)
        self.accuracy.check_for(self.precision)
        self._check_files()
        self._check_lowering()
        for rewrite in self.rewrites.values():
            rewrite.check_trace(self.trace)
        for_engines = self.profile is not None or self.workspace_bytes is not None or self.compute_capabilities
        if self.target == engines.ONNX and for_engines:
            raise UsageError(
                "--target onnx makes no engine, so it takes no batch profile, no --workspace and no --compute-capability",
                advice="leave them out, or choose another target",
            )
        for capability in self.compute_capabilities:
            require_capability(self.precision, capability)
        if self.compute_capabilities and self.target != engines.AUTO:
            require_taken(self.target, "compute_capabilities")
        if self.num_images < 1:
            raise UsageError(f"--num-images {self.num_images}: must be at least 1")
        if self.workspace_bytes is not None and self.workspace_bytes <= 0:
            raise UsageError("--workspace must be more than 0 GiB")
        if self.profile is not None:
            low, opt, high = self.profile
            if not 1 <= low <= opt <= high:
                raise UsageError(
                    f"batch profile {low}/{opt}/{high}: must be 1 <= --min-batch <= --opt-batch <= --max-batch",
                    advice="give all three: those left out default to {}, {} and {}".format(*DEFAULT_PROFILE),
                )
            if self.trace.batch is not None and self.profile != (self.trace.batch,) * 3:
                raise UsageError(
                    f"--batch {self.trace.batch} fixes the batch, but the profile says {low}/{opt}/{high}",
                    advice="give either --batch or --min-batch/--opt-batch/--max-batch",
                )

    def _check_lowering(self) -> None:
        """Raises UsageError for an option of another precision than the one asked for."""
        own = set(flags_given(self.of_precision))
        for flag in (flag for asked in self.lowering.values() for flag in flags_given(asked) if flag not in own):
            takers = [PRECISIONS[name] for name, asked in self.lowering.items() if flag in flags_given(asked)]
            raise UsageError(
                f"{flag} is for {' or '.join(each.words for each in takers)}, and this is an export to "
                f"{self.precision.words}",
                advice=f"leave it out, or export with {' or '.join(each.flag for each in takers)}",
            )

    def _check_files(self) -> None:
        """Raises UsageError for a file that is not there: at once, not after the network is loaded."""
        from skdeploy.images.dataset import require_there

        if self.images is not None:
            require_there(self.images)
        for flag, path in (("--labels", self.labels), ("--golden", self.golden)):
            if path is not None and not path.exists():
                raise UsageError(f"{flag} {path}: there is no such file", advice="check the path")

    def require_only_model(self) -> None:
        """Raises UsageError for options that say how to make a graph: a bundle has it."""
        given = [*flags_given(self), *(["--imgsz"] if self.image_size is not None else [])]
        if given:
            raise UsageError(
                f"{given[0]} does not go with {self.model}, a bundle, whose graph is taken as it is",
                advice=f"leave {given[0]} out, or give what the bundle was made of",
            )

    def applied(self, spec: ModelSpec) -> ModelSpec:
        """The card's spec with the image size asked for; the resize before the crop grows in proportion.

        Raises UsageError for a size that the network's stride does not divide, other than the card's own.
        """
        own = (spec.input.height, spec.input.width)
        if self.image_size is None:
            return spec
        spec = _with_size_said(spec)
        if self.image_size == own:
            return spec
        stride = spec.network.total_stride
        for size in self.image_size:
            if size < 1:
                raise UsageError(
                    f"--imgsz {size}: an image has at least 1 pixel", advice=f"the card's size is {own[0]}"
                )
            if size > MAX_PIXELS:
                raise UsageError(f"--imgsz {size}: must be at most {MAX_PIXELS}", advice=f"the card's size is {own[0]}")
            if size % stride:
                nearest = max(stride, round(size / stride) * stride)
                raise UsageError(
                    f"--imgsz {size}: {spec.name} halves the image down to 1/{stride}, and {size} is not a "
                    f"multiple of {stride}",
                    advice=f"use {nearest}, or another multiple of {stride}",
                )
        height, width = self.image_size
        resize = spec.preprocess.resize
        if resize is not None:
            resize = max(round(resize * max(height, width) / max(own)), height, width)
        return spec.model_copy(
            update={
                "input": spec.input.model_copy(update={"height": height, "width": width}),
                "preprocess": spec.preprocess.model_copy(update={"resize": resize}),
            }
        )

    def folder(self, spec: ModelSpec) -> Path:
        """Where the bundle goes."""
        return self.output or Path("build") / f"{spec.name.replace('/', '-')}-{self.precision}"


def batch_profile(low: int | None, opt: int | None, high: int | None) -> tuple[int, int, int] | None:
    """The engine's batches as asked, the default for those left out; None where none is given."""
    if (low, opt, high) == (None, None, None):
        return None
    given = zip((low, opt, high), DEFAULT_PROFILE, strict=True)
    low, opt, high = (default if asked is None else asked for asked, default in given)
    return (low, opt, high)


def _with_size_said(spec: ModelSpec) -> ModelSpec:
    """The spec once a person has given the size: it is not assumed any more, whether or not it is the card's."""
    preprocessing = spec.assumed.preprocessing
    if preprocessing is None:
        return spec
    said = spec.assumed.model_copy(update={"preprocessing": preprocessing.model_copy(update={"size": None})})
    return spec.model_copy(update={"assumed": said})
