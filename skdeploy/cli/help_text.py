"""How help is laid out: whole words, options under the panels that they were declared with, and examples as they are typed."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Sequence
from typing import Any, Final

from typer.core import TyperCommand

from skdeploy.core.panel import Panel

EXAMPLES: Final = "\nExamples:\n"
FIRST_COLUMN: Final = 30  # of a definition list; a longer term has a line of its own
PLAIN_PANEL: Final = "Options"
LIST: Final = re.compile(
    r"<list\[(\w+)\]>"
)  # how Typer writes the type of a repeatable option: one value is given at a time
_Context: Any = TyperCommand.context_class
_Formatter: Any = _Context.formatter_class
ORDER: Final = (*(panel for panel in Panel if panel is not Panel.OUTPUT), PLAIN_PANEL, Panel.OUTPUT)


class Formatter(_Formatter):  # type: ignore[misc]  # click's, which Typer brings along but does not export
    """Click's formatter, which breaks lines at spaces only: a flag, a path or an address stays whole.

    ``longest_term``: what definition lists make room for, so that several below each other share their columns.
    """

    longest_term = 0

    def write_text(self, text: str) -> None:
        indent = " " * self.current_indent
        paragraphs = (" ".join(part.split()) for part in text.split("\n\n"))
        self.write("\n\n".join(_filled(part, self.width, indent) for part in paragraphs) + "\n")

    def write_dl(self, rows: Sequence[tuple[str, str]], col_max: int = FIRST_COLUMN, col_spacing: int = 2) -> None:
        first = min(max(self.longest_term, *(len(term) for term, _ in rows)), col_max) + col_spacing
        indent, hanging = " " * self.current_indent, " " * (self.current_indent + first)
        for term, text in rows:
            filled = _filled(text, self.width, hanging)
            if len(term) <= first - col_spacing:
                self.write(f"{indent}{term:<{first}}{filled[len(hanging) :]}".rstrip() + "\n")
            else:
                self.write(f"{indent}{term}\n" + (filled + "\n" if text else ""))


def _filled(text: str, width: int, indent: str) -> str:
    return textwrap.fill(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


class Context(_Context):  # type: ignore[misc]  # as above
    formatter_class = Formatter


def text_and_examples(docstring: str) -> tuple[str, str]:
    """A verb's docstring without its examples, and the examples, one a line."""
    text, _, examples = inspect.cleandoc(docstring).partition(EXAMPLES)
    return text.rstrip(), textwrap.dedent(examples).strip("\n")


def write_options(parameters: Sequence[Any], ctx: Any, formatter: Any) -> None:
    """Arguments, then the options panel by panel; those of no panel come before those of the output."""
    arguments: list[tuple[str, str]] = []
    panels: dict[str, list[tuple[str, str]]] = {name: [] for name in ORDER}
    for parameter in parameters:
        record = parameter.get_help_record(ctx)
        if record is None:
            continue
        record = (LIST.sub(lambda found: f"<{found[1].lower()}>", record[0]), record[1])
        if parameter.param_type_name == "argument":
            arguments.append(record)
        else:
            panel = getattr(parameter, "rich_help_panel", None) or PLAIN_PANEL
            panels.setdefault(panel, []).append(record)
    formatter.longest_term = max(len(term) for rows in (arguments, *panels.values()) for term, _ in rows)
    for title, rows in {"Arguments": arguments, **panels}.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)
