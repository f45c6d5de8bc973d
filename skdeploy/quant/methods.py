"""The choice among calibration methods: each method's ranges are tried on images that they were not fitted on.

No method is the best for every network: on sknet-fashion the widest percentile wins and min-max is last, on others min-max is
first. So ``auto`` fits all of them to the first three quarters of the images, in one pass, and asks which INT8 graph is nearest
to FP32 on others. A choice for each tensor by itself was tried: it fits the images that it is made on, and loses 0.3 dB on
others. The ranges of the method that wins are then fitted to all images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from skdeploy.core.spec import CalibrationMethod, Frozen

# Of the images, those that ranges are fitted to before the choice: the first ones. Any beginning of a calibration set is as
# balanced over classes as the whole (``images/selection.py``).
FITTED: Final = (3, 4)
# Of the others, as many are scored at most, evenly spread. A few images make most of the error, so fewer would choose by
# chance: on 64 of sknet-fashion's, min-max is first, and loses 1 dB on its 10,000 test images; on 128 the ranking is theirs.
MOST_SCORED: Final = 128
# All methods run on the first quarter of these, and the best three on the rest: that is a third less to run.
FIRST_ROUND: Final = (1, 4)
LAST_ROUND: Final = 3
# Fewer images in all are not divided: a quarter of them would rank methods by chance.
FEWEST_IMAGES: Final = 32


@dataclass(frozen=True)
class Candidate:
    """A method, with its percentile."""

    method: CalibrationMethod
    percentile: float | None = None

    def __str__(self) -> str:
        return self.method if self.percentile is None else f"{self.method} {self.percentile:g}"


# Without images enough for a choice: it clips what is rare and far away, but never much.
FALLBACK: Final = Candidate(CalibrationMethod.MSE)
# Scores that are closer to the best do not tell which method is better on other images: on those of the SK-UNet of the tests,
# the one that leads by 0.17 dB loses 0.25 dB. Then the first of ``CANDIDATES`` wins, and mse is seldom far off.
TIE_DB: Final = 0.2
# Entropy is left out: it takes longest, and was last wherever it was tried.
CANDIDATES: Final = (
    FALLBACK,
    Candidate(CalibrationMethod.MINMAX),
    Candidate(CalibrationMethod.PERCENTILE, 99.9),
    Candidate(CalibrationMethod.PERCENTILE, 99.99),
    Candidate(CalibrationMethod.PERCENTILE, 99.999),
)


class Round(Frozen):
    """Scores of methods on a number of images, in dB.

    The SQNR of the outputs of each one's INT8 graph, with FP32 beside it, against FP32.
    """

    images: Annotated[int, Field(ge=1)]
    scores: Annotated[dict[str, float], Field(min_length=1)]


class Choice(Frozen):
    """The method that ``auto`` chose: the winner of the last round. ``fitted`` images set the ranges that were tried. No rounds
    where there were too few images.
    """

    method: Annotated[CalibrationMethod, Field(strict=False)]
    percentile: float | None = None
    fitted: Annotated[int, Field(ge=0)] = 0
    rounds: Annotated[tuple[Round, ...], Field(strict=False)] = ()

    @property
    def candidate(self) -> Candidate:
        return Candidate(self.method, self.percentile)

    @property
    def scores(self) -> dict[str, float]:
        """Each method's score on the most images that it was tried on, the best first."""
        found = {name: score for each in self.rounds for name, score in each.scores.items()}
        last = self.rounds[-1].scores if self.rounds else {}
        return dict(sorted(found.items(), key=lambda item: (item[0] in last, item[1]), reverse=True))

    @model_validator(mode="after")
    def _the_best(self) -> Self:
        if self.rounds and self.candidate != winner(self.rounds[-1].scores):
            raise ValueError(f"{self.candidate} did not win the last round")
        return self


def fitted_images(images: int) -> int:
    """How many of the images ranges are fitted to before the choice."""
    part, whole = FITTED
    return -(-part * images // whole)


def scored_images(images: int, used: int) -> list[int]:
    """The places of the images that methods are scored on, of ``used`` that could be read of ``images``; none of too few."""
    first = fitted_images(images)
    if used < FEWEST_IMAGES or used <= first:
        return []
    count = min(MOST_SCORED, used - first)
    return [first + step * (used - first) // count for step in range(count)]


def chosen(rounds: Sequence[Round], fitted: int) -> Choice:
    """The choice by these rounds, of the candidates by their names."""
    best = winner(rounds[-1].scores)
    return Choice(method=best.method, percentile=best.percentile, fitted=fitted, rounds=tuple(rounds))


def winner(scores: Mapping[str, float]) -> Candidate:
    """The first candidate that is within ``TIE_DB`` of the best. Raises ValueError where no candidate has a score."""
    known = {candidate: scores[str(candidate)] for candidate in CANDIDATES if str(candidate) in scores}
    if not known:
        raise ValueError("none of the scores belongs to a method that takes part in the choice")
    best = max(known.values())
    return next(candidate for candidate, score in known.items() if score >= best - TIE_DB)


def ranked(scores: Mapping[str, float]) -> list[str]:
    """The methods, the best first; of equals, the first."""
    return sorted(scores, key=lambda name: -scores[name])
