"""The options of ``skdeploy tune``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from skdeploy.accuracy.evaluate import CONFIDENCE
from skdeploy.core.errors import UsageError
from skdeploy.core.spec import ClassOrder
from skdeploy.images.dataset import check_count
from skdeploy.planning.devices import device_named

MOST_SQNR_DB: Final = 150.0  # FP32 rounds at 2^-24: 144 dB


@dataclass(frozen=True)
class TuneOptions:
    """Options of ``skdeploy tune``, by the same names. ``max_drop`` needs labels or pairs in ``data``; without it FP32's
    outputs are the truth, and ``min_sqnr`` in dB may limit the error. ``calib`` None: the calibration.npz of ``data``;
    ``methods`` None: all but entropy; ``output`` None: ``<model>-tuned.toml`` beside the calibration images.
    """

    data: Path
    max_drop: float | None = None
    min_sqnr: float | None = None
    calib: Path | None = None
    calib_num: int | None = None
    methods: tuple[str, ...] = ()
    class_order: ClassOrder | None = None
    device: str | None = None
    bench: bool = False
    confidence: float = CONFIDENCE
    output: Path | None = None
    force: bool = False
    allow_inconclusive: bool = False
    assume_imagenet: bool = False
    metric: str | None = None

    def check(self) -> None:
        """Raises UsageError for numbers that make no sense."""
        if self.max_drop is not None and self.min_sqnr is not None:
            raise UsageError(
                "--max-drop and --min-sqnr cannot be used together: one is for labels or pairs, the other for data without",
                advice="give one of them",
            )
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise UsageError(f"--max-drop {self.max_drop:g}: must be from 0 to 100, in the unit measured")
        if self.min_sqnr is not None and not 0 < self.min_sqnr <= MOST_SQNR_DB:
            raise UsageError(
                f"--min-sqnr {self.min_sqnr:g}: must be above 0 and at most {MOST_SQNR_DB:g} dB, which is more than FP32 holds"
            )
        for option, given in (("--metric", self.metric), ("--class-order", self.class_order)):
            if given is not None and self.max_drop is None:
                raise UsageError(
                    f"{option} requires --max-drop: without it, ways are compared with FP32 and not with a truth",
                    advice=f"give --max-drop, or leave {option} out",
                )
        if not 50 < self.confidence <= 99.9999:
            raise UsageError(f"--confidence {self.confidence:g}: must be above 50 and at most 99.9999 percent")
        check_count(self.calib_num, "--calib-num")
        if self.device is not None:
            device_named(self.device)
