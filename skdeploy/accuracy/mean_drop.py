"""How much one artifact is worse than another, from a number of images that each was measured on: a mean, or a mean IoU.

**A mean of each image's drop** (PSNR, SSIM, a metric of the user's own). The two artifacts see the same images, so their
difference on each image is what varies, and that is far less than the metric itself does between images. Its mean has Student's
interval, corrected for skewness by Hall's transformation: what lower precision costs is often little on most images and much on
a few, and there Student's upper bound is too low, so a gate would let too much pass. P. Hall, On the removal of skewness by
transformation, J. R. Statist. Soc. B 54 (1992) 221-228.

**A mean IoU** is not a mean of images: intersections and unions of each class are sums over all images. So images are drawn
anew, with replacement, and the drop is computed of each draw: B. Efron's percentile interval, widened for few images as in
T. Hesterberg, What teachers should know about the bootstrap, The American Statistician 69 (2015) 371-386, section 4.3.

``tests/accuracy/test_mean_drop.py`` measures how often these bounds hold.
"""

from __future__ import annotations

from collections.abc import Callable
from math import atan, ceil, copysign, cos, log10, pi, sin, sqrt
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skdeploy.accuracy.statistics import POWER, z_of
from skdeploy.core.spec import Frozen

LEAST: Final = 5  # images: fewer have no skewness worth the name
RESAMPLES: Final = 4000  # the bound at 95 % then varies by 1.5 % of the interval between seeds
MOST_CONFIDENT: Final = 99.9  # per cent: four of the resamples are beyond it
SEED: Final = 0  # of the resamples, so that the same images give the same bounds
NORMAL: Final = 1000  # degrees of freedom from which on Student's distribution is the normal one, to 3 digits
STEPS: Final = 60  # of bisection

Floats = NDArray[np.floating[Any]]


class Drop(Frozen):
    """A drop and its bounds, each one-sided; ``spread``: the standard deviation of one image's share in it."""

    drop: float
    low: float
    high: float
    spread: float
    images: int


def drop_of_mean(drops: Floats, confidence: float) -> Drop:
    """Of each image's drop, (N,), N >= 2, at a one-sided confidence in (0, 1)."""
    count, mean = len(drops), float(np.mean(drops))
    spread = float(np.std(drops, ddof=1))
    if spread <= 1e-12 * max(1.0, abs(mean)):  # all are equal
        return Drop(drop=mean, low=mean, high=mean, spread=0.0, images=count)
    skewness = float(np.mean(((drops - mean) / np.std(drops)) ** 3))
    t, step = student(confidence, count - 1), spread / sqrt(count)
    low, high = (mean - step * _hall(bound, skewness, count) for bound in (t, -t))
    return Drop(drop=mean, low=low, high=high, spread=spread, images=count)


def drop_of_ratio(
    measure: Callable[[NDArray[np.float64]], NDArray[np.float64]], images: int, confidence: float
) -> Drop:
    """Of a figure that is not a mean of images. ``measure``: weights of the images, (draws, N), to the drop of each draw."""
    count = images
    found = float(measure(np.ones((1, count)))[0])
    random = np.random.default_rng(SEED)
    weights = (random.multinomial(count, np.full(count, 1 / count), RESAMPLES // 8) for _ in range(8))
    parts = [measure(drawn.astype(np.float64)) for drawn in weights]  # those of 10,000 images are 320 MB at once
    draws = np.concatenate(parts)
    # A draw's variance is (N - 1) / N of the mean's, and few images need Student's quantile: so a wider part of the draws.
    beyond = 1 - NormalDist().cdf(sqrt(count / (count - 1)) * student(confidence, count - 1))
    low, high = (float(np.quantile(draws, share)) for share in (beyond, 1 - beyond))
    return Drop(
        drop=found, low=min(low, found), high=max(high, found), spread=float(np.std(draws)) * sqrt(count), images=count
    )


def images_for(found: Drop, max_drop: float, confidence: float) -> int | None:
    """About how many images would decide four times in five, if they are like these; None where the drop is the budget."""
    distance = abs(found.drop - max_drop)
    if distance <= 1e-3 * found.spread / sqrt(found.images) or not found.spread:
        return None
    return max(found.images + 1, ceil(((z_of(confidence) + z_of(POWER)) * found.spread / distance) ** 2))


def least_budget(found: Drop) -> float:
    """The smallest budget that these images pass, rounded up to two digits."""
    if found.high <= 0:
        return 0.0
    unit = 10.0 ** (int(np.floor(log10(found.high))) - 1)
    return float(f"{ceil(found.high / unit - 1e-9) * unit:.6g}")


def _hall(t: float, skewness: float, count: int) -> float:
    """The studentised mean at which Hall's transformed one is ``t``: ``t`` itself without skewness."""
    if abs(skewness) < 1e-6:
        return t
    root = sqrt(count)
    inner = 1 + skewness * (t / root - skewness / (6 * count))
    return 3 * root / skewness * (copysign(abs(inner) ** (1 / 3), inner) - 1)


def student(confidence: float, degrees: int) -> float:
    """The quantile of Student's distribution: 6.314 of 0.95 and 1 degree of freedom."""
    if degrees > NORMAL:
        return z_of(confidence)
    low, high = 0.0, 1.0
    while _student_share(high, degrees) < confidence:
        high *= 2
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_share(middle, degrees) < confidence else (low, middle)
    return high


def _student_share(t: float, degrees: int) -> float:
    """The chance of at most ``t``, t >= 0: Abramowitz and Stegun, equations 26.7.3 and 26.7.4."""
    angle = atan(t / sqrt(degrees))
    term = total = 1.0 if degrees % 2 == 0 else cos(angle)
    first = 2 if degrees % 2 == 0 else 3
    for n in range(first, degrees - 1, 2):
        term *= (n - 1) / n * cos(angle) ** 2
        total += term
    if degrees % 2 == 0:
        return (1 + sin(angle) * total) / 2
    inside = 2 / pi * (angle + (sin(angle) * total if degrees > 1 else 0.0))
    return (1 + inside) / 2
