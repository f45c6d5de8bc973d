"""Drawings as SVG text: rows along one axis, and lines. Colours, dashes and fonts are in ``drawing.css``, by class name.

A series has a number, 0..4, and with it a colour, a dash and a marker of its own, so that none depends on colour alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Final

from skdeploy.report.blocks import Figure, Legend, Trusted, visible

SHEET: Final = Path(__file__).parent / "templates" / "drawing.css"
WIDE: Final = 760  # px: fits beside the margins of a page of 840 px
NARROW: Final = 328  # px: a telephone of 400 px less margins
PANEL: Final = 240  # px: three in a row of WIDE, one on a telephone
CHARACTER: Final = 6.4  # px, of the page's 12 px font: an average that no name of digits and dots exceeds
ROW: Final = 24
TALL: Final = 40  # rows of a drawing; the table beside it has all
INSET: Final = 8  # px between the end of an axis and the first marker
STYLES: Final = 5
SUPERSCRIPT: Final = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
FEW_DECADES: Final = 2  # of a logarithmic axis: then it has ticks between powers of ten
STEPS: Final = (1.0, 2.0, 2.5, 5.0, 10.0)
Place = Callable[[float], float]  # from a value to a coordinate
# Strokes from the point that is marked, one a series; small ones for many points.
MARKERS: Final = (
    "m-3,0a3,3 0 1,0 6,0a3,3 0 1,0 -6,0z",
    "m-4.5,-4.5h9v9h-9z",
    "m0,-6l5.6,10.2h-11.2z",
    "m0,-5l5,5l-5,5l-5,-5z",
    "m-4,-4l8,8m0,-8l-8,8",
)
SMALL_MARKERS: Final = (
    "m-2,0a2,2 0 1,0 4,0a2,2 0 1,0 -4,0z",
    "m-3,-3h6v6h-6z",
    "m0,-3l2.8,5h-5.6z",
    "m0,-3l3,3l-3,3l-3,-3z",
    "m-1.6,-1.6l3.2,3.2m0,-3.2l-3.2,3.2",
)


@dataclass(frozen=True)
class Axis:
    """From ``low`` to ``high``; ``label`` says what is measured, with its unit."""

    low: float
    high: float
    label: str
    log: bool = False

    @classmethod
    def linear(cls, values: Iterable[float], label: str) -> Axis:
        """Covers all values, ends on round numbers."""
        finite = [value for value in values if math.isfinite(value)] or [0.0]
        low, high = min(finite), max(finite)
        if high - low < 1e-12 * max(abs(low), abs(high), 1e-30):
            low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
        step = _step(high - low, 5)
        return cls(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, label)

    @classmethod
    def logarithmic(cls, values: Iterable[float], label: str) -> Axis:
        """Covers all positive values, ends on powers of ten, or on 1, 2 or 5 times one where there are few."""
        positive = [value for value in values if math.isfinite(value) and value > 0] or [1.0]
        low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
        if high - low > FEW_DECADES:
            return cls(10.0**low, 10.0**high, label, log=True)
        fine = [factor * 10.0**power for power in range(low - 1, high + 1) for factor in (1.0, 2.0, 5.0)]
        below = max(value for value in fine if value <= min(positive) * (1 + 1e-9))
        above = min(value for value in fine if value > max(positive))
        return cls(below, above, label, log=True)

    def place(self, value: float) -> float:
        """0 at ``low``, 1 at ``high``; values outside are put at the end that is next to them."""
        if math.isnan(value):
            return 0.0
        if self.log:
            value = max(value, self.low)
            share = math.log(min(value, self.high) / self.low) / math.log(self.high / self.low)
        else:
            share = (min(value, self.high) - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, share))

    def ticks(self, most: int) -> list[tuple[float, str]]:
        """Values and their text, no more than about ``most``."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            if last - first <= FEW_DECADES - 1:
                fine = [factor * 10.0**power for power in range(first - 1, last + 1) for factor in (1.0, 2.0, 5.0)]
                return [(v, f"{v:,g}") for v in fine if self.low * (1 - 1e-9) <= v <= self.high * (1 + 1e-9)]
            apart = max(1, math.ceil((last - first) / most))
            return [(10.0**power, _power(power)) for power in range(first, last + 1, apart)]
        step = _step(self.high - self.low, most)
        start = math.ceil(self.low / step - 1e-9)
        stop = math.floor(self.high / step + 1e-9)
        digits = max(0, -math.floor(math.log10(step) + 1e-9) + _is_quarter(step))
        return [(index * step, f"{index * step:.{digits}f}") for index in range(start, stop + 1)]


