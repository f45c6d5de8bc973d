"""Precisions: the registry of what the whole package must know of each. How a graph is made one: ``line/formats.py``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import core_schema

from skdeploy.core.architecture import Frozen

FP16_MAX: Final = 65504.0
FP32S_RANGE: Final = "which has FP32's range but rounds 8 times as coarsely as FP16"
UNSAID: Final = Field(
    exclude_if=lambda limit: limit is None
)  # files of before there were such limits stay what they are


class Tolerance(Frozen, allow_inf_nan=False):
    """How far a precision's logits may be from torch FP32's. Each card gives the reason beside the numbers.

    ``max_abs_error`` is relative to the largest reference logit; ``min_cosine`` and ``min_sqnr_db`` hold for the worst image;
    ``min_top1_agreement`` is the share of images, counting only those whose top-1 margin is wider than the error allowed; where
    a network gives a class for each pixel, of pixels. The rest is for the tasks that measure it; ``parity/limits.py`` has their
    own limits, where a card gives none. ``min_psnr_db`` and ``min_ssim`` hold for the worst image, ``min_miou`` for the maps of
    classes, ``max_pair_error`` is the share of pairs of embeddings that change sides, ``min_equal`` the share of integers and
    booleans that stay equal.
    """

    max_rel_error: Annotated[float, Field(gt=0)]
    min_cosine: Annotated[float, Field(gt=0, le=1)]
    min_sqnr_db: float
    min_top1_agreement: Annotated[float, Field(ge=0, le=1)] = 1.0
    min_psnr_db: Annotated[float | None, UNSAID] = None
    min_ssim: Annotated[float | None, Field(le=1), UNSAID] = None
    min_miou: Annotated[float | None, Field(ge=0, le=1), UNSAID] = None
    max_pair_error: Annotated[float | None, Field(ge=0, le=1), UNSAID] = None
    min_equal: Annotated[float | None, Field(ge=0, le=1), UNSAID] = None

    def __str__(self) -> str:
        return " ".join(f"{name}={limit}" for name, limit in self.model_dump().items())


class Precision(str):
    """The type that a graph's tensors have: its name, in lower case, as cards, manifests and flags write it.

    Precision lives in the graph, never in a builder's flag. ``tolerance`` holds where a card gives none. ``width_bytes`` is the
    size of a weight. ``onnx_type`` is the float type of the tensors, by ONNX's name; a CPU computes it in FP32 and rounds each
    tensor to it. ``largest`` is its largest number, if a network's activations can exceed it. ``integer``: by Q/DQ, whose
    calibrated ranges clip. ``peak`` names the figure of a device (``planning/devices.py``) that bounds its arithmetic; without
    one no floor is estimated. ``tile`` is how many inputs a tensor core's tile has, 1 where there are no tiles. ``dla``:
    whether a deep learning accelerator has it. ``weighed``: whether the planner recommends it where its floor is lower.
    ``least_capability``: the first compute capability of NVIDIA's GPUs that has it; empty for all. ``no_kernels``: operators
    that TensorRT-RTX does not build in it, which stay FP32.

    ``weights_only``: only weights have this type, as integers with a scale, and the arithmetic has another. Of this and of an
    integer precision, ``beside`` names what is not quantized by default. ``keep_grouped`` is the flag that leaves grouped
    convolutions in it, if there is one. ``flag`` is the export's flag, with its value if it takes one.
    """

    FP32: ClassVar[Precision]
    FP16: ClassVar[Precision]
    INT8: ClassVar[Precision]

    flag: str
    words: str
    tolerance: Tolerance
    width_bytes: int
    onnx_type: str
    largest: float | None
    integer: bool
    peak: str
    tile: int
    dla: bool
    weighed: bool
    least_capability: str
    no_kernels: tuple[str, ...]
    weights_only: bool
    beside: str
    keep_grouped: str

    def __new__(
        cls,
        name: str,
        tolerance: Tolerance,
        *,
        width_bytes: int,
        onnx_type: str = "FLOAT",
        largest: float | None = None,
        integer: bool = False,
        peak: str = "",
        tile: int = 1,
        dla: bool = False,
        weighed: bool = True,
        least_capability: str = "",
        no_kernels: tuple[str, ...] = (),
        weights_only: bool = False,
        beside: str = "",
        keep_grouped: str = "",
        flag: str = "",
        words: str = "",
    ) -> Self:
        made = super().__new__(cls, name)
        made.flag, made.words = flag or f"--{name}", words or name.upper()
        made.tolerance, made.width_bytes, made.onnx_type = tolerance, width_bytes, onnx_type
        made.largest, made.integer, made.peak, made.tile = largest, integer, peak, tile
        made.dla, made.weighed, made.least_capability = dla, weighed, least_capability
        made.no_kernels, made.weights_only = no_kernels, weights_only
        made.beside, made.keep_grouped = beside, keep_grouped
        return made

    def runs_on(self, capability: str) -> bool:
        """Whether a GPU of this compute capability, such as "8.7", has arithmetic in this precision; of no text but such a one
        it is denied.
        """
        if not self.least_capability or re.fullmatch(r"\d+\.\d+", capability) is None:
            return True
        numbers = [tuple(map(int, text.split("."))) for text in (self.least_capability, capability)]
        return numbers[0] <= numbers[1]

    def lacking(self, where: str, capability: str) -> str:
        """Say that ``where``, of this compute capability, does not have it."""
        return f"{where} has no {self.words}: it needs compute capability {self.least_capability}, and this is {capability}"

    def __reduce__(self) -> tuple[Any, ...]:
        return precision_named, (str(self),)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            precision_named,
            json_schema_input_schema=core_schema.str_schema(),
            serialization=core_schema.to_string_ser_schema(when_used="json"),
        )


# From wide to narrow. The reasons of the tolerances are those of the zoo's cards: models/README.md.
# Tiles: planning/tensor_cores.py.
PRECISIONS: Final[dict[str, Precision]] = {
    made: made
    for made in (
        Precision(
            "fp32",
            Tolerance(max_rel_error=1e-4, min_cosine=0.99999, min_sqnr_db=90.0),
            width_bytes=4,
            peak="fp32_tflops",
        ),
        Precision(
            "fp16",
            Tolerance(max_rel_error=1e-2, min_cosine=0.9999, min_sqnr_db=40.0),
            width_bytes=2,
            onnx_type="FLOAT16",
            largest=FP16_MAX,
            peak="fp16_tflops",
            tile=16,
            dla=True,
        ),
        # 8 significant bits, where FP16 has 11: every rounding is 8 times as large, and so is the error. These are FP16's
        # limits for 8 times its error: the SQNR is 20 log10(8) = 18 dB less, and 1 - cosine grows with the square.
        Precision(
            "bf16",
            Tolerance(max_rel_error=8e-2, min_cosine=0.9936, min_sqnr_db=22.0),
            width_bytes=2,
            onnx_type="BFLOAT16",
            # Tensor cores have BF16's rate at most as high as FP16's, so this is a floor too.
            peak="fp16_tflops",
            tile=16,
            weighed=False,  # never faster than FP16 by that figure
            # NVIDIA, Transformer Engine: https://nvidia.github.io/TransformerEngine/support_matrix.html
            least_capability="8.0",
            no_kernels=("ConvTranspose",),  # of 1.7.1, in any number of dimensions: tests/engines/test_bf16.py
        ),
        # Weights of 255 levels a channel: their error is 41 to 48 dB below a layer's sums, and 30 dB below those of 16 to 50
        # residual units (models/README.md). The worst image may have 10 dB less: 20 dB are an error of 10 % of the logits,
        # cosine 0.995, and 3.5 of it at one logit of an image whose largest is 2 of their root mean square.
        Precision(
            "weight-only-int8",
            Tolerance(max_rel_error=0.18, min_cosine=0.995, min_sqnr_db=20.0),
            width_bytes=1,
            largest=FP16_MAX,
            peak="fp16_tflops",
            tile=16,
            weighed=False,  # no document says whether kernels read such weights faster
            weights_only=True,
            beside="fp16",
            flag="--weight-only int8",
            words="weight-only INT8",
        ),
        Precision(
            "int8",
            Tolerance(max_rel_error=0.3, min_cosine=0.95, min_sqnr_db=10.0),
            width_bytes=1,
            integer=True,
            peak="int8_tops",
            tile=32,
            dla=True,
            beside="fp16",
            keep_grouped="--int8-keep-grouped",
        ),
    )
}
Precision.FP32, Precision.FP16, Precision.INT8 = (PRECISIONS[name] for name in ("fp32", "fp16", "int8"))


@dataclass(frozen=True)
class Declined:
    """A precision that people ask for and skdeploy does not make: its flag, why not, and what to use instead."""

    flag: str
    why: str
    instead: str


# The figures are those of 2026-11: docs/understand/precisions.md.
DECLINED: Final[dict[str, Declined]] = {
    "fp8": Declined(
        "--fp8",
        "FP8 is not exported. It loses 15.6 dB to INT8 at the same size on sknet-fashion; NVIDIA documents FP8 on TensorRT-RTX "
        "for matrix products only, not for convolutions; and its release notes advise INT8 for grouped convolutions",
        "use --int8 for speed, or --weight-only int8 for a small engine",
    ),
    "weight-only-int4": Declined(
        "--weight-only int4",
        "INT4 weights are not exported: TensorRT-RTX takes them in blocks, and for matrix products only, not for convolutions",
        "use --weight-only int8, which halves the weights of FP16",
    ),
    "weight-only-fp8": Declined(
        "--weight-only fp8",
        "FP8 weights are not exported: at the same size, INT8 with a scale for each output channel has 8 bits for a value, "
        "and FP8 (E4M3) has 4",
        "use --weight-only int8",
    ),
}


def precision_named(name: Any) -> Precision:
    """The registered precision of this name. Raises ValueError for another."""
    if isinstance(name, str) and name in DECLINED:
        raise ValueError(f"{DECLINED[name].why}; {DECLINED[name].instead}")
    if not isinstance(name, str) or name not in PRECISIONS:
        raise ValueError(f"{name!r} is not a precision that this skdeploy knows: {', '.join(PRECISIONS)}")
    return PRECISIONS[name]
