"""From what was observed to the magnitude that INT8's last level stands for: one function a method, on the histogram of |x|.

Larger magnitudes saturate. Levels are k * threshold / ``levels``, for k from 0 up to ``levels`` and their negatives; the scale
of Q/DQ is the threshold / ``levels``. Symmetric INT8 has 127. A tensor that is shifted into INT8's whole range
(``passes/shift.py``) has 255, less the steps that its negative values take. Zero is a level, so magnitudes tell its errors too.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, floor
from typing import Final

import numpy as np
from numpy.typing import NDArray

from skdeploy.core.errors import UsageError
from skdeploy.core.spec import CalibrationMethod
from skdeploy.quant.observers import MagnitudeHistogram, MinMax

Floats = NDArray[np.float64]

DEFAULT_PERCENTILE: Final = 99.99
SYMMETRIC: Final = 127
SHIFTED: Final = 255
# The least value that a shifted tensor may have, by its threshold: SiLU, GELU and hard-swish go down to -0.28, -0.17 and -0.38.
# At -1/2, 170 of the 255 steps are above zero, which is 2.5 dB better than 127.
MOST_NEGATIVE: Final = 0.5

# Other images reach farther than those that calibrate, and where the error hardly depends on the threshold, the farther one is
# better for them: by mse alone skresnet-digits has 36.8 and then 37.1 dB, the denoiser 46.9 and 47.2 on other photographs, and
# two small classifiers of other kinds, with split attention and with large kernels, 40.7 and 41.7, 33.9 and 34.9. One factor of
# 1.075 for all tensors gives the first two as much, but takes 5 dB from each of the others: most of what they read is a black
# background, whose level it moves.
FARTHEST: Final = np.linspace(1.15, 1.0, 16)
TOLERATED: Final = 1.03

# Around the best of the thresholds at 1 % or 4 % steps: two rounds of nine, the second a quarter as far apart.
FINER_STEPS: Final = (0.04, 0.01)


def threshold(
    observer: MinMax,
    method: CalibrationMethod,
    percentile: float = DEFAULT_PERCENTILE,
    levels: int = SYMMETRIC,
) -> float:
    """The magnitude that becomes the last of ``levels``; 0 for a tensor of zeros. ``auto`` is a choice among methods.

    All methods but minmax need a MagnitudeHistogram. ``percentile`` is in percent and for its method only. Raises UsageError if
    it is not above 0 and at most 100.
    """
    if method is CalibrationMethod.MINMAX:
        return observer.largest
    if not isinstance(observer, MagnitudeHistogram):
        raise TypeError(f"the method {method} needs a MagnitudeHistogram, not {type(observer).__name__}")
    if method is CalibrationMethod.PERCENTILE:
        return percentile_threshold(observer, percentile)
    if method is CalibrationMethod.ENTROPY:
        return entropy_threshold(observer, levels)
    if method is CalibrationMethod.AUTO:
        raise ValueError("auto has no threshold of its own")
    return mse_threshold(observer, levels)


def shifted_threshold(
    observer: MinMax, least: float, method: CalibrationMethod, percentile: float = DEFAULT_PERCENTILE
) -> float | None:
    """The magnitude that becomes the last step of a shifted tensor with values from ``least`` on; None for one that is too
    negative to gain by it. See ``steps_below``.
    """
    found = threshold(observer, method, percentile, SHIFTED - steps_below(least, max(observer.largest, -least)))
    return found if least >= -MOST_NEGATIVE * found else None


def steps_below(least: float, last: float) -> int:
    """How many of a shifted tensor's 255 steps are below zero: as few as reach ``least``, where the last one is ``last``."""
    return ceil(SHIFTED * -least / (last - least)) if least < 0 else 0


def check_percentile(percentile: float) -> None:
    """Raises UsageError unless it is above 0 and at most 100 percent."""
    if not 0 < percentile <= 100:
        raise UsageError(f"a percentile of {percentile:g}", advice="give one above 0 and at most 100, such as 99.99")


