"""SIGTERM, as systemd and Docker send it, ends a job as Ctrl-C does: the file at work is removed, the rest stays whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

INTERRUPTED_EXIT_CODE = 130  # 128 + SIGINT, as shells report it
TERMINATED_EXIT_CODE = 143  # 128 + SIGTERM


class Terminated(KeyboardInterrupt):
    """SIGTERM has come. A KeyboardInterrupt, so that whatever cleans up after Ctrl-C cleans up after this."""


@dataclass
class Termination:
    """Whether SIGTERM has come: libraries in between may turn the exception into another."""

    asked: bool = False


@contextmanager
def termination_raises() -> Iterator[Termination]:
    """Inside the block, SIGTERM raises ``Terminated`` in the main thread. In another thread this does nothing: only Python's
    main thread gets signals.
    """
    termination = Termination()
    if threading.current_thread() is not threading.main_thread():
        yield termination
        return

    def terminate(*_: object) -> None:
        termination.asked = True
        raise Terminated

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield termination
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)
