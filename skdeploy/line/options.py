"""What an export is asked to do, checked for contradictions before anything runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from skdeploy.core.errors import UsageError
from skdeploy.core.spec import MAX_PIXELS, ModelSpec, Precision, Target
from skdeploy.line.int8_options import Int8Options
from skdeploy.passes.trace_options import MAX_OPSET, MIN_OPSET, TraceOptions

MAX_SEED: Final = 2**63 - 1  # torch's generators take 64 bits
DEFAULT_PROFILE: Final = (1, 8, 32)
DEFAULT_IMAGES: Final = 64


@dataclass(frozen=True)
class ExportOptions:
    """Options of ``skdeploy export``, by the same names.

    ``output`` None means ``build/<model>-<precision>``; ``profile`` is (min, opt, max) batch of the engine, None for
    (1, 8, 32) or the fixed batch; ``image_size`` is (height, width) in pixels, None for the card's; ``images`` None means the
    card's own parity images, of which at most ``num_images`` are used. ``regroup`` and ``gap`` rewrite the last graph for
    hardware (``passes/regroup.py``, ``passes/average_pool.py``), None for none.
    ``card`` belongs to an ONNX file or a module; ``assume_imagenet`` confirms ImageNet's preprocessing where none was given.
    ``reference`` (``package.module:function``) and ``golden`` (an .npz) are what the artifacts are compared with, in place of
    our own network: ``parity/witness.py``.
    """

    model: str
    precision: Precision = Precision.FP32
    output: Path | None = None
    weights: str | None = None
    seed: int = 0
    trace: TraceOptions = field(default_factory=TraceOptions)
    simplify: bool = True
    keep_fp32: tuple[str, ...] = ()
    int8: Int8Options = field(default_factory=Int8Options)
    target: Target = Target.AUTO
    profile: tuple[int, int, int] | None = None
    workspace_bytes: int | None = None
    compute_capabilities: tuple[str, ...] = ()
    image_size: tuple[int, int] | None = None
    images: Path | None = None
    num_images: int = DEFAULT_IMAGES
    regroup: int | None = None
    gap: Literal["average-pool"] | None = None
    card: str | None = None
    assume_imagenet: bool = False
    reference: str | None = None
    golden: Path | None = None

    @property
    def has_half(self) -> bool:
        """Whether anything in the graph becomes FP16."""
        return self.precision is Precision.FP16 or (
            self.precision is Precision.INT8 and self.int8.fallback is Precision.FP16
        )

    def check(self) -> None:
        """Raises UsageError for what cannot be or contradicts itself."""
        if self.precision is Precision.INT8:
            self.int8.check()
        elif self.int8.given:
            raise UsageError(
                "options of a calibration, --ranges, --int8-..., --data or --max-drop without --int8",
                advice="add --int8",
            )
        if not MIN_OPSET <= self.trace.opset <= MAX_OPSET:
            raise UsageError(
                f"--opset {self.trace.opset}: from {MIN_OPSET} to {MAX_OPSET}, which every TensorRT from 10.3 parses"
            )
        if self.trace.batch is not None and self.trace.batch < 1:
            raise UsageError(f"--batch {self.trace.batch}: at least 1")
        if self.keep_fp32 and not self.has_half:
            raise UsageError("--keep-fp32 without --fp16: everything is FP32 already", advice="add --fp16")
        if self.compute_capabilities and self.target in (Target.TENSORRT, Target.ONNX):
            raise UsageError(
                f"--compute-capability is for TensorRT-RTX, not for --target {self.target}",
                advice="TensorRT builds for the GPU that it runs on, and onnx makes no engine",
            )
        if self.regroup is not None and self.regroup < 1:
            raise UsageError(f"--regroup {self.regroup}: at least 1 group")
        if self.gap is not None and self.trace.dynamic_size:
            raise UsageError(
                "--gap average-pool with --dynamic-size: a pool over the whole map must know its size",
                advice="leave one of them out; --imgsz sets a fixed size",
            )
        if not 0 <= self.seed <= MAX_SEED:
            raise UsageError(f"--seed {self.seed}: from 0 to {MAX_SEED}")
        if self.num_images < 1:
            raise UsageError(f"--num-images {self.num_images}: at least 1")
        if self.workspace_bytes is not None and self.workspace_bytes <= 0:
            raise UsageError("--workspace must be more than 0 GiB")
        if self.profile is not None:
            low, opt, high = self.profile
            if not 1 <= low <= opt <= high:
                raise UsageError(
                    f"batch profile {low}/{opt}/{high}: must be 1 <= --min-batch <= --opt-batch <= --max-batch",
                    advice="give all three: the default of those left out is {}, {} and {}".format(*DEFAULT_PROFILE),
                )
            if self.trace.batch is not None and self.profile != (self.trace.batch,) * 3:
                raise UsageError(
                    f"--batch {self.trace.batch} fixes the batch, the profile says {low}/{opt}/{high}",
                    advice="give either --batch or --min-batch/--opt-batch/--max-batch",
                )
        if self.target is Target.ONNX and (self.profile is not None or self.workspace_bytes is not None):
            raise UsageError(
                "--target onnx makes no engine, so it takes no batch profile and no --workspace",
                advice="leave them out, or choose another target",
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
                raise UsageError(f"--imgsz {size}: at most {MAX_PIXELS}", advice=f"the card's size is {own[0]}")
            if size % stride:
                nearest = max(stride, round(size / stride) * stride)
                raise UsageError(
                    f"--imgsz {size}: {spec.name} halves the image down to 1/{stride}, so {size} pixels leave a ragged edge",
                    advice=f"use a multiple of {stride}, such as {nearest}",
                )
        height, width = self.image_size
        resize = max(round(spec.preprocess.resize * max(height, width) / max(own)), height, width)
        return spec.model_copy(
            update={
                "input": spec.input.model_copy(update={"height": height, "width": width}),
                "preprocess": spec.preprocess.model_copy(update={"resize": resize}),
            }
        )

    def folder(self, spec: ModelSpec) -> Path:
        """Where the bundle goes."""
        return self.output or Path("build") / f"{spec.name.replace('/', '-')}-{self.precision}"


def _with_size_said(spec: ModelSpec) -> ModelSpec:
    """The spec once a person has given the size: it is not assumed any more, whether or not it is the card's."""
    preprocessing = spec.assumed.preprocessing
    if preprocessing is None:
        return spec
    said = spec.assumed.model_copy(update={"preprocessing": preprocessing.model_copy(update={"size": None})})
    return spec.model_copy(update={"assumed": said})