def percentile_threshold(histogram: MagnitudeHistogram, percentile: float = DEFAULT_PERCENTILE) -> float:
    """The magnitude that ``percentile`` percent of all values, zeros included, do not exceed, to within one bin.

    As numpy.percentile's default: between the two values in order next to it, linearly. Raises UsageError.
    """
    check_percentile(percentile)
    if not histogram.largest:
        return 0.0
    position = percentile / 100 * (histogram.count - 1)
    below, above = floor(position), ceil(position)
    cumulative = histogram.zeros + np.cumsum(histogram.counts)
    lower, upper = _in_order(histogram, cumulative, below), _in_order(histogram, cumulative, above)
    return lower + (position - below) * (upper - lower)


def _in_order(histogram: MagnitudeHistogram, cumulative: NDArray[np.int64], index: int) -> float:
    """The magnitude at ``index`` of all in ascending order; those of a bin are taken as spread evenly over it."""
    if index < histogram.zeros:
        return 0.0
    found = int(np.searchsorted(cumulative, index, side="right"))
    inside = int(histogram.counts[found])
    offset = (index - (int(cumulative[found]) - inside) + 0.5) / inside
    return min((found + offset) * histogram.width, histogram.largest)


def entropy_threshold(histogram: MagnitudeHistogram, levels: int = SYMMETRIC) -> float:
    """Least Kullback-Leibler divergence of the clipped distribution from the quantized one.

    Szymon Migacz, "8-bit Inference with TensorRT", GTC 2017, with its 128 levels as the default. For every i from 128
    (``levels`` + 1) bins up: P is the first i bins with all beyond added to the last; Q is the first i bins, without those
    beyond, summed to 128 levels of i // 128 bins (the last takes the remainder), each level spread evenly over the bins where P
    is not zero. The i with the least KL(P || Q), the first of equals, gives the threshold (i + 1/2) bins. Here the bins are
    2048 to 4096, and exact zeros are left out: every scale represents them exactly, and half of a ReLU's values in one bin
    would outweigh all others.
    """
    used = np.flatnonzero(histogram.counts)
    if not used.size:
        return histogram.largest
    counts = histogram.counts[: used[-1] + 1].astype(np.float64)
    groups = levels + 1  # zero is one
    if counts.size <= groups:
        return histogram.largest
    divergence = _divergences(counts, groups)
    # Where bins are empty, neighbours tie; float64's rounding of sums of a few nats must not choose among them, the first wins.
    bins = groups + int(np.argmax(divergence <= divergence.min() + 1e-12))
    return min((bins + 0.5) * histogram.width, histogram.largest)


