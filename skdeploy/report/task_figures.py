"""Columns of a task's own figures, and the rows of each output where a network has several."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from skdeploy.backends.metrics import Metrics, figures_in_words
from skdeploy.bundle.contents import PARITY
from skdeploy.core.spec import Tolerance
from skdeploy.parity.report import Comparison, ParityReport
from skdeploy.report.blocks import Cell, Column, Table, columns, decibels, name, number, percent

LIMITS: Final = {
    "psnr_db": "min_psnr_db",
    "ssim": "min_ssim",
    "miou": "min_miou",
    "pair_error": "max_pair_error",
    "same_values": "min_equal",
}
"""The limit of a figure in a tolerance. A figure that has one comes before SQNR, since it decides."""

HINTS: Final = {
    "psnr_db": "Of the worst image, against the reference: 10 log10(255^2 / mean squared error)",
    "ssim": "Structural similarity of the worst image with the reference's",
    "same_8bit": "Values that are the same as the reference's after rounding to 8 bits",
    "miou": "Mean intersection over union of the classes of pixels, with the reference's",
    "same_pixels": "Pixels with the reference's class",
    "decided_pixels": "The same, of pixels whose margin is wider than the error allowed",
    "same_values": "Integers and booleans that are the reference's",
    "decided_values": "The same, of values that rounding cannot change",
    "pair_error": "Pairs of embeddings that are alike by the reference and not by the artifact, or the other way round",
}


@dataclass(frozen=True)
class FigureColumns:
    """The columns of the figures of some metrics: none for logits, whose column is that of the same class."""

    names: tuple[str, ...]

    @classmethod
    def of(cls, measured: Sequence[Metrics]) -> FigureColumns:
        found = list(dict.fromkeys(figure for metrics in measured for figure in metrics.figures))
        return cls(tuple(sorted(found, key=lambda figure: figure not in LIMITS)))

    @property
    def deciding(self) -> int:
        """How many of the columns come before SQNR."""
        return sum(figure in LIMITS for figure in self.names)

    @property
    def heads(self) -> tuple[Column, ...]:
        words = figures_in_words(dict.fromkeys(self.names, 0.0))
        return columns(*((f">{label}", HINTS.get(figure, "")) for label, figure in zip(words, self.names, strict=True)))

    def cells(self, metrics: Metrics | None, allowed: Tolerance) -> tuple[Cell, ...]:
        if metrics is None:
            return (Cell("", math.nan),) * len(self.names)
        return tuple(_cell(figure, metrics, allowed) for figure in self.names)


def outputs_tables(report: ParityReport) -> Iterator[Table]:
    """How near each output is to the reference's, if there are several: of what failed, and of the last graph and engines."""
    graphs = [c.artifact for c in report.comparisons if c.artifact.endswith(".onnx")]
    chosen = [
        c for c in report.comparisons if c.verdict == "fail" or c.artifact not in graphs or c.artifact == graphs[-1]
    ]
    heads = columns("output", "artifact", ">SQNR", ">max error", ">cosine", ">SQNR, all", "backend")
    rows = [
        (
            Cell(output),
            name(c.artifact),
            decibels(errors.min_sqnr_db),
            number(errors.max_rel_error, ".1e"),
            number(errors.min_cosine, ".6f"),
            decibels(errors.sqnr_db),
            Cell(c.backend),
        )
        for c in chosen
        if c.metrics is not None
        for output, errors in c.metrics.outputs.items()
    ]
    if rows:
        yield Table("each output against the reference's", heads, tuple(rows), PARITY, least=4)
    yield from _integers_table(chosen)


def unknown_margins(report: ParityReport) -> list[str]:
    """Why it is not known which integers of an output rounding may change, once for each output."""
    why = {
        name: row.undecided
        for c in report.comparisons
        if c.metrics is not None
        for name, row in c.metrics.integers.items()
        if row.undecided
    }
    return [f"{name}: which values rounding may change is not known: {each}" for name, each in why.items()]


def _integers_table(chosen: Sequence[Comparison]) -> Iterator[Table]:
    """The outputs that are no floating-point ones, if there are several outputs."""
    rows = [
        (
            Cell(output),
            name(c.artifact),
            Cell(f"{row.same:,} of {row.values:,}", row.same / row.values),
            Cell("", math.nan) if row.decided is None else percent(row.decided),
            Cell("", math.nan) if row.miou is None else number(row.miou, ".4f"),
            Cell(c.backend),
        )
        for c in chosen
        if c.metrics is not None and (len(c.metrics.integers) > 1 or c.metrics.max_rel_error is not None)
        for output, row in c.metrics.integers.items()
    ]
    if rows:
        heads = columns("output", "artifact", ">equal", ">of decided", ">mIoU", "backend")
        yield Table("integers and booleans against the reference's", heads, tuple(rows), PARITY, least=3)


def _cell(figure: str, metrics: Metrics, allowed: Tolerance) -> Cell:
    if figure not in metrics.figures:
        return Cell("", math.nan)
    (text,) = figures_in_words({figure: metrics.figures[figure]}).values()
    limit = getattr(allowed, LIMITS[figure]) if figure in LIMITS else None
    cell = Cell(text, metrics.figures[figure])
    if limit is None:
        return cell
    (bound,) = figures_in_words({figure: limit}).values()
    return replace(cell, note=f"at {'least' if LIMITS[figure].startswith('min') else 'most'} {bound}")
