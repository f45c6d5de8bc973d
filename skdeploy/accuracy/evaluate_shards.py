"""``skdeploy evaluate`` divided: a shard's predictions as a part, and the evaluation of all parts, equal in every bit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field, JsonValue

from skdeploy.accuracy.evaluate import (
    Chosen,
    EvaluationOptions,
    concluded,
    evaluation_of,
    labelled_images,
    naming_spec,
    prepared,
    require_pair,
)
from skdeploy.accuracy.gate import Evaluation, NotEvaluated
from skdeploy.accuracy.predictions import Predictions
from skdeploy.accuracy.reuse import reads_of
from skdeploy.accuracy.streaming import check_unreadable, open_all, predict_all
from skdeploy.backends.base import Session
from skdeploy.bundle.runners import Runner
from skdeploy.core.errors import UsageError
from skdeploy.core.files import digest_json
from skdeploy.core.progress import Progress
from skdeploy.core.spec import Frozen
from skdeploy.images.audit_report import Unreadable
from skdeploy.images.dataset import Dataset, joined_digest
from skdeploy.shards.collect import Collect
from skdeploy.shards.data import check_files, listing_digest
from skdeploy.shards.machine import versions
from skdeploy.shards.part import Job, Part, earlier_or_made
from skdeploy.shards.shard import Shard

OpenedJob = tuple[Sequence[tuple[Runner, Session]], Sequence[NotEvaluated], Dataset]


class UnreadableRow(Frozen):
    """A row of a part whose image cannot be read, and why."""

    row: int
    name: str
    reason: str


class PartFacts(Frozen):
    """Beside the logits: the artifacts that ran, in the order of ``logits0``, ``logits1`` ..., those that do not run there,
    SHA-256 of each image file, and what each artifact could not have.
    """

    ran: Annotated[tuple[str, ...], Field(strict=False)]
    absent: Annotated[tuple[NotEvaluated, ...], Field(strict=False)]
    files: Annotated[tuple[str, ...], Field(strict=False)]
    unreadable: Annotated[tuple[Annotated[tuple[UnreadableRow, ...], Field(strict=False)], ...], Field(strict=False)]


def evaluation_job(folder: Path, options: EvaluationOptions, tell: Progress) -> tuple[Job, Chosen, Dataset]:
    """The job that these options describe, the artifacts, and all images. Raises UsageError, IntegrityError."""
    chosen = prepared(folder, options, tell)
    runners = [*chosen.runners, *chosen.optional]
    dataset = labelled_images(options.data, naming_spec(chosen.runners), options.num_images, options.class_order)
    job = Job(
        verb="evaluate",
        made_of=made_of(runners),
        data=dataset.name,
        data_sha256=listing_digest(dataset),
        samples=len(dataset),
        options={"batch": options.batch, **options_of(runners)},
        versions=versions(),
    )
    return job, chosen, dataset


def made_of(runners: Sequence[Runner]) -> dict[str, str]:
    """SHA-256 of each artifact, and of what its card says about inputs and outputs."""
    cards = {f"card of {runner.shown}": digest_json(reads_of(runner.spec)) for runner in runners}
    return {runner.shown: runner.artifact.sha256 for runner in runners} | cards


def options_of(runners: Sequence[Runner]) -> dict[str, JsonValue]:
    """The options of each backend that has some."""
    return {f"options of {runner.shown}": repr(runner.options) for runner in runners if runner.options is not None}


def for_workers(options: EvaluationOptions) -> EvaluationOptions:
    """The same options for a worker in another folder: paths are absolute."""
    against = options.against
    if against is not None and Path(against).is_dir():
        against = str(Path(against).absolute())
    return replace(options, data=options.data.absolute(), against=against)


def evaluate_shard(
    folder: Path, options: EvaluationOptions, shard: Shard, tell: Progress, *, earlier: Part | None = None
) -> Part:
    """The predictions of one shard of the images by each artifact that runs here; ``earlier`` if it is that part already.

    Raises as ``evaluate``; unreadable images only where they alone are more than 1 % of all.
    """
    job, chosen, dataset = evaluation_job(folder, options, tell)

    def make() -> Part:
        with open_all(chosen.runners, chosen.optional) as (opened, absent):
            return predicted_part(job, opened, absent, dataset, options, shard, tell)

    return earlier_or_made(earlier, job, shard, tell, make)


def predicted_part(
    job: Job,
    opened: Sequence[tuple[Runner, Session]],
    absent: Sequence[NotEvaluated],
    dataset: Dataset,
    options: EvaluationOptions,
    shard: Shard,
    tell: Progress,
) -> Part:
    """One shard of all images, ``dataset``, through the opened artifacts. Raises as ``evaluate_shard``."""
    started = time.perf_counter()
    mine = dataset.take(shard.span(len(dataset), options.batch))
    predictions = [Predictions.none_yet(len(mine), runner.spec) for runner, _ in opened]
    if len(mine):
        predict_all(opened, mine, options.batch, predictions, lambda _: None, tell, whole=len(dataset))
    seconds = time.perf_counter() - started
    facts = PartFacts(
        ran=tuple(runner.shown for runner, _ in opened),
        absent=tuple(absent),
        files=mine.file_digests,
        unreadable=tuple(
            tuple(UnreadableRow(row=row, name=of[row].name, reason=of[row].reason) for row in sorted(of))
            for of in (each.unreadable for each in predictions)
        ),
    )
    return Part.made(job, shard, seconds, facts, {f"logits{n}": of.logits for n, of in enumerate(predictions)})


def refuse_receipt(options: EvaluationOptions) -> None:
    """Raises UsageError for --receipt, which no merge can give."""
    if options.receipt:
        raise UsageError(
            "--receipt records what this device computed, and the parts may come from others",
            advice="leave it out, or evaluate in one run on this device",
        )


def merge_evaluation(folder: Path, options: EvaluationOptions, tell: Progress, *, collect: Collect) -> Evaluation:
    """The evaluation of all images from parts, equal in every bit to that of one run, and kept as evidence as that is.

    ``collect`` gives the checked parts of a job in order. Raises as ``evaluate`` and ``shards.collect.collect``.
    """
    refuse_receipt(options)
    job, chosen, dataset = evaluation_job(folder, options, tell)
    parts = collect(job)
    first, *others = parts
    for part in others:
        _check_same_artifacts(first, part)
    facts = first.facts_as(PartFacts)
    runners = [runner for runner in (*chosen.runners, *chosen.optional) if runner.shown in facts.ran]
    require_pair(options.max_drop, runners, facts.absent)
    spans = [part.header.shard.span(len(dataset), options.batch) for part in parts]
    predictions = [Predictions.none_yet(len(dataset), runner.spec) for runner in runners]
    digests: list[str] = []
    for part, span in zip(parts, spans, strict=True):
        for n, of in enumerate(predictions):
            _take(part, n, span, of)
        mine = part.facts_as(PartFacts).files
        check_files(part, mine, dataset, span)
        digests += mine
    check_unreadable(predictions, dataset)
    found = evaluation_of(
        runners,
        facts.absent,
        predictions,
        dataset,
        options,
        reused=0,
        seconds=sum(part.header.seconds for part in parts),
        digest=joined_digest(digests) if dataset.files else dataset.digest,
    )
    return concluded(chosen, found, options, tell)


def _check_same_artifacts(first: Part, other: Part) -> None:
    """Raises UsageError where an engine ran in one part only."""
    one, two = ({*part.facts_as(PartFacts).ran} for part in (first, other))
    for name in sorted(one ^ two):
        has, lacks = (first, other) if name in one else (other, first)
        raise UsageError(
            f"{name} ran in {has.name}, but not in {lacks.name}",
            advice="use machines that run the same artifacts, or name what to evaluate with --artifact",
        )


def _take(part: Part, n: int, span: range, into: Predictions) -> None:
    """The n-th artifact's predictions of a part, in their places. Raises IntegrityError for another content."""
    logits, listed = part.arrays.get(f"logits{n}"), part.facts_as(PartFacts).unreadable[n]
    if logits is None or logits.shape != (len(span), into.logits.shape[1]) or logits.dtype != into.logits.dtype:
        raise part.other_content()
    missing = np.flatnonzero(np.isnan(logits[:, 0])).tolist()
    if missing != [each.row for each in listed]:
        raise part.other_content()
    if span:
        into.logits[span.start : span.stop] = logits
    into.unreadable |= {span[each.row]: Unreadable(name=each.name, reason=each.reason) for each in listed}
    into.done = span.stop
