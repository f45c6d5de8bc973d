"""Dask workers that are processes of this machine."""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.resource_tracker
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from skdeploy.core.errors import DependencyError
from skdeploy.core.packages import require

# Deaths of workers that one shard may see before it is taken for their cause. By chance, Dask's 3 are reached soon.
DEATHS: Final = 10
START_TRIES: Final = 3
START_SECONDS: Final = 180.0  # 2 s on this machine, and 40 where others take all cores


@contextmanager
def local_client(workers: int | None) -> Iterator[Any]:
    """A client of worker processes of one thread each, which end with it. Raises DependencyError."""
    distributed = require("distributed", extra="cluster")
    dask = require("dask", extra="cluster")
    settings = {
        "distributed.scheduler.allowed-failures": DEATHS,
        # Dask gives a worker up that is not back after this. On a busy machine, its own 15 s are over before.
        "distributed.deploy.lost-worker-timeout": f"{START_SECONDS:.0f}s",
        # The nanny's and the scheduler's pages for browsers: nothing here reads them.
        "distributed.scheduler.http.routes": [],
        "distributed.worker.http.routes": [],
        # What those pages show. It takes 3 % of each worker's time, and of this process's.
        "distributed.worker.profile.enabled": False,
        "distributed.admin.tick.interval": "500ms",
        "distributed.admin.system-monitor.interval": "10s",
    }
    with (
        dask.config.set(settings),
        _without_interrupts(distributed) as loop,
        _local_cluster(distributed, workers, loop) as local,
        distributed.Client(local) as client,
    ):
        yield client


@contextmanager
def _without_interrupts(distributed: Any) -> Iterator[Any]:
    """An event loop on a thread that blocks SIGINT, as do the workers that it starts: a terminal sends Ctrl-C to them, too, and
    each would print where it was. This process ends them.
    """
    multiprocessing.resource_tracker.ensure_running()  # whichever thread starts it unblocks SIGINT for itself
    runner = distributed.utils.LoopRunner()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        runner.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield runner.loop
    finally:
        runner.stop()


def _local_cluster(distributed: Any, workers: int | None, loop: Any) -> Any:
    """Worker processes of this machine. Raises DependencyError where they do not start, also when that is tried again."""
    for left in reversed(range(START_TRIES)):
        try:
            return _started(
                partial(
                    distributed.LocalCluster,
                    n_workers=workers,
                    loop=loop,
                    worker_class=_nanny(distributed),
                    threads_per_worker=1,
                    processes=True,
                    host="127.0.0.1",
                    dashboard_address="127.0.0.1:0",
                    worker_dashboard_address="127.0.0.1:0",
                    death_timeout=START_SECONDS,
                    memory_limit=0,  # a worker that Dask ends for its memory would be started again for ever
                    silence_logs=logging.CRITICAL,
                )
            )
        except RuntimeError as error:  # Dask replaces a worker that dies at work, but not one that dies while it starts
            if not left:
                raise DependencyError(
                    f"the workers do not start, {START_TRIES} times: {error.__cause__ or error}",
                    advice="something ends them: memory may be short; try fewer --workers",
                ) from error
    raise AssertionError("at least one try")


def _nanny(distributed: Any) -> Any:
    """The class that starts a worker and replaces it. This one kills the worker where it is to end: all parts are here then, or
    nobody wants them. Dask asks it first, which takes 1 to 5 s.
    """

    class Nanny(distributed.Nanny):  # type: ignore[misc]  # Dask has no types
        async def kill(self, *given: Any, **options: Any) -> None:
            worker = self.process and self.process.process
            if worker is not None and self.status == distributed.Status.closing:
                await worker.kill()
            await super().kill(*given, **options)

    return Nanny


def _started(start: Callable[[], Any]) -> Any:
    """The cluster that ``start`` gives. A signal meanwhile ends its workers, and then whoever waits here: Dask can close a
    cluster that has started or failed, but not one that is about to start.
    """
    with ThreadPoolExecutor(1) as aside:
        starting = aside.submit(start)
        try:
            return starting.result()
        except KeyboardInterrupt:
            for child in multiprocessing.active_children():
                child.kill()
            if starting.exception() is None:
                starting.result().close()
            raise
