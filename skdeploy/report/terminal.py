"""Findings for people, on a terminal, in a file or a CI's log: paragraphs and tables. No text is taken for markup."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from skdeploy.report.blocks import Cell, Tone

LOG_WIDTH: Final = 120
STYLES: Final[dict[Tone, str]] = {"good": "green", "warn": "yellow", "bad": "red", "": ""}


class Terminal:
    """Where results go: as wide as the terminal; in a file or a CI log as wide as a table needs."""

    def __init__(self, *, stderr: bool = False) -> None:
        width = None if stderr or sys.stdout.isatty() else LOG_WIDTH
        self._console = Console(highlight=False, markup=False, emoji=False, width=width, stderr=stderr)

    @property
    def width(self) -> int:
        return self._console.width

    def say(self, *parts: str | tuple[str, str], style: str = "") -> None:
        """One paragraph, which is not wrapped: paths and commands stay whole. A pair is a text and its own style."""
        self._console.print(Text.assemble(*parts), style=style, soft_wrap=True)

    def title(self, text: str) -> None:
        self.say(text, style="italic")

    def warn(self, text: str, label: str = "!") -> None:
        self.say((label, "yellow"), f" {text}")

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[Cell | str]], *, whole: Sequence[str] = ()) -> None:
        """A column whose label begins with ``>`` holds numbers. Those named in ``whole``, without it, are never wrapped."""
        table = Table(box=None, pad_edge=False)
        for column in columns:
            label = column.removeprefix(">")
            justify = "right" if column != label else "left"
            # justify is "left" or "right", which mypy widens to str
            table.add_column(label, justify=justify, overflow="fold", no_wrap=label in whole)  # type: ignore[arg-type]
        for row in rows:
            table.add_row(*map(_text, row))
        self._console.print(table)

    def facts(self, rows: Mapping[str, str], title: str = "") -> None:
        """Names and values, one below the other; a value may have several lines."""
        table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows.items():
            table.add_row(name, value)
        self._console.print(table)


def _text(cell: Cell | str) -> Text:
    if isinstance(cell, str):
        return Text(cell)
    return Text(f"{cell.text} ({cell.note})" if cell.note else cell.text, STYLES[cell.tone])