def _divergences(counts: Floats, groups: int) -> Floats:
    """KL(P || Q) for the first ``groups``, one more, ... all bins.

    Everything in it is a difference of cumulative sums, or of the last bin.
    With p and q before normalisation, KL = sum(p log p) / P - sum_levels(p_level log q_level) / P + log(Q / P).
    """
    candidates = np.arange(groups, counts.size + 1)
    mass = _cumulative(counts)
    filled = _cumulative((counts > 0).astype(np.float64))
    plogp = _cumulative(_xlogy(counts, counts))
    total, kept = mass[-1], mass[candidates]
    beyond = total - kept

    edges = (candidates // groups)[:, None] * np.arange(groups + 1)
    edges[:, -1] = candidates
    levels = np.diff(mass[edges])
    spread = np.diff(filled[edges])
    last = counts[candidates - 1]
    spread[:, -1] += (last == 0) & (beyond > 0)  # the last bin of P then holds what is beyond, and only that
    clipped = levels.copy()
    clipped[:, -1] += beyond
    with np.errstate(divide="ignore"):  # a level where Q has nothing and P has something: infinitely far
        quantized = np.log(levels / np.maximum(spread, 1))
    quantized[clipped == 0] = 0.0
    own = plogp[candidates] - _xlogy(last, last) + _xlogy(last + beyond, last + beyond)
    with np.errstate(divide="ignore"):  # no value below the candidate at all
        scale = np.log(kept / total)
    finite = np.isfinite(scale) & np.isfinite(quantized).all(axis=1)
    cross = (clipped * quantized).sum(axis=1, where=finite[:, None])
    return np.where(finite, (own - cross) / total + scale, np.inf)


def _cumulative(values: Floats) -> Floats:
    return np.concatenate(([0.0], np.cumsum(values)))


def _xlogy(x: Floats, y: Floats) -> Floats:
    return x * np.log(np.where(x > 0, y, 1.0))


def mse_threshold(histogram: MagnitudeHistogram, levels: int = SYMMETRIC) -> float:
    """Least expected squared error of rounding to a multiple of threshold / levels and saturating at the threshold: the
    farthest of ``FARTHEST`` times the best threshold whose error is within ``TOLERATED`` of the least.

    The values of a bin are taken as spread evenly over it: the expectation has a closed form. Exact zeros have no error.
    """
    used = np.flatnonzero(histogram.counts)
    if not used.size:
        return histogram.largest
    counts = histogram.counts[: used[-1] + 1].astype(np.float64)
    top = min(histogram.largest / histogram.width, float(counts.size))  # in bins, as all below
    best, least = top, _squared_error(counts, top, levels)
    for candidate, saturation in _coarse(counts, top):
        if saturation > least:
            break
        error = _squared_error(counts, candidate, levels)
        if error < least:
            best, least = candidate, error
    for step in FINER_STEPS:
        finer = np.minimum(best * np.linspace(1 - step, 1 + step, 9), top)
        best = min(map(float, finer), key=lambda candidate: _squared_error(counts, candidate, levels))
    tolerated = TOLERATED * _squared_error(counts, best, levels)
    farther = (min(best * float(factor), top) for factor in FARTHEST)
    best = next((each for each in farther if _squared_error(counts, each, levels) <= tolerated), best)
    return best * histogram.width


def _coarse(counts: Floats, top: float) -> Iterator[tuple[float, float]]:
    """Thresholds to try and a lower bound of the error from saturation alone, in bins.

    From the largest, 1 % of it apart down to a fifth, then, for heavy tails, 4 % of their own down to one bin. The bound grows
    on the way, so where it is above an error already found, nothing better follows.
    """
    fine, fifth = top * np.arange(1.0, 0.2, -0.01), 0.2 * top
    heavy_tail = np.geomspace(fifth, 1, ceil(np.log(fifth) / 0.04)) if fifth > 1 else np.empty(0)
    candidates = np.concatenate((fine, heavy_tail))
    centres = np.arange(counts.size) + 0.5
    first = np.ceil(candidates).astype(np.intp)  # of the bins that lie beyond as a whole
    mass, moment, square = (_beyond(counts * centres**power)[first] for power in range(3))
    saturation = square - 2 * candidates * moment + candidates**2 * mass
    # The three terms cancel; what float64 loses of them is not evidence.
    rounding = 1e-12 * square
    yield from zip(candidates.tolist(), (saturation - rounding).tolist(), strict=True)


def _beyond(values: Floats) -> Floats:
    """Sum of the values from each index on: (N + 1,)."""
    return np.concatenate((np.cumsum(values[::-1])[::-1], [0.0]))


def _squared_error(counts: Floats, threshold: float, levels: int) -> float:
    """Sum of squared errors in bins squared, for a threshold in bins.

    The error at x is x - k s with s the step and k = min(round(x / s), levels); the integral of its square from 0 to x is
    k s^3 / 12 + (x - k s)^3 / 3, as each of the k steps passed has s^3 / 12.
    """
    step = threshold / levels
    edges = np.arange(counts.size + 1, dtype=np.float64)
    nearest = np.rint(edges / step)
    np.minimum(nearest, levels, out=nearest)
    off = edges - nearest * step
    integral = nearest * (step**3 / 12) + off * off * off * (1 / 3)
    return float(np.diff(integral) @ counts)
