"""Pairs through several artifacts at once, a batch at a time: what each makes of an input, beside what should come out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skdeploy.accuracy.mean_drop import LEAST, MOST_CONFIDENT, drop_of_mean, drop_of_ratio, images_for
from skdeploy.accuracy.measures import Measure, Rows, measures_of
from skdeploy.accuracy.own_metric import OwnMetric
from skdeploy.accuracy.quality import Figure, Quality, QualityDrop, QualityReport
from skdeploy.accuracy.statistics import decide
from skdeploy.accuracy.streaming import TELL_SECONDS, bar, open_all
from skdeploy.accuracy.untouched import useless
from skdeploy.accuracy.worst_pair import WorstPair
from skdeploy.backends.base import Array, Session
from skdeploy.backends.logits import check_outputs, run_batches
from skdeploy.bundle.runners import Runner
from skdeploy.core.errors import ParityError, UsageError
from skdeploy.core.progress import Progress
from skdeploy.images.dataset import Pixels
from skdeploy.images.feeds import batches_of
from skdeploy.images.pairs import PairedData, open_pairs
from skdeploy.parity.worst_image import WorstImage


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
) -> Quality:
    """The figures of each artifact, and how far each but the first is worse than the first.

    ``max_drop``, a budget, is in the unit of the first figure; ``confidence`` in per cent. Raises UsageError for pairs that do
    not match, cannot be read or do not fit the network, or that are too few; ParityError for outputs that are not finite.
    """
    started = time.perf_counter()
    tell.begin("evaluate")
    spec = runners[0].spec
    measures = measures_of(spec, own)
    pairs = open_pairs(data, spec, number)
    for note in pairs.notes:
        tell.note(note)
    _require_enough(len(pairs), max_drop, confidence, measures)
    with open_all(runners, optional) as (opened, absent):
        if max_drop is not None and len(opened) < 2:
            raise UsageError(
                f"--max-drop needs two artifacts, but {opened[0][0].name} is the only one"
                + (f" that runs here: {absent[0].artifact}: {absent[0].reason}" if absent else ""),
                advice="give --against torch or another bundle",
            )
        rows, untouched, worst = _rows(opened, pairs, measures, batch, tell)
    seconds = time.perf_counter() - started
    tell.end("evaluate", seconds, reused=False)
    ran = [runner for runner, _ in opened]
    return Quality(
        task=spec.task,
        metric=own.name if own is not None else "",
        metric_file=own.file if own is not None else "",
        dataset=pairs.name,
        dataset_sha256=pairs.inputs.digest,
        targets_sha256=pairs.targets_digest,
        images=len(pairs),
        untouched=untouched,
        artifacts=tuple(_report(runner, of, measures, confidence) for runner, of in zip(ran, rows, strict=True)),
        drops=tuple(
            _drop(ran, rows, n, measure, at, confidence, max_drop if not at else None, pairs, untouched)
            for n in range(1, len(ran))
            for at, measure in enumerate(measures)
        ),
        not_evaluated=tuple(absent),
        image_notes=pairs.notes,
        confidence=confidence,
        seconds=round(seconds, 3),
        worst=worst,
    )


def _require_enough(count: int, max_drop: float | None, confidence: float, measures: Sequence[Measure]) -> None:
    least = LEAST if max_drop is not None else 2
    if count < least:
        raise UsageError(
            f"{count} pairs are too few: an interval needs at least {least}" + (" with --max-drop" if max_drop else ""),
            advice="give more pairs",
        )
    if confidence > MOST_CONFIDENT and not measures[0].is_mean:
        raise UsageError(
            f"--confidence {confidence:g}: at most {MOST_CONFIDENT:g} for {measures[0].name}, whose interval comes from "
            "resampled images",
            advice="give a lower one",
        )


def _rows(
    opened: Sequence[tuple[Runner, Session]],
    pairs: PairedData,
    measures: Sequence[Measure],
    batch: int,
    tell: Progress,
) -> tuple[list[list[Rows]], dict[str, float], WorstImage | None]:
    """Rows of each artifact, by measure, (N, columns) each; the figures of the inputs as they are; and the worst pair."""
    kind = measures[0].kind
    found: list[list[list[list[float]]]] = [[[] for _ in measures] for _ in opened]
    before: list[list[float | None]] = [[] for _ in measures]
    worst = WorstPair([runner for runner, _ in opened], measures[0])
    started = told = time.perf_counter()
    for start in range(0, len(pairs), batch):
        indices = range(start, min(start + batch, len(pairs)))
        # Each artifact reads as its own spec says; the targets are cut as the first one's inputs are.
        read = [pairs.read(index, opened[0][0].spec, kind) for index in indices]
        given: list[list[dict[str, Array]]] = []
        for (runner, session), of_runner in zip(opened, found, strict=True):
            outputs = _outputs(runner, session, [crop for crop, _ in read], pairs, start)
            given.append([{name: value[place] for name, value in outputs.items()} for place in range(len(indices))])
            for sample, index, (_, target) in zip(given[-1], indices, read, strict=True):
                for measure, column in zip(measures, of_runner, strict=True):
                    column.append(measure.of(sample, target, pairs.target_name(index), runner.spec))
        for place, index in enumerate(indices):
            worst.see(index, [of[0][index] for of in found], [samples[place] for samples in given])
        for measure, values in zip(measures, before, strict=True):
            values += [measure.untouched(crop, target) for crop, target in read]
        if (now := time.perf_counter()) - told >= TELL_SECONDS:
            told = now
            tell.update(bar(indices.stop, len(pairs), 0, now - started, "pair"))
    untouched = {
        measure.name: float(np.mean([value for value in values if value is not None]))
        for measure, values in zip(measures, before, strict=True)
        if None not in values
    }
    rows = [[np.asarray(column, np.float64) for column in of_runner] for of_runner in found]
    for measure, of_measure in zip(measures, rows[0], strict=True):
        measure.check(of_measure)
    return rows, untouched, worst.shown(pairs)


def _outputs(
    runner: Runner, session: Session, crops: Sequence[Pixels], pairs: PairedData, start: int
) -> dict[str, NDArray[Any]]:
    parts: dict[str, list[Array]] = {}
    for outputs, count in run_batches(session, batches_of(crops, runner.spec, session.inputs, len(crops))):
        problems = check_outputs(outputs, count, runner.spec)
        if problems:
            raise ParityError(
                f"{runner.shown} gives no usable outputs from {pairs.name_of(start)} on: {problems[0]}",
                advice="check the artifact with `skdeploy verify`: the weights or the precision do not suit this image",
            )
        for name, value in outputs.items():
            parts.setdefault(name, []).append(value)
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


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


def _drop(
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
