"""Statistics of timed runs: percentiles, when the warm-up is over, and how sure the ratio of two artifacts is.

Numpy alone, because the image that only runs engines has no scipy; the tests compare with scipy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

import numpy as np

from skdeploy.core.spec import Frozen

Verdict = Literal["faster", "slower", "no difference"]

WINDOW: Final = 10  # runs: a median of ten does not see one that was interrupted
WINDOWS: Final = 3  # a drift shows in three windows in a row; two agree by chance
STABLE_WITHIN: Final = 0.02  # of the median: below the 3 % within which a bench must repeat itself
RESAMPLES: Final = 2000  # the ends of a 95 % interval then move by about a twentieth of its width
CONFIDENCE: Final = 0.95
NO_DIFFERENCE: Final = 0.01  # two runs of the same artifact differ by as much where memory happens to lie elsewhere


class Percentiles(Frozen):
    """Of one quantity in milliseconds; between two runs they are interpolated."""

    min: float
    p50: float
    p90: float
    p99: float


class Ratio(Frozen):
    """Latency of an artifact divided by that of another, in pairs of blocks: below 1 it is faster. 95 % interval."""

    ratio: float
    low: float
    high: float
    pairs: int
    verdict: Verdict


def percentiles(times_ms: Sequence[float]) -> Percentiles:
    """Raises ValueError for no times."""
    if not times_ms:
        raise ValueError("no run was timed")
    values = np.asarray(times_ms, np.float64)
    p50, p90, p99 = (float(value) for value in np.percentile(values, (50, 90, 99)))
    return Percentiles(min=float(values.min()), p50=p50, p90=p90, p99=p99)


def is_stable(times_ms: Sequence[float]) -> bool:
    """Whether the medians of the last three windows of ten runs lie within 2 %: then the warm-up is over."""
    if len(times_ms) < WINDOW * WINDOWS:
        return False
    last = np.asarray(times_ms[-WINDOW * WINDOWS :], np.float64).reshape(WINDOWS, WINDOW)
    medians = np.median(last, axis=1)
    return bool(medians.max() - medians.min() <= STABLE_WITHIN * np.median(medians))


def ratio_of(blocks: Sequence[float], against: Sequence[float], *, seed: int = 0) -> Ratio:
    """The median of the ratios of neighbouring blocks, with a percentile bootstrap over the pairs.

    ``blocks[i]`` and ``against[i]`` are median latencies in ms of two blocks timed one after the other, so that what changes
    slowly on the machine drops out of their ratio. B. Efron, R. Tibshirani, An Introduction to the Bootstrap (1993), ch. 13.
    Raises ValueError for fewer than two pairs or unequal numbers.
    """
    if len(blocks) != len(against) or len(blocks) < 2:
        raise ValueError(f"two pairs of blocks are needed, but there are {len(blocks)} and {len(against)} blocks")
    logs = np.log(np.asarray(blocks, np.float64)) - np.log(np.asarray(against, np.float64))
    drawn = np.random.default_rng(seed).integers(0, len(logs), (RESAMPLES, len(logs)))
    medians = np.median(logs[drawn], axis=1)
    low, high = np.percentile(medians, (50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)))
    ratio = math.exp(float(np.median(logs)))
    interval = math.exp(float(low)), math.exp(float(high))
    return Ratio(ratio=ratio, low=interval[0], high=interval[1], pairs=len(logs), verdict=verdict_of(ratio, *interval))


def verdict_of(ratio: float, low: float, high: float) -> Verdict:
    """Faster or slower only if the whole interval says so and the ratio is more than 1 % from 1."""
    if high < 1 and ratio < 1 - NO_DIFFERENCE:
        return "faster"
    if low > 1 and ratio > 1 + NO_DIFFERENCE:
        return "slower"
    return "no difference"


def inverted(ratio: Ratio) -> Ratio:
    """The other artifact's latency divided by this one's."""
    turned = 1 / ratio.ratio, 1 / ratio.high, 1 / ratio.low
    return Ratio(ratio=turned[0], low=turned[1], high=turned[2], pairs=ratio.pairs, verdict=verdict_of(*turned))
