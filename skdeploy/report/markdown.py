"""Findings as Markdown, for the page of a CI job. Every text is shown as it is: none is markup."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from skdeploy.core.files import write_text
from skdeploy.report.blocks import Block, Cell, Facts, Finding, Fold, Section, Table, Text, Tone

# What begins markup, HTML, a mention, a link or a table's cell in GitHub's and GitLab's Markdown; file names are no markup.
MARKUP: Final = re.compile(r"[\\`*_\[\]<>#|~@&$]|:(?=//)|^[-+]|^[0-9]+[.)](?= )")
BLANKS: Final = re.compile(r"\n{3,}")
MARKS: Final[dict[Tone, str]] = {"good": "✅ ", "bad": "❌ ", "warn": "⚪ ", "": ""}


def write_markdown(path: Path, title: str, section: Section) -> None:
    """Write a heading, and what of a section is words or a table. Raises UsageError, IntegrityError."""
    lines = [f"## {markdown(title)}", "", markdown(section.lead), ""]
    for block in section.blocks:
        lines += _lines(block)
    write_text(path, BLANKS.sub("\n\n", "\n".join(lines) + "\n"))


def markdown(text: str) -> str:
    """A text on one line, whatever is in it, that Markdown shows as it is."""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    return MARKUP.sub(lambda found: "".join(f"&#{ord(sign)};" for sign in found[0]), line)


def _lines(block: Block) -> Iterator[str]:
    match block:
        case Table(rows=[_, *_]):
            yield ""  # or a list above would take the table in
            yield _row([markdown(column.label) for column in block.columns])
            yield _row(["---:" if column.numeric else "---" for column in block.columns])
            yield from (_row([_cell(cell) for cell in row]) for row in block.rows)
            yield ""
        case Finding():
            yield f"- {MARKS[block.tone]}{markdown(block.text)}"
            if block.detail:
                yield f"  {markdown(block.detail)}"
        case Text():
            mark = "" if block.tone == "warn" else MARKS[block.tone]  # a note is nothing that was skipped
            yield f"- {mark}{markdown(block.text)}"
        case Fold():
            yield from ("", f"<details><summary>{markdown(block.summary)}</summary>", "")
            for inner in block.blocks:
                yield from _lines(inner)
            yield from ("", "</details>", "")
        case Facts():
            yield from (f"- {markdown(f'{name}: {value}')}" for name, value in block.rows)


def _cell(cell: Cell) -> str:
    return MARKS[cell.tone] + markdown(cell.whole)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
