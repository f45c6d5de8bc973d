"""``skdeploy evaluate`` on pairs, divided: the rows of a shard as a part, and the figures of all parts, equal in every bit.

The merge runs one pair again for its pictures: the one that loses most.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field, JsonValue

from skdeploy.accuracy.evaluate import Chosen, EvaluationOptions, require_pair
from skdeploy.accuracy.evaluate_cluster import by_workers
from skdeploy.accuracy.evaluate_quality import chosen_for_pairs, keep_quality
from skdeploy.accuracy.evaluate_shards import made_of, options_of, refuse_receipt
from skdeploy.accuracy.gate import NotEvaluated
from skdeploy.accuracy.measure_quality import quality_of, require_enough
from skdeploy.accuracy.measures import Measure, measures_of
from skdeploy.accuracy.own_metric import OwnMetric, file_digest
from skdeploy.accuracy.quality import Quality
from skdeploy.accuracy.quality_rows import Measuring, PairRows
from skdeploy.accuracy.streaming import open_all
from skdeploy.backends.base import Session
from skdeploy.bundle.runners import Runner
from skdeploy.core import cpu
from skdeploy.core.errors import UsageError
from skdeploy.core.files import digest_file, digest_json
from skdeploy.core.progress import Progress, Silent
from skdeploy.core.spec import Frozen
from skdeploy.images.dataset import joined_digest
from skdeploy.images.pairs import PairedData, open_pairs
from skdeploy.shards.cluster import Cluster
from skdeploy.shards.collect import Collect, check_job
from skdeploy.shards.data import check_files, listing_digest
from skdeploy.shards.held import held
from skdeploy.shards.machine import versions
from skdeploy.shards.part import Job, Part, earlier_or_made
from skdeploy.shards.shard import Shard

Opened = Sequence[tuple[Runner, Session]]
Texts = Annotated[tuple[str, ...], Field(strict=False)]


class RowsFacts(Frozen):
    """Beside the rows: the artifacts that ran, in their order, those that do not run there, and SHA-256 of each file."""

    ran: Texts
    absent: Annotated[tuple[NotEvaluated, ...], Field(strict=False)]
    inputs: Texts
    targets: Texts


@dataclass(frozen=True)
class QualityJob:
    """A job with its artifacts, pairs and measures."""

    job: Job
    chosen: Chosen
    own: OwnMetric | None
    pairs: PairedData
    measures: Sequence[Measure]

    def measuring(self, opened: Opened, pairs: PairedData, batch: int, tell: Progress) -> Measuring:
        return Measuring(opened, pairs, self.measures, batch, tell, keeps=False)


def quality_job(folder: Path, options: EvaluationOptions, tell: Progress) -> QualityJob:
    """The job that these options describe. Raises as ``evaluate_quality`` before it measures."""
    chosen, own = chosen_for_pairs(folder, options, tell)
    runners = [*chosen.runners, *chosen.optional]
    pairs = open_pairs(options.data, runners[0].spec, options.num_images)
    given: dict[str, JsonValue] = {"batch": options.batch, "--metric": options.metric}
    given |= options_of(runners)
    if options.metric is not None:
        given["file of --metric"] = file_digest(options.metric)
    targets = [pairs.target_name(index) for index in range(len(pairs))] if pairs.rows is None else pairs.targets_digest
    job = Job(
        verb="evaluate",
        made_of=made_of(runners),
        data=pairs.name,
        data_sha256=digest_json([listing_digest(pairs.inputs), _names(targets)]),
        samples=len(pairs),
        options=given,
        versions=versions(),
    )
    return QualityJob(job, chosen, own, pairs, measures_of(runners[0].spec, own))


def _names(targets: list[str] | str) -> list[str] | str:
    """File names without their folders, which other machines may have elsewhere."""
    return targets if isinstance(targets, str) else [Path(name).name for name in targets]


def quality_shard(
    folder: Path, options: EvaluationOptions, shard: Shard, tell: Progress, *, earlier: Part | None = None
) -> Part:
    """The part of one shard of the pairs; ``earlier`` if it is that already. Raises as ``evaluate_quality``."""
    of = quality_job(folder, options, tell)

    def make() -> Part:
        with open_all(of.chosen.runners, of.chosen.optional) as (opened, absent):
            return _measured(of, opened, absent, options.batch, shard, tell)

    return earlier_or_made(earlier, of.job, shard, tell, make)


def _measured(
    of: QualityJob, opened: Opened, absent: Sequence[NotEvaluated], batch: int, shard: Shard, tell: Progress
) -> Part:
    started = time.perf_counter()
    mine = of.pairs.take(shard.span(len(of.pairs), batch))
    tables, _ = of.measuring(opened, mine, batch, tell).rows(fresh=True)
    facts = RowsFacts(
        ran=tuple(runner.shown for runner, _ in opened),
        absent=tuple(absent),
        inputs=mine.inputs.file_digests,
        targets=tuple(digest_file(file) for file in mine.files),
    )
    arrays = {f"{n} {name}": column for n, table in enumerate(tables) for name, column in table.columns.items()}
    return Part.made(of.job, shard, time.perf_counter() - started, facts, arrays)


def merge_quality(folder: Path, options: EvaluationOptions, tell: Progress, *, collect: Collect) -> Quality:
    """The figures of all pairs from parts, equal in every bit to those of one run, and kept as those are.

    ``collect`` gives the checked parts of a job in order. Raises as ``evaluate_quality`` and ``shards.collect.collect``;
    UsageError where the artifacts of the parts do not run here.
    """
    refuse_receipt(options)
    of = quality_job(folder, options, tell)
    pairs = of.pairs
    for note in pairs.notes:
        tell.note(note)
    require_enough(len(pairs), options.max_drop, options.confidence, of.measures)
    parts = collect(of.job)
    with open_all(of.chosen.runners, of.chosen.optional) as (opened, absent):
        ran = tuple(runner.shown for runner, _ in opened)
        require_pair(options.max_drop, [runner for runner, _ in opened], absent)
        measuring = of.measuring(opened, pairs, options.batch, tell)
        tables = [measuring.table(n) for n in range(len(opened))]
        inputs: list[str] = []
        targets: list[str] = []
        for part in parts:
            facts, span = part.facts_as(RowsFacts), part.header.shard.span(len(pairs), options.batch)
            if facts.ran != ran:
                raise UsageError(
                    f"{part.name} has {', '.join(facts.ran)}, but here {', '.join(ran)} run",
                    advice="merge on a machine that runs the same artifacts, or name what to evaluate with --artifact",
                )
            _take(part, tables, span)
            check_files(part, facts.inputs, pairs.inputs, span)
            check_files(part, facts.targets, replace(pairs.inputs, files=pairs.files, pixels=None), span)
            inputs += facts.inputs
            targets += facts.targets
        digests = (
            joined_digest(inputs) if pairs.inputs.files else pairs.inputs.digest,
            joined_digest(targets) if pairs.files else pairs.targets_digest,
        )
        found = quality_of(
            measuring,
            tables,
            absent,
            of.own,
            max_drop=options.max_drop,
            confidence=options.confidence,
            reused=0,
            digests=digests,
        )
    found = found.model_copy(update={"seconds": round(sum(part.header.seconds for part in parts), 3)})
    keep_quality(of.chosen, found, options, tell)
    return found


def quality_on(
    folder: Path, options: EvaluationOptions, tell: Progress, *, cluster: Cluster, allow_mixed_cpus: bool = False
) -> Quality:
    """The same by the workers of a cluster, which need the bundle and the pairs at the same paths.

    Raises as ``merge_quality`` and ``run_shards``.
    """
    cluster.begin(__name__)
    collect = by_workers(
        part_of_worker, folder, options, tell, cluster=cluster, allow_mixed_cpus=allow_mixed_cpus, word="pairs"
    )
    return merge_quality(folder, options, tell, collect=collect)


def part_of_worker(folder: Path, options: EvaluationOptions, job: Job, shard: Shard) -> bytes:
    """The part of a shard, on one thread of a worker, which keeps the artifacts open for the next shard.

    Raises UsageError where this machine has another bundle, other pairs or other packages than whoever asks.
    """
    with cpu.limited(1):
        of, opened, absent = held(job, options, partial(_opened, folder, options, job))
        return _measured(of, opened, absent, options.batch, shard, Silent()).encode()


@contextmanager
def _opened(
    folder: Path, options: EvaluationOptions, job: Job
) -> Iterator[tuple[QualityJob, Opened, Sequence[NotEvaluated]]]:
    of = quality_job(folder, options, Silent())
    check_job(job, of.job, "this worker's share")
    with open_all(of.chosen.runners, of.chosen.optional) as (opened, absent):
        yield of, opened, absent


def _take(part: Part, tables: Sequence[PairRows], span: range) -> None:
    """A part's rows, in their places. Raises IntegrityError for another content."""
    for n, table in enumerate(tables):
        for name, column in table.columns.items():
            rows = part.arrays.get(f"{n} {name}")
            if rows is None or rows.dtype != column.dtype or rows.shape != (len(span), *column.shape[1:]):
                raise part.other_content()
            column[span.start : span.stop] = rows
        table.done = span.stop
