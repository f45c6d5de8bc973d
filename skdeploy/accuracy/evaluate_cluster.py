"""``skdeploy evaluate`` on many workers at once: its shards by ``shards/cluster.py``, merged as parts of files are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from skdeploy.accuracy.evaluate import EvaluationOptions
from skdeploy.accuracy.evaluate_shards import (
    OpenedJob,
    evaluation_job,
    for_workers,
    merge_evaluation,
    predicted_part,
)
from skdeploy.accuracy.gate import Evaluation
from skdeploy.accuracy.kept_parts import image_shards, parts_by
from skdeploy.accuracy.streaming import open_all
from skdeploy.core import cpu
from skdeploy.core.progress import Progress, Silent
from skdeploy.shards.cluster import Cluster
from skdeploy.shards.collect import Collect, check_job
from skdeploy.shards.held import held
from skdeploy.shards.part import Job, Part
from skdeploy.shards.shard import Shard


def evaluate_on(
    folder: Path, options: EvaluationOptions, tell: Progress, *, cluster: Cluster, allow_mixed_cpus: bool = False
) -> Evaluation:
    """The evaluation by the workers of a cluster, equal in every bit to that of one run.

    Workers need the bundle and the images at the same paths, and check their digests. Parts are kept in the user's cache
    folder: the same call makes only those that are missing. Raises as ``merge_evaluation`` and ``run_shards``.
    """
    cluster.begin(__name__)
    collect = by_workers(part_of_worker, folder, options, tell, cluster=cluster, allow_mixed_cpus=allow_mixed_cpus)
    return merge_evaluation(folder, options, tell, collect=collect)


def by_workers(
    part_of_worker: Callable[[Path, EvaluationOptions, Job, Shard], bytes],
    folder: Path,
    options: EvaluationOptions,
    tell: Progress,
    *,
    cluster: Cluster,
    allow_mixed_cpus: bool,
    word: str = "images",
) -> Collect:
    """A function that has the parts of an evaluation made by the workers of a cluster, of whole batches of ``word`` each."""

    def collect(job: Job) -> Sequence[Part]:
        make = partial(part_of_worker, folder.absolute(), for_workers(options), job)
        shards = image_shards(job.samples, options.batch)
        return parts_by(
            cluster, job, shards, make, tell, fresh=options.fresh, allow_mixed_cpus=allow_mixed_cpus, word=word
        )

    return collect


def part_of_worker(folder: Path, options: EvaluationOptions, job: Job, shard: Shard) -> bytes:
    """The part of a shard, on one thread of a worker, which keeps the artifacts open for the next shard.

    Raises UsageError where this machine has another bundle, other data or other packages than whoever asks.
    """
    with cpu.limited(1):
        opened = held(job, options, partial(_opened, folder, options, job))
        return predicted_part(job, *opened, options, shard, Silent()).encode()


@contextmanager
def _opened(folder: Path, options: EvaluationOptions, job: Job) -> Iterator[OpenedJob]:
    mine, chosen, dataset = evaluation_job(folder, options, Silent())
    check_job(job, mine, "this worker's share")
    with open_all(chosen.runners, chosen.optional) as (opened, absent):
        yield opened, absent, dataset
