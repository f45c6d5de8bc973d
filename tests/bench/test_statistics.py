"""The statistics of a bench, against numpy, scipy and series whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from skdeploy.bench.statistics import is_stable, percentiles, ratio_of, verdict_of


def test_percentiles_are_those_of_scipy() -> None:
    times = np.random.default_rng(1).lognormal(size=501)
    found = percentiles(list(times))
    for share, value in ((50, found.p50), (90, found.p90), (99, found.p99)):
        assert value == pytest.approx(stats.scoreatpercentile(times, share), rel=1e-12)
    assert found.min == min(times)
    with pytest.raises(ValueError, match="no run was timed"):
        percentiles([])


def test_a_series_is_stable_once_three_windows_agree_within_two_percent() -> None:
    assert not is_stable([1.0] * 29)
    assert is_stable([1.0] * 30)
    assert is_stable([9.0] * 100 + [1.0] * 30)  # what was before does not count
    assert is_stable([1.0] * 20 + [1.019] * 10)
    assert not is_stable([1.0] * 20 + [1.021] * 10)
    assert not is_stable(list(np.linspace(2.0, 1.0, 30)))  # still warming up
    assert is_stable(([1.0] * 9 + [50.0]) * 3)  # one interrupted run in ten is no drift


def noisy(median: float, count: int, seed: int, drift: float = 0.0) -> np.ndarray:
    noise = np.random.default_rng(seed).lognormal(0, 0.03, count)
    return median * noise * np.linspace(1, 1 + drift, count)


def test_the_interval_is_scipys() -> None:
    """Other draws, so the ends agree only as far as 2,000 resamples fix them: a tenth of the interval's width."""
    first, second = noisy(1.0, 60, 1), noisy(0.9, 60, 2)
    found = ratio_of(list(first), list(second))
    theirs = stats.bootstrap(
        (np.log(first / second),), np.median, n_resamples=2000, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    width = np.exp(theirs.high) - np.exp(theirs.low)
    assert found.low == pytest.approx(np.exp(theirs.low), abs=0.1 * width)
    assert found.high == pytest.approx(np.exp(theirs.high), abs=0.1 * width)


@pytest.mark.parametrize("blocks", [10, 60])
def test_the_interval_holds_the_truth_as_often_as_it_says(blocks: int) -> None:
    """300 trials of a chance of 0.95 give 0.91 or less once in 1,000 times."""
    inside = 0
    for trial in range(300):
        found = ratio_of(list(noisy(1.2, blocks, 2 * trial)), list(noisy(1.0, blocks, 2 * trial + 1)), seed=trial)
        inside += found.low <= 1.2 <= found.high
    assert 0.91 <= inside / 300 <= 0.99


def test_a_drift_of_the_machine_drops_out_and_would_not_in_a_ratio_of_unpaired_medians() -> None:
    first, second = noisy(1.0, 100, 3, drift=1.0), noisy(0.95, 100, 4, drift=1.0)
    assert ratio_of(list(first), list(second)).verdict == "slower"
    spread = stats.bootstrap((first, second), lambda a, b, axis: np.median(a, axis) / np.median(b, axis),
                             n_resamples=500, method="percentile").confidence_interval  # fmt: skip
    assert spread.low < 1 < spread.high


@pytest.mark.parametrize(
    ("ratio", "low", "high", "verdict"),
    [
        (0.8, 0.7, 0.9, "faster"),
        (1.2, 1.1, 1.3, "slower"),
        (0.9, 0.7, 1.1, "no difference"),
        (1.1, 0.9, 1.3, "no difference"),
        (0.995, 0.994, 0.996, "no difference"),  # sure, and too small to mean anything
        (1.005, 1.004, 1.006, "no difference"),
    ],
)
def test_a_verdict_needs_the_whole_interval_and_more_than_one_percent(
    ratio: float, low: float, high: float, verdict: str
) -> None:
    assert verdict_of(ratio, low, high) == verdict


def test_equal_artifacts_are_seldom_called_different() -> None:
    """Of 100 comparisons about 5 at most may be wrong; 12 or more happen once in 200 times if so."""
    wrong = sum(
        ratio_of(list(noisy(1.0, 40, 2 * t)), list(noisy(1.0, 40, 2 * t + 1))).verdict != "no difference"
        for t in range(100)
    )
    assert wrong < 12


def test_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="two pairs of blocks are needed"):
        ratio_of([1.0], [1.0])
    with pytest.raises(ValueError, match="two pairs of blocks are needed"):
        ratio_of([1.0, 2.0], [1.0])
