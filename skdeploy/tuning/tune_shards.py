"""``skdeploy tune`` divided by way: parts that screen, and parts that run the survivors on all images that choose.

The merge follows the steps of one run and takes rows from the parts. It does the rest itself: kept units where no way keeps the
budget, and the winner on the images that chose nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, Literal

from pydantic import JsonValue, TypeAdapter, ValidationError

from skdeploy.accuracy.kept_parts import parts_by
from skdeploy.accuracy.own_metric import file_digest
from skdeploy.core import cpu
from skdeploy.core.errors import UsageError
from skdeploy.core.files import digest_json
from skdeploy.core.progress import Progress, Silent
from skdeploy.core.spec import Frozen
from skdeploy.images.dataset import Dataset, open_dataset
from skdeploy.images.pairs import PairedData
from skdeploy.shards.cluster import Cluster
from skdeploy.shards.collect import check_job, checked, paths_of
from skdeploy.shards.data import listing_digest
from skdeploy.shards.held import held
from skdeploy.shards.machine import machine_kind, versions
from skdeploy.shards.part import Job, Part, earlier_or_made, read_part
from skdeploy.shards.shard import Shard
from skdeploy.tuning.candidates import FALLBACKS, Candidate, candidates
from skdeploy.tuning.options import TuneOptions
from skdeploy.tuning.report import Tried, TuneReport
from skdeploy.tuning.sweep import Rounds, Sweep, survivors
from skdeploy.tuning.tune import opened, swept, tune

Step = Literal["screening", "choosing"]
Work = Sequence[Candidate | Tried]
Collect = Callable[[Job], Sequence[Part] | None]
STEP: Final = "step"
_ROWS: Final = TypeAdapter(tuple[Tried, ...])


class TuneFacts(Frozen):
    """``rows`` as JSON text, which holds infinite bounds, and SHA-256 of the samples that gave them: of none without rows."""

    samples_sha256: str
    rows: str


def tune_job(sweep: Sweep, step: Step, ways: Sequence[str]) -> Job:
    """The job of one step; ``ways`` by name. Every option that changes a figure or a decision is in it."""
    asked, shop = sweep.options, sweep.shop
    images = open_dataset(shop.calib, spec=sweep.spec)
    given: dict[str, JsonValue] = {
        STEP: step,
        "ways": list(ways),
        "--calib": images.digest,
        "--calib-num": asked.calib_num,
        "--max-drop": asked.max_drop,
        "--min-sqnr": asked.min_sqnr,
        "--confidence": asked.confidence,
        "--device": asked.device,
        "--metric": asked.metric,
    }
    if asked.metric is not None:
        given["file of --metric"] = file_digest(asked.metric)
    return Job(
        verb="tune",
        made_of={shop.fp32.path: shop.fp32.sha256, "card": digest_json(sweep.spec.model_dump(mode="json"))},
        data=sweep.truth.inputs.name,
        data_sha256=listing_digest(sweep.truth.inputs),
        samples=len(sweep.truth.inputs),
        options=given,
        versions=versions(),
    )


def tune_shard(
    folder: Path,
    options: TuneOptions,
    shard: Shard,
    tell: Progress,
    *,
    collect: Collect | None = None,
    earlier: Part | None = None,
) -> Part:
    """The part of one shard of the ways, screened; with ``collect``, which gives the parts of all, of the survivors on all
    images that choose. ``earlier`` if it is that part already. Raises as ``tune`` and ``shards.collect.checked``.
    """
    bundle, truth = opened(folder, options, tell)
    with swept(bundle, truth, options, tell) as sweep:
        ways = candidates(options.methods)
        step: Step = "screening" if collect is None else "choosing"
        work: Work = ways if collect is None else _to_judge(Divided(collect).screened(sweep, ways))
        if not work:
            sweep.screen(ways[0], ways[0].name)  # raises why there is no such graph
        job = tune_job(sweep, step, [one.name for one in work])
        return earlier_or_made(earlier, job, shard, tell, lambda: _made(sweep, job, work, shard))


def _made(sweep: Sweep, job: Job, work: Work, shard: Shard) -> Part:
    """A calibration is tried with each fallback, and made once: its ways stay together."""
    started = time.perf_counter()
    mine = [work[place] for place in _span(job, shard)]
    rows = sweep.screen_all([one for one in mine if isinstance(one, Candidate)])
    rows += sweep.judge_all([one for one in mine if isinstance(one, Tried)])
    facts = TuneFacts(
        samples_sha256=_samples_sha256(sweep, job) if rows else "",
        rows=json.dumps([row.model_dump() for row in rows]),
    )
    return Part.made(job, shard, time.perf_counter() - started, facts)


def _span(job: Job, shard: Shard) -> range:
    ways = job.options["ways"]
    assert isinstance(ways, list)  # as tune_job wrote it; options may hold any JSON
    return shard.span(len(ways), len(FALLBACKS) if job.options[STEP] == "screening" else 1)


def _samples_sha256(sweep: Sweep, job: Job) -> str:
    parts = sweep.truth.parts
    samples: Dataset | PairedData = parts.screening if job.options[STEP] == "screening" else parts.choosing
    if isinstance(samples, Dataset):
        return samples.digest
    return digest_json([samples.inputs.digest, samples.targets_digest])


@dataclass(frozen=True)
class Divided(Rounds):
    """Rows from parts: ``collect`` gives the checked parts of a job in order, or None where this process is to do the step."""

    collect: Collect

    def screened(self, sweep: Sweep, ways: Sequence[Candidate]) -> list[Tried]:
        rows = self._rows(sweep, "screening", [way.name for way in ways])
        if rows is None:
            raise UsageError(
                "--parts has no part that screened: only parts of a later step",
                advice="give the parts of `tune --shard` without --parts, too",
            )
        return rows

    def judged(self, sweep: Sweep, rows: Sequence[Tried]) -> list[Tried]:
        found = self._rows(sweep, "choosing", [row.name for row in rows])
        if found is None:
            sweep.tell.note(
                f"{len(rows)} ways run on all {len(sweep.truth.parts.choosing):,} {sweep.truth.word}s that choose, here: "
                "--shard with these --parts divides that, too"
            )
            return sweep.judge_all(rows)
        return found

    def _rows(self, sweep: Sweep, step: Step, names: Sequence[str]) -> list[Tried] | None:
        job = tune_job(sweep, step, names)
        parts = self.collect(job)
        if parts is None:
            return None
        digest = _samples_sha256(sweep, job)
        return [row for part in parts for row in _rows_of(part, job, names, digest)]


def _rows_of(part: Part, job: Job, names: Sequence[str], digest: str) -> tuple[Tried, ...]:
    """Raises IntegrityError for another content, UsageError for other samples."""
    facts = part.facts_as(TuneFacts)
    try:
        rows = _ROWS.validate_json(facts.rows)
    except ValidationError as error:
        raise part.other_content() from error
    if [row.name for row in rows] != [names[place] for place in _span(job, part.header.shard)]:
        raise part.other_content()
    if job.options[STEP] == "choosing" and any(row.pair is None for row in rows):
        raise part.other_content()
    if rows and facts.samples_sha256 != digest:
        raise UsageError(
            f"{part.name} was made of other data: samples of the same names have another content here",
            advice="give the same --data as for the parts, or make the parts again",
        )
    return rows


def _to_judge(rows: Sequence[Tried]) -> list[Tried]:
    return [rows[place] for place in survivors(rows)]


def collect_steps(patterns: Sequence[str], tell: Progress, *, allow_mixed_cpus: bool) -> Collect:
    """A function that gives the parts of one step among all that ``patterns`` name. Raises as ``shards.collect.collect``."""
    parts = [read_part(path) for path in paths_of(patterns)]

    def of(job: Job) -> Sequence[Part] | None:
        choosing = job.options[STEP] == "choosing"
        mine = [part for part in parts if (part.header.job.options.get(STEP) == "choosing") == choosing]
        return checked(mine, job, tell, allow_mixed_cpus=allow_mixed_cpus, here=machine_kind()) if mine else None

    return of


def tune_on(
    folder: Path,
    options: TuneOptions,
    tell: Progress,
    *,
    cluster: Cluster,
    fresh: bool = False,
    allow_mixed_cpus: bool = False,
) -> TuneReport:
    """``tune`` by the workers of a cluster, which need the bundle and all samples at the same paths. Parts are kept in the
    user's cache folder. Raises as ``tune`` and ``run_shards``.
    """
    cluster.begin(__name__)
    calib = None if options.calib is None else options.calib.absolute()
    far = replace(options, data=options.data.absolute(), calib=calib, output=None)
    return tune(folder, options, tell, rounds=_ByWorkers(cluster, folder.absolute(), far, fresh, allow_mixed_cpus))


@dataclass(frozen=True)
class _ByWorkers(Rounds):
    cluster: Cluster
    folder: Path
    options: TuneOptions
    fresh: bool
    allow_mixed_cpus: bool

    def screened(self, sweep: Sweep, ways: Sequence[Candidate]) -> list[Tried]:
        count = -(-len(ways) // len(FALLBACKS))
        return Divided(partial(self._parts, sweep, ways, count)).screened(sweep, ways)

    def judged(self, sweep: Sweep, rows: Sequence[Tried]) -> list[Tried]:
        return Divided(partial(self._parts, sweep, rows, len(rows))).judged(sweep, rows)

    def _parts(self, sweep: Sweep, work: Work, count: int, job: Job) -> Sequence[Part]:
        shards = {shard: len(_span(job, shard)) for shard in (Shard(index, count) for index in range(1, count + 1))}
        sweep.tell.prefix = "screening" if job.options[STEP] == "screening" else "on all that choose"
        return parts_by(
            self.cluster,
            job,
            shards,
            partial(part_of_worker, self.folder, self.options, job, tuple(work)),
            sweep.tell,
            fresh=self.fresh,
            allow_mixed_cpus=self.allow_mixed_cpus,
            word="ways",
            here=machine_kind(),
        )


def part_of_worker(folder: Path, options: TuneOptions, job: Job, work: Work, shard: Shard) -> bytes:
    """The part of a shard of ``work``, on one thread of a worker, which keeps FP32 and the samples for the next shard.

    Raises UsageError where this machine has another bundle, other samples or other packages than whoever asks.
    """
    with cpu.limited(1):
        sweep = held(job, options, partial(_opened, folder, options, job, [one.name for one in work]))
        return _made(sweep, job, work, shard).encode()


@contextmanager
def _opened(folder: Path, options: TuneOptions, job: Job, ways: Sequence[str]) -> Iterator[Sweep]:
    bundle, truth = opened(folder, options, Silent())
    with swept(bundle, truth, options, Silent()) as sweep:
        step: Step = "screening" if job.options[STEP] == "screening" else "choosing"
        check_job(job, tune_job(sweep, step, ways), "this worker's share")
        yield sweep
