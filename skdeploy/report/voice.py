"""How much a run says: ``--quiet``, ``--verbose``, ``--log-file``, and each note once.

One ``Voice`` speaks at a time, a plain variable: stages in threads speak with the same one. Imports nothing heavy.
"""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TextIO

COMMAND: Final = re.compile(r"`[^`]*`")
STEERING: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # not tabs and line ends
LINE_ENDS: Final = re.compile(r"[\t\n\u2028\u2029]")
HANGING: Final = 2  # spaces before the lines that go on
NO_BREAK: Final = "\N{NO-BREAK SPACE}"
LEAST_WIDTH: Final = 20  # below that, lines are left to the terminal


class Voice:
    """``quiet``: only headlines and errors. ``verbose``: every detail of every stage, and where an error came from.

    Notes are kept while stages run, because most results repeat them; those that none has told are said at the end.
    """

    def __init__(self) -> None:
        self.quiet = self.verbose = False
        self._notes: list[str] = []
        self._log: TextIO | None = None

    def open_log(self, path: Path) -> None:
        """Append all that this run says to a file. Raises OSError."""
        self.close()
        number = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
        os.set_blocking(number, True)  # only the open must not wait, for a pipe that nobody reads
        self._log = os.fdopen(number, "a", encoding="utf-8")

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    @property
    def keeps_log(self) -> bool:
        return self._log is not None

    def log(self, text: str) -> None:
        """A line for the log file alone, with the time before it."""
        if self._log is not None:
            from datetime import datetime

            now = datetime.now().astimezone().isoformat(timespec="milliseconds")
            self._log.writelines(f"{now}  {line}\n" for line in harmless(text).rstrip("\n").split("\n"))
            self._log.flush()

    def note(self, text: str) -> None:
        """Keep a note until the result tells it, or the run ends."""
        self.log(f"note: {text}")
        if text not in self._notes:
            self._notes.append(text)

    def told(self, text: str) -> None:
        """A result has told this note."""
        if text in self._notes:
            self._notes.remove(text)

    def say_notes(self) -> None:
        """The notes that nothing has told, on stderr."""
        if not self.quiet:
            for text in self._notes:
                _print_whole(f"! {text}")
        self._notes.clear()

    def error(self, message: str, advice: str) -> None:
        """An error of the user's or of the machine's, and what to do, on stderr, after the notes that led to it."""
        self.say_notes()
        for line in (f"error: {message}", f"  -> {advice}" if advice else ""):
            if line:
                _print_whole(line)
                self.log(line)


_speaking: list[Voice] = []


def voice() -> Voice:
    """The one that speaks now; outside of a run, one that says everything and keeps no file."""
    return _speaking[-1] if _speaking else Voice()


def is_speaking() -> bool:
    """Whether a command line runs, which says the notes at its end."""
    return bool(_speaking)


@contextmanager
def speaking() -> Iterator[Voice]:
    """A run's own voice, until it ends."""
    own = Voice()
    _speaking.append(own)
    try:
        yield own
    finally:
        own.say_notes()
        _speaking.remove(own)
        own.close()


def harmless(text: str) -> str:
    """Text that may come from a file, with the characters that steer a terminal, or turn its reading direction, as escapes."""
    return STEERING.sub(_escaped, text)


def harmless_line(text: str) -> str:
    """The same for what has one line: a label, a cell. A line end in it would begin a row of its own."""
    return LINE_ENDS.sub(_escaped, harmless(text))


def _escaped(found: re.Match[str]) -> str:
    return found.group().encode("unicode_escape").decode()


def whole_lines(text: str, width: int) -> list[str]:
    """Lines of at most ``width`` columns that break no word and no command in backquotes; longer ones stay whole."""
    if width < LEAST_WIDTH:
        return text.split("\n")
    lines: list[str] = []
    for paragraph in text.split("\n"):
        indent = " " * (len(paragraph) - len(paragraph.lstrip(" ")))
        kept = COMMAND.sub(lambda found: found.group().replace(" ", NO_BREAK), paragraph)
        broken = textwrap.wrap(
            kept,
            width,
            initial_indent="",
            subsequent_indent=indent + " " * HANGING,
            break_long_words=False,
            break_on_hyphens=False,
            replace_whitespace=False,
        )
        lines += [line.replace(NO_BREAK, " ") for line in broken] or [""]
    return lines


def _print_whole(text: str) -> None:
    """On stderr; on a terminal, no word is broken."""
    text = harmless(text)
    if sys.stderr.isatty():
        import shutil

        text = "\n".join(whole_lines(text, shutil.get_terminal_size().columns))
    print(text, file=sys.stderr)
