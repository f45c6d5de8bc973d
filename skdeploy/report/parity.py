"""How near each artifact is to torch, where an error enters, and how far FP16 is from its end."""

from __future__ import annotations

import math

from skdeploy.bundle.contents import HEADROOM, PARITY
from skdeploy.core.spec import Precision, Tolerance
from skdeploy.parity.blame_report import BlameReport, LayerResult
from skdeploy.parity.report import MIN_HEADROOM, Comparison, HeadroomReport, ParityReport, suite_name
from skdeploy.report.blocks import (
    Block,
    Cell,
    Figure,
    Fold,
    Legend,
    Section,
    Table,
    Text,
    Tone,
    columns,
    counted,
    decibels,
    decibels_text,
    name,
    number,
    sentence,
)
from skdeploy.report.findings import Findings
from skdeploy.report.plots import NARROW, WIDE, Axis, Reference, Row, Series, line_chart, rows_figure
from skdeploy.report.verify import batch_text, rebuild_line, run_text

BARS = 16  # tensors in a drawing: those with least headroom are what one looks for
FLAT_DB = 160.0  # float32 has 24 bits, 144 dB: what is above is no difference that can be seen, and not drawn
VERDICTS: dict[str, Tone] = {"pass": "good", "fail": "bad", "unproven": "", "reference": "", "recorded": ""}
WORDS = {"pass": "verified", "fail": "failed", "unproven": "not run yet"}
CHECKED = {
    "pass": "in tolerance",
    "fail": "out of tolerance",
    "unproven": "not run here",
    "reference": "reference",
    "recorded": "recorded",
}


def parity_section(found: Findings) -> Section:
    """The table of comparisons with the tolerances beside, and the SQNR of each as a drawing."""
    report = found.parity
    if report is None:
        command = f"skdeploy verify {found.shell_folder}"
        text = "No parity is recorded for these artifacts."
        if found.bundle.manifest.verdict == "incomplete":
            command, text = "", "The export did not come to the comparison with torch."
        return found.absent("parity", "Parity", text, command, of=PARITY)
    tolerance = found.bundle.manifest.model.tolerance
    lead = (
        f"Logits of each artifact against {report.reference}, on {report.images:,} images of {report.dataset}. "
        "Grey figures are the card's tolerances."
    )
    blocks: list[Block] = [_parity_table(report, tolerance)]
    measured = [c for c in report.comparisons if c.metrics is not None]
    if measured:
        blocks.append(_parity_figure(measured, tolerance))
    if report.batch_invariance is not None:
        batch = report.batch_invariance
        text = f"{batch.artifact}: {batch_text(batch)}; {batch.tolerance:g} is allowed"
        blocks.append(Text(sentence(text), VERDICTS[batch.verdict]))
    blocks += _repeatability(report)
    if report.reference_sqnr_db is not None:
        blocks.append(Text(f"torch's own float32 is {decibels_text(report.reference_sqnr_db)} from its float64."))
    return Section("parity", "Parity", lead, tuple(blocks))


def _parity_table(report: ParityReport, tolerances: dict[Precision, Tolerance]) -> Table:
    heads = columns(
        "Artifact",
        "Backend",
        "Verdict",
        (">SQNR, worst image", "Signal to noise of the logits: 10 log10(sum ref^2 / sum error^2)"),
        ">SQNR, all",
        (">Max error", "Largest error of any logit, relative to the largest logit"),
        (">Cosine", "Of the worst image"),
        (">Same class", "Images with the same top class, or what the task measures in its place"),
    )
    rows = []
    for c in report.comparisons:
        verdict = Cell(WORDS[c.verdict], tone=VERDICTS[c.verdict], hint="; ".join(c.problems) or c.reason)
        head = (name(c.artifact), Cell(c.backend), verdict)
        allowed, metrics = tolerances.get(c.precision, c.precision.tolerance), c.metrics
        if metrics is None:
            rows.append((*head, *(Cell("", math.nan) for _ in range(5))))
            continue
        same = metrics.same_class
        agreed = f"{same:,} of {metrics.images:,}" if same is not None else metrics.figures_text
        rows.append(
            (
                *head,
                _beside(decibels(metrics.min_sqnr_db), f"at least {allowed.min_sqnr_db:g}"),
                decibels(metrics.sqnr_db),
                _beside(number(metrics.max_rel_error, ".1e"), f"at most {allowed.max_rel_error:g}"),
                _beside(number(metrics.min_cosine, ".6f"), f"at least {allowed.min_cosine:g}"),
                Cell(agreed, math.nan if metrics.top1_agreement is None else metrics.top1_agreement),
            )
        )
    return Table("Artifacts against torch", heads, tuple(rows), PARITY)


