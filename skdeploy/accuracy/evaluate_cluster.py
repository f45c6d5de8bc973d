"""``skdeploy evaluate`` on many workers at once: its shards by ``shards/cluster.py``, merged as parts of files are."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from skdeploy.accuracy.evaluate import EvaluationOptions
from skdeploy.accuracy.evaluate_shards import evaluation_job, merge_evaluation, predicted_part
from skdeploy.accuracy.gate import Evaluation
from skdeploy.accuracy.kept import cache_folder, not_ours
from skdeploy.accuracy.streaming import open_all
from skdeploy.core import cpu
from skdeploy.core.errors import UsageError
from skdeploy.core.files import digest_json
from skdeploy.core.progress import Progress, Silent
from skdeploy.shards.cluster import Cluster, run_shards
from skdeploy.shards.collect import check_job, checked
from skdeploy.shards.part import Job, Part, earlier_part, read_part
from skdeploy.shards.shard import Shard

SHARD_IMAGES: Final = 64  # seconds of a core: what a killed worker loses, and far more than Dask takes for a task
KEPT_JOBS: Final = 8
FOLDER: Final = "parts"

_opened = threading.local()  # of this worker's thread: the job that it works at, with its sessions open


def evaluate_on(
    folder: Path, options: EvaluationOptions, tell: Progress, *, cluster: Cluster, allow_mixed_cpus: bool = False
) -> Evaluation:
    """The evaluation by the workers of a cluster, equal in every bit to that of one run.

    Workers need the bundle and the images at the same paths, and check their digests. Parts are kept in the user's cache
    folder: the same call makes only those that are missing. Raises as ``merge_evaluation`` and ``run_shards``.
    """
    cluster.check()

    def collect(job: Job) -> Sequence[Part]:
        shards = shards_of(job.samples, options.batch)
        kept = parts_folder(job)
        if options.fresh:
            shutil.rmtree(kept, ignore_errors=True)
        places = {shard: kept / f"part-{shard.index}" for shard in shards}
        todo = [shard for shard, place in places.items() if not _whole(place, job, shard)]
        if len(todo) < len(shards):
            reused = f"{len(shards) - len(todo)} of {len(shards)} shards of an earlier run are reused"
            tell.note(f"{reused}; `skdeploy evaluate --fresh` makes them again")
        tell.begin("evaluate")
        if todo:
            tell.update(f"{len(todo)} shards, waiting for workers")
            absolute = replace(options, data=options.data.absolute(), against=_absolute(options.against))
            make = partial(part_of_worker, folder.absolute(), absolute, job)
            sizes = {shard: len(shard.span(job.samples, options.batch)) for shard in todo}
            run_shards(cluster, make, sizes, places.__getitem__, tell)
        parts = [read_part(place) for place in places.values()]
        tell.end("evaluate", sum(part.header.seconds for part in parts), reused=not todo)
        return checked(parts, job, tell, allow_mixed_cpus=allow_mixed_cpus)

    return merge_evaluation(folder, options, tell, collect=collect)


def shards_of(samples: int, batch: int) -> list[Shard]:
    """Shards of some ``SHARD_IMAGES`` images. They do not depend on the workers, so another number of them can go on."""
    count = max(1, -(-samples // max(batch, SHARD_IMAGES)))
    return [Shard(index, count) for index in range(1, count + 1)]


def part_of_worker(folder: Path, options: EvaluationOptions, job: Job, shard: Shard) -> bytes:
    """The part of a shard, on one thread of a worker, which keeps the artifacts open for the next shard.

    Raises UsageError where this machine has another bundle, other data or other packages than whoever asks.
    """
    with cpu.limited(1):
        if getattr(_opened, "job", None) != (job, options):
            _open(folder, options, job)
        opened, absent, dataset = _opened.held
        return predicted_part(job, opened, absent, dataset, options, shard, Silent()).encode()


def _open(folder: Path, options: EvaluationOptions, job: Job) -> None:
    """Opens a job's artifacts in place of those of the last one."""
    if hasattr(_opened, "stack"):
        _opened.job = None
        _opened.stack.close()
    mine, chosen, dataset = evaluation_job(folder, options, Silent())
    check_job(job, mine, "this worker's share")
    _opened.stack = ExitStack()
    opened, absent = _opened.stack.enter_context(open_all(chosen.runners, chosen.optional))
    _opened.held, _opened.job = (opened, absent, dataset), (job, options)


def parts_folder(job: Job) -> Path:
    """Where the parts of a job are kept; of old jobs they are removed. Raises UsageError where there is no place for them."""
    cache = cache_folder()
    problem = not_ours(cache) if cache is not None else "there is no home folder, and XDG_CACHE_HOME is not set"
    if cache is None or problem:
        raise UsageError(
            f"no place to keep finished parts: {problem}", advice="set XDG_CACHE_HOME to a folder of your own"
        )
    above = cache.parent / FOLDER
    others = sorted(above.glob("*"), key=lambda path: path.stat().st_mtime, reverse=True)
    mine = above / digest_json(job.model_dump(mode="json"))
    for old in [path for path in others if path != mine][KEPT_JOBS - 1 :]:
        shutil.rmtree(old, ignore_errors=True)
    return mine


def _whole(place: Path, job: Job, shard: Shard) -> bool:
    part = earlier_part(place)
    return part is not None and (part.header.job, part.header.shard) == (job, shard)


def _absolute(against: str | None) -> str | None:
    """Another bundle's folder, as a worker in another folder finds it."""
    return str(Path(against).absolute()) if against is not None and Path(against).is_dir() else against
