"""Runs until stable, then timed runs in short blocks; of several artifacts, block by block in turn."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from skdeploy.bench.statistics import WINDOW, WINDOWS, is_stable

MS: Final = 1e3
WARM_UP_SECONDS: Final = 0.3  # at least: clocks rise within this time
WARM_UP_SECONDS_AT_MOST: Final = 20.0
BLOCK_SECONDS: Final = 0.05  # long beside what changing from one artifact to another costs, short beside a drift
BLOCKS: Final = 10  # at least, however long a run takes: the bootstrap needs some


class Run(NamedTuple):
    """One inference: ``host_ms`` with all copies and waiting; ``device_ms`` of the device alone, if it is measured."""

    host_ms: float
    device_ms: float | None


Infer = Callable[[], Run]


@dataclass(frozen=True)
class WarmUp:
    """``stable``: the rule of ``is_stable`` was met before the time was up."""

    runs: int
    seconds: float
    stable: bool
    block_runs: int


@dataclass
class Timed:
    """The runs of one artifact, by block."""

    warm_up: WarmUp
    blocks: list[list[Run]] = field(default_factory=list)

    @property
    def host_ms(self) -> list[float]:
        return [run.host_ms for block in self.blocks for run in block]

    @property
    def device_ms(self) -> list[float] | None:
        """None where the backend does not tell it."""
        known = [run.device_ms for block in self.blocks for run in block if run.device_ms is not None]
        return known or None

    @property
    def block_medians_ms(self) -> list[float]:
        """Of the host's times: what a caller waits."""
        return [statistics.median(run.host_ms for run in block) for block in self.blocks]


def host_timed(call: Callable[[], object]) -> Infer:
    """Times a call that is done when it returns."""

    def infer() -> Run:
        begun = time.perf_counter()
        call()
        return Run((time.perf_counter() - begun) * MS, None)

    return infer


def warm_up(infer: Infer, *, clock: Callable[[], float] = time.perf_counter) -> WarmUp:
    """Runs at least 0.3 s and until ``is_stable``, but no longer than 20 s."""
    begun, times = clock(), list[float]()
    while True:
        times.append(infer().host_ms)
        seconds = clock() - begun
        stable = is_stable(times)
        if (stable and seconds >= WARM_UP_SECONDS) or seconds >= WARM_UP_SECONDS_AT_MOST:
            typical = statistics.median(times[-WINDOW * WINDOWS :])
            return WarmUp(len(times), seconds, stable, max(1, round(BLOCK_SECONDS * MS / max(typical, 1e-6))))


def timed(
    infers: Sequence[Infer],
    seconds: float,
    between: Callable[[], None],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timed]:
    """``seconds`` of timed runs of each, in blocks of about 50 ms: A B, B A, A B ..., so that no one is always the second.

    ``between`` is called after every round, outside of what is timed. Python's garbage collection is off during it.
    """
    results = [Timed(warm_up(infer, clock=clock)) for infer in infers]
    order = list(range(len(infers)))
    with _no_garbage_collection():
        spent = 0.0
        while spent < seconds * len(infers) or len(results[0].blocks) < BLOCKS:
            begun = clock()
            for index in order:
                infer, result = infers[index], results[index]
                result.blocks.append([infer() for _ in range(result.warm_up.block_runs)])
            spent += clock() - begun
            order.reverse()
            between()
    return results


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
