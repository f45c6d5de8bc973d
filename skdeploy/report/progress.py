"""Progress as a person sees it: the stages on stderr as they run."""

from __future__ import annotations

import re
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.text import Text

from skdeploy.core.progress import Progress
from skdeploy.report.voice import harmless, is_speaking, voice


class ConsoleProgress(Progress):
    """Draws the stages. On a terminal they are there while they run, and leave it to the result, unless a stage fails or
    ``--verbose`` is given; elsewhere each is a line. Notes are the voice's, see ``voice.py``.
    """

    def __init__(self) -> None:
        self._voice = voice()
        self._console = Console(stderr=True, highlight=False)
        self._passes = self._console.is_terminal and not self._voice.verbose
        self._done: list[str] = []
        self._seen: list[str] = []  # with the notes between them
        self._live: Live | None = None
        self._dots = Spinner("dots")
        self._stage = ""
        self._started = 0.0
        self._detail = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: TracebackType | None) -> None:
        self._stop()
        if error is not None and self._passes:
            self._print(*self._done, f"[red]✗[/red] {_words(self._stage)}" if self._stage else "")

    def begin(self, stage: str) -> None:
        self._voice.log(f"begin {_words(stage)}")
        self._stage, self._started, self._detail = stage, time.perf_counter(), ""
        if self._console.is_terminal and not self._voice.quiet and self._live is None:
            self._live = Live(console=self._console, transient=True, refresh_per_second=8, get_renderable=self._drawn)
            self._live.start()

    def update(self, detail: str) -> None:
        if _without_numbers(detail) != _without_numbers(self._detail):  # a bar that moves is one detail
            self._voice.log(f"  {detail}")
            if self._voice.verbose:
                self._print(f"  {escape(harmless(detail))}")
        self._detail = detail

    def end(self, stage: str, seconds: float, *, reused: bool) -> None:
        took = "up to date" if reused else f"{seconds:6.1f} s"
        line = f"[green]✓[/green] {_words(stage):<18}{took:>10}"
        self._voice.log(f"end {_words(stage)}: {took.strip()}")
        self._done.append(line)
        self._seen.append(line)
        self._stage = ""
        if not self._passes:
            self._stop()
            self._print(line)

    def note(self, text: str) -> None:
        if is_speaking():
            self._voice.note(text)
            self._seen.append(f"[yellow]![/yellow] {escape(harmless(text))}")
        else:  # a library user's progress: nobody else tells it
            self._console.print(
                f"[yellow]![/yellow] {escape(harmless(text))}", soft_wrap=True
            )  # paths and commands stay whole

    def _print(self, *lines: str) -> None:
        if not self._voice.quiet:
            for line in filter(None, lines):
                self._console.print(line, soft_wrap=True)

    def _drawn(self) -> Group:
        """The stages until now, as many as there is room for, and the one that runs."""
        room = max(self._console.height - 2, 1)
        elapsed = time.perf_counter() - self._started
        self._dots.update(text=f"{_words(self._stage):<18}{elapsed:8.1f} s  {escape(harmless(self._detail))}")
        done = self._seen[-room:] if self._passes else []
        lines = [Text.from_markup(line, overflow="ellipsis") for line in done]
        return Group(*lines, *([self._dots] if self._stage else []))

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
            sys.stderr.flush()


def _without_numbers(detail: str) -> str:
    return re.sub(r"[\d.,]+", "", detail)


def _words(stage: str) -> str:
    from skdeploy.line.export import words_of

    return words_of(stage)
