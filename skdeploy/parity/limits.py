"""Limits of what a task measures besides error, cosine and SQNR, where the card gives none: how far an artifact may be from the
reference, not from the truth. What that costs in accuracy, ``evaluate`` measures.

``exact`` is for FP32, which sums in another order. ``rounded`` is for FP16. ``coarse`` is for what loses more than that: INT8,
whose ranges are calibrated, INT8 weights, whose error is a part of INT8's, and BF16, whose error is 8 times FP16's.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from skdeploy.core.precision import Precision, Tolerance


class Limits(NamedTuple):
    """Updates of a ``Tolerance``."""

    exact: dict[str, float]
    rounded: dict[str, float]
    coarse: dict[str, float]

    def fill(self, tolerance: Tolerance, precision: Precision) -> Tolerance:
        """The tolerance with these limits where it has none of its own."""
        is_coarse = precision.tolerance.min_sqnr_db < Precision.FP16.tolerance.min_sqnr_db
        found = self.exact if precision is Precision.FP32 else self.coarse if is_coarse else self.rounded
        return tolerance.model_copy(
            update={name: limit for name, limit in found.items() if getattr(tolerance, name) is None}
        )


NONE: Final = Limits({}, {}, {})

# PSNR: writing an image in 8 bits alone costs 58.9 dB, 20 log10(255 sqrt(12)). FP32 must be well below that rounding. FP16's
# 50 dB are an error of 0.8 of a grey level, which nobody sees. INT8's 30 dB are 8 levels: as much noise as a good restoration
# leaves. SSIM follows: it is about 1 - error^2 / (2 variance) of a window, and windows of skies have a variance of few levels.
IMAGES: Final = Limits(
    exact={"min_psnr_db": 70.0, "min_ssim": 0.9999},
    rounded={"min_psnr_db": 50.0, "min_ssim": 0.995},
    coarse={"min_psnr_db": 30.0, "min_ssim": 0.85},
)

# mIoU: rounding moves the edges of regions. FP32 may move one pixel in hundreds of a small region, FP16 one in fifty; INT8 may
# take a sixth of the overlap, which is the width of an edge around objects of 20 pixels.
MASKS: Final = Limits(exact={"min_miou": 0.995}, rounded={"min_miou": 0.98}, coarse={"min_miou": 0.85})

# Integers and booleans, such as class ids, come from comparing floats: those near a border change with any rounding. An error
# of 1e-4 of the largest value moves about 1e-4 of them. FP32 may change ten times as many as that, FP16 one in fifty, INT8 as
# many as of a mask's pixels. Where the graph shows what decides (``ir/deciding.py``), none beyond the error's reach may change.
INTEGERS: Final = Limits(exact={"min_equal": 0.999}, rounded={"min_equal": 0.98}, coarse={"min_equal": 0.85})

# Pairs at the reference's threshold: half of all pairs are above it, so this is the hardest threshold there is. FP32 may
# exchange two pairs that are nearly equal; FP16 moves a cosine by 2^-11 a value; INT8 by some hundredths.
PAIRS: Final = Limits(exact={"max_pair_error": 0.01}, rounded={"max_pair_error": 0.03}, coarse={"max_pair_error": 0.15})
