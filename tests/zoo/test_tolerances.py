"""The figures that models/README.md derives the limits of BF16 and of INT8 weights alone from."""

from __future__ import annotations

from math import log, log10

import ml_dtypes
import numpy as np
import pytest

from skdeploy.core.precision import PRECISIONS

RANDOM = np.random.default_rng(15)


def decibels(exact: np.ndarray, rounded: np.ndarray) -> float:
    return float(10 * np.log10(np.sum(exact**2) / np.sum((rounded - exact) ** 2)))


def test_bf16_rounds_8_times_as_coarsely_as_fp16() -> None:
    """In the error's root mean square: 18 dB. Values of one binade, or FP16's lesser range would count."""
    values = RANDOM.uniform(1, 2, 100_000)
    half, brain = (values.astype(kind).astype(float) for kind in (np.float16, ml_dtypes.bfloat16))
    less = decibels(values, half) - decibels(values, brain)
    assert less == pytest.approx(20 * log10(8), abs=0.1)
    fp16, bf16 = PRECISIONS["fp16"].tolerance, PRECISIONS["bf16"].tolerance
    assert fp16.min_sqnr_db - bf16.min_sqnr_db == pytest.approx(less, abs=0.2)
    assert 1 - bf16.min_cosine == pytest.approx(64 * (1 - fp16.min_cosine), rel=0.01)


@pytest.mark.parametrize(("weights", "expected"), [(9, 48.1), (4608, 41.0)])
def test_a_channel_in_255_levels_has_the_error_that_is_assumed(weights: int, expected: float) -> None:
    """Normal weights, a scale for each channel by its largest: 0.7 dB are for other draws."""
    exact = RANDOM.normal(size=(2_000, weights))
    scale = np.abs(exact).max(1, keepdims=True) / 127
    each = [decibels(one, other) for one, other in zip(exact, np.round(exact / scale) * scale, strict=True)]
    assert float(np.median(each)) == pytest.approx(expected, abs=0.7)


@pytest.mark.parametrize("units", [16, 50])
def test_units_add_the_logarithm_of_their_number(units: int) -> None:
    """A sum of ``units`` branches of equal power; each passes on the error of what it reads and adds its own."""
    stream, error, own = 1.0, 0.0, 1.0
    for _ in range(units - 1):
        branch = 1.0
        error = (stream * error + branch * (error + own)) / (stream + branch)
        stream += branch
    assert 10 * log10(own + error) == pytest.approx(10 * log10(1 + log(units)), abs=1.0)
    layer, unit = 41.0, 10 * log10(3)
    limit = PRECISIONS["weight-only-int8"].tolerance
    assert layer - unit - 10 * log10(own + error) - 10 >= limit.min_sqnr_db - 1.0  # 10 dB for the worst image
    assert 1 - limit.min_cosine == pytest.approx(10 ** (-limit.min_sqnr_db / 10) / 2)
    assert limit.max_rel_error == pytest.approx(3.5 * 10 ** (-limit.min_sqnr_db / 20) / 2, abs=0.01)
