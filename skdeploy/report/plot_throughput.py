"""Images a second over the batch, one line for each artifact, backend and device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from skdeploy.report.blocks import Figure, Legend
from skdeploy.report.plots import NARROW, STYLES, WIDE, Axis, Series, line_chart

TITLE: Final = "Throughput by batch"
HEIGHT: Final = 300


@dataclass(frozen=True)
class Line:
    """``points`` are (batch, images a second), by batch."""

    name: str
    points: tuple[tuple[int, float], ...]


def throughput_figure(lines: Sequence[Line]) -> tuple[Figure, ...]:
    """Figures of as many lines as there are styles; a line of one point tells no more than the table, and is left out."""
    drawn = [line for line in lines if len(line.points) > 1]
    return tuple(_figure(drawn[start : start + STYLES]) for start in range(0, len(drawn), STYLES))


def _figure(lines: Sequence[Line]) -> Figure:
    batches = sorted({batch for line in lines for batch, _ in line.points})
    horizontal = Axis(float(batches[0]), float(batches[-1]), "batch", log=True)
    vertical = Axis.linear((0.0, *(value for line in lines for _, value in line.points)), "images per second")
    series = [
        Series(style, [float(batch) for batch, _ in line.points], [value for _, value in line.points])
        for style, line in enumerate(lines)
    ]
    ticks = [(float(batch), str(batch)) for batch in batches]
    wide, narrow = (
        line_chart(TITLE, series, horizontal, vertical, width, HEIGHT, ticks=ticks) for width in (WIDE, NARROW)
    )
    return Figure(
        TITLE,
        "Median latency turned into images a second; what a server reaches that keeps one batch in flight.",
        wide,
        narrow,
        tuple(Legend(style, line.name) for style, line in enumerate(lines)),
    )
