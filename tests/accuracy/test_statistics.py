"""Intervals and tests against scipy, published examples and the definition; and what the gate promises, by enumeration."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import minimize_scalar

from skdeploy.accuracy.statistics import Pairs, _variance, decide, drop_interval, images_to_decide, mcnemar, wilson

Z95 = 1.6448536269514722


def pairs(only_first: int, only_second: int, images: int) -> Pairs:
    return Pairs(
        both_right=images - only_first - only_second, only_first=only_first, only_second=only_second, both_wrong=0
    )


@pytest.mark.parametrize("total", [1, 2, 10, 999, 50_000])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
def test_wilson_is_that_of_scipy(total: int, confidence: float) -> None:
    for successes in sorted({0, 1, total // 3, total - 1, total}):
        expected = stats.binomtest(successes, total).proportion_ci(confidence, method="wilson")
        # both compute it in float64; the quantile has 1e-15
        assert wilson(successes, total, confidence) == pytest.approx(tuple(expected), abs=1e-12)


def test_wilson_of_the_published_example() -> None:
    """R. G. Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3: 81/263, 15/148, 0/20, 1/29, 95 %."""
    expected = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (successes, total), interval in expected.items():
        assert wilson(successes, total, 0.95) == pytest.approx(interval, abs=5e-5)  # printed with four digits


def test_nothing_seen_says_nothing() -> None:
    assert wilson(0, 0, 0.95) == (0, 1)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (0, 7), (3, 3), (6, 16), (12, 40), (411, 350)])
def test_mcnemar_is_scipys_binomial_test(first: int, second: int) -> None:
    found = mcnemar(pairs(first, second, 2000))
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert found == pytest.approx(expected, rel=1e-9)  # ours is exact, scipy's tail has some 1e-12
    assert found == mcnemar(pairs(second, first, 2000))


def test_mcnemar_of_the_published_example_and_of_huge_counts() -> None:
    """Fagerland, Lydersen, Laake, Statistical Analysis of Contingency Tables (2017), chapter 8: Cavo et al., exact."""
    assert mcnemar(pairs(6, 16, 161)) == pytest.approx(0.052479, abs=5e-7)
    assert mcnemar(pairs(0, 4000, 5000)) == 0.0  # below the smallest float: 2^-3999
    assert mcnemar(pairs(9000, 9000, 50_000)) == 1.0


@pytest.mark.parametrize(
    ("only_first", "only_second", "images", "confidence", "expected"),
    [
        # Fagerland, Lydersen, Laake (2017), chapter 8, 95 % two-sided: Cavo et al. 2012, as the book's own software prints it
        (6, 16, 161, 0.975, (-0.1240, -0.0054)),
        # R's PropCIs 0.3, scoreci.mp(25, 28, 618, 0.90), (20, 60, 1000, 0.95), which count the other way round
        (28, 25, 618, 0.95, (-0.0148, 0.0247)),
        (60, 20, 1000, 0.975, (0.0231, 0.0584)),
    ],
)
def test_without_correction_it_is_the_published_interval_of_tango(
    only_first: int, only_second: int, images: int, confidence: float, expected: tuple[float, float]
) -> None:
    found = drop_interval(pairs(only_first, only_second, images), confidence, correction=0)
    assert found == pytest.approx(expected, abs=1e-4)  # printed with four digits, the last one found to 1e-7 or cut


def likeliest_variance(worse: int, better: int, n: int, drop: float) -> float:
    """The variance under the constraint p_worse - p_better = drop, by maximising the multinomial likelihood."""

    def minus_likelihood(q: float) -> float:
        cells = np.array([q + drop, q, 1 - 2 * q - drop])
        counts = np.array([worse, better, n - worse - better])
        return -float(np.sum(counts * np.log(cells)))

    low, high = max(0.0, -drop), (1 - drop) / 2
    found = minimize_scalar(minus_likelihood, bounds=(low + 1e-12, high - 1e-12), options={"xatol": 1e-13})
    return float(2 * found.x + drop - drop * drop)


@pytest.mark.parametrize("drop", [-0.3, -0.01, 0.004, 0.02, 0.5])
@pytest.mark.parametrize(("worse", "better", "n"), [(3, 9, 40), (30, 4, 900), (1, 1, 5), (200, 190, 1000)])
def test_the_variance_is_that_of_the_likeliest_table_with_the_drop(
    worse: int, better: int, n: int, drop: float
) -> None:
    # a bounded search finds a flat maximum to the square root of float64's precision
    assert _variance(worse, better, n, drop) == pytest.approx(likeliest_variance(worse, better, n, drop), abs=2e-6)


@pytest.mark.parametrize(
    ("first", "second", "images"), [(0, 0, 1), (0, 0, 2), (2, 0, 2), (0, 2, 2), (5, 3, 100), (7, 7, 14)]
)
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_the_interval_holds_the_drop_stays_in_range_and_mirrors(
    first: int, second: int, images: int, confidence: float
) -> None:
    counted = pairs(first, second, images)
    low, high = drop_interval(counted, confidence)
    assert -1 <= low <= counted.drop <= high <= 1
    mirrored = drop_interval(pairs(second, first, images), confidence)
    assert (-mirrored[1], -mirrored[0]) == pytest.approx((low, high), abs=1e-12)  # bisected to 2^-60
    wider = drop_interval(counted, 0.999)
    assert wider[0] <= low
    assert wider[1] >= high


def test_no_difference_among_two_images_leaves_all_open() -> None:
    low, high = drop_interval(pairs(0, 0, 2), 0.95)
    assert low < -0.5
    assert high > 0.5


def scores(only_first: Any, only_second: Any, n: int, drop: float, correction: float) -> NDArray[np.float64]:
    """Tango's statistic, equations 24-26 of the paper (which has the margin's sign turned), for many tables at once."""
    b, c = only_first, only_second
    a2, a1, a0 = 2 * n, -b - c + (2 * n - b + c) * drop, -c * drop * (1 - drop)
    q = (np.sqrt(np.maximum(a1**2 - 4 * a2 * a0, 0)) - a1) / (2 * a2)
    return np.asarray((b - c - n * drop + correction) / np.sqrt(n * (2 * q + drop * (1 - drop))))


def pass_rate(n: int, drop: float, only_second: float, correction: float = 0.5, z: float = Z95) -> float:
    """The chance to pass of an artifact whose true drop is the budget: a sum over every table that is likely at all."""
    worse, better = only_second + drop, only_second

    def likely(rate: float) -> NDArray[np.float64]:
        return np.arange(stats.binom.ppf(1e-9, n, rate), stats.binom.ppf(1 - 1e-9, n, rate) + 1)

    b, c = np.meshgrid(likely(worse), likely(better), indexing="ij")
    chance = stats.binom.pmf(b, n, worse) * stats.binom.pmf(c, n - b, better / (1 - worse))
    return float(chance[scores(b, c, n, drop, correction) <= -z].sum())


SIZES = (100, 250, 500, 550, 1000, 2000, 3000, 10_000, 20_000)
BUDGETS = (0.001, 0.0025, 0.005, 0.01, 0.02)
RATES = (0, 0.0005, 0.002, 0.01, 0.05)


def test_the_decision_is_the_score_test_at_the_budget() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        n = int(random.integers(2, 5000))
        first, second = (int(x) for x in random.binomial(n, random.uniform(0, 0.05, 2)))
        budget = float(random.uniform(0, 0.02))
        passes = scores(first, second, n, budget, 0.5) <= -Z95
        fails = scores(first, second, n, budget, -0.5) >= Z95  # from the other side, the correction goes the other way
        decision = decide(drop_interval(pairs(first, second, n), 0.95), budget)
        assert (decision == "pass") == bool(passes)
        assert (decision == "fail") == bool(fails)


def test_the_gate_passes_at_most_5_percent_at_the_edge_of_the_budget_whatever_the_discordance() -> None:
    rates = {(n, d, q): pass_rate(n, d, q) for n in SIZES for d in BUDGETS for q in RATES if n * (2 * q + d) < 1500}
    assert len(rates) > 150
    worst = max(rates, key=lambda case: rates[case])
    assert rates[worst] <= 0.05, worst
    # and it is no gate that never opens: where enough images differ, it is near the 5 % it may use
    assert rates[10_000, 0.005, 0.05] > 0.045


def test_without_the_correction_it_would_pass_more() -> None:
    assert pass_rate(550, 0.005, 0, correction=0) > 0.06


@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_other_confidences_hold_too(confidence: float) -> None:
    z = float(stats.norm.ppf(confidence))
    worst = max(
        pass_rate(n, d, q, z=z) for n in (250, 550, 3000) for d in (0.0025, 0.005, 0.02) for q in (0, 0.002, 0.01)
    )
    assert worst <= 1 - confidence


@pytest.mark.parametrize("images", [500, 2000, 10_000])
@pytest.mark.parametrize("discordant", [0.006, 0.02, 0.06, 0.15])
def test_2000_simulated_evaluations_at_the_edge_pass_and_fail_as_rarely_as_promised(
    images: int, discordant: float
) -> None:
    budget = 0.005
    worse = (discordant + budget) / 2
    random = np.random.default_rng([images, int(discordant * 1000)])
    decisions = []
    for _ in range(2000):
        both, first, second = random.multinomial(images, [1 - discordant, worse, discordant - worse])
        counted = Pairs(both_right=int(both), only_first=int(first), only_second=int(second), both_wrong=0)
        decisions.append(decide(drop_interval(counted, 0.95), budget))
    # Of 2,000 draws at exactly 5 %, 100 pass on average, and more than 130 (6.5 %) in one test run of 500: binomial, 3 sigma.
    allowed = stats.binom.ppf(0.998, 2000, 0.05)
    assert decisions.count("pass") <= allowed
    assert decisions.count("fail") <= allowed


@pytest.mark.parametrize(
    ("first", "second", "images", "budget"),
    [(0, 0, 2, 0.005), (5, 3, 500, 0.005), (12, 2, 500, 0.01), (32, 10, 900, 0.02)],
)
def test_so_many_images_decide_four_times_in_five(first: int, second: int, images: int, budget: float) -> None:
    needed = images_to_decide(pairs(first, second, images), budget, 0.95)
    assert needed is not None
    assert decide(drop_interval(pairs(first, second, images), 0.95), budget) == "inconclusive"
    random = np.random.default_rng(1)
    shares = [1 - (first + second) / images, first / images, second / images]
    right = "pass" if (first - second) / images < budget else "fail"
    found = [
        decide(drop_interval(pairs(int(b), int(c), needed), 0.95), budget)
        for _, b, c in random.multinomial(needed, shares, size=500)
    ]
    # 80 %, less 5 sigma of 500 draws and the normal approximation; of no discordance at all, every draw is the same
    assert 0.70 <= found.count(right) / 500 <= 1
    # and a third of them do not
    third = [
        decide(drop_interval(pairs(int(b), int(c), needed // 3), 0.95), budget)
        for _, b, c in random.multinomial(needed // 3, shares, size=500)
    ]
    assert third.count(right) < 0.7 * 500


def test_no_number_of_images_decides_where_the_drop_is_the_budget() -> None:
    assert images_to_decide(pairs(10, 5, 1000), 0.005, 0.95) is None


def test_decisions_at_the_bounds() -> None:
    assert decide((-0.01, 0.005), 0.005) == "pass"  # up to the budget is within it
    assert decide((0.005, 0.02), 0.005) == "inconclusive"  # only beyond it is beyond
    assert decide((0.0051, 0.02), 0.005) == "fail"
