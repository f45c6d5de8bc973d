"""``skdeploy tune`` divided by way: parts that screen, and parts that run the survivors on all images that choose. Where none
of those keeps the budget, parts that measure the noise of units, and parts that try to keep units.

The merge follows the steps of one run and takes rows from the parts. It does the steps itself that it has no parts of, and runs
the winner on the images that chose nothing.
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
from skdeploy.core.errors import ParityError, UsageError
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
from skdeploy.tuning.sweep import Rounds, Sweep, best_of
from skdeploy.tuning.tune import opened, swept, tune

Step = Literal["screening", "choosing", "noise", "keeping"]
Work = Sequence[Candidate | Tried]  # ways, rows to judge, or the one way whose units are measured
Collect = Callable[[Job], Sequence[Part] | None]
STEP: Final = "step"
WORDS: Final[dict[Step, str]] = {
    "screening": "screening",
    "choosing": "on all that choose",
    "noise": "noise of each unit",
    "keeping": "units kept",
}
_ROWS: Final = TypeAdapter(tuple[Tried, ...])


class TuneFacts(Frozen):
    """``rows`` as JSON text, which holds infinite bounds, and SHA-256 of the samples that gave them: of none without rows."""

    samples_sha256: str
    rows: str


class _Missing(Exception):  # noqa: N818  # tells which step comes next, which is no error
    """A step that there are no parts of."""

    def __init__(self, step: Step, work: Work) -> None:
        super().__init__(step)
        self.step, self.work = step, work


def tune_job(sweep: Sweep, step: Step, work: Work) -> Job:
    """The job of one step. Every option that changes a figure or a decision is in it."""
    ways = list(sweep.units) if step == "noise" else [_way(one).name for one in work]
    return _job(sweep, step, ways, digest_json([_way(one).model_dump(mode="json") for one in work]))


def _way(one: Candidate | Tried) -> Candidate:
    return one.candidate if isinstance(one, Tried) else one


def _job(sweep: Sweep, step: Step, ways: Sequence[str], work_sha256: str) -> Job:
    asked, shop = sweep.options, sweep.shop
    images = open_dataset(shop.calib, spec=sweep.spec)
    given: dict[str, JsonValue] = {
        STEP: step,
        "ways": list(ways),
        "what they are": work_sha256,
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
    """The part of one shard of the ways, screened; with ``collect``, which gives the parts of the steps until now, of the next
    step. ``earlier`` if it is that part already. Raises as ``tune`` and ``shards.collect.checked``; UsageError after the last
    step.
    """
    bundle, truth = opened(folder, options, tell)
    with swept(bundle, truth, options, tell) as sweep:
        step, work = _next(sweep, collect)
        job = tune_job(sweep, step, work)
        return earlier_or_made(earlier, job, shard, tell, lambda: _made(sweep, job, work, shard))


def _next(sweep: Sweep, collect: Collect | None) -> tuple[Step, Work]:
    ways = candidates(sweep.options.methods)
    if collect is None:
        return "screening", ways
    try:
        best_of(sweep, ways, _UntilMissing(collect))
    except _Missing as found:
        return found.step, found.work
    raise UsageError("--parts has all steps: no work is left to divide", advice="leave --shard and its -o out to merge")


def _made(sweep: Sweep, job: Job, work: Work, shard: Shard) -> Part:
    """A calibration is tried with each fallback, and made once: its ways stay together."""
    started = time.perf_counter()
    rows = _rows_by(sweep, _step_of(job), work, _span(job, shard))
    facts = TuneFacts(
        samples_sha256=_samples_sha256(sweep, job) if rows else "",
        rows=json.dumps([row.model_dump() for row in rows]),
    )
    return Part.made(job, shard, time.perf_counter() - started, facts)


def _rows_by(sweep: Sweep, step: Step, work: Work, span: range) -> list[Tried]:
    """The rows of a span of the work. A way that fails is a row that says why, since one run may not come to it."""
    if step == "noise":
        units = list(sweep.alone(_way(work[0])).items())[span.start : span.stop]
        rows = sweep.screen_all([way for _, way in units])
        return [row.model_copy(update={"name": name}) for (name, _), row in zip(units, rows, strict=True)]
    mine = work[span.start : span.stop]
    if step == "choosing":
        return sweep.judge_all([one for one in mine if isinstance(one, Tried)])
    rows = sweep.screen_all([_way(one) for one in mine])
    return rows if step == "screening" else [_judged(sweep, row) for row in rows]


def _judged(sweep: Sweep, row: Tried) -> Tried:
    if row.refused:
        return row
    try:
        return sweep.judge(row, f"{row.name} on all that choose")
    except ParityError as error:
        return row.model_copy(update={"refused": error.message})


def _step_of(job: Job) -> Step:
    step = job.options[STEP]
    assert step in WORDS  # as tune_job wrote it; options may hold any JSON
    return step


def _ways(job: Job) -> list[JsonValue]:
    ways = job.options["ways"]
    assert isinstance(ways, list)  # as tune_job wrote it; options may hold any JSON
    return ways


def _span(job: Job, shard: Shard) -> range:
    return shard.span(len(_ways(job)), len(FALLBACKS) if job.options[STEP] == "screening" else 1)


def _samples_sha256(sweep: Sweep, job: Job) -> str:
    parts = sweep.truth.parts
    screens = job.options[STEP] in ("screening", "noise")
    samples: Dataset | PairedData = parts.screening if screens else parts.choosing
    if isinstance(samples, Dataset):
        return samples.digest
    return digest_json([samples.inputs.digest, samples.targets_digest])


@dataclass(frozen=True)
class Divided(Rounds):
    """Rows from parts: ``collect`` gives the checked parts of a job in order, or None where this process is to do the step."""

    collect: Collect

    def screened(self, sweep: Sweep, ways: Sequence[Candidate]) -> list[Tried]:
        rows = self._rows(sweep, "screening", ways)
        if rows is None:
            raise UsageError(
                "--parts has no part that screened: only parts of a later step",
                advice="give the parts of `tune --shard` without --parts, too",
            )
        return rows

    def judged(self, sweep: Sweep, rows: Sequence[Tried]) -> list[Tried]:
        found = self._rows(sweep, "choosing", rows)
        if found is None:
            self._missing(sweep, "choosing", rows)
        return sweep.judge_all(rows) if found is None else found

    def noises(self, sweep: Sweep, base: Candidate) -> list[Tried]:
        found = self._rows(sweep, "noise", [base])
        if found is None:
            self._missing(sweep, "noise", [base])
        if found is None or any(row.refused for row in found):
            return sweep.noises(base)  # raises what made that row fail
        return found

    def kept(self, sweep: Sweep, ways: Sequence[Candidate]) -> Iterator[Tried]:
        """Parts have all of them, also those that one run does not come to."""
        found = self._rows(sweep, "keeping", ways)
        if found is None:
            self._missing(sweep, "keeping", ways)
            yield from sweep.kept(ways)
            return
        for way, row in zip(ways, found, strict=True):
            yield from sweep.kept([way]) if row.refused else [row]

    def _missing(self, sweep: Sweep, step: Step, work: Work) -> None:
        """Says that this process does a step itself."""
        on_all = f"on all {len(sweep.truth.parts.choosing):,} {sweep.truth.word}s that choose"
        what = {
            "choosing": f"{len(work)} ways run {on_all}",
            "noise": f"the noise of {len(sweep.units)} units is measured",
            "keeping": f"ways that keep units run {on_all}",
        }[step]
        sweep.tell.note(f"{what}, here: --shard with these --parts divides that, too")

    def _rows(self, sweep: Sweep, step: Step, work: Work) -> list[Tried] | None:
        if not work:
            return []
        job = tune_job(sweep, step, work)
        parts = self.collect(job)
        if parts is None:
            return None
        digest = _samples_sha256(sweep, job)
        return [row for part in parts for row in _rows_of(part, job, digest)]


@dataclass(frozen=True)
class _UntilMissing(Divided):
    def _missing(self, sweep: Sweep, step: Step, work: Work) -> None:
        del sweep  # nothing is said: the part of that step comes next
        raise _Missing(step, work)


def _rows_of(part: Part, job: Job, digest: str) -> tuple[Tried, ...]:
    """Raises IntegrityError for another content, UsageError for other samples."""
    facts = part.facts_as(TuneFacts)
    try:
        rows = _ROWS.validate_json(facts.rows)
    except ValidationError as error:
        raise part.other_content() from error
    if [row.name for row in rows] != [_ways(job)[place] for place in _span(job, part.header.shard)]:
        raise part.other_content()
    judged = job.options[STEP] in ("choosing", "keeping")
    if judged and any(row.pair is None and not row.refused for row in rows):
        raise part.other_content()
    if rows and facts.samples_sha256 != digest:
        raise UsageError(
            f"{part.name} was made of other data: samples of the same names have another content here",
            advice="give the same --data as for the parts, or make the parts again",
        )
    return rows


def collect_steps(patterns: Sequence[str], tell: Progress, *, allow_mixed_cpus: bool) -> Collect:
    """A function that gives the parts of one step among all that ``patterns`` name. Raises as ``shards.collect.collect``."""
    parts = [read_part(path) for path in paths_of(patterns)]

    def of(job: Job) -> Sequence[Part] | None:
        # Parts of something else are taken for parts that screened, and refused as such.
        mine = [part for part in parts if part.header.job.options.get(STEP, "screening") == job.options[STEP]]
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
        return self._divided(sweep, ways).screened(sweep, ways)

    def judged(self, sweep: Sweep, rows: Sequence[Tried]) -> list[Tried]:
        return self._divided(sweep, rows).judged(sweep, rows)

    def noises(self, sweep: Sweep, base: Candidate) -> list[Tried]:
        return self._divided(sweep, [base]).noises(sweep, base)

    def kept(self, sweep: Sweep, ways: Sequence[Candidate]) -> Iterator[Tried]:
        yield from self._divided(sweep, ways).kept(sweep, ways)

    def _divided(self, sweep: Sweep, work: Work) -> Divided:
        return Divided(partial(self._parts, sweep, work))

    def _parts(self, sweep: Sweep, work: Work, job: Job) -> Sequence[Part]:
        step = _step_of(job)
        count = -(-len(_ways(job)) // (len(FALLBACKS) if step == "screening" else 1))
        shards = {shard: len(_span(job, shard)) for shard in (Shard(index, count) for index in range(1, count + 1))}
        sweep.tell.prefix = WORDS[step]
        return parts_by(
            self.cluster,
            job,
            shards,
            partial(part_of_worker, self.folder, self.options, job, tuple(work)),
            sweep.tell,
            fresh=self.fresh,
            allow_mixed_cpus=self.allow_mixed_cpus,
            word="units" if step == "noise" else "ways",
            here=machine_kind(),
        )


def part_of_worker(folder: Path, options: TuneOptions, job: Job, work: Work, shard: Shard) -> bytes:
    """The part of a shard of ``work``, on one thread of a worker, which keeps FP32 and the samples for the next shard.

    Raises UsageError where this machine has another bundle, other samples or other packages than whoever asks.
    """
    with cpu.limited(1):
        sweep = held(job, options, partial(_opened, folder, options, job))
        return _made(sweep, job, work, shard).encode()


@contextmanager
def _opened(folder: Path, options: TuneOptions, job: Job) -> Iterator[Sweep]:
    """The ways are those of whoever asks: all else has to be the same here."""
    bundle, truth = opened(folder, options, Silent())
    with swept(bundle, truth, options, Silent()) as sweep:
        mine = _job(sweep, _step_of(job), [str(way) for way in _ways(job)], str(job.options["what they are"]))
        check_job(job, mine, "this worker's share")
        yield sweep