@dataclass(frozen=True)
class Row:
    """One line of a row chart: a bar from the axis' start or between two values, an interval, marks by series, a limit."""

    label: str
    value: str = ""
    bar: tuple[float | None, float] | None = None
    interval: tuple[float, float] | None = None
    marks: tuple[tuple[int, float], ...] = ()
    limit: float | None = None
    tone: str = ""


@dataclass(frozen=True)
class Reference:
    """A line across the whole chart, and what it is called."""

    at: float
    label: str


@dataclass(frozen=True)
class Series:
    """Points of one line. ``low`` and ``high`` bound a band around it, if given. NaN breaks the line. ``small``: its
    markers are.
    """

    style: int
    xs: Sequence[float]
    ys: Sequence[float]
    low: Sequence[float] = field(default=())
    high: Sequence[float] = field(default=())
    markers: bool = True
    line: bool = True
    small: bool = False


def drawing_style() -> str:
    """The style of drawings for a file of its own: the colours for paper, put in place of their names."""
    css = SHEET.read_text(encoding="utf-8")
    colours, rules = css.partition(":root {")[2].partition("}")[0], css.partition("/* Drawings */\n")[2]
    values = dict(re.findall(r"(--[\w-]+): ([^;]+);", colours))
    return re.sub(r"var\((--[\w-]+)\)", lambda found: values[found[1]], rules)


def rows_chart(
    title: str, rows: Sequence[Row], axis: Axis, width: int, *, references: Sequence[Reference] = ()
) -> Trusted:
    """Rows below each other on one axis: labels beside the rows where there is room for them, else above."""
    beside = width >= WIDE
    longest = max((len(visible(row.label)) for row in rows), default=0)
    left = min(300.0, longest * CHARACTER + 14) if beside else 8.0
    values = max((len(row.value) for row in rows), default=0) * CHARACTER + (
        12 if any(row.value for row in rows) else 4
    )
    right = width - (values if beside else 8) - 4
    height_of_row = ROW if beside else 40
    top = 20.0 if references else 6.0
    bottom = top + height_of_row * len(rows)

    def x(value: float) -> float:
        return left + axis.place(value) * (right - left)

    parts = [
        _grid_below(axis, x, top, bottom, width, 8 if beside else 4),
        _axis_label(axis.label, (left + right) / 2, bottom + 38),
    ]
    for reference in references:
        at = x(reference.at)
        anchor = "start" if at < width / 2 else "end"
        shift = 4 if anchor == "start" else -4
        parts.append(f'<path class="ref" d="M{at:.1f},{top - 16:.1f}V{bottom:.1f}"/>')
        parts.append(text_at(reference.label, at + shift, top - 6, "ref-label", anchor))
    for index, row in enumerate(rows):
        middle = top + height_of_row * index + (ROW / 2 if beside else 27)
        if beside:
            parts.append(text_at(_fitted(row.label, left - 14), left - 8, middle + 4, "label", "end", full=row.label))
            parts.append(text_at(row.value, width - 4, middle + 4, "value", "end"))
        else:
            room = width - 24 - len(row.value) * CHARACTER
            parts.append(text_at(_fitted(row.label, room), left, middle - 12, "label", "start", full=row.label))
            parts.append(text_at(row.value, width - 8, middle - 12, "value", "end"))
        parts.append(_row(row, x, middle, left))
    return _svg(title, width, bottom + 46, parts)


