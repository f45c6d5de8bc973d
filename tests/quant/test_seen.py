"""What is seen of images, divided in any way and merged in any order, is the same in every bit."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from skdeploy.quant.exact_sums import ExactSums
from skdeploy.quant.observers import MagnitudeHistogram, MinMax, NotFiniteError
from skdeploy.quant.seen import Seen

FLOAT32 = np.finfo(np.float32)
IMAGES, CHANNELS = 23, 3


def values() -> NDArray[np.float32]:
    """Of 23 images, of all magnitudes and both signs: sums in another order round differently."""
    numbers = np.random.default_rng(0)
    scale = 10.0 ** numbers.integers(-6, 6, (IMAGES, CHANNELS, 1, 1))
    return (numbers.normal(0, 1, (IMAGES, CHANNELS, 4, 5)) * scale).astype(np.float32)


def seen_of(part: NDArray[np.float32], start: int, kind: type[MinMax] = MagnitudeHistogram) -> Seen:
    seen = Seen(["t"], kind)
    if len(part):
        seen.update("t", part, [int(start + row >= 17) for row in range(len(part))])
        seen.add_means("t", part.mean(axis=(2, 3)))
        seen.add_maxima("t", abs(part).max(axis=(0, 2, 3)))
    seen.images = len(part)
    return seen


def test_sums_are_those_of_fractions() -> None:
    """Of numbers of every size that float32 has, against Python's own exact arithmetic."""
    numbers = np.random.default_rng(0)
    rows = np.ldexp(numbers.uniform(-1, 1, (500, 4)), numbers.integers(-149, 100, (500, 4))).astype(np.float32)
    rows[:4, 0] = [FLOAT32.max, -FLOAT32.max, FLOAT32.smallest_subnormal, -FLOAT32.tiny]
    sums = ExactSums.of(4)
    sums.add(rows)
    expected = [float(sum(map(Fraction, column.tolist()), Fraction()) / 500) for column in rows.T]
    np.testing.assert_array_equal(sums.over(500), np.array(expected).astype(np.float32))


def test_a_float64_counts_with_48_bits() -> None:
    sums = ExactSums.of(1)
    sums.add(np.array([[1 + 2.0**-40], [-1.0]]))
    assert sums.over(1) == np.float32(2.0**-40)


@pytest.mark.parametrize("kind", [MinMax, MagnitudeHistogram])
@pytest.mark.parametrize("count", [1, 2, 7, 23])
def test_any_division_in_any_order_is_the_whole(count: int, kind: type[MinMax]) -> None:
    whole = seen_of(values(), 0, kind).arrays()
    edges = [at * IMAGES // count for at in range(count + 1)]
    parts = [seen_of(values()[start:end], start, kind) for start, end in pairwise(edges)]
    random.shuffle(parts)
    merged = Seen(["t"], kind)
    for part in parts:
        merged.merge_arrays(part.arrays(), part.images, ["t"])
    found = merged.arrays()
    assert merged.images == IMAGES
    assert found.keys() == whole.keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("name", ["values", "range", "zeros", "bins", "sums0"])
def test_arrays_of_something_else_are_refused(name: str) -> None:
    arrays = seen_of(values(), 0).arrays()
    arrays[name] = arrays[name][:-1]
    with pytest.raises(ValueError, match=r"have another shape|do not count all values"):
        Seen(["t"], MagnitudeHistogram).merge_arrays(arrays, IMAGES, ["t"])


def test_histograms_that_do_not_count_every_value_are_refused() -> None:
    arrays = seen_of(values(), 0).arrays()
    arrays["bins"][0, 0, 5] += 1
    with pytest.raises(ValueError, match="do not count all values"):
        Seen(["t"], MagnitudeHistogram).merge_arrays(arrays, IMAGES, ["t"])


def test_an_image_that_is_not_finite_is_counted_from_the_first_of_both_groups() -> None:
    broken = values()
    broken[19, 0, 0, 0] = np.inf
    with pytest.raises(NotFiniteError) as error:
        seen_of(broken, 0)
    assert error.value.image == 19