def _repeatability(report: ParityReport) -> list[Block]:
    """Inputs other than images, the same batch twice, and engines built again, as far as they were measured."""
    blocks: list[Block] = []
    if report.suites:
        heads = columns("Inputs", "Artifact", "Backend", "Verdict", ">Error", ">Allowed")
        rows = tuple(
            (
                Cell(suite_name(result)),
                name(result.artifact),
                Cell(result.backend),
                Cell(
                    CHECKED[result.verdict],
                    tone=VERDICTS[result.verdict],
                    note="; ".join(result.problems) or result.note,
                ),
                Cell("", math.nan) if result.error is None else number(result.error, ".1e"),
                Cell("", math.nan) if result.allowed is None else number(result.allowed),
            )
            for result in report.suites
        )
        against = f", against {report.suites_reference}" if report.suites_reference else ""
        blocks.append(
            Fold(
                f"Other inputs: {counted(len(rows), 'run')}",
                (Table(f"Errors on inputs other than images{against}", heads, rows, PARITY),),
            )
        )
    runs = [Text(f"{r.artifact} on {r.backend}: {run_text(r)}.", VERDICTS[r.verdict]) for r in report.run_to_run]
    return [*blocks, *runs, *(Text(f"{rebuild_line(again)}.", VERDICTS[again.verdict]) for again in report.rebuilds)]


def _beside(cell: Cell, tolerance: str) -> Cell:
    return Cell(cell.text, cell.sort, note=tolerance)


def _parity_figure(measured: list[Comparison], tolerances: dict[Precision, Tolerance]) -> Figure:
    rows, values = [], [0.0]
    for c in measured:
        assert c.metrics is not None  # chosen so
        limit = tolerances.get(c.precision, c.precision.tolerance).min_sqnr_db
        worst, every = (min(db, FLAT_DB) for db in (c.metrics.min_sqnr_db, c.metrics.sqnr_db))
        values += [worst, every, limit]
        text = decibels_text(c.metrics.min_sqnr_db)
        rows.append(
            Row(c.artifact, text, bar=(None, worst), marks=((0, every),), limit=limit, tone=VERDICTS[c.verdict])
        )
    axis = Axis.linear(values, "SQNR of the logits (dB), more is better")
    caption = "Bar: worst image. Upright stroke: the least that the card allows for the precision."
    return rows_figure(
        "Signal to noise of each artifact", caption, rows, axis, legend=(Legend(0, "all images", line=False),)
    )


def blame_section(found: Findings) -> Section:
    """Where error enters along the line, and tensor by tensor inside the stage that is to blame."""
    report = found.blame
    title = "Error per stage and layer"
    if report is None:
        command = f"skdeploy verify {found.shell_folder} --blame"
        return found.absent("blame", title, "The line was not run stage by stage.", command)
    lead = f"The line run stage by stage on {counted(report.images, 'image')} of {report.dataset}, each against {report.first}."
    blocks: list[Block] = [Text(sentence(report.verdict), "bad" if report.guilty else "good"), _stages_table(report)]
    layers = [layer for layer in report.layers if layer.run_db is not None or layer.own_db is not None]
    if layers:
        blocks += [_layers_figure(report, layers), Fold(f"All {len(report.layers)} tensors", (_layers_table(report),))]
    if report.note and report.note not in report.verdict:
        blocks.append(Text(sentence(report.note)))
    return Section("blame", title, lead, tuple(blocks))


def _stages_table(report: BlameReport) -> Table:
    heads = columns("Stage", "Precision", "Verdict", ">Against the stage before", ">Against the first")
    rows = []
    for stage in report.stages:
        first = stage.verdict == "reference"
        hint = "; ".join(stage.problems) or stage.reason
        rows.append(
            (
                Cell(stage.stage),
                Cell(stage.precision.words),
                Cell(CHECKED[stage.verdict], tone=VERDICTS[stage.verdict], note=hint),
                Cell("", math.nan) if first or stage.verdict == "unproven" else decibels(stage.sqnr_before_db),
                Cell("", math.nan) if first or stage.verdict == "unproven" else decibels(stage.sqnr_first_db),
            )
        )
    return Table("SQNR of the worst image, stage by stage", heads, tuple(rows), "evidence/blame.json")


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
    heads = columns(">Place", "Tensor", ">Own error", ">As it runs", ">Its inputs")
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
    return Table("SQNR of each tensor against the stage before", heads, rows, "evidence/blame.json")


def headroom_section(found: Findings) -> Section:
    """How far the largest values are from FP16's end."""
    report = found.headroom
    title = "FP16 headroom"
    if report is None or not report.tensors:
        manifest = found.bundle.manifest
        is_half = manifest.precision.largest is not None
        text = "No headroom was measured." if is_half else "Nothing in this bundle is FP16, or nothing was measured."
        command = "" if is_half else f"skdeploy export {manifest.model.name} --fp16"
        return found.absent("headroom", title, text, command, of=HEADROOM)
    lead = (
        f"65504, the largest FP16 number, divided by the largest magnitude that a tensor reached on "
        f"{counted(report.images, 'image')} of {report.dataset}. Less than {MIN_HEADROOM:g}x is refused: "
        "images in the field may be brighter and busier."
    )
    fold = Fold(f"All {len(report.tensors)} FP16 tensors", (_headroom_table(report),))
    return Section("headroom", title, lead, (_headroom_figure(report), fold))


def _headroom_figure(report: HeadroomReport) -> Figure:
    shown = report.tensors[:BARS]
    rows = [
        Row(
            row.tensor,
            f"{row.headroom:,.3g}x" if row.headroom < 1000 else f"{row.headroom:,.0f}x",
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
    heads = columns("Tensor", ">Largest magnitude", ">Headroom")
    rows = tuple(
        (name(row.tensor), number(row.max_abs, ".4g"), Cell(f"{row.headroom:,.1f}x", row.headroom))
        for row in report.tensors
    )
    return Table("Headroom of every FP16 tensor, least first", heads, rows, HEADROOM)
