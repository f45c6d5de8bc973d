"""Progress as a person sees it: the stages on stderr as they run."""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner

from skdeploy.core.progress import Progress


class ConsoleProgress(Progress):
    """Draws the stages: a spinner with elapsed time on a terminal, one line a stage elsewhere."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._live: Live | None = None
        self._dots = Spinner("dots")
        self._stage = ""
        self._started = 0.0
        self._detail = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def begin(self, stage: str) -> None:
        self._stage, self._started, self._detail = stage, time.perf_counter(), ""
        if self._console.is_terminal:
            self._live = Live(console=self._console, transient=True, refresh_per_second=8, get_renderable=self._spinner)
            self._live.start()

    def update(self, detail: str) -> None:
        self._detail = detail

    def end(self, stage: str, seconds: float, *, reused: bool) -> None:
        self._stop()
        took = "up to date" if reused else f"{seconds:6.1f} s"
        self._console.print(f"[green]✓[/green] {_words(stage):<18}{took:>10}")

    def note(self, text: str) -> None:
        self._console.print(f"[yellow]![/yellow] {escape(text)}", soft_wrap=True)  # paths and commands stay whole

    def _spinner(self) -> Spinner:
        elapsed = time.perf_counter() - self._started
        text = f"{_words(self._stage):<18}{elapsed:8.1f} s  {escape(self._detail)}"
        self._dots.update(text=text)
        return self._dots

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def _words(stage: str) -> str:
    from skdeploy.line.export import words_of

    return words_of(stage)
