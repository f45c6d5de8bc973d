"""A figure of pairs against a committed baseline: what each artifact had once, on the same pairs. See ``baseline.py``."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from skdeploy.core.errors import UsageError
from skdeploy.core.spec import Frozen
from skdeploy.core.version import __version__

if TYPE_CHECKING:
    from skdeploy.accuracy.baseline import Baseline
    from skdeploy.accuracy.quality import Quality

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class FigureOnce(Frozen):
    """The figure of one artifact; ``artifact`` is its path and backend, as reports show them."""

    artifact: str
    precision: str
    value: float


class QualityBaseline(Frozen, allow_inf_nan=False):
    """The committed file: the first figure of each artifact. The digests say of which pairs."""

    schema_version: Annotated[Literal[1], Field(alias="schema")] = 1
    skdeploy: str
    dataset: str
    dataset_sha256: Sha256
    targets_sha256: Sha256
    pairs: Annotated[int, Field(gt=0)]
    figure: str
    unit: str
    artifacts: Annotated[tuple[FigureOnce, ...], Field(strict=False)]


class FigureThenAndNow(Frozen):
    """One artifact; ``drop`` is how much worse it is now, in the figure's unit."""

    artifact: str
    then: float
    now: float
    drop: float
    verdict: Literal["pass", "fail"]


class QualityBaselineReport(Frozen):
    """All artifacts of a baseline; ``max_drop`` in the figure's unit."""

    file: str
    figure: str
    unit: str
    pairs: int
    max_drop: float
    rows: Annotated[tuple[FigureThenAndNow, ...], Field(strict=False)]

    def sentence(self, row: FigureThenAndNow) -> str:
        """One artifact then and now, in words."""
        from skdeploy.accuracy.quality import figure_text

        now, then = figure_text(row.now, self.unit), figure_text(row.then, self.unit)
        side = "within" if row.verdict == "pass" else "beyond"
        said = f"{row.artifact}: {self.figure} {now}, in the baseline {then}, of the same {self.pairs:,} pairs"
        return f"{said}: {side} the budget of {self.max_drop:g}"

    @property
    def said(self) -> tuple[tuple[str, Literal["pass", "fail"], str], ...]:
        """Each artifact, its verdict, and both in words."""
        return tuple((row.artifact, row.verdict, self.sentence(row)) for row in self.rows)

    @property
    def failures(self) -> tuple[str, ...]:
        """The artifacts that dropped by more than the budget, in words."""
        return tuple(text for _, verdict, text in self.said if verdict == "fail")


def quality_baseline_of(quality: Quality) -> QualityBaseline:
    """The first figure of each artifact in an evaluation of pairs."""
    first = quality.artifacts[0].figures[0]
    return QualityBaseline(
        skdeploy=__version__,
        dataset=quality.dataset,
        dataset_sha256=quality.dataset_sha256,
        targets_sha256=quality.targets_sha256,
        pairs=quality.images,
        figure=first.name,
        unit=first.unit,
        artifacts=tuple(
            FigureOnce(artifact=report.shown, precision=report.precision, value=report.figures[0].value)
            for report in quality.artifacts
        ),
    )


def compare_quality(quality: Quality, baseline: QualityBaseline, max_drop: float, path: Path) -> QualityBaselineReport:
    """Each artifact of the baseline, then and now; ``path`` is the baseline's, for messages.

    Raises UsageError for other pairs or another figure, and for an artifact of the baseline that was not evaluated.
    """
    for what, one, other in (
        ("inputs", baseline.dataset_sha256, quality.dataset_sha256),
        ("targets", baseline.targets_sha256, quality.targets_sha256),
        ("figure", baseline.figure, quality.artifacts[0].figures[0].name),
    ):
        if one != other:
            raise UsageError(
                f"{path} was measured with other {what}: {one}, and now {other}",
                advice=f"give the {baseline.pairs:,} pairs of {baseline.dataset}, or make a new one with --save-baseline",
            )
    found = {report.shown: report.figures[0].value for report in quality.artifacts}
    require_all(path, baseline, found)
    sign = -1 if quality.lower_is_better else 1
    rows = []
    for once in baseline.artifacts:
        now = found[once.artifact]
        drop = sign * (once.value - now)
        verdict: Literal["pass", "fail"] = "pass" if drop <= max_drop else "fail"
        rows.append(FigureThenAndNow(artifact=once.artifact, then=once.value, now=now, drop=drop, verdict=verdict))
    return QualityBaselineReport(
        file=path.name,
        figure=baseline.figure,
        unit=baseline.unit,
        pairs=baseline.pairs,
        max_drop=max_drop,
        rows=tuple(rows),
    )


def require_all(path: Path, baseline: QualityBaseline | Baseline, evaluated: Collection[str]) -> None:
    """Raises UsageError for an artifact of the baseline at ``path`` that was not evaluated: that gate would pass unasked."""
    missing = next((once.artifact for once in baseline.artifacts if once.artifact not in evaluated), None)
    if missing is not None:
        raise UsageError(
            f"{path} has {missing}, which was not evaluated",
            advice=f"evaluated: {', '.join(evaluated)}; add others with --artifact",
        )
