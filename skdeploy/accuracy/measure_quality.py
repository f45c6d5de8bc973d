"""The figures of several artifacts on pairs, with their intervals, and how far each is worse than the first."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from skdeploy.accuracy.evaluate import require_pair
from skdeploy.accuracy.gate import NotEvaluated
from skdeploy.accuracy.mean_drop import LEAST, MOST_CONFIDENT, drop_of_mean, drop_of_ratio, images_for
from skdeploy.accuracy.measures import Measure, Rows, measures_of
from skdeploy.accuracy.own_metric import OwnMetric
from skdeploy.accuracy.quality import Figure, Quality, QualityDrop, QualityReport
from skdeploy.accuracy.quality_rows import Measuring, PairRows, untouched_figures
from skdeploy.accuracy.statistics import decide
from skdeploy.accuracy.streaming import open_all
from skdeploy.accuracy.untouched import useless
from skdeploy.accuracy.worst_pair import worst_pair
from skdeploy.bundle.runners import Runner
from skdeploy.core.errors import UsageError
from skdeploy.core.progress import Progress
from skdeploy.images.pairs import PairedData, open_pairs


def measure_quality(
    runners: Sequence[Runner],
    optional: Sequence[Runner],
    data: Path,
    own: OwnMetric | None,
    tell: Progress,
    *,
    number: int | None,
    batch: int,
    max_drop: float | None,
    confidence: float,
    fresh: bool = False,
) -> Quality:
    """The figures of each artifact, and how far each but the first is worse than the first.

    ``max_drop``, a budget, is in the unit of the first figure; ``confidence`` in per cent; ``fresh``: nothing of an earlier
    run is used. Raises UsageError for pairs that do not match, cannot be read, do not fit the network or are too few;
    DependencyError for a budget where all but one artifact cannot run here; ParityError for outputs that are not finite.
    """
    started = time.perf_counter()
    tell.begin("evaluate")
    spec = runners[0].spec
    measures = measures_of(spec, own)
    pairs = open_pairs(data, spec, number)
    for note in pairs.notes:
        tell.note(note)
    require_enough(len(pairs), max_drop, confidence, measures)
    with open_all(runners, optional) as (opened, absent):
        require_pair(max_drop, [runner for runner, _ in opened], absent)
        measuring = Measuring(opened, pairs, measures, batch, tell)
        tables, reused = measuring.rows(fresh=fresh)
        found = quality_of(measuring, tables, absent, own, max_drop=max_drop, confidence=confidence, reused=min(reused))
    seconds = time.perf_counter() - started
    tell.end("evaluate", seconds, reused=min(reused) == len(pairs))
    return found.model_copy(update={"seconds": round(seconds, 3)})


def quality_of(
    measuring: Measuring,
    tables: Sequence[PairRows],
    absent: Sequence[NotEvaluated],
    own: OwnMetric | None,
    *,
    max_drop: float | None,
    confidence: float,
    reused: int,
    digests: tuple[str, str] | None = None,
) -> Quality:
    """The figures that the rows of all pairs give. ``digests``: those of the inputs and targets, if they are known already.

    Runs one pair again, for its pictures. Raises UsageError for rows that no figure can be made of.
    """
    measures, pairs = measuring.measures, measuring.pairs
    ran = [runner for runner, _ in measuring.opened]
    rows = [[table.rows[measure.name] for measure in measures] for table in tables]
    for measure, of_measure in zip(measures, rows[0], strict=True):
        measure.check(of_measure)
    untouched = dict(untouched_figures(tables[0]))
    inputs, targets = digests or (pairs.inputs.digest, pairs.targets_digest)
    return Quality(
        task=ran[0].spec.task,
        metric=own.name if own is not None else "",
        metric_file=own.file if own is not None else "",
        dataset=pairs.name,
        dataset_sha256=inputs,
        targets_sha256=targets,
        images=len(pairs),
        reused=reused,
        untouched=untouched,
        artifacts=tuple(_report(runner, of, measures, confidence) for runner, of in zip(ran, rows, strict=True)),
        drops=tuple(
            drop_of(ran, rows, n, measure, at, confidence, max_drop if not at else None, pairs, untouched)
            for n in range(1, len(ran))
            for at, measure in enumerate(measures)
        ),
        not_evaluated=tuple(absent),
        image_notes=pairs.notes,
        confidence=confidence,
        seconds=0.0,
        worst=worst_pair(measuring, [of[0] for of in rows]),
        lower_is_better=measures[0].sign < 0,
    )


def require_enough(count: int, max_drop: float | None, confidence: float, measures: Sequence[Measure]) -> None:
    """Raises UsageError for too few pairs, or a confidence that they do not give."""
    least = LEAST if max_drop is not None else 2
    if count < least:
        few = "1 pair is" if count == 1 else f"{count} pairs are"
        raise UsageError(
            f"{few} too few: an interval needs at least {least}" + (" with --max-drop" if max_drop else ""),
            advice="give more pairs",
        )
    require_confidence(confidence, measures)


def require_confidence(confidence: float, measures: Sequence[Measure]) -> None:
    """Raises UsageError for a confidence, in per cent, that resampled images do not reach."""
    if confidence > MOST_CONFIDENT and not measures[0].is_mean:
        raise UsageError(
            f"--confidence {confidence:g}: at most {MOST_CONFIDENT:g} for {measures[0].name}, whose interval comes from "
            "resampled images",
            advice="give a lower one",
        )


def _report(runner: Runner, rows: Sequence[Rows], measures: Sequence[Measure], confidence: float) -> QualityReport:
    return QualityReport(
        artifact=runner.name,
        backend=runner.backend,
        precision=runner.precision,
        sha256=runner.artifact.sha256,
        figures=tuple(_figure(measure, of, confidence) for measure, of in zip(measures, rows, strict=True)),
    )


def _figure(measure: Measure, rows: Rows, confidence: float) -> Figure:
    """A figure with its two-sided interval."""
    two_sided = (1 + confidence / 100) / 2
    if measure.is_mean:
        found = drop_of_mean(rows[:, 0], two_sided)
    else:
        found = drop_of_ratio(lambda weights: measure.figure(rows, weights), len(rows), two_sided)
    return Figure(name=measure.name, unit=measure.unit, value=found.drop, low=found.low, high=found.high)


def drop_of(
    ran: Sequence[Runner],
    rows: Sequence[Sequence[Rows]],
    n: int,
    measure: Measure,
    at: int,
    confidence: float,
    max_drop: float | None,
    pairs: PairedData,
    untouched: dict[str, float],
) -> QualityDrop:
    """How far the n-th artifact is worse than the first by one figure."""
    before, after = rows[0][at], rows[n][at]
    worst: int | None = None
    if measure.is_mean:
        each = measure.sign * (before - after)[:, 0]
        found, worst = drop_of_mean(each, confidence / 100), int(each.argmax())
    else:
        found = drop_of_ratio(
            lambda weights: measure.sign * (measure.figure(before, weights) - measure.figure(after, weights)),
            len(before),
            confidence / 100,
        )
    decision = None if max_drop is None else decide((found.low, found.high), max_drop)
    reached = float(measure.figure(before, np.ones((1, len(before))))[0])
    guessing = useless(ran[0].shown, measure.name, measure.unit, reached, untouched.get(measure.name), measure.sign)
    if decision == "pass" and guessing:
        decision = "inconclusive"
    guessing = guessing if decision == "inconclusive" else ""
    return QualityDrop(
        first=ran[0].shown,
        second=ran[n].shown,
        figure=measure.name,
        unit=measure.unit,
        images=found.images,
        drop=found.drop,
        drop_low=found.low,
        drop_high=found.high,
        spread=found.spread,
        confidence=confidence,
        worst=pairs.name_of(worst) if worst is not None else None,
        worst_drop=float(each[worst]) if worst is not None else None,
        max_drop=max_drop,
        decision=decision,
        images_to_decide=images_for(found, max_drop, confidence / 100)
        if max_drop is not None and decision == "inconclusive" and not guessing
        else None,
        guessing=guessing,
    )
