"""Quality against ground truth: of each artifact, of two on the same samples, and the gate. What ``evaluate --json`` prints for
networks without classes, and with ``--metric``.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from skdeploy.accuracy import untouched
from skdeploy.accuracy.budget import require_within_budget, sentence_of, worst_decision
from skdeploy.accuracy.gate import NotEvaluated, less_drop
from skdeploy.accuracy.mean_drop import Drop, images_for, least_budget
from skdeploy.accuracy.quality_baseline import QualityBaselineReport
from skdeploy.accuracy.statistics import Decision
from skdeploy.core.spec import Frozen, Precision
from skdeploy.parity.worst_image import WorstImage


class Figure(Frozen):
    """A figure of one artifact, with its two-sided interval. ``unit`` may be empty."""

    name: str
    unit: str
    value: float
    low: float
    high: float

    @property
    def text(self) -> str:
        return figure_text(self.value, self.unit)


class QualityReport(Frozen):
    """One artifact on one backend against the ground truth."""

    artifact: str
    backend: str
    precision: Precision
    sha256: str
    figures: Annotated[tuple[Figure, ...], Field(strict=False)]

    @property
    def shown(self) -> str:
        return f"{self.artifact} on {self.backend}"


class QualityDrop(Frozen):
    """How much the second artifact is worse than the first by one figure, on the same samples.

    ``drop``, ``drop_low`` and ``drop_high`` are in the figure's unit, larger is worse; each bound has the confidence
    ``confidence``, in per cent and one-sided (``mean_drop.py``). ``spread``: the standard deviation of one sample's share.
    ``worst``: the sample that loses most, and how much, of a figure that each sample has. ``max_drop`` and ``decision`` only
    with a budget, and of the first figure; ``images_to_decide`` only where it is inconclusive, and only if there is a number.
    ``guessing``: why this is inconclusive, if the first does not improve the inputs.
    """

    first: str
    second: str
    figure: str
    unit: str
    images: int
    drop: float
    drop_low: float
    drop_high: float
    spread: float
    confidence: float
    worst: str | None = None
    worst_drop: float | None = None
    max_drop: float | None = None
    decision: Decision | None = None
    images_to_decide: int | None = None
    guessing: str = ""

    @property
    def sentence(self) -> str:
        """The result of the gate in words."""
        interval = f"from {self.drop_low:+.3g} to {self.drop_high:+.3g} at {self.confidence:g} %"
        what = with_unit(f"{self.drop:+.3g}", self.unit)
        said = (
            f"{self.second} drops by {what} of {self.figure}, {interval}, against {self.first} on {self.images:,} pairs"
        )
        return sentence_of(said, self, "pairs", untouched.CAUSES)

    @property
    def measured(self) -> Drop:
        return Drop(drop=self.drop, low=self.drop_low, high=self.drop_high, spread=self.spread, images=self.images)

    @property
    def passing_budget(self) -> float:
        """The smallest budget that these samples pass, in the figure's unit."""
        return least_budget(self.measured)

    @property
    def images_more(self) -> int | None:
        """How many samples more would decide; None if the drop is its budget."""
        total = images_for(self.measured, self.max_drop or 0, self.confidence / 100)
        return None if total is None else total - self.images


class Quality(Frozen):
    """Pairs, the artifacts that ran on them, and how they compare.

    ``metric_file`` is where the user's own metric comes from; no bundle makes anybody run it. ``reused`` of the pairs were
    measured by an earlier run. ``untouched``: the figures of the
    inputs themselves, where those are of the targets' kind. ``worst``: in pictures, the pair that loses most by the first
    figure. ``lower_is_better``: of the first figure. ``baseline`` if one was given.
    """

    task: str
    metric: str = ""
    metric_file: str = ""
    dataset: str
    dataset_sha256: str
    targets_sha256: str
    images: int
    reused: int = Field(default=0, exclude_if=lambda reused: not reused)
    untouched: dict[str, float] = Field(default={})
    artifacts: Annotated[tuple[QualityReport, ...], Field(strict=False)]
    drops: Annotated[tuple[QualityDrop, ...], Field(strict=False)]
    not_evaluated: Annotated[tuple[NotEvaluated, ...], Field(strict=False)]
    image_notes: Annotated[tuple[str, ...], Field(strict=False)] = ()
    confidence: float
    seconds: float
    worst: WorstImage | None = Field(default=None, exclude_if=lambda worst: worst is None)
    lower_is_better: bool = Field(default=False, exclude_if=lambda lower: not lower)
    baseline: QualityBaselineReport | None = Field(default=None, exclude_if=lambda baseline: baseline is None)

    @property
    def verdict(self) -> Decision | None:
        """The worst of the gate's decisions and the baseline's; None without either."""
        return worst_decision(self.drops, self.baseline)

    def check(self, *, allow_inconclusive: bool = False) -> None:
        """Raises AccuracyError for a drop that is beyond the budget, or not shown to be within it."""
        require_within_budget(
            self.drops,
            self.baseline,
            lost=_lost,
            allowed=lambda drop: (
                f"{drop.second} ({with_unit(f'{drop.max_drop:g}', drop.unit)} of {drop.figure} allowed)"
            ),
            less=less_drop(*(report.precision for report in self.artifacts)),
            check=untouched.CHECK,
            samples="pairs",
            more="more pairs",
            allow_inconclusive=allow_inconclusive,
        )


def _lost(drop: QualityDrop) -> str:
    lost = with_unit(f"{drop.drop:+.3g}", drop.unit)
    return f"{drop.second} drops by {lost} of {drop.figure}, {drop.max_drop:g} allowed"


def number(value: float) -> str:
    """Four digits, and no more than four behind the point."""
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.2f}"


def figure_text(value: float, unit: str) -> str:
    """A figure of which drops are in ``unit``: one in percentage points is itself in per cent."""
    return with_unit(number(value), "%" if unit == "points" else unit)


def with_unit(text: str, unit: str) -> str:
    return f"{text} {unit}".rstrip()
