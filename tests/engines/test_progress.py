from __future__ import annotations

import os
import signal
import threading

import pytest

from skdeploy.core.interruption import Terminated, termination_raises
from skdeploy.engines._progress import Progress, interrupts_kept


def silent(phase: str, fraction: float) -> None:
    """Reports to nobody."""


def test_ctrl_c_is_kept_until_it_can_be_raised() -> None:
    """Wherever it arrives: in a callback of TensorRT's an exception would be printed and dropped."""
    handler = signal.getsignal(signal.SIGINT)
    progress = Progress(silent)
    with interrupts_kept(progress):
        progress.start("phase", 2)
        assert progress.step("phase", 0)
        os.kill(os.getpid(), signal.SIGINT)
        assert not progress.step("phase", 1)
    assert signal.getsignal(signal.SIGINT) is handler
    with pytest.raises(KeyboardInterrupt):
        progress.check()


def test_sigterm_is_kept_as_what_its_handler_raises() -> None:
    with termination_raises() as termination:
        handler = signal.getsignal(signal.SIGTERM)
        progress = Progress(silent)
        with interrupts_kept(progress):
            progress.start("phase", 2)
            os.kill(os.getpid(), signal.SIGTERM)
            assert not progress.step("phase", 0)
        assert signal.getsignal(signal.SIGTERM) is handler
        with pytest.raises(Terminated):
            progress.check()
        assert termination.asked


def test_sigterm_without_a_handler_is_left_to_the_operating_system() -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with interrupts_kept(Progress(silent)):
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_handler_comes_back_after_an_error() -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="inside"), interrupts_kept(Progress(silent)):
        raise ValueError("inside")
    assert signal.getsignal(signal.SIGINT) is handler


def test_build_in_another_thread_leaves_signals_alone() -> None:
    handler = signal.getsignal(signal.SIGINT)
    seen = []

    def work() -> None:
        with interrupts_kept(Progress(silent)):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [handler]


@pytest.mark.parametrize(
    ("phases", "expected"),
    [([(4, (2, 0, 7))], [0, 0.75, 0.75, 1, 1]), ([(0, ()), (0, ())], [0, 1, 0, 1])],
    ids=["steps out of order and beyond the end", "a phase that starts again"],
)
def test_fractions_fall_only_where_a_phase_starts_again(
    phases: list[tuple[int, tuple[int, ...]]], expected: list[float]
) -> None:
    reported: list[float] = []
    progress = Progress(lambda phase, fraction: reported.append(fraction))
    for steps, done in phases:
        progress.start("phase", steps)
        for step in done:
            progress.step("phase", step)
        progress.finish("phase")
    assert reported == expected
