"""What an INT8 export and a calibration are asked to do, checked for contradictions before anything runs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from skdeploy.core.errors import UsageError
from skdeploy.core.spec import CalibrationMethod, ClassOrder, Precision
from skdeploy.quant.legacy_cache import version_number

DEFAULT_NUMBER: Final = 512
DEFAULT_BATCH: Final = 8
DEFAULT_PERCENTILE: Final = 99.99


@dataclass(frozen=True)
class CalibrationOptions:
    """Which images calibrate, and how. None means the default, or what the recipe says where ``images`` is one.

    ``images``: a folder, .npz, .npy, .txt list, or a recipe (.toml). ``number`` at most are used, chosen by ``seed``; ``batch``
    are fed at a time. ``allow_random``: without images, noise. The switches turn off what makes the result more accurate.
    """

    images: Path | None = None
    allow_random: bool = False
    method: CalibrationMethod | None = None
    percentile: float | None = None
    number: int | None = None
    seed: int | None = None
    batch: int = DEFAULT_BATCH
    equalize: bool | None = None
    bias_correction: bool | None = None
    shift: bool | None = None
    exact_input: bool | None = None
    weight_scales: Literal["mse", "max"] | None = None

    @property
    def from_recipe(self) -> bool:
        return self.images is not None and self.images.suffix == ".toml"

    @property
    def given(self) -> dict[str, object]:
        """What a recipe says too, by the names of the options, as far as it was given."""
        options = {
            "--calib-method": self.method,
            "--calib-percentile": self.percentile,
            "--calib-num": self.number,
            "--calib-seed": self.seed,
            "--equalize": self.equalize,
            "--bias-correction": self.bias_correction,
            "--shift": self.shift,
            "--exact-input": self.exact_input,
            "--weight-scales": self.weight_scales,
        }
        return {name: value for name, value in options.items() if value is not None}

    def check(self) -> None:
        """Raises UsageError for what cannot be, contradicts itself, or is not there."""
        from skdeploy.images.dataset import require_there

        if self.images is None and not self.allow_random:
            raise UsageError(
                "INT8 needs images to calibrate on",
                advice="--calib DIR, .npz or .txt; or --ranges FILE from an earlier calibration; "
                "--allow-random-calib only where accuracy does not matter",
            )
        if self.images is not None and self.allow_random:
            raise UsageError("--calib and --allow-random-calib contradict each other", advice="give one of them")
        if self.from_recipe and self.given:
            raise UsageError(
                f"{', '.join(self.given)} and the recipe {self.images} both say how to calibrate",
                advice="change the recipe, or give the images themselves with --calib",
            )
        for name, value in (("--calib-num", self.number), ("--calib-batch", self.batch)):
            if value is not None and value < 1:
                raise UsageError(f"{name} {value}: at least 1")
        if self.seed is not None and self.seed < 0:
            raise UsageError(f"--calib-seed {self.seed}: at least 0")
        if self.percentile is not None:
            if self.method is not CalibrationMethod.PERCENTILE:
                raise UsageError("--calib-percentile without --calib-method percentile", advice="add it")
            if not 0 < self.percentile <= 100:
                raise UsageError(f"--calib-percentile {self.percentile:g}: above 0 and at most 100, such as 99.99")
        if self.images is not None and not self.from_recipe:  # a recipe may be one that comes with skdeploy
            require_there(self.images)


@dataclass(frozen=True)
class Int8Options:
    """Options of ``skdeploy export --int8``, by the same names.

    ``ranges``, a file, stands in for ``calibration``. ``fallback`` is the precision of all that is not INT8; ``keep`` are
    regular expressions on module names that stay in it, ``keep_grouped`` keeps grouped convolutions there. ``data`` are
    images with labels, and ``max_drop``, in percentage points of top-1, is what INT8 may cost on them: the worst units go
    to the fallback until it holds. ``class_order``: how class folders of ``data`` are counted. ``legacy_cache`` is the
    version of a TensorRT that wants a calibration cache, such as 8.5.3.
    """

    calibration: CalibrationOptions = CalibrationOptions()
    ranges: Path | None = None
    fallback: Precision = Precision.FP16
    keep: tuple[str, ...] = ()
    keep_grouped: bool = False
    data: Path | None = None
    max_drop: float | None = None
    class_order: ClassOrder | None = None
    legacy_cache: str | None = None

    @property
    def given(self) -> bool:
        """Whether anything was asked for that only INT8 has."""
        return self != Int8Options()

    def check(self) -> None:
        """Raises UsageError for what cannot be, contradicts itself, or is not there."""
        from skdeploy.images.dataset import require_there

        if self.fallback is Precision.INT8:
            raise UsageError("--int8-fallback int8: the fallback is what is not INT8", advice="fp16 or fp32")
        if self.ranges is not None:
            asked = CalibrationOptions(batch=self.calibration.batch)
            if self.calibration != asked:
                raise UsageError(
                    "--ranges are a finished calibration, so the options of one (--calib, --calib-..., --equalize ...) do not "
                    "go with it",
                    advice="leave them out, or leave out --ranges to calibrate again",
                )
        else:
            self.calibration.check()
        for pattern in self.keep:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UsageError(f"--int8-keep {pattern!r} is not a regular expression: {error}") from error
        if self.legacy_cache is not None:
            version_number(self.legacy_cache)
        if self.max_drop is not None and self.data is None:
            raise UsageError("--max-drop needs images with labels", advice="--data DIR, .npz or .txt")
        if self.data is not None and self.max_drop is None:
            raise UsageError(
                "--data is what --max-drop is measured on", advice="add --max-drop, in points of top-1, such as 0.2"
            )
        if self.class_order is not None and self.data is None:
            raise UsageError("--class-order is how the class folders of --data are counted", advice="give --data")
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise UsageError(f"--max-drop {self.max_drop:g}: percentage points of top-1, from 0 to 100")
        if self.data is not None:
            require_there(self.data)
