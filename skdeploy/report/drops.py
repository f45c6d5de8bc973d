"""The gate, the baseline, artifacts that did not run, and drops drawn: the same for accuracy and for quality on pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from skdeploy.accuracy.baseline import BaselineReport
from skdeploy.accuracy.gate import NotEvaluated, PairedReport
from skdeploy.accuracy.quality import QualityDrop
from skdeploy.accuracy.quality_baseline import QualityBaselineReport
from skdeploy.accuracy.statistics import Decision
from skdeploy.accuracy.verdict import DECISIONS
from skdeploy.report.blocks import Figure, Finding, Outcome
from skdeploy.report.plots import Axis, Reference, Row, rows_figure


def drop_finding(drop: PairedReport | QualityDrop, where: str, detail: str, allow_inconclusive: bool) -> Finding:
    """The decision of the gate on one artifact; only a note where there is no budget."""
    return Finding("drop", where, _outcome(drop.decision, allow_inconclusive), drop.sentence, detail)


def _outcome(decision: Decision | None, allow_inconclusive: bool) -> Outcome:
    if decision is None:
        return "note"
    if decision == "inconclusive":
        return "undecided" if allow_inconclusive else "fail"
    return decision


def baseline_findings(baseline: BaselineReport | QualityBaselineReport | None) -> Iterator[Finding]:
    """Each artifact then and now; nothing without a baseline."""
    for artifact, outcome, sentence in baseline.said if baseline is not None else ():
        yield Finding("baseline", artifact, outcome, sentence)


def absent_findings(absent: Sequence[NotEvaluated]) -> Iterator[Finding]:
    """The artifacts that cannot run on this machine, and why."""
    for one in absent:
        place = f"{one.artifact} on {one.backend}"
        yield Finding("accuracy", place, "skip", f"{place}: not evaluated here: {one.reason}")


def drop_figure(
    drops: Sequence[PairedReport] | Sequence[QualityDrop], what: str, digits: str, samples: str, source: str = ""
) -> Figure:
    """A bar for each drop, with its interval and the budgets.

    ``what``: the figure and its unit; ``digits``: a format of a drop; ``samples``: "images" or "pairs"; ``source``: of the
    interval, in brackets behind its confidence.
    """
    rows = [
        Row(
            drop.second,
            format(drop.drop, digits),
            interval=(drop.drop_low, drop.drop_high),
            marks=((0, drop.drop),),
            tone="" if drop.decision is None else DECISIONS[drop.decision][0],
        )
        for drop in drops
    ]
    budgets = sorted({drop.max_drop for drop in drops if drop.max_drop is not None})
    ends = [end for row in rows if row.interval for end in row.interval]
    axis = Axis.linear([0.0, *budgets, *ends], f"drop of {what}, less is better")
    references = [Reference(budget, f"budget {budget:g}") for budget in budgets]
    caption = f"Each end of an interval has {drops[0].confidence:g} % confidence by itself{source}."
    return rows_figure(f"Drop against the reference, on the same {samples}", caption, rows, axis, references=references)
