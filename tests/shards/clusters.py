"""Real clusters on this machine's loopback, ended with their test."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from skdeploy.shards.shard import Shard
from tests.shards.parts import part_of

START_SECONDS = 300.0  # of a machine where other tests take all cores


@contextmanager
def dask_cluster(folder: Path, port: int, tls: Sequence[str] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """A scheduler and one worker of one thread; yields the scheduler."""
    protocol = "tls" if tls else "tcp"
    common = ["--host", "127.0.0.1", "--no-dashboard", *tls]
    dask = [sys.executable, "-m", "dask"]
    with (folder / "dask.log").open("wb") as log:
        scheduler = subprocess.Popen(
            [*dask, "scheduler", "--port", str(port), "--protocol", protocol, *common], stdout=log, stderr=log
        )
        worker = subprocess.Popen(
            [*dask, "worker", f"{protocol}://127.0.0.1:{port}", "--nthreads", "1", "--protocol", protocol, *common],
            stdout=log,
            stderr=log,
        )
        try:
            yield scheduler
        finally:
            for process in (worker, scheduler):
                end(process.pid)
            for process in (worker, scheduler):
                process.wait(timeout=30)


def end(pid: int) -> None:
    """Kills a process and those that it started."""
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def workers_of(pid: int) -> list[psutil.Process]:
    """The worker processes of a run: children of its fork server."""
    found = []
    for server in psutil.Process(pid).children():
        try:
            if any("forkserver" in word for word in server.cmdline()):
                found += server.children()
        except psutil.NoSuchProcess:
            continue
    return found


def wait_for_parts(cache: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Until so many parts are finished, while the process runs."""
    limit = time.monotonic() + START_SECONDS
    while len(list(cache.rglob("part-*"))) < count:
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < limit, "no parts came"
        time.sleep(0.02)


def make_part(seconds: float, shard: Shard) -> bytes:
    """The part of a shard of ``tests.shards.parts.JOB``, after some seconds of work on a worker."""
    time.sleep(seconds)
    return part_of(shard.index, shard.count).encode()
