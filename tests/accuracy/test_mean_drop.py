"""Intervals of a mean drop and of a drop of mIoU: how often they hold what is true, and against SciPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from skdeploy.accuracy.mean_drop import Drop, drop_of_mean, drop_of_ratio, images_for, least_budget, student

TRIALS = 1000
CHANCE = 0.021  # three standard deviations of a share of 95 % in 1,000 trials


@pytest.mark.parametrize("degrees", [1, 2, 3, 6, 7, 29, 100, 999, 5000])
@pytest.mark.parametrize("confidence", [0.9, 0.975, 0.999])
def test_students_quantile_is_scipys(confidence: float, degrees: int) -> None:
    tolerance = 1e-6 if degrees <= 1000 else 2e-3  # above, the normal one stands for it
    assert student(confidence, degrees) == pytest.approx(stats.t.ppf(confidence, degrees), rel=tolerance)


def coverage(draw: Callable[[], NDArray[np.float64]], truth: float) -> tuple[float, float, float]:
    """How often the upper and the lower bound hold, and Student's upper bound, of 95 % each."""
    high = low = plain = 0
    for _ in range(TRIALS):
        values = draw()
        found = drop_of_mean(values, 0.95)
        high, low = high + (truth <= found.high), low + (truth >= found.low)
        plain += truth <= values.mean() + student(0.95, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return high / TRIALS, low / TRIALS, plain / TRIALS


@pytest.mark.parametrize("count", [20, 100])
def test_bounds_of_a_mean_hold_as_often_as_they_say(count: int) -> None:
    random = np.random.default_rng(0)
    high, low, _ = coverage(lambda: random.normal(0.1, 0.3, count), 0.1)
    assert high == pytest.approx(0.95, abs=CHANCE)
    assert low == pytest.approx(0.95, abs=CHANCE)


@pytest.mark.parametrize("count", [20, 50])
def test_bounds_of_skewed_drops_hold_better_than_students(count: int) -> None:
    """Most images lose little and a few much. Student's upper bound, which decides what passes, holds too rarely then."""
    random = np.random.default_rng(0)
    high, _, plain = coverage(lambda: random.exponential(0.1, count), 0.1)
    assert plain < high - 0.015
    assert high > 0.92  # the rest is what so few images do not show of the tail


def test_equal_drops_have_no_interval() -> None:
    found = drop_of_mean(np.full(9, 0.25), 0.95)
    assert (found.drop, found.low, found.high) == (0.25, 0.25, 0.25)


def test_bounds_of_a_ratio_hold_as_often_as_they_say() -> None:
    """A ratio of sums over 30 images, as IoU is: the true one is that of 100,000 images."""

    def images(random: np.random.Generator, count: int) -> NDArray[np.float64]:
        sizes = random.lognormal(4, 0.7, count)
        return np.stack([sizes * random.beta(8, 2, count), sizes], axis=1)

    def ratio(rows: NDArray[np.float64]) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
        return lambda weights: (weights @ rows[:, 0]) / (weights @ rows[:, 1])

    random = np.random.default_rng(0)
    truth = float(ratio(images(random, 100_000))(np.ones((1, 100_000)))[0])
    trials, high, low = 150, 0, 0
    for _ in range(trials):
        found = drop_of_ratio(ratio(images(random, 30)), 30, 0.95)
        high, low = high + (truth <= found.high), low + (truth >= found.low)
    assert min(high, low) / trials > 0.89  # 95 %, less three standard deviations of 150 trials
    assert max(high, low) / trials < 1


def test_the_same_images_give_the_same_bounds() -> None:
    rows = np.random.default_rng(0).random(12)
    first, second = (drop_of_ratio(lambda weights: weights @ rows / 12, 12, 0.9) for _ in range(2))
    assert first == second
    assert first.low < first.drop < first.high


def found(drop: float, spread: float, images: int) -> Drop:
    return Drop(drop=drop, low=drop - 1, high=drop + 1, spread=spread, images=images)


def test_the_number_of_images_that_decides_is_the_usual_one() -> None:
    """(1.645 + 0.842)^2 (spread / distance)^2 = 6.18 * 100 at a distance of a tenth of the spread."""
    assert images_for(found(0.1, 1.0, 50), 0.2, 0.95) == 619
    assert images_for(found(0.2, 1.0, 50), 0.2, 0.95) is None


@pytest.mark.parametrize(("high", "budget"), [(0.0123, 0.013), (0.5, 0.5), (7.01, 7.1), (-0.1, 0.0), (123, 130)])
def test_the_least_budget_is_rounded_up(high: float, budget: float) -> None:
    assert least_budget(Drop(drop=0, low=-1, high=high, spread=1, images=9)) == pytest.approx(budget)
