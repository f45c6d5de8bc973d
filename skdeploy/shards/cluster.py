"""The shards of a job on Dask workers: processes of this machine, or a cluster that somebody started.

Dask gives a task of a worker that died to another one. Parts come back as bytes and are kept here, so nothing is lost when this
process, the scheduler or all workers end: the same command goes on with what is missing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final
from urllib.parse import urlsplit

from skdeploy.core.errors import DependencyError, SkdeployError, UsageError
from skdeploy.core.packages import require
from skdeploy.core.progress import Progress
from skdeploy.shards.local import DEATHS, START_TRIES, begin_imports, local_client
from skdeploy.shards.part import decode, write_part
from skdeploy.shards.shard import Shard

CONNECT_SECONDS: Final = 10.0  # until an address that does not answer is an error
WORKERLESS_SECONDS: Final = 60.0  # a replaced worker is back in 2 s on this machine; a cluster may have to start one
POLL_SECONDS: Final = 0.5
RESULT_TRIES: Final = 6  # to fetch a part that is done, of 10 s each: 0.15 MB of an evaluation, 6 MB of a calibration

Make = Callable[[Shard], bytes]


@dataclass(frozen=True)
class Cluster:
    """``workers`` processes of this machine, or a scheduler's ``address``. The files are for a scheduler with TLS."""

    workers: int | None = None
    address: str | None = None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None

    def begin(self, module: str) -> None:
        """Checks as ``check``, and has workers of this machine prepared by importing ``module``, which tells what they do."""
        self.check()
        if self.address is None:
            begin_imports(module)

    def check(self) -> None:
        """Raises UsageError for options that do not belong together."""
        if self.workers is not None and self.address is not None:
            raise UsageError("--workers and --cluster cannot be used together: both choose where the shards run")
        if self.workers is not None and not 1 <= self.workers <= 1024:
            raise UsageError(f"--workers {self.workers}: must be from 1 to 1024")
        if self.address is not None and not _is_address(self.address):
            raise UsageError(
                f"--cluster {self.address}: must be tcp://HOST:PORT or tls://HOST:PORT",
                advice="`dask scheduler` prints its address",
            )
        tls = (self.tls_ca, self.tls_cert, self.tls_key)
        if any(tls) and self.address is None:
            raise UsageError("--cluster-tls-ca, --cluster-tls-cert and --cluster-tls-key require --cluster")
        if any(tls) != all(tls) or (self.address is not None and self.address.startswith("tls://") != all(tls)):
            raise UsageError(
                "an encrypted cluster needs an address tls://HOST:PORT and all of --cluster-tls-ca, --cluster-tls-cert and "
                "--cluster-tls-key",
                advice="give all four, or an address tcp://HOST:PORT alone",
            )
        for file in tls:
            if file is not None and not file.is_file():
                raise UsageError(f"no such file: {file}", advice="it should hold a certificate or key as PEM")


def _is_address(text: str) -> bool:
    """Whether Dask can connect to it: of other texts, its client ends with an error 20 seconds after ours."""
    try:
        parts = urlsplit(text)
        return parts.scheme in ("tcp", "tls") and bool(parts.hostname) and bool(parts.port) and not parts.path
    except ValueError:  # of a port that is none, and of half an IPv6 address
        return False


def run_shards(
    cluster: Cluster,
    make: Make,
    samples: Mapping[Shard, int],
    place: Callable[[Shard], Path],
    tell: Progress,
    word: str = "images",
) -> None:
    """Has each shard made by a worker, and its part written to ``place(shard)`` at once. ``samples``: how many of ``word``
    each has.

    ``make`` runs on the workers, on one thread of each. Workers of this machine that are gone and do not come back are started
    again. Raises what ``make`` raises; DependencyError where no scheduler answers, it is lost, or there are no workers;
    IntegrityError for a full disk. Parts that came before that are kept.
    """
    left = dict(samples)
    started = time.perf_counter()
    total = sum(samples.values())

    def keep(shard: Shard, content: bytes, workers: int) -> None:
        decode(content, f"the part of shard {shard}")
        write_part(place(shard), content)
        del left[shard]
        done = total - sum(left.values())
        rate = done / (time.perf_counter() - started)
        tell.update(
            f"{done:,} of {total:,} {word}, {rate:,.3g} a second, {workers} workers, "
            f"{(total - done) / max(rate, 1e-9):,.0f} s left"
        )

    for _ in range(1 if cluster.address is not None else START_TRIES):
        with _connected(cluster) as client:
            _gather(client, cluster, make, tuple(left), keep)
        if not left:
            return
    raise DependencyError(
        f"the cluster has had no workers for {WORKERLESS_SECONDS:.0f} s",
        advice="start some with `dask worker ADDRESS`; the same command goes on where it was"
        if cluster.address is not None
        else "something ends them: memory may be short; try fewer --workers",
    )