def line_chart(
    title: str,
    series: Sequence[Series],
    horizontal: Axis,
    vertical: Axis,
    width: int,
    height: int,
    *,
    references: Sequence[Reference] = (),
    heading: str = "",
    ticks: Sequence[tuple[float, str]] | None = None,
) -> Trusted:
    """Lines over ``horizontal``; ``ticks`` replace its own; ``heading`` stands above the drawing."""
    marks = vertical.ticks(5)
    left = max(len(text) for _, text in marks) * CHARACTER + 26
    top, right, bottom = (30.0 if heading else 12.0), width - 12.0, height - 42.0

    def x(value: float) -> float:
        return left + INSET + horizontal.place(value) * (right - left - 2 * INSET)

    def y(value: float) -> float:
        return bottom - vertical.place(value) * (bottom - top)

    parts = [text_at(_fitted(heading, width - 8), left, 16, "heading", "start", full=heading)] if heading else []
    for value, text in marks:
        parts.append(f'<path class="grid" d="M{left:.1f},{y(value):.1f}H{right:.1f}"/>')
        parts.append(text_at(text, left - 6, y(value) + 4, "tick", "end"))
    for value, text in horizontal.ticks(max(3, width // 90)) if ticks is None else ticks:
        parts.append(f'<path class="tick-mark" d="M{x(value):.1f},{bottom:.1f}v4"/>')
        parts.append(_tick(text, x(value), bottom + 17, width))
    parts.append(f'<path class="axis" d="M{left:.1f},{bottom:.1f}H{right:.1f}"/>')
    parts.append(_axis_label(horizontal.label, (left + right) / 2, height - 6))
    middle = (top + bottom) / 2
    parts.append(
        f'<g transform="translate(11,{middle:.1f}) rotate(-90)">{text_at(vertical.label, 0, 0, "axis-label", "middle")}</g>'
    )
    for reference in references:
        at = y(reference.at)
        parts.append(f'<path class="ref" d="M{left:.1f},{at:.1f}H{right:.1f}"/>')
        if reference.label:
            parts.append(text_at(reference.label, right, at - 5, "ref-label", "end"))
    parts += [_band(line, x, y) for line in series if len(line.low)]
    parts += [_line(line, x, y) for line in series]
    return _svg(title, width, height, parts)


def rows_figure(
    title: str,
    caption: str,
    rows: Sequence[Row],
    axis: Axis,
    *,
    references: Sequence[Reference] = (),
    legend: tuple[Legend, ...] = (),
) -> Figure:
    """A row chart in both widths of the page, with its caption."""
    wide, narrow = (rows_chart(title, rows, axis, width, references=references) for width in (WIDE, NARROW))
    return Figure(title, caption, wide, narrow, legend)


def key(style: int, *, line: bool) -> Trusted:
    """A legend's sample of a series."""
    stroke = '<path class="line" d="M1,7H33"/>' if line else ""
    return Trusted(
        f'<svg class="key" width="34" height="14" viewBox="0 0 34 14" aria-hidden="true"><g class="s{style % STYLES}">'
        f"{stroke}{_marks(style, [(17, 7)])}</g></svg>"
    )


def _row(row: Row, x: Place, middle: float, left: float) -> str:
    parts = [f'<g class="row {row.tone}">' if row.tone else '<g class="row">']
    if row.bar is not None:
        start, end = (left if row.bar[0] is None else x(row.bar[0])), x(row.bar[1])
        parts.append(
            f'<rect class="bar" x="{min(start, end):.1f}" y="{middle - 6:.1f}" width="{max(abs(end - start), 1.5):.1f}" '
            'height="12" rx="2"/>'
        )
    if row.interval is not None:
        low, high = x(row.interval[0]), x(row.interval[1])
        parts.append(
            f'<path class="whisker" d="M{low:.1f},{middle:.1f}H{high:.1f}M{low:.1f},{middle - 5:.1f}v10'
            f'M{high:.1f},{middle - 5:.1f}v10"/>'
        )
    if row.limit is not None:
        parts.append(f'<path class="limit" d="M{x(row.limit):.1f},{middle - 9:.1f}v18"/>')
    parts += [_marker(style, x(value), middle) for style, value in row.marks]
    return "".join(parts) + "</g>"


def _line(line: Series, x: Place, y: Place) -> str:
    parts = [f'<g class="s{line.style % STYLES}">']
    if line.line:
        path, pen_up = [], True
        for horizontal, vertical in zip(line.xs, line.ys, strict=True):
            if math.isnan(vertical):
                pen_up = True
                continue
            path.append(f"{'M' if pen_up else 'L'}{x(horizontal):.1f},{y(vertical):.1f}")
            pen_up = False
        parts.append(f'<path class="line" d="{"".join(path)}"/>')
    if line.markers:
        points = zip(line.xs, line.ys, strict=True)
        places = [(x(at), y(value)) for at, value in points if not math.isnan(value)]
        parts.append(_marks(line.style, places, small=line.small))
    return "".join(parts) + "</g>"


def _band(line: Series, x: Place, y: Place) -> str:
    there = [f"{x(at):.1f},{y(value):.1f}" for at, value in zip(line.xs, line.high, strict=True)]
    back = [f"{x(at):.1f},{y(value):.1f}" for at, value in zip(line.xs, line.low, strict=True)]
    return f'<path class="band" d="M{"L".join([*there, *reversed(back)])}Z"/>'


def _marks(style: int, places: Iterable[tuple[float, float]], *, small: bool = False) -> str:
    """All markers of a series as one path."""
    shape = (SMALL_MARKERS if small else MARKERS)[style % STYLES]
    return f'<path class="marker" d="{"".join(f"M{x:.1f},{y:.1f}{shape}" for x, y in places)}"/>'


def _marker(style: int, x: float, y: float) -> str:
    return f'<g class="s{style % STYLES}">{_marks(style, [(x, y)])}</g>'


def _grid_below(axis: Axis, x: Place, top: float, bottom: float, width: float, most: int) -> str:
    parts = [f'<path class="axis" d="M{x(axis.low):.1f},{bottom:.1f}H{x(axis.high):.1f}"/>']
    for value, text in axis.ticks(most):
        parts.append(f'<path class="grid" d="M{x(value):.1f},{top:.1f}V{bottom:.1f}"/>')
        parts.append(_tick(text, x(value), bottom + 16, width))
    return "".join(parts)


def _tick(text: str, x: float, y: float, width: float) -> str:
    """Below its place on the axis, or as near to it as the drawing has room."""
    half = len(text) * CHARACTER / 2
    return text_at(text, min(max(x, half), width - half), y, "tick", "middle")


def _axis_label(label: str, x: float, y: float) -> str:
    return text_at(label, x, y, "axis-label", "middle")


def text_at(text: str, x: float, y: float, style: str, anchor: str, *, full: str = "") -> str:
    """Escaped text; where it was shortened, ``full`` is shown when pointed at."""
    hint = f"<title>{_safe(full)}</title>" if full and full != text else ""
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{hint}{_safe(text)}</text>'


def _safe(text: str) -> str:
    return escape(visible(text))


def _fitted(text: str, room: float) -> str:
    """The text, or its end where there is no room for all: the names of tensors differ at their ends."""
    shown = visible(text)
    most = max(4, int(room / CHARACTER + 1e-6))
    return shown if len(shown) <= most else "…" + shown[1 - most :]


def _svg(title: str, width: float, height: float, parts: Iterable[str]) -> Trusted:
    return Trusted(
        f'<svg role="img" width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'aria-label="{_safe(title)}">{"".join(parts)}</svg>'
    )


def _step(span: float, most: int) -> float:
    """A round step that divides ``span`` into no more than about ``most`` parts."""
    rough = span / max(1, most)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in STEPS if factor * power >= rough * (1 - 1e-9))


def _is_quarter(step: float) -> bool:
    return abs(step / 10.0 ** math.floor(math.log10(step) + 1e-9) - 2.5) < 1e-6


def _power(exponent: int) -> str:
    """10 to a power, plain where that is short."""
    if -2 <= exponent <= 4:
        return f"{10.0**exponent:,g}"
    return "10" + str(exponent).translate(SUPERSCRIPT)
