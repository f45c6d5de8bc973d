"""Shards by real Dask workers of this machine, which are killed at the moments that hurt most."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest

from skdeploy.core.errors import DependencyError, UsageError
from skdeploy.core.progress import Progress, Silent
from skdeploy.shards import cluster, local
from skdeploy.shards.cluster import Cluster, run_shards
from skdeploy.shards.part import read_part
from skdeploy.shards.shard import Shard
from tests.refused import refused
from tests.shards.clusters import make_part, workers_of

SHARDS = [Shard(index, 4) for index in range(1, 5)]


def made(folder: Path, place: Callable[[Shard], Path] | None = None, seconds: float = 0.5, workers: int = 1) -> None:
    """Has the four shards made."""
    run_shards(
        Cluster(workers=workers),
        partial(make_part, seconds),
        dict.fromkeys(SHARDS, 10),
        place or (lambda shard: folder / str(shard.index)),
        Silent(),
    )
    assert [read_part(folder / str(shard.index)).header.shard for shard in SHARDS] == SHARDS


@contextmanager
def killing(most: int) -> Iterator[list[psutil.Process]]:
    """Kills up to ``most`` worker processes of this process, each as soon as it is seen, and yields those that it killed."""
    killed: list[psutil.Process] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set() and len(killed) < most:
            for worker in workers_of(os.getpid()):
                if len(killed) < most and worker not in killed:
                    worker.kill()
                    killed.append(worker)
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield killed
    finally:
        stop.set()
        watcher.join()


def test_a_part_that_died_with_its_worker_before_it_came_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes longer to make again than one try to fetch it waits."""
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(cluster, "RESULT_TRIES", 2)
    seen: list[Shard] = []

    def place(shard: Shard) -> Path:
        if not seen:
            time.sleep(3)  # the only worker finishes the others meanwhile, and holds them
            (worker,) = workers_of(os.getpid())
            worker.kill()
        seen.append(shard)
        return tmp_path / str(shard.index)

    made(tmp_path, place)
    assert sorted(seen, key=lambda shard: shard.index) == SHARDS  # each once


def test_a_worker_that_dies_while_it_starts_is_started_again(tmp_path: Path) -> None:
    with killing(1) as killed:
        made(tmp_path)
    assert len(killed) == 1


def test_workers_that_are_gone_for_long_are_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker is back after 2 s, which is taken for never here: so all are, with what is left."""
    monkeypatch.setattr(cluster, "WORKERLESS_SECONDS", 0.5)
    seen: list[Shard] = []

    def place(shard: Shard) -> Path:
        if not seen:
            workers_of(os.getpid())[0].kill()
        seen.append(shard)
        return tmp_path / str(shard.index)

    made(tmp_path, place)
    assert sorted(seen, key=lambda shard: shard.index) == SHARDS  # each once


def test_the_process_that_workers_are_forked_from_is_started_again(tmp_path: Path) -> None:
    seen: list[Shard] = []

    def place(shard: Shard) -> Path:
        if not seen:
            (worker,) = workers_of(os.getpid())
            server = worker.parent()
            assert server is not None
            server.kill()
            worker.kill()
        seen.append(shard)
        return tmp_path / str(shard.index)

    made(tmp_path, place)
    assert sorted(seen, key=lambda shard: shard.index) == SHARDS  # each once


def test_workers_that_never_start_are_an_error_that_says_so() -> None:
    with (
        killing(100) as killed,
        pytest.raises(DependencyError, match=f"the workers do not start, {local.START_TRIES} times"),
    ):
        made(Path())
    assert len(killed) >= local.START_TRIES


def test_progress_tells_how_many_are_done_the_rate_the_workers_and_the_time_left(tmp_path: Path) -> None:
    told: list[str] = []

    class Told(Progress):
        def update(self, detail: str) -> None:
            told.append(detail)

    shards = {SHARDS[0]: 30, SHARDS[1]: 10}
    run_shards(Cluster(workers=1), partial(make_part, 0.0), shards, lambda shard: tmp_path / str(shard.index), Told())
    assert told[-1].startswith("40 of 40 images, ")
    assert told[-1].endswith(" a second, 1 workers, 0 s left")


@pytest.mark.parametrize(
    "address",
    [
        "",
        "nonsense",
        "127.0.0.1:8786",
        "tcp://",
        "tcp://host",
        "tcp://:8786",
        "tcp://[::bad",
        "tcp://a:99999",
        "ws://a:1",
    ],
)
def test_an_address_that_is_none_is_refused_before_dask_tries_it(address: str) -> None:
    with refused(UsageError, "must be tcp://HOST:PORT", "dask scheduler"):
        Cluster(address=address).check()
    Cluster(address="tcp://[::1]:8786").check()
