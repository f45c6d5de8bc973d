"""Findings for people, on a terminal, in a file or a CI's log: paragraphs and tables. No text is taken for markup."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from rich.console import Console, JustifyMethod
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from skdeploy.report import blocks
from skdeploy.report.blocks import Block, Cell, Fold, Section, Tone
from skdeploy.report.voice import harmless, harmless_line, voice, whole_lines

LOG_WIDTH: Final = 120
NO_LIMIT: Final = 10_000  # columns that no table needs
STYLES: Final[dict[Tone, str]] = {"good": "green", "warn": "yellow", "bad": "red", "": ""}
MARKS: Final[dict[Tone, tuple[str, str]]] = {
    "good": ("✓ ", "green"),
    "warn": ("? ", "yellow"),
    "bad": ("✗ ", "red"),
    "": ("", ""),
}


class Terminal:
    """Where results go: as wide as the terminal; in a file or a CI log as wide as a table needs."""

    def __init__(self, *, stderr: bool = False) -> None:
        width = None if stderr or sys.stdout.isatty() else LOG_WIDTH
        self._console = Console(highlight=False, markup=False, emoji=False, width=width, stderr=stderr)

    @property
    def width(self) -> int:
        return self._console.width

    def headline(self, *parts: str | tuple[str, str], style: str = "") -> None:
        """Print a run's result in a line, the only one with ``--quiet``."""
        self._write(self._paragraph(_assembled(parts), style), always=True)

    def brief(self, text: str) -> None:
        """Print a line only with ``--quiet``, for a result without a headline."""
        if voice().quiet:
            self.headline(harmless_line(text))

    def say(self, *parts: str | tuple[str, str], style: str = "", whole: bool = False) -> None:
        """One paragraph. On a terminal it is broken between words; ``whole``: not at all, for what is copied from there.

        A pair is a text and its own style.
        """
        text = _assembled(parts)
        self._write(Text.styled(text.plain, style) if whole else self._paragraph(text, style))

    def title(self, text: str) -> None:
        self.say(harmless_line(text), style="italic")

    def warn(self, text: str, label: str = "!") -> None:
        voice().told(text)
        self.say((label, "yellow"), f" {text}")

    def _paragraph(self, text: Text, style: str) -> Text:
        text.stylize_before(style)
        if not self._console.is_terminal:
            return text  # a log, or another program: lines are as long as they are
        lines, at = list[Text](), 0
        for line in whole_lines(text.plain, self.width):
            words = line.lstrip(" ")
            start = text.plain.index(words, at)
            at = start + len(words)
            lines.append(Text(" " * (len(line) - len(words))) + text[start:at])
        return Text("\n").join(lines)

    def _write(self, content: Text | Table, *, always: bool = False) -> None:
        own = voice()
        if own.keeps_log:
            plain = io.StringIO()
            Console(file=plain, width=LOG_WIDTH, markup=False, emoji=False).print(
                content, soft_wrap=isinstance(content, Text)
            )
            own.log(plain.getvalue())
        if always or not own.quiet:
            self._console.print(content, soft_wrap=isinstance(content, Text))

    def section(self, section: Section, *, unfold: bool = False) -> None:
        """The findings on a subject. Drawings are left out, and so is what is folded unless ``unfold``."""
        self.title(section.lead)
        for index, block in enumerate(section.blocks):
            inner = block.blocks if isinstance(block, Fold) else (block,)
            if unfold or not isinstance(block, Fold):
                for each in inner:
                    self.show(each, captioned=index > 0)

    def show(self, block: Block, *, captioned: bool = False) -> None:
        """One block; a table with its caption, if that is asked for."""
        match block:
            case blocks.Table():
                if captioned:
                    self.title(block.caption)
                self._write(self._fitting(block))
            case blocks.Finding():
                self.say(MARKS[block.tone], harmless_line(block.text))
                if block.detail:
                    self.say(f"  {harmless_line(block.detail)}")
            case blocks.Text(tone="warn"):
                self.warn(harmless_line(block.text))
            case blocks.Text():
                self.say(harmless_line(block.text), style=STYLES[block.tone])
            case blocks.Facts():
                self.say(harmless_line(block.line))

    def _fitting(self, table: blocks.Table, whole: Sequence[str] = ()) -> Table:
        """All that fits: without columns on the right and notes of numbers, if the table allows it."""
        most, unlimited = len(table.columns), self._console.options.update(max_width=NO_LIMIT)
        counts = range(most, (table.least or most) - 1, -1)
        with_notes = counts[:1] if table.notes_last else counts
        for count, notes in (*((count, True) for count in with_notes), *((count, False) for count in counts)):
            drawn = _drawn(table, count, whole, notes=notes)
            if Measurement.get(self._console, unlimited, drawn).maximum <= self.width:
                break
        return drawn

    def table(
        self, columns: Sequence[str], rows: Iterable[Sequence[Cell | str]], *, whole: Sequence[str] = (), least: int = 0
    ) -> None:
        """A column whose label begins with ``>`` holds numbers, which are never wrapped, and nor are those named in ``whole``.

        ``least`` as of ``blocks.Table``.
        """
        cells = tuple(tuple(Cell(cell) if isinstance(cell, str) else cell for cell in row) for row in rows)
        self._write(self._fitting(blocks.Table("", blocks.columns(*columns), cells, least=least), whole))

    def facts(self, rows: Mapping[str, str], title: str = "") -> None:
        """Names and values, one below the other; a value may have several lines."""
        table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows.items():
            table.add_row(harmless(name), harmless(value))
        self._write(table)


def _assembled(parts: Iterable[str | tuple[str, str]]) -> Text:
    whole = [(harmless(part), "") if isinstance(part, str) else (harmless(part[0]), part[1]) for part in parts]
    return Text.assemble(*whole)


def _drawn(table: blocks.Table, count: int, whole: Sequence[str], *, notes: bool) -> Table:
    """The first ``count`` columns, without rows that have nothing beside their name in them."""
    drawn = Table(box=None, pad_edge=False)
    for column in table.columns[:count]:
        whole_column = column.numeric or column.label in whole
        justify: JustifyMethod = "right" if column.numeric else "left"
        drawn.add_column(column.label, justify=justify, overflow="fold", no_wrap=whole_column)
    for row in table.rows:
        cells = zip(table.columns, row[:count], strict=False)
        texts = [cell.whole if notes or not column.numeric else cell.text for column, cell in cells]
        if count == len(table.columns) or any(texts[1:]):
            drawn.add_row(
                *(Text(harmless_line(text), STYLES[cell.tone]) for text, cell in zip(texts, row, strict=False))
            )
    return drawn
