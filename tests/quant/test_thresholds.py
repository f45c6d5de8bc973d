"""Thresholds: each method against its definition, computed directly on the full data or as published, and the odd tensors."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import entropy

from skdeploy.core.errors import UsageError
from skdeploy.core.spec import CalibrationMethod
from skdeploy.quant.observers import MagnitudeHistogram, MinMax
from skdeploy.quant.thresholds import (
    TOLERATED,
    entropy_threshold,
    mse_threshold,
    percentile_threshold,
    threshold,
)

Values = NDArray[np.float32]

METHODS = [method for method in CalibrationMethod if method is not CalibrationMethod.AUTO]  # a choice among the others
HISTOGRAM_METHODS = [method for method in METHODS if method is not CalibrationMethod.MINMAX]


def relu(rng: np.random.Generator) -> Values:
    return np.maximum(rng.normal(size=100_000), 0).astype(np.float32)


def heavy_tail(rng: np.random.Generator) -> Values:
    return (rng.standard_t(2.5, size=100_000) * 0.01).astype(np.float32)


def few_outliers(rng: np.random.Generator) -> Values:
    values = rng.normal(size=100_000)
    values[:5] = 60.0
    return values.astype(np.float32)


def uniform(rng: np.random.Generator) -> Values:
    return rng.uniform(-1, 1, size=100_000).astype(np.float32)


def two_groups(rng: np.random.Generator) -> Values:
    """Nothing between 2 and 9: levels without any value."""
    return np.concatenate((rng.exponential(0.2, 90_000).clip(0, 2), rng.normal(10, 0.3, 10_000))).astype(np.float32)


Distribution = Callable[[np.random.Generator], Values]
DISTRIBUTIONS: list[Distribution] = [relu, heavy_tail, few_outliers, uniform, two_groups]
every_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=lambda d: d.__name__)


def drawn(distribution: Distribution) -> tuple[Values, MagnitudeHistogram]:
    values = distribution(np.random.default_rng(0))
    return values, observed(values)


def observed(values: Values) -> MagnitudeHistogram:
    histogram = MagnitudeHistogram()
    histogram.update(values.reshape(1, -1))
    return histogram


def squared_error(values: Values, threshold: float, levels: int = 127) -> float:
    """Of quantizing for real, to ``levels`` steps on either side of zero."""
    x = values.astype(np.float64)
    step = threshold / levels
    return float(np.square(x - step * np.clip(np.rint(x / step), -levels, levels)).sum())


def published_entropy_bins(counts: NDArray[np.float64], groups: int = 128) -> int:
    """The pseudo-code of the GTC 2017 talk, line by line: the number of bins with the least divergence, the first of equals."""
    divergences = np.full(len(counts) + 1, inf)
    for i in range(groups, len(counts) + 1):
        reference = counts[:i].copy()
        reference[i - 1] += counts[i:].sum()
        merged = i // groups
        candidate = np.zeros(i)
        for level in range(groups):
            start, stop = level * merged, (level + 1) * merged if level < groups - 1 else i
            filled = reference[start:stop] > 0
            if filled.any():
                candidate[start:stop][filled] = counts[start:stop].sum() / filled.sum()
        if not candidate.any():
            continue
        divergences[i] = entropy(reference, candidate)  # scipy normalises both; infinite where only the candidate is 0
    # Candidates that differ in empty bins only are equal; float64 rounds sums of up to ten nats to 1e-14.
    return int(np.flatnonzero(divergences <= divergences.min() + 1e-12)[0])


@every_distribution
def test_minmax_is_the_largest_magnitude(distribution: Distribution) -> None:
    values, histogram = drawn(distribution)
    observer = MinMax()
    observer.update(values.reshape(1, -1))
    largest = np.abs(values).max()
    assert threshold(histogram, CalibrationMethod.MINMAX) == threshold(observer, CalibrationMethod.MINMAX) == largest


@every_distribution
@pytest.mark.parametrize("percentile", [0.001, 30, 50.0, 99, 99.9, 99.99, 99.9995, 100])
def test_percentile_is_numpys_within_a_bin(distribution: Distribution, percentile: float) -> None:
    values, histogram = drawn(distribution)
    expected = np.percentile(np.abs(values.astype(np.float64)), percentile)
    found = percentile_threshold(histogram, percentile)
    assert abs(found - expected) <= histogram.width
    assert found <= histogram.largest


def test_percentile_of_few_values_is_numpys_within_a_bin() -> None:
    values = np.array([0.0, 0.1, 0.5, 1.0, -40.0], np.float32)  # most percentiles lie far from every value
    histogram = observed(values)
    for percentile in (10, 33.3, 60, 80, 90, 99.99):
        expected = np.percentile(np.abs(values.astype(np.float64)), percentile)
        assert abs(percentile_threshold(histogram, percentile) - expected) <= histogram.width


def test_percentile_counts_zeros() -> None:
    values = np.zeros(1000, np.float32)
    values[:5] = 1.0
    histogram = observed(values)
    assert percentile_threshold(histogram, 99) == 0
    assert percentile_threshold(histogram, 99.99) == pytest.approx(1, abs=histogram.width)


@pytest.mark.parametrize("percentile", [0, -1, 100.1, float("nan")])
def test_a_percentile_that_is_none_is_refused(percentile: float) -> None:
    with pytest.raises(UsageError, match="percentile"):
        threshold(observed(np.ones(3, np.float32)), CalibrationMethod.PERCENTILE, percentile)


both_levels = pytest.mark.parametrize("levels", [127, 255])


@both_levels
@every_distribution
def test_entropy_is_the_published_algorithm(distribution: Distribution, levels: int) -> None:
    _, histogram = drawn(distribution)
    counts = histogram.counts.astype(np.float64)
    # Eight bins as one keep the naive loop short; the algorithm is the same for any number of bins.
    coarse = counts.reshape(-1, 8).sum(axis=1)
    coarse = coarse[: np.flatnonzero(coarse)[-1] + 1]
    histogram.counts = coarse.astype(np.int64)
    bins = published_entropy_bins(coarse, levels + 1)
    assert bins >= levels + 1
    assert entropy_threshold(histogram, levels) == min((bins + 0.5) * histogram.width, histogram.largest)


@pytest.mark.parametrize("seed", range(8))
def test_entropy_is_the_published_algorithm_on_sparse_histograms(seed: int) -> None:
    """Empty levels, and bins that hold nothing but what was clipped into them."""
    rng = np.random.default_rng(seed)
    counts = np.floor(rng.exponential(30, 400) * (rng.random(400) < 0.15) * np.exp(-np.arange(400) / 60))
    counts[-1] = 1
    histogram = observed(np.full(1, 1e6, np.float32))
    histogram.counts = counts.astype(np.int64)
    assert entropy_threshold(histogram) == (published_entropy_bins(counts) + 0.5) * histogram.width


def test_entropy_clips_outliers_and_minmax_does_not() -> None:
    values, histogram = drawn(few_outliers)
    bulk = np.abs(values[5:]).max()
    assert entropy_threshold(histogram) < 1.5 * bulk < np.abs(values).max() / 5


@both_levels
@every_distribution
def test_mse_is_near_the_least_error_of_all_thresholds(distribution: Distribution, levels: int) -> None:
    values, histogram = drawn(distribution)
    largest = float(np.abs(values).max())
    candidates = largest * np.concatenate((np.geomspace(0.002, 0.3, 120), np.linspace(0.3, 1, 141)))
    least = min(squared_error(values, candidate, levels) for candidate in candidates)
    found = mse_threshold(histogram, levels)
    # what is tolerated for a farther threshold, and a hundredth for bins
    assert squared_error(values, found, levels) <= 1.01 * TOLERATED * least
    assert found <= largest


def test_mse_reaches_farther_where_that_costs_little_and_not_where_values_fall_off_the_levels() -> None:
    """Half of all values are one number, as those of a black background: its level must stay near it."""
    rng = np.random.default_rng(2)
    smooth = rng.normal(size=200_000).astype(np.float32)
    flat = np.where(rng.random(smooth.size) < 0.5, np.float32(1.2345), smooth)
    candidates = np.linspace(2.5, 5.5, 601)
    least = {
        name: min(candidates, key=lambda t: squared_error(v, t)) for name, v in (("smooth", smooth), ("flat", flat))
    }
    assert mse_threshold(observed(smooth)) > 1.03 * least["smooth"]
    found = mse_threshold(observed(flat))
    step = found / 127
    assert abs(1.2345 / step - round(1.2345 / step)) < 0.15  # any of them would be 0.25 away on average


def test_mse_keeps_the_range_of_uniform_noise() -> None:
    values, histogram = drawn(uniform)
    assert mse_threshold(histogram) > 0.98 * np.abs(values).max()


def test_mse_gives_up_one_outlier_for_two_hundred_million_values() -> None:
    """The best threshold is at a fiftieth of the largest magnitude, a hundred times better than the full range."""
    rng = np.random.default_rng(1)
    bulk, outlier = rng.normal(size=200_000).astype(np.float32), np.array([200.0], np.float32)
    histogram = observed(bulk)
    for _ in range(10):
        histogram.merge(histogram)
    histogram.merge(observed(outlier))

    def error(threshold: float) -> float:
        return 1024 * squared_error(bulk, threshold) + squared_error(outlier, threshold)

    least = min(map(error, np.geomspace(1, 200, 300)))
    found = mse_threshold(histogram)
    assert error(found) <= 1.01 * TOLERATED * least
    assert found < 200 / 30
    assert least < error(200) / 100


@pytest.mark.parametrize("method", [CalibrationMethod.ENTROPY, CalibrationMethod.MSE])
def test_exact_zeros_do_not_move_entropy_or_mse(method: CalibrationMethod) -> None:
    values, histogram = drawn(heavy_tail)
    padded = observed(np.concatenate((values, np.zeros(1_000_000, np.float32))))
    assert threshold(padded, method) == threshold(histogram, method)


@pytest.mark.parametrize("method", HISTOGRAM_METHODS)
def test_the_threshold_scales_with_the_tensor(method: CalibrationMethod) -> None:
    """By powers of two every bin stays the same, so the thresholds are exactly in proportion, to the ends of float32."""
    values, histogram = drawn(two_groups)
    for factor in (2.0**-100, 0.5, 2.0**120):
        scaled = threshold(observed(values * np.float32(factor)), method)
        assert scaled == threshold(histogram, method) * factor


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [1.0, -3.7, 1e-30, 1e30, 3.4e38])
def test_one_distinct_value_is_its_own_threshold(value: float, method: CalibrationMethod) -> None:
    histogram = observed(np.full(50, value, np.float32))
    with np.errstate(all="raise", under="ignore"):
        found = threshold(histogram, method)
    assert found == pytest.approx(abs(value), rel=1 / 2048)  # a bin: at least 2048 are in use


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_zeros_has_the_threshold_zero(method: CalibrationMethod) -> None:
    with np.errstate(all="raise"):
        assert threshold(observed(np.zeros(20, np.float32)), method) == 0
        assert threshold(MagnitudeHistogram(), method) == 0


@pytest.mark.parametrize("method", METHODS)
def test_tiny_denormals_have_a_threshold_no_larger_than_themselves(method: CalibrationMethod) -> None:
    values = np.array([1e-45, 3e-45, 1e-42, 1e-40], np.float32)
    with np.errstate(all="raise", under="ignore"):
        found = threshold(observed(values), method)
    assert 0 < found <= np.float32(1e-40)


@pytest.mark.parametrize("method", HISTOGRAM_METHODS)
def test_a_single_outlier_gives_a_finite_threshold_in_range(method: CalibrationMethod) -> None:
    values = np.full(10_000, 1e-3, np.float32)
    values[17] = 1e30
    with np.errstate(all="raise", under="ignore"):
        found = threshold(observed(values), method, 99.9)
    assert 0 < found <= np.float32(1e30)


@pytest.mark.parametrize("method", HISTOGRAM_METHODS)
def test_a_range_alone_is_not_enough_for_the_other_methods(method: CalibrationMethod) -> None:
    with pytest.raises(TypeError, match="MagnitudeHistogram"):
        threshold(MinMax(), method)
