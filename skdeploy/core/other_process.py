"""A module of ours in a process of its own, spoken to through a pipe: its memory ends with it.

Nothing that is sent can hold code: callers send JSON, and arrays as .npy.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Final

from skdeploy.core.errors import SkdeployError

SHOWN_LINES: Final = 5  # of what the process said when it failed


class OtherProcess:
    """``python -m module FD``, from here to ``close``. Its ``main`` opens the pipe's end with ``end_of_pipe``.

    ``work`` and ``error`` are for a process that ends before it has answered: "the process that WORK ended with -9".
    """

    def __init__(self, module: str, work: str, error: type[SkdeployError]) -> None:
        self._work, self._error = work, error
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._pipe, its_end = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(its_end.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=self._said,
            pass_fds=(its_end.fileno(),),
        )
        its_end.close()

    def send(self, data: bytes) -> None:
        """Raises the error if the process has ended."""
        try:
            self._pipe.send_bytes(data)
        except OSError as error:
            raise self._failed() from error

    def answer(self) -> bytes:
        """Waits for what the process sends. Raises the error if it ends instead."""
        try:
            return self._pipe.recv_bytes()
        except (EOFError, OSError) as error:
            raise self._failed() from error

    def said(self) -> str:
        """All that it has printed so far, on stdout and stderr."""
        self._said.seek(0)  # the process writes at the end: the place is its own only before it writes
        return self._said.read().decode(errors="replace")

    def close(self) -> None:
        """Ends the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._pipe.close()
        self._said.close()

    def _failed(self) -> SkdeployError:
        code = self._process.wait()
        words = self.said().strip().splitlines()[-SHOWN_LINES:]
        return self._error(
            f"the process that {self._work} ended with {code}: {' | '.join(words) or 'it said nothing'}",
            advice="-9 means that it was killed, most often because memory ran out; report anything else",
        )


def end_of_pipe() -> Connection:
    """In that process: its end, which the last argument names."""
    return Connection(int(sys.argv[1]))
