"""``skdeploy sensitivity`` divided by unit: each shard runs some units on all samples, and FP32 too.

The first shard measures all in INT8 besides. Parts whose FP32 differs are refused: their machines round differently.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from pydantic import JsonValue, ValidationError

from skdeploy.accuracy.kept_parts import parts_by
from skdeploy.accuracy.own_metric import file_digest
from skdeploy.accuracy.sensitivity import Measurable, SensitivityOptions, measurable
from skdeploy.bundle.folder import load_bundle
from skdeploy.core import cpu
from skdeploy.core.errors import UsageError
from skdeploy.core.progress import Progress, Silent
from skdeploy.quant.sensitivity import MeasuredUnits, SensitivityReport
from skdeploy.shards.cluster import Cluster
from skdeploy.shards.collect import Collect, check_job
from skdeploy.shards.held import held
from skdeploy.shards.machine import versions
from skdeploy.shards.part import Job, Part, earlier_or_made
from skdeploy.shards.shard import Shard


def sensitivity_job(folder: Path, options: SensitivityOptions, tell: Progress) -> tuple[Job, Measurable]:
    """The job that these options describe, and what it measures. Raises as ``sensitivity_of`` before it measures."""
    found = measurable(load_bundle(folder), options, tell)
    given: dict[str, JsonValue] = {"units": found.units(), "--metric": options.metric}
    if options.metric is not None:
        given["file of --metric"] = file_digest(options.metric)
    job = Job(
        verb="sensitivity",
        made_of={each.path: each.sha256 for each in (found.graph, found.recorded)},
        data=found.name,
        data_sha256=found.samples_sha256,
        samples=len(found.crops),
        options=given | {"grouped convolutions stay out of INT8": found.keep_grouped},
        versions=versions(),
    )
    return job, found


def sensitivity_shard(
    folder: Path, options: SensitivityOptions, shard: Shard, tell: Progress, *, earlier: Part | None = None
) -> Part:
    """The part of one shard of the units; ``earlier`` if it is that already. Raises as ``sensitivity_of``."""
    job, found = sensitivity_job(folder, options, tell)
    return earlier_or_made(earlier, job, shard, tell, lambda: _measured(job, found, shard, tell))


def _measured(job: Job, found: Measurable, shard: Shard, tell: Progress) -> Part:
    started = time.perf_counter()
    rows = found.measure(shard.span(found.units(), 1), tell, whole=shard.index == 1)
    return Part.made(job, shard, time.perf_counter() - started, rows)


def merge_sensitivity(
    folder: Path, options: SensitivityOptions, tell: Progress, *, collect: Collect, output: Path | None = None
) -> SensitivityReport:
    """The report of all units from parts, equal in every bit to that of one run, and kept as that is.

    ``collect`` gives the checked parts of a job in order. Raises as ``sensitivity_of`` and ``shards.collect.collect``.
    """
    job, found = sensitivity_job(folder, options, tell)
    parts = collect(job)
    rows = [_rows(part, found.units(), job.samples) for part in parts]
    for part, of in zip(parts[1:], rows[1:], strict=True):
        if of.fp32 != rows[0].fp32:
            raise UsageError(
                f"FP32 gives other figures in {part.name} than in {parts[0].name}: the processors of their machines round "
                f"differently ({part.header.cpu}; {parts[0].header.cpu})",
                advice="make the parts on machines of one kind",
            )
    return found.report(rows, tell, output)


def sensitivity_on(
    folder: Path,
    options: SensitivityOptions,
    tell: Progress,
    *,
    cluster: Cluster,
    fresh: bool = False,
    allow_mixed_cpus: bool = False,
    output: Path | None = None,
) -> SensitivityReport:
    """The same by the workers of a cluster, a unit a shard. They need the bundle and the samples at the same paths.

    Raises as ``merge_sensitivity`` and ``run_shards``.
    """
    cluster.begin(__name__)

    def collect(job: Job) -> Sequence[Part]:
        data = None if options.data is None else options.data.absolute()
        make = partial(part_of_worker, folder.absolute(), replace(options, data=data), job)
        count = job.options["units"]
        assert isinstance(count, int)  # the job was made here, with this option
        shards = {Shard(index, count): 1 for index in range(1, count + 1)}
        return parts_by(cluster, job, shards, make, tell, fresh=fresh, allow_mixed_cpus=allow_mixed_cpus, word="units")

    return merge_sensitivity(folder, options, tell, collect=collect, output=output)


def part_of_worker(folder: Path, options: SensitivityOptions, job: Job, shard: Shard) -> bytes:
    """The part of a shard, on one thread of a worker, which keeps the graph and the samples for the next shard.

    Raises UsageError where this machine has another bundle, other samples or other packages than whoever asks.
    """
    with cpu.limited(1):
        found = held(job, options, partial(_opened, folder, options, job))
        return _measured(job, found, shard, Silent()).encode()


@contextmanager
def _opened(folder: Path, options: SensitivityOptions, job: Job) -> Iterator[Measurable]:
    mine, found = sensitivity_job(folder, options, Silent())
    check_job(job, mine, "this worker's share")
    yield found


def _rows(part: Part, units: int, samples: int) -> MeasuredUnits:
    """The figures in a part. Raises IntegrityError for another content."""
    shard = part.header.shard
    try:
        rows = MeasuredUnits.model_validate(part.header.facts)
    except ValidationError as error:
        raise part.other_content() from error
    whole = (rows.all_int8 is not None) == (shard.index == 1)
    if len(rows.rows) != len(shard.span(units, 1)) or rows.images != samples or not whole:
        raise part.other_content()
    return rows
