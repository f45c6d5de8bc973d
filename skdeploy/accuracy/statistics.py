"""Accuracy of an artifact, and the difference of two, from a finite number of labelled images.

No approximation of small counts by a normal distribution: drops of interest are below 1 %, so few images decide.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, sqrt
from statistics import NormalDist
from typing import Final, Literal

from skdeploy.core.spec import Frozen

Decision = Literal["pass", "fail", "inconclusive"]

HALF_IMAGE: Final = (
    0.5  # counts move in whole images, the normal distribution does not: the usual continuity correction
)
POWER: Final = 0.8  # of the number of images that would decide: four evaluations of five
STEPS: Final = 60  # of bisection: 2^-60 of the range of a difference


class Pairs(Frozen):
    """How often two artifacts were right on the same images; the first is the one that the other is measured against."""

    both_right: int
    only_first: int
    only_second: int
    both_wrong: int

    @property
    def images(self) -> int:
        return self.both_right + self.only_first + self.only_second + self.both_wrong

    @property
    def drop(self) -> float:
        """Accuracy of the first minus that of the second, as a share of all images."""
        return (self.only_first - self.only_second) / self.images


def z_of(confidence: float) -> float:
    """The normal quantile of a one-sided confidence in (0, 1): 1.645 of 0.95."""
    return NormalDist().inv_cdf(confidence)


def wilson(successes: int, total: int, confidence: float) -> tuple[float, float]:
    """Wilson's score interval of a proportion, two-sided: (low, high). (0, 1) of nothing.

    E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927) 209-212.
    """
    if total == 0:
        return 0.0, 1.0
    z = z_of((1 + confidence) / 2)
    share, weight = successes / total, z * z / total
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * sqrt(share * (1 - share) / total + weight / total / 4)
    # At the ends the bound is the end itself; rounding may miss it by an epsilon.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == total else centre + half)


def mcnemar(pairs: Pairs) -> float:
    """The exact McNemar test, two-sided: the chance of a split of the discordant images at least as uneven, were both as good.

    Q. McNemar, Psychometrika 12 (1947) 153-157; exact, the split is binomial(discordant, 1/2). In whole numbers throughout.
    """
    discordant = pairs.only_first + pairs.only_second
    tail = ways = 1
    for count in range(min(pairs.only_first, pairs.only_second)):
        ways = ways * (discordant - count) // (count + 1)
        tail += ways
    return min(1.0, 2 * tail / (1 << discordant))


def drop_interval(pairs: Pairs, confidence: float, *, correction: float = HALF_IMAGE) -> tuple[float, float]:
    """Bounds of the drop, each of them with the (one-sided) confidence in (0, 1): (low, high), shares of all images.

    Tango's score interval for paired proportions: T. Tango, Statistics in Medicine 17 (1998) 891-908, equations 24-26. The
    bounds are the drops at which the score test turns; it takes the variance that the tested drop itself implies, so that no
    discordant image among a few does not mean no difference. A continuity correction of half an image is added. Without it
    (``correction`` 0 is Tango's own interval) the gate would let up to 6.4 % of artifacts pass that lose exactly the budget;
    with it, at most 5 %: by enumeration, not simulation, for 100 to 20,000 images, in tests/accuracy/test_statistics.py.
    """
    z = z_of(confidence)
    return -_highest(pairs, z, correction, swapped=True), _highest(pairs, z, correction, swapped=False)


def _highest(pairs: Pairs, z: float, correction: float, *, swapped: bool) -> float:
    """The largest drop that the score test does not reject; of the first against the second if ``swapped``."""
    worse, better = (pairs.only_second, pairs.only_first) if swapped else (pairs.only_first, pairs.only_second)
    n = pairs.images

    def rejected(drop: float) -> bool:
        return worse - better + correction - n * drop <= -z * sqrt(n * _variance(worse, better, n, drop))

    return _first((worse - better) / n, 1.0, rejected)


def _first(low: float, high: float, holds: Callable[[float], bool]) -> float:
    """The smallest number from which on ``holds`` is true; ``high`` if it is true nowhere below."""
    for _ in range(STEPS):
        middle = (low + high) / 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high


def _variance(worse: int, better: int, n: int, drop: float) -> float:
    """Variance of one image's contribution, if the true drop is ``drop``.

    2 q + d (1 - d), with q the likeliest share of images where only the second is right (and q + d where only the first is):
    the larger root of 2 n q^2 - (b + c - d (2 n - b + c)) q - c d (1 - d) = 0.
    """
    if drop < 0:
        return _variance(better, worse, n, -drop)
    linear = worse + better - drop * (2 * n - worse + better)
    q = (linear + sqrt(linear * linear + 8 * n * better * drop * (1 - drop))) / (4 * n)
    return max(0.0, 2 * q + drop * (1 - drop))


def decide(interval: tuple[float, float], max_drop: float) -> Decision:
    """Non-inferiority: ``pass`` if even the upper bound is within the budget, ``fail`` if even the lower one is beyond it."""
    low, high = interval
    if high <= max_drop:
        return "pass"
    return "fail" if low > max_drop else "inconclusive"


def images_to_decide(pairs: Pairs, max_drop: float, confidence: float) -> int | None:
    """About how many images would decide four times in five, if they split as these do; None where the drop is the budget.

    With N images the score is (N |drop - d| - 1/2) / sqrt(N v), v the variance of one image if the drop is d: the likeliest
    shares do not depend on N. It must reach z(confidence) + z(0.8), the usual allowance for chance (power 80 %), so

        sqrt(N) = (s + sqrt(s^2 + 2 |drop - d|)) / (2 |drop - d|),   s = (z(confidence) + z(0.8)) sqrt(v).
    """
    distance = abs(pairs.drop - max_drop)
    if distance < 1 / (100 * pairs.images):  # a hundredth of an image from the budget: rounding, not evidence
        return None
    spread = (z_of(confidence) + z_of(POWER)) * sqrt(
        _variance(pairs.only_first, pairs.only_second, pairs.images, max_drop)
    )
    return ceil(((spread + sqrt(spread * spread + 2 * distance)) / (2 * distance)) ** 2)


def passing_budget(pairs: Pairs, confidence: float) -> float:
    """The smallest budget that these images pass, in percentage points of top-1, rounded up to a hundredth."""
    interval = drop_interval(pairs, confidence)
    hundredths = max(0, ceil(10_000 * interval[1]) - 1)  # one less: rounding may have lifted it over a whole number
    while decide(interval, hundredths / 10_000) != "pass":
        hundredths += 1
    return hundredths / 100
