"""Where an error enters along the line, stage by stage, and tensor by tensor inside the stage that is to blame."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

from skdeploy.backends.metrics import EXACT_DB
from skdeploy.parity.blame_report import BlameReport, LayerResult
from skdeploy.report.blocks import (
    Block,
    Cell,
    Figure,
    Finding,
    Fold,
    Legend,
    Section,
    Table,
    Text,
    columns,
    counted,
    decibels,
    judged,
    name,
    number,
)
from skdeploy.report.findings import Findings
from skdeploy.report.parity import FLAT_DB, NOTHING
from skdeploy.report.plots import NARROW, WIDE, Axis, Reference, Series, line_chart

TITLE: Final = "Error per stage and layer"
SOURCE: Final = "evidence/blame.json"
WORST: Final = 5  # tensors


def blame_findings(report: BlameReport) -> Section:
    """The stages, the tensors with most error of their own, and what is to blame."""
    blocks: list[Block] = [_stages_table(report)]
    if report.layers and report.guilty and report.fed_to is None:
        worst = sorted(report.layers, key=lambda row: -EXACT_DB if row.own_db is None else row.own_db)[:WORST]
        caption = f"most error of their own, of {len(report.layers)} tensors of {report.guilty} on {report.image}"
        limit = "" if report.floor_db is None else f"; the card allows {report.floor_db:g} dB"
        rows = tuple((name(row.tensor), decibels(row.own_db)) for row in worst)
        blocks.append(Table(caption + limit, columns("tensor", ">own error"), rows, SOURCE))
    blocks.append(Finding("blame", "blame", "fail" if report.guilty else "pass", report.verdict))
    if report.repro is not None:
        blocks.append(Text(f"the smallest graph that shows it: {report.repro}"))
    elif report.note and report.note not in report.verdict:
        blocks.append(Text(report.note))
    lead = (
        f"the line run stage by stage on {counted(report.images, report.sample)} of {report.dataset}: SQNR of the worst "
        f"{report.sample}, against the stage before and against the first, {report.first}"
    )
    return Section("blame", TITLE, lead, tuple(blocks))


def blame_section(found: Findings) -> Section:
    """The findings, and the error along the stage as a drawing."""
    report = found.blame
    if report is None:
        command = f"skdeploy verify {found.shell_folder} --blame"
        return found.absent("blame", TITLE, "The line was not run stage by stage.", command)
    section = blame_findings(report)
    layers = [layer for layer in report.layers if layer.run_db is not None or layer.own_db is not None]
    if not layers:
        return section
    fold = Fold(f"All {len(report.layers)} tensors", (_layers_table(report),))
    return replace(section, blocks=(*section.blocks, _layers_figure(report, layers), fold))


def _stages_table(report: BlameReport) -> Table:
    heads = columns(
        "stage",
        (">stage before", "SQNR against the stage before"),
        (">first stage", f"SQNR against {report.first}"),
        "verdict",
        "precision",
    )
    rows = []
    for stage in report.stages:
        ran = stage.verdict not in ("reference", "unproven")
        before, first = (decibels(db) if ran else NOTHING for db in (stage.sqnr_before_db, stage.sqnr_first_db))
        verdict = judged(stage.verdict, "; ".join(stage.problems) or stage.reason)
        rows.append((Cell(stage.stage), before, first, verdict, Cell(stage.precision.words)))
    return Table("stage by stage", heads, tuple(rows), SOURCE, least=4)


def _layers_figure(report: BlameReport, layers: list[LayerResult]) -> Figure:
    places = [float(index) for index in range(1, len(layers) + 1)]
    run, own = [_drawn(layer.run_db) for layer in layers], [_drawn(layer.own_db) for layer in layers]
    references = (
        [] if report.floor_db is None else [Reference(report.floor_db, f"least allowed {report.floor_db:g} dB")]
    )
    floor = [] if report.floor_db is None else [report.floor_db]
    vertical = Axis.linear([*run, *own, *floor, 0.0], "SQNR (dB)")
    horizontal = Axis(1.0, float(max(2, len(layers))), "tensor, in the order of the graph")
    many = len(layers) > 60
    series = [Series(0, places, run, markers=not many), Series(2, places, own, line=False, small=many)]
    title = f"Error along {report.guilty or 'the last stage'}"
    wide, narrow = (
        line_chart(title, series, horizontal, vertical, width, 300, references=references) for width in (WIDE, NARROW)
    )
    caption = "As the stage runs, with all error before; and each tensor's own error, with exact inputs."
    return Figure(title, caption, wide, narrow, (Legend(0, "as it runs"), Legend(2, "its own error", line=False)))


def _drawn(value: float | None) -> float:
    return math.nan if value is None else min(value, FLAT_DB)


def _layers_table(report: BlameReport) -> Table:
    heads = columns(">place", "tensor", ">own error", ">as it runs", ">its inputs")
    rows = tuple(
        (
            number(float(place), ".0f"),
            name(layer.tensor),
            decibels(layer.own_db),
            decibels(layer.run_db),
            decibels(layer.inputs_db),
        )
        for place, layer in enumerate(report.layers, 1)
    )
    return Table("SQNR of each tensor against the stage before", heads, rows, SOURCE)
