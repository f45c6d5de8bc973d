"""The parts of a job that workers make, kept in the user's cache folder: the same command makes only those that are missing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from skdeploy.accuracy.kept import cache_folder, not_ours
from skdeploy.core.errors import UsageError
from skdeploy.core.files import digest_json
from skdeploy.core.progress import Progress
from skdeploy.shards.cluster import Cluster, run_shards
from skdeploy.shards.collect import checked
from skdeploy.shards.part import Job, Part, earlier_part, read_part
from skdeploy.shards.shard import Shard

# Some second of a core, which a killed worker loses, and other workers may wait for at the end. A shard costs 9 ms.
SHARD_IMAGES: Final = 32
KEPT_JOBS: Final = 8
FOLDER: Final = "parts"

Sizes = dict[Shard, int]


def image_shards(samples: int, batch: int, images: int = SHARD_IMAGES) -> Sizes:
    """Shards of some ``images``, with how many each has. They do not depend on the workers, so another number of them can go
    on.
    """
    count = max(1, -(-samples // max(batch, images)))
    shards = [Shard(index, count) for index in range(1, count + 1)]
    return {shard: len(shard.span(samples, batch)) for shard in shards}


def parts_by(
    cluster: Cluster,
    job: Job,
    shards: Sizes,
    make: Callable[[Shard], bytes],
    tell: Progress,
    *,
    fresh: bool,
    allow_mixed_cpus: bool,
    word: str = "images",
    here: str | None = None,
) -> list[Part]:
    """All parts of a job by the workers of a cluster, but for those that an earlier run left; ``fresh`` makes all.

    ``shards`` says how many of ``word`` each has, ``here`` the kind of this machine where it does the last step. Raises as
    ``run_shards`` and ``checked``; UsageError where there is no place to keep parts.
    """
    kept = parts_folder(job)
    if fresh:
        shutil.rmtree(kept, ignore_errors=True)
    places = {shard: kept / f"part-{shard.index}" for shard in shards}
    todo = {shard: size for shard, size in shards.items() if not _whole(places[shard], job, shard)}
    if len(todo) < len(shards):
        reused = f"{len(shards) - len(todo)} of {len(shards)} shards of an earlier run are reused"
        tell.note(f"{reused}; `skdeploy {job.verb} --fresh` makes them again")
    tell.begin(job.verb)
    if todo:
        tell.update(f"{len(todo)} shards, waiting for workers")
        run_shards(cluster, make, todo, places.__getitem__, tell, word)
    parts = [read_part(place) for place in places.values()]
    tell.end(job.verb, sum(part.header.seconds for part in parts), reused=not todo)
    return checked(parts, job, tell, allow_mixed_cpus=allow_mixed_cpus, here=here)


def parts_folder(job: Job) -> Path:
    """Where the parts of a job are kept; of old jobs they are removed. Raises UsageError where there is no place for them, or
    others may write to it: no part is made again to be compared.
    """
    cache = cache_folder()
    above = cache.parent / FOLDER if cache is not None else None
    problem = _made(above) if above is not None else "there is no home folder, and XDG_CACHE_HOME is not set"
    if above is None or problem:
        raise UsageError(
            f"no place to keep finished parts: {problem}", advice="set XDG_CACHE_HOME to a folder of your own"
        )
    others = sorted(above.glob("*"), key=_changed, reverse=True)
    mine = above / digest_json(job.model_dump(mode="json"))
    for old in [path for path in others if path != mine][KEPT_JOBS - 1 :]:
        shutil.rmtree(old, ignore_errors=True)
    return mine


def _made(folder: Path) -> str:
    """Make the folder, for this user alone. Returns why it cannot be made or is not to be trusted; empty if neither."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        return f"{folder}: {error.strerror}"
    return not_ours(folder)


def _changed(path: Path) -> float:
    """When; long ago for what another run removes meanwhile."""
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0


def _whole(place: Path, job: Job, shard: Shard) -> bool:
    part = earlier_part(place)
    return part is not None and (part.header.job, part.header.shard) == (job, shard)
