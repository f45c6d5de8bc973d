"""Warm-up and blocks on a clock that only the runs move; nothing here waits."""

from __future__ import annotations

import gc
from collections.abc import Iterator

from skdeploy.bench.timing import BLOCKS, WARM_UP_SECONDS_AT_MOST, Infer, Run, host_timed, timed, warm_up


class Clock:
    """Moved by what runs."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def runs(self, times_ms: Iterator[float], log: list[str] | None = None, name: str = "") -> Infer:
        def infer() -> Run:
            took = next(times_ms)
            self.now += took / 1000
            if log is not None:
                log.append(name)
            return Run(took, took / 2)

        return infer


def constant(value: float) -> Iterator[float]:
    while True:
        yield value


def falling(first: float, last: float, by: float) -> Iterator[float]:
    value = first
    while True:
        yield value
        value = max(last, value * by)


def test_the_warm_up_lasts_until_runs_no_longer_get_faster() -> None:
    clock = Clock()
    found = warm_up(clock.runs(falling(50, 10, 0.97)), clock=clock)
    assert found.stable
    assert found.runs > 53 + 20  # 0.97^53 is a fifth; and then almost three windows
    assert found.block_runs == 5  # of 10 ms in 50


def test_the_warm_up_of_a_fast_network_takes_some_time_and_of_an_unstable_one_ends() -> None:
    clock = Clock()
    assert warm_up(clock.runs(constant(0.1)), clock=clock).runs >= 3000
    rising = (1.0 * 1.01**i for i in range(10**6))
    unstable = Clock()
    found = warm_up(unstable.runs(rising), clock=unstable)
    assert not found.stable
    assert WARM_UP_SECONDS_AT_MOST <= found.seconds < WARM_UP_SECONDS_AT_MOST + 1


def test_two_artifacts_take_turns_and_neither_is_always_second() -> None:
    clock, log = Clock(), list[str]()
    infers = [clock.runs(constant(50), log, "a"), clock.runs(constant(50), log, "b")]
    found = timed(infers, 1.0, lambda: log.append("|"), clock=clock)
    rounds = "".join(log).split("|")[1:-1]
    assert rounds[:3] == ["ba", "ab", "ba"]
    assert len(found[0].blocks) == len(found[1].blocks)
    assert len(found[0].blocks) in (20, 21)  # 0.05 twenty times is not quite 1
    assert set(found[0].device_ms or ()) == {25}


def test_slow_runs_have_ten_blocks_whatever_the_seconds() -> None:
    clock = Clock()
    (found,) = timed([clock.runs(constant(900))], 0.1, lambda: None, clock=clock)
    assert len(found.blocks) == BLOCKS
    assert found.block_medians_ms == [900] * BLOCKS


def test_garbage_is_not_collected_while_it_is_timed_and_is_again_afterwards() -> None:
    clock, seen = Clock(), list[bool]()
    timed([clock.runs(constant(50))], 0.1, lambda: seen.append(gc.isenabled()), clock=clock)
    assert set(seen) == {False}
    assert gc.isenabled()


def test_what_the_cpu_runs_has_no_time_of_a_device() -> None:
    assert host_timed(lambda: None)().device_ms is None
