"""SIGTERM, as systemd and Docker send it, ends a job as Ctrl-C does: the file at work is removed, the rest stays whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

INTERRUPTED_EXIT_CODE = 130  # 128 + SIGINT, as shells report it
TERMINATED_EXIT_CODE = 143  # 128 + SIGTERM


class Terminated(KeyboardInterrupt):
    """SIGTERM has come. A KeyboardInterrupt, so that whatever cleans up after Ctrl-C cleans up after this."""


@dataclass
class Termination:
    """Whether SIGTERM was ``asked``, or Ctrl-C ``pressed``. A library that is at work may turn the exception into its own:
    a native module that is imported ends with ImportError.
    """

    asked: bool = False
    pressed: bool = False

    @property
    def came(self) -> bool:
        """Whether either has come."""
        return self.asked or self.pressed


@contextmanager
def termination_raises() -> Iterator[Termination]:
    """Inside the block, SIGTERM raises ``Terminated`` in the main thread, and Ctrl-C is noted. In another thread this does
    nothing: only Python's main thread gets signals. A process that ignores Ctrl-C still does.
    """
    termination = Termination()
    if threading.current_thread() is not threading.main_thread():
        yield termination
        return

    def terminate(*_: object) -> None:
        termination.asked = True
        raise Terminated

    def interrupt(number: int, frame: FrameType | None) -> None:
        termination.pressed = True
        signal.default_int_handler(number, frame)

    previous, keyboard = signal.signal(signal.SIGTERM, terminate), signal.getsignal(signal.SIGINT)
    if keyboard is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield termination
    finally:
        if keyboard is signal.default_int_handler:
            signal.signal(signal.SIGINT, keyboard)
        signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)
