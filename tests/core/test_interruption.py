from __future__ import annotations

import os
import signal
import threading

import pytest

from skdeploy.core.interruption import Terminated, termination_raises


def test_sigterm_raises_what_ctrl_c_handlers_catch_and_the_old_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt) as raised, termination_raises() as termination:
        os.kill(os.getpid(), signal.SIGTERM)
    assert isinstance(raised.value, Terminated)  # this is the claim: told apart from Ctrl-C
    assert termination.asked
    assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_is_noted_and_raises_as_ever() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), termination_raises() as termination:
        os.kill(os.getpid(), signal.SIGINT)
    assert (termination.pressed, termination.asked, termination.came) == (True, False, True)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_job_that_ignores_ctrl_c_still_does() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with termination_raises() as termination:
            os.kill(os.getpid(), signal.SIGINT)
        assert not termination.came
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_leaves_signals_alone() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with termination_raises() as termination:
            seen.append((signal.getsignal(signal.SIGTERM), termination.asked))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, False)]
