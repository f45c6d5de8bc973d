"""Options of an INT8 export, checked for contradictions before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from skdeploy.core.errors import UsageError
from skdeploy.core.options import Flag, flags_given
from skdeploy.core.panel import Panel
from skdeploy.line.calibration import CalibrationOptions
from skdeploy.line.fallback_options import FallbackOptions
from skdeploy.quant.legacy_cache import version_number


class Int8Options(FallbackOptions):
    """Options of ``skdeploy export --int8``, by the same names.

    ``ranges``, a file, stands in for ``calibration``. ``keep_grouped`` keeps grouped convolutions in the fallback.
    ``legacy_cache`` is the version of a TensorRT that wants a calibration cache, such as 8.5.3.
    """

    calibration: CalibrationOptions = CalibrationOptions()
    ranges: Annotated[
        Path | None,
        Flag("Use this file of `skdeploy calibrate` instead of --calib.", kept=False, panel=Panel.CALIBRATION),
    ] = None
    keep_grouped: Annotated[
        bool, Flag("Keep grouped convolutions in --int8-fallback precision.", ("--int8-keep-grouped",))
    ] = False
    legacy_cache: Annotated[
        str | None,
        Flag(
            "Also write a calibration cache for this older TensorRT, such as 8.5.3.",
            ("--legacy-calibration-cache",),
            metavar="VERSION",
        ),
    ] = None

    def check_source(self, model: str, *, has_scales: bool) -> None:
        """Raises UsageError where nothing gives the scales, or the file itself and these options both do."""
        if not has_scales:
            if self.ranges is None:
                self.calibration.require_images()
            return
        own = {*flags_given(self.half), "--int8-fallback"}
        given = [flag for flag in flags_given(self) if flag not in own]
        if given:
            raise UsageError(
                f"{given[0]} does not go with {model}, which carries the scales and Q/DQ that it was trained with",
                advice="leave it out: they are kept as they are; to quantize anew, export the network without Q/DQ",
            )

    def check(self) -> None:
        """Raises UsageError for what cannot be, contradicts itself, or is not there."""
        if self.ranges is not None:
            asked = CalibrationOptions(batch=self.calibration.batch)
            if self.calibration != asked:
                raise UsageError(
                    "--ranges is a finished calibration, so options that calibrate (--calib, --calib-..., "
                    "--equalize ...) cannot be used with it",
                    advice="leave them out, or leave out --ranges to calibrate again",
                )
        else:
            self.calibration.check()
        super().check()
        if self.legacy_cache is not None:
            version_number(self.legacy_cache)
