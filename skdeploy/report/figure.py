"""Drawings of the report as a file of its own: an SVG with its style in it, on white, for papers and slides."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from skdeploy.core.errors import UsageError
from skdeploy.core.files import write_text
from skdeploy.report.blocks import Legend, Panels, Trusted, visible
from skdeploy.report.plots import CHARACTER, PANEL, drawing_style, key, text_at

SUFFIX: Final = ".svg"
COLUMNS: Final = (3, 4)  # panels side by side, whichever leaves fewer places empty
MARGIN: Final = 12
GAP: Final = 16  # px between panels
LINE: Final = 18  # px from one line of text to the next
KEY: Final = 42  # px of a legend's sample, with the space after it


def check_figure(path: Path) -> None:
    """Raise UsageError for a file that is not to be an SVG: before anything is measured."""
    if path.suffix.lower() != SUFFIX:
        named = path.with_suffix(SUFFIX) if path.name else f"NAME{SUFFIX}"
        raise UsageError(
            f"--figure {path}: figures are written as {SUFFIX} only",
            advice=f"give {named}; browsers and Inkscape make .png and .pdf of it",
        )


def write_figure(path: Path, title: str, parts: Sequence[Panels]) -> None:
    """Write the parts below each other, whole or not at all. Raises as ``check_figure``, and for a path not writable."""
    check_figure(path)
    write_text(path, figure_svg(title, parts))


def figure_svg(title: str, parts: Sequence[Panels]) -> str:
    """The file's text. Colours stand in it as they are: not every program that shows an SVG knows variables."""
    panels = max(len(part.panels) for part in parts)
    columns = min(panels, min(COLUMNS, key=lambda count: (-panels % count, -count)))
    width = columns * (PANEL + GAP) - GAP + 2 * MARGIN
    y, drawn = float(MARGIN), list[str]()

    def say(text: str, style: str) -> None:
        nonlocal y
        for line in textwrap.wrap(visible(text), int((width - 2 * MARGIN) / CHARACTER)):
            y += LINE
            drawn.append(text_at(line, MARGIN, y - 5, style, "start"))

    say(title, "heading")
    for part in parts:
        y += GAP
        say(part.title, "heading")
        drawn.append(_legend(part.legend, y + 4))
        y += LINE + GAP
        for first in range(0, len(part.panels), columns):
            row = part.panels[first : first + columns]
            drawn += [_placed(svg, MARGIN + place * (PANEL + GAP), y) for place, svg in enumerate(row)]
            y += max(_height(svg) for svg in row) + GAP
        say(part.caption, "label")
    height = y + MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}"><style>{drawing_style()}</style>'
        f'<rect class="paper" width="100%" height="100%"/>{"".join(drawn)}</svg>\n'
    )


def _legend(entries: Sequence[Legend], y: float) -> str:
    x, drawn = float(MARGIN), list[str]()
    for entry in entries:
        drawn.append(_placed(key(entry.style, line=entry.line), x, y))
        drawn.append(text_at(entry.name, x + KEY, y + 11, "label", "start"))
        x += KEY + len(visible(entry.name)) * CHARACTER + GAP
    return "".join(drawn)


def _placed(svg: Trusted, x: float, y: float) -> str:
    return svg.replace("<svg ", f'<svg x="{x:.0f}" y="{y:.0f}" ', 1)


def _height(svg: Trusted) -> float:
    found = re.search(r'height="(\d+)"', svg)
    if found is None:
        raise AssertionError("a drawing says how high it is")
    return float(found[1])
