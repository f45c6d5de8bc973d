"""Dask workers that are processes of this machine.

They are forked from one process that has imported what all need, Python's fork server. It takes 1.2 s of a core, once for all
workers, while this process reads the data.
"""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import tempfile
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
# Imported before workers are forked. None of it starts a thread, which a fork would lose, or takes a GPU.
IMPORTED: Final = ("distributed", "distributed.worker", "skdeploy.backends.rounding", "skdeploy.ir.onnx_file")
ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
SOCKET_PATH: Final = 60  # bytes of the folder of temporary files: the fork server's socket in it may have 107, unix(7)


def begin_imports(module: str) -> None:
    """Starts the process that workers are forked from, which imports ``module``. It ends with this process.

    Nothing if it runs, or cannot have its socket: then each worker imports for itself.
    """
    if _method() == "spawn":
        return
    multiprocessing.set_forkserver_preload([*IMPORTED, module])
    multiprocessing.resource_tracker.ensure_running()  # whichever thread starts it unblocks SIGINT for itself
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)  # OpenBLAS starts its threads when numpy is imported
    try:
        with _blocked_interrupts():
            multiprocessing.forkserver.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _method() -> str:
    return "forkserver" if len(os.fsencode(tempfile.gettempdir())) <= SOCKET_PATH else "spawn"


@contextmanager
def local_client(workers: int | None) -> Iterator[Any]:
    """A client of worker processes of one thread each, which end with it. Raises DependencyError."""
    distributed = require("distributed", extra="cluster")
    dask = require("dask", extra="cluster")
    settings = {
        "distributed.scheduler.allowed-failures": DEATHS,
        "distributed.worker.multiprocessing-method": _method(),
        # Dask would set variables of this process. One of them has the C library give memory back at once, to take it again.
        "distributed.nanny.pre-spawn-environ": {},
        # A worker is given one shard at a time: with a second one waiting at it, others may be idle at the end.
        "distributed.scheduler.worker-saturation": 1.0,
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
    with _blocked_interrupts():
        runner.start()
    try:
        yield runner.loop
    finally:
        runner.stop()


@contextmanager
def _blocked_interrupts() -> Iterator[None]:
    """Threads and processes that start meanwhile never get SIGINT."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _local_cluster(distributed: Any, workers: int | None, loop: Any) -> Any:
    """Worker processes of this machine. Raises DependencyError where they do not start, also when that is tried again."""
    for left in reversed(range(START_TRIES)):
        try:
            return _started(
                partial(
                    distributed.LocalCluster,
                    n_workers=workers,
                    loop=loop,
                    env={**os.environ, **ONE_THREAD},  # the fork server has those of when it started
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
