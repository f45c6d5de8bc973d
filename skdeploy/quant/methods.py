"""The choice among calibration methods: each method's ranges are tried on images that they were not fitted on.

No method is the best for every network: on sknet-fashion the widest percentile and mse are first, on others min-max is. So
``auto`` fits all of them to the first three quarters of the images, in one pass, and asks which INT8 graph is nearest to FP32
on others. A choice for each tensor by itself was tried: it fits the images that it is made on, and loses 0.3 dB on others. The
ranges of the method that wins are then fitted to all images.

The graphs that compete have their weights rounded as the result will have them: rounding to nearest makes errors of its own,
and with it the best on skresnet-digits was mse, which then lost 0.35 dB on its test images. Of the method that wins, the
graph with weights to nearest runs too: GPTQ's gain of 0.3 to 2.8 dB is a loss of 0.75 dB on one of depthwise convolutions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import log10, sqrt
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from skdeploy.core.spec import CalibrationMethod, Frozen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Rounding = Literal["gptq", "nearest"]

# Of the images, those that ranges are fitted to before the choice: the first ones. Any beginning of a calibration set is as
# balanced over classes as the whole (``images/selection.py``).
FITTED: Final = (3, 4)
# Of the others, as many are scored at most, evenly spread. Of 2,000 draws from 2,000 test images, the choice by 128 is more
# than 0.2 dB off on all of them in 0 % (sknet-fashion) and 0.3 % (skresnet-digits); by 64 in 0.1 and 0.6 %, and the calibration
# images of skresnet-digits are such a draw: 0.28 dB.
MOST_SCORED: Final = 128
# The methods are compared after these many images, and each time that the number has doubled. One goes no further that makes
# more error than the best by ``GIVEN_UP`` standard errors of the difference. Nor does one behind the first of those left, in
# the order of ``CANDIDATES``, to which the first loses ``TOLERATED`` at most, be it by one standard error more than was seen:
# to win it would have to be better by two. Of 500 draws of 128 test images each, an image goes through 337, 299, 240 and 159
# graphs in place of 535, 537, 482 and 561 if all go on till they made half as much error again (sknet-fashion, its rescaled
# copy, skresnet-digits, the denoiser), and in 1 % of the draws at most another method wins.
FIRST_LOOK: Final = 16
GIVEN_UP: Final = 3.0
TOLERATED: Final = 10**0.02 - 1  # of the least error: 0.2 dB
# Fewer images in all are not divided: a quarter of them would rank methods by chance.
FEWEST_IMAGES: Final = 32
LEAST_NOISE: Final = 1e-30  # 300 dB: of outputs that are FP32's to the last bit


@dataclass(frozen=True)
class Candidate:
    """A method, with its percentile."""

    method: CalibrationMethod
    percentile: float | None = None

    def __str__(self) -> str:
        return self.method if self.percentile is None else f"{self.method} {self.percentile:g}"


# Without images enough for a choice: it clips what is rare and far away, but never much.
FALLBACK: Final = Candidate(CalibrationMethod.MSE)
# Entropy is left out: it takes longest, and was last wherever it was tried. Methods that the images cannot tell apart are taken
# in this order: mse is the best on the test images of all four reference networks, and what clips more comes later.
CANDIDATES: Final = (
    FALLBACK,
    Candidate(CalibrationMethod.PERCENTILE, 99.999),
    Candidate(CalibrationMethod.MINMAX),
    Candidate(CalibrationMethod.PERCENTILE, 99.99),
    Candidate(CalibrationMethod.PERCENTILE, 99.9),
)
# Two methods are told apart by two standard errors of the difference. Clipping errs seldom and much, so few images see it, and
# the strictly best of a few images is often one that clips. Of 2,000 draws of 128 test images each, the strictly best is more
# than 0.2 dB off on all of them in 32 % (sknet-fashion), 40 % (its rescaled copy), 9 % (skresnet-digits), 0 % (the denoiser).
# With 512, all that cross-fitting would give, in 14, 24, 2 and 0 %. By one standard error of 128 images it is 7, 11, 0.8 and
# 0 %; by two, 0.7, 0.9, 0 and 0 %. The mean root of the error, which single images sway less, is off in 30, 35, 2 and 0 %. And
# images held back are from where the others are: of the denoiser's, percentile 99.99 is strictly best, by 0.015 dB, and it
# loses 1.2 dB on other photographs. (Measured with thresholds of mse 7.5 % beyond the least error, which is about as far.)
TOLD_APART: Final = 2.0


class Score(Frozen):
    """The SQNR in dB of the outputs of a method's INT8 graph, with FP32 beside it, against FP32.

    Both are of ``images`` images, the first of those held back: fewer than ``scored`` of a method that was given up.
    """

    images: Annotated[int, Field(ge=1)]
    sqnr_db: float


class Choice(Frozen):
    """The method that ``auto`` chose: the first of ``CANDIDATES`` among those ``tied`` with the best.

    Their error on the ``scored`` images held back is the least, or more by no more than two standard errors of the difference.
    ``fitted`` images set the ranges that were tried. No scores where there were too few images. ``nearest`` is the score of its
    graph with weights to nearest, where it was tried beside GPTQ, and ``weight_rounding`` the better one of these two.
    """

    method: Annotated[CalibrationMethod, Field(strict=False)]
    percentile: float | None = None
    fitted: Annotated[int, Field(ge=0)] = 0
    scored: Annotated[int, Field(ge=0)] = 0
    scores: dict[str, Score] = Field(default={})
    tied: Annotated[tuple[str, ...], Field(strict=False)] = ()
    nearest: Annotated[Score | None, Field(exclude_if=lambda score: score is None)] = None
    weight_rounding: Annotated[Rounding | None, Field(exclude_if=lambda rounding: rounding is None)] = None

    @property
    def candidate(self) -> Candidate:
        return Candidate(self.method, self.percentile)

    @property
    def ranking(self) -> list[str]:
        """The methods, the best first, and after them those that were given up; of equals, the first of ``CANDIDATES``."""
        return sorted(self.scores, key=lambda name: (-self.scores[name].images, -self.scores[name].sqnr_db))

    @model_validator(mode="after")
    def _the_best(self) -> Self:
        if not self.scores:
            return self
        known = all(name in self.scores and self.scores[name].images == self.scored for name in self.tied)
        if not known or self.ranking[0] not in self.tied or str(self.candidate) != first_of(self.tied):
            raise ValueError(f"{self.candidate} is not the best by the scores")
        if (self.nearest is None) != (self.weight_rounding is None):
            raise ValueError("nearest and weight_rounding belong together, and one of them is missing")
        if self.weight_rounding == "nearest" and not self._is_better_to_nearest():
            raise ValueError("weights to nearest are not better by the scores")
        return self

    def _is_better_to_nearest(self) -> bool:
        score, rounded = self.nearest, self.scores.get(str(self.candidate))
        return (
            score is not None
            and rounded is not None
            and (score.images, score.sqnr_db) >= (self.scored, rounded.sqnr_db)
        )


def fitted_images(images: int) -> int:
    """How many of the images ranges are fitted to before the choice."""
    part, whole = FITTED
    return -(-part * images // whole)


def scored_images(images: int, used: Sequence[int]) -> list[int]:
    """The places of the images that methods are scored on, of those ``used`` of ``images``; none of too few.

    Any first ones are spread over all of them: every eighth, then those in the middle between, and so on.
    """
    held_back = [place for place in used if place >= fitted_images(images)]
    if len(used) < FEWEST_IMAGES:
        return []
    count = min(MOST_SCORED, len(held_back))
    steps = sorted(range(count), key=lambda step: f"{step:032b}"[::-1])
    return [held_back[step * len(held_back) // count] for step in steps]


def looks(images: int) -> list[int]:
    """After how many images methods are compared, where ``images`` can be scored."""
    found = [FIRST_LOOK]
    while found[-1] < images:
        found.append(2 * found[-1])
    return [*found[:-1], images]


def going_on(noise: Mapping[str, Sequence[float]]) -> list[str]:
    """The candidates that more images may decide among, by their noise to signal on the same images, one after another.

    Only one where these images have decided it.
    """
    import numpy as np  # the help of an export needs none

    made = {name: np.asarray(noise[name]) for name in map(str, CANDIDATES) if name in noise}
    best = min(made.values(), key=np.sum)
    left = {name: each for name, each in made.items() if (each - best).sum() <= GIVEN_UP * standard_error(each - best)}
    first = next(iter(left.values()))
    return [
        name
        for name, each in left.items()
        if each is first or (first - each).sum() + standard_error(first - each) > TOLERATED * best.sum()
    ]


def first_of(names: Collection[str]) -> str:
    """The first of ``CANDIDATES`` among these. Raises ValueError for none of them."""
    found = [str(each) for each in CANDIDATES if str(each) in names]
    if not found:
        raise ValueError("no method that takes part in the choice was scored on all images")
    return found[0]


def chosen(noise: Mapping[str, Sequence[float]], scored: int, fitted: int) -> Choice:
    """The choice by each candidate's noise to signal, image after image; of ``scored`` images where it was not given up.

    Raises ValueError where none was scored on all images.
    """
    import numpy as np  # the help of an export needs none

    whole = {name: np.asarray(noise[name]) for name in map(str, CANDIDATES) if len(noise.get(name, ())) == scored}
    best = whole[min(whole, key=lambda name: whole[name].sum())] if whole else np.zeros(scored)
    tied = tuple(
        name for name, made in whole.items() if made.sum() - best.sum() <= TOLD_APART * standard_error(made - best)
    )
    method = next(each for each in CANDIDATES if str(each) == first_of(tied))
    scores = {name: _score(noise[name]) for name in map(str, CANDIDATES) if name in noise}
    return Choice(
        method=method.method, percentile=method.percentile, fitted=fitted, scored=scored, scores=scores, tied=tied
    )


def with_rounding_of(choice: Choice, rounded: Sequence[float], nearest: Sequence[float]) -> Choice:
    """The choice with weights to nearest if they make less noise than GPTQ's, by more than ``TOLD_APART`` standard errors: of
    64 images of skresnet-digits they made 0.5 dB less by chance, and 0.6 dB more of 10,000.

    Both are noise to signal of the chosen method, image after image; ``nearest`` ends where it has made more than ``rounded``.
    """
    import numpy as np  # the help of an export needs none

    better = False
    if len(nearest) == len(rounded):
        less = np.asarray(rounded) - np.asarray(nearest)
        better = bool(less.sum() > TOLD_APART * standard_error(less))
    return choice.model_copy(
        update={"nearest": _score(nearest), "weight_rounding": "nearest" if better else "gptq"},
    )


def _score(noise: Sequence[float]) -> Score:
    return Score(images=len(noise), sqnr_db=round(-10 * log10(max(sum(noise), LEAST_NOISE)), 4))


def standard_error(differences: NDArray[np.float64]) -> float:
    """Of the sum of differences between two methods on the same images, were they others."""
    import numpy as np

    return float(np.std(differences) * sqrt(len(differences)))
