"""Observers: exact counts whatever the order and the ranges of the batches, and no NaN or infinity gets past."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from numpy.typing import NDArray

from skdeploy.quant.observers import BINS, CHUNK, MagnitudeHistogram, MinMax, NotFiniteError

Values = NDArray[np.float32]


def observed(*batches: Values) -> MagnitudeHistogram:
    histogram = MagnitudeHistogram()
    for batch in batches:
        histogram.update(batch)
    return histogram


def growing_batches(seed: int, *, signed: bool = True) -> list[Values]:
    """Laplace noise like activations, with half of it exact zeros; the range grows by up to 100 times from batch to batch."""
    rng = np.random.default_rng(seed)
    batches = []
    for scale in (1e-3, 0.09, 0.1, 7.0, 300.0):
        values = rng.laplace(size=(3, 5, 7, 11)) * scale
        values[rng.random(values.shape) < 0.5] = 0
        batches.append((values if signed else np.abs(values)).astype(np.float32))
    return batches


def same(one: MagnitudeHistogram, other: MagnitudeHistogram) -> bool:
    simple = ("count", "zeros", "minimum", "maximum", "width")
    return all(getattr(one, key) == getattr(other, key) for key in simple) and np.array_equal(one.counts, other.counts)


def numpy_histogram(histogram: MagnitudeHistogram, values: Values) -> NDArray[np.int64]:
    """By comparison with the final edges, over all data at once. In float64 every edge and every value is exact."""
    magnitudes = np.abs(values.astype(np.float64))
    edges = np.arange(BINS + 1) * histogram.width
    return np.histogram(magnitudes[magnitudes > 0], edges)[0]


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_counts_are_those_of_numpy_over_all_data_at_once(seed: int, signed: bool) -> None:
    batches = growing_batches(seed, signed=signed)
    everything = np.concatenate(batches)
    histogram = observed(*batches)
    assert np.array_equal(histogram.counts, numpy_histogram(histogram, everything))
    assert histogram.count == everything.size
    assert histogram.zeros == np.sum(everything == 0) > 0
    assert histogram.counts.sum() + histogram.zeros == histogram.count
    assert (histogram.minimum, histogram.maximum) == (everything.min(), everything.max())


def test_a_value_on_an_edge_counts_in_the_bin_above_it() -> None:
    width = 2.0**-11  # of the narrowest bins that hold 1
    histogram = observed(
        np.array([[1.0, width, np.nextafter(np.float32(width), np.float32(0)), -2 * width]], np.float32)
    )
    assert histogram.width == width
    assert np.flatnonzero(histogram.counts).tolist() == [0, 1, 2, BINS // 2]


def test_batches_larger_than_a_chunk_count_whole() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=(2, CHUNK + 17)).astype(np.float32)
    histogram = observed(values)
    assert np.array_equal(histogram.counts, numpy_histogram(histogram, values))


def test_the_order_of_batches_does_not_matter() -> None:
    batches = growing_batches(4)
    first = observed(*batches)
    assert all(same(first, observed(*order)) for order in itertools.permutations(batches))
    assert not same(first, observed(*batches[1:]))


def test_merging_is_the_same_as_seeing_all() -> None:
    batches = growing_batches(5)
    for cut in range(len(batches) + 1):  # one side is empty at the ends, and either may have the wider range
        for one, other in ((batches[:cut], batches[cut:]), (batches[cut:], batches[:cut])):
            merged = observed(*one)
            merged.merge(observed(*other))
            assert same(merged, observed(*batches))


def test_merging_leaves_the_other_as_it_was() -> None:
    narrow, wide = growing_batches(6)[0], growing_batches(6)[-1]
    other = observed(narrow)
    merged = observed(wide)
    merged.merge(other)
    merged.update(wide)
    assert same(other, observed(narrow))


@pytest.mark.parametrize("largest", [1.0, 1.999, 2.0, 3e-7, 5e4, 1e30, float(np.finfo(np.float32).max)])
def test_at_least_2048_bins_are_in_use(largest: float) -> None:
    histogram = observed(np.array([[1e-9]], np.float32), np.array([[-largest]], np.float32))
    assert 2048 <= np.flatnonzero(histogram.counts)[-1] < BINS
    assert histogram.largest == np.float32(largest)


def test_zeros_alone_have_no_range() -> None:
    zeros = np.zeros((2, 3, 4), np.float32)
    zeros[0, 0, 0] = -0.0
    histogram = observed(zeros)
    assert (histogram.count, histogram.zeros, histogram.counts.sum()) == (24, 24, 0)
    assert histogram.largest == histogram.minimum == histogram.maximum == 0


def test_denormals_and_the_largest_floats_are_counted_without_a_warning() -> None:
    limits = np.finfo(np.float32)
    values = np.array(
        [[limits.smallest_subnormal, -limits.smallest_subnormal, 1e-40, 0, limits.max, limits.min]], np.float32
    )
    with warnings.catch_warnings(), np.errstate(all="raise", under="ignore"):
        warnings.simplefilter("error")
        tiny, all_ = observed(values[:, :4]), observed(values)
    assert (tiny.counts[0], tiny.zeros) == (3, 1)
    assert tiny.largest == np.float32(1e-40)
    assert (all_.counts[0], all_.counts[-1], all_.zeros) == (3, 2, 1)


@pytest.mark.parametrize("kind", [MinMax, MagnitudeHistogram])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_with_its_image(value: float, kind: type[MinMax]) -> None:
    good = np.ones((4, 2, 3), np.float32)
    bad = good.copy()
    bad[2, 1, 0] = bad[3, 0, 0] = value
    observer = kind()
    observer.update(good)
    with pytest.raises(NotFiniteError) as caught:
        observer.update(bad)
    assert caught.value.image == 2
    assert (observer.count, observer.minimum, observer.maximum) == (24, 1, 1)  # nothing of the bad batch


def test_finite_values_whose_sum_is_not_are_taken() -> None:
    histogram = observed(np.full((2, 8), 3e38, np.float32))
    assert histogram.count == 16


def test_before_the_first_value_there_is_no_range() -> None:
    observer = observed(np.empty((0, 3), np.float32))
    assert (observer.count, observer.largest, observer.minimum, observer.maximum) == (0, 0, np.inf, -np.inf)


def test_minmax_merges_as_if_it_had_seen_all() -> None:
    batches = growing_batches(7)
    one, other, empty = MinMax(), MinMax(), MinMax()
    for batch in batches[:2]:
        one.update(batch)
    for batch in batches[2:]:
        other.update(batch)
    one.merge(other)
    one.merge(empty)
    everything = np.concatenate(batches)
    assert (one.count, one.minimum, one.maximum) == (everything.size, everything.min(), everything.max())
    assert one.largest == np.abs(everything).max()


def test_an_array_with_gaps_in_memory_counts_the_same() -> None:
    values = growing_batches(8)[0]
    assert same(observed(values[:, ::2].transpose(0, 2, 3, 1)), observed(np.ascontiguousarray(values[:, ::2])))
