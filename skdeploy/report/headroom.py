"""How far FP16 is from its end."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from skdeploy.bundle.contents import HEADROOM
from skdeploy.parity.report import MIN_HEADROOM, HeadroomReport, times_text
from skdeploy.report.blocks import Cell, Figure, Finding, Fold, Section, Table, columns, name, number
from skdeploy.report.findings import Findings
from skdeploy.report.plots import Axis, Reference, Row, rows_figure

TITLE: Final = "FP16 headroom"
BARS: Final = 16  # tensors in a drawing: those with least headroom are what one looks for


def headroom_findings(report: HeadroomReport) -> Section:
    """The tensor with least headroom; nothing where there is no tensor."""
    lead = (
        "65504, the largest FP16 number, divided by the largest magnitude that a tensor reached; images in the field may be "
        "brighter and busier than those that were measured"
    )
    blocks = tuple(
        Finding("headroom", least.tensor, "fail" if report.is_short else "pass", report.sentence)
        for least in report.tensors[:1]
    )
    return Section("headroom", TITLE, lead, blocks)


def headroom_section(found: Findings) -> Section:
    """How far the largest values are from FP16's end."""
    report = found.headroom
    if report is None or not report.tensors:
        manifest = found.bundle.manifest
        is_half = manifest.precision.largest is not None
        text = "No headroom was measured." if is_half else "Nothing in this bundle is FP16, or nothing was measured."
        command = "" if is_half else f"skdeploy export {manifest.model.name} --fp16"
        return found.absent("headroom", TITLE, text, command, of=HEADROOM)
    section = headroom_findings(report)
    fold = Fold(f"All {len(report.tensors)} FP16 tensors", (_headroom_table(report),))
    return replace(section, blocks=(*section.blocks, _headroom_figure(report), fold))


def _headroom_figure(report: HeadroomReport) -> Figure:
    shown = report.tensors[:BARS]
    rows = [
        Row(
            row.tensor,
            times_text(row.headroom),
            bar=(None, row.headroom),
            tone="bad" if row.headroom < MIN_HEADROOM else "",
        )
        for row in shown
    ]
    axis = Axis.logarithmic([1.0, *(row.headroom for row in shown)], "headroom (times, log scale), more is better")
    references = [Reference(MIN_HEADROOM, f"{MIN_HEADROOM:g}x")]
    return rows_figure(
        f"The {len(shown)} tensors with least headroom",
        "Bars that end before the line at 2x would be refused.",
        rows,
        axis,
        references=references,
    )


def _headroom_table(report: HeadroomReport) -> Table:
    heads = columns("tensor", ">largest magnitude", ">headroom")
    rows = tuple(
        (name(row.tensor), number(row.max_abs, ".4g"), Cell(times_text(row.headroom), row.headroom))
        for row in report.tensors
    )
    return Table("Headroom of every FP16 tensor, least first", heads, rows, HEADROOM)