def _gather(
    client: Any, cluster: Cluster, make: Make, shards: Sequence[Shard], keep: Callable[[Shard, bytes, int], None]
) -> None:
    """Has the shards made, and gives each to ``keep``; ends early where there are no workers for long. Raises as
    ``run_shards``.
    """
    came: SimpleQueue[tuple[Shard, Any]] = SimpleQueue()

    def when_done(shard: Shard, future: Any) -> None:
        future.add_done_callback(lambda done: came.put((shard, done)))

    # Dask would take a shard that another run made for this one's, if their keys were equal.
    futures = {shard: client.submit(make, shard, pure=False) for shard in shards}
    for shard, future in futures.items():
        when_done(shard, future)
    quiet = time.perf_counter()
    while futures:
        found = _next(came)
        workers = _workers(client, cluster)
        if workers:
            quiet = time.perf_counter()
        elif found is None and time.perf_counter() - quiet > WORKERLESS_SECONDS:
            return
        if found is None:
            continue
        shard, future = found
        content = _content(future, shard, client, cluster)
        if content is None:
            when_done(shard, future)
            continue
        keep(shard, content, workers)
        futures.pop(shard).release()


def _next(came: SimpleQueue[tuple[Shard, Any]]) -> tuple[Shard, Any] | None:
    try:
        return came.get(timeout=POLL_SECONDS)
    except Empty:
        return None


def _content(future: Any, shard: Shard, client: Any, cluster: Cluster) -> bytes | None:
    """The bytes of a part; None if they do not come: the worker that made them died before it gave them away, and Dask has
    another one make them again. Raises what making it raised on the worker.
    """
    distributed = require("distributed", extra="cluster")
    for _ in range(RESULT_TRIES):
        try:
            return bytes(future.result(timeout=CONNECT_SECONDS))
        except SkdeployError:
            raise
        except distributed.scheduler.KilledWorker as error:
            raise DependencyError(
                f"{DEATHS + 1} workers died while they made shard {shard}, so no other is tried",
                advice="look at the workers' logs: memory may be short; make the shard alone with --shard to see the cause",
            ) from error
        except TimeoutError:
            _workers(client, cluster)
        except (distributed.CancelledError, distributed.comm.CommClosedError, OSError) as error:
            raise _lost(cluster) from error
    return None


def _workers(client: Any, cluster: Cluster) -> int:
    """How many workers there are now. Raises DependencyError if the scheduler is lost."""
    try:
        return len(client.scheduler_info(n_workers=-1)["workers"])
    except (OSError, TimeoutError, ValueError) as error:
        raise _lost(cluster) from error


def _lost(cluster: Cluster) -> DependencyError:
    return DependencyError(
        f"the scheduler {cluster.address or 'of the local workers'} is lost: it was ended, or the network to it broke",
        advice="start it again and run the same command: finished parts are kept",
    )


@contextmanager
def _connected(cluster: Cluster) -> Iterator[Any]:
    """A client of the cluster; local workers end with it. Raises DependencyError."""
    distributed = require("distributed", extra="cluster")
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("distributed")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # a replaced worker is not an error, and others are raised
    if cluster.address is None:
        with local_client(cluster.workers) as client:
            yield client
        return
    security = None
    if cluster.tls_ca is not None:
        security = distributed.security.Security(
            tls_ca_file=str(cluster.tls_ca),
            tls_client_cert=str(cluster.tls_cert),
            tls_client_key=str(cluster.tls_key),
            require_encryption=True,
        )
    try:
        client = distributed.Client(cluster.address, timeout=CONNECT_SECONDS, security=security, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise DependencyError(
            f"no Dask scheduler answers at {cluster.address} within {CONNECT_SECONDS:.0f} s: {error}",
            advice="check the address, and that `dask scheduler` runs there",
        ) from error
    try:
        yield client
    finally:
        with suppress(OSError, TimeoutError):  # of a scheduler that is gone there is nothing to close
            client.close(timeout=CONNECT_SECONDS)
