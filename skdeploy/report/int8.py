"""What is INT8 and what that costs, unit by unit; and the images and ranges behind it."""

from __future__ import annotations

from collections import Counter

from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.contents import MIXED, RANGES
from skdeploy.bundle.station_facts import Int8Facts
from skdeploy.images.audit_report import AuditReport, audit_of
from skdeploy.quant.mixed import MixedPrecision
from skdeploy.quant.ranges import Ranges, TensorRange
from skdeploy.quant.sensitivity import Effect, SensitivityReport
from skdeploy.report.blocks import (
    Absent,
    Block,
    Cell,
    Facts,
    Figure,
    Fold,
    Legend,
    Section,
    Table,
    Text,
    columns,
    count,
    counted,
    decibels,
    decibels_text,
    name,
    number,
    percent_text,
    sentence,
)
from skdeploy.report.findings import Findings
from skdeploy.report.plots import Axis, Reference, Row, rows_figure

TALL = 40  # rows of a drawing; the table has all
SENSITIVITY = "evidence/sensitivity.json"


def int8_section(found: Findings) -> Section:
    """Which layers are INT8, what each unit costs, and what --max-drop decided."""
    title = "INT8"
    graph = next((a for a in found.bundle.manifest.artifacts if isinstance(a.facts, Int8Facts)), None)
    if graph is None:
        command = f"skdeploy export {found.bundle.manifest.model.name} --int8 --calib DIR"
        return found.absent("int8", title, "Nothing in this bundle is INT8.", command)
    blocks: list[Block] = [Facts(tuple(_coverage(graph)))]
    if found.sensitivity is None:
        command = f"skdeploy sensitivity {found.shell_folder}"
        blocks.append(
            Absent("What each unit costs was not measured.", command, outdated="sensitivity" in found.outdated)
        )
    else:
        blocks += _sensitivity(found.sensitivity)
    if found.mixed is not None:
        blocks += _mixed(found.mixed)
    elif MIXED in found.outdated:
        blocks.append(Absent("The search for mixed precision was of other artifacts.", outdated=True))
    return Section("int8", title, "", tuple(blocks))


def _coverage(graph: Artifact) -> list[tuple[str, str]]:
    facts = graph.facts_as(Int8Facts)
    weights, reasons = len(facts.int8_weights), Counter(facts.kept.values())
    rows = [
        ("Layers with INT8 weights", f"{weights} of {weights + len(facts.kept)}"),
        ("Kept out of INT8", "; ".join(f"{times} {reason}" for reason, times in reasons.items()) or "none"),
        ("Multiply-accumulates in INT8", percent_text(facts.int8_macs, 1)),
    ]
    return rows + ([("All else", str(facts.fallback).upper())] if facts.fallback else [])


def _sensitivity(report: SensitivityReport) -> list[Block]:
    """Drawn as error, so that the longest bar is the worst unit: dB count the other way."""
    shown = report.units[:TALL]
    rows = [
        Row(
            unit.unit or "(top level)",
            decibels_text(unit.only_on.sqnr_db),
            bar=(None, _error(unit.only_on)),
            marks=((1, _error(unit.only_off)),),
        )
        for unit in shown
    ]
    all_int8 = _error(report.all_int8)
    values = [_error(effect) for unit in shown for effect in (unit.only_on, unit.only_off)]
    axis = Axis.linear([0.0, all_int8, *values], "error of the logits (% of their own size), longer is worse")
    caption = (
        f"Root mean square of the error and of FP32's logits, on {report.images:,} images of {report.dataset}. "
        f"At the right the same in dB; everything in INT8 has {report.all_int8.sqnr_db:.1f} dB. 6 dB less are twice the error."
    )
    legend = (Legend(1, "all but this unit in INT8", line=False),)
    figure = rows_figure(
        "What each unit alone costs in INT8, the costliest first",
        caption,
        rows,
        axis,
        references=[Reference(all_int8, "everything in INT8")],
        legend=legend,
    )
    return [figure, Fold(f"All {len(report.units)} units", (_units_table(report),))]


def _error(effect: Effect) -> float:
    """In per cent of the signal, of which the SQNR is 10 log10 of the power's ratio."""
    return float(100 * 10 ** (-effect.sqnr_db / 20))


def _units_table(report: SensitivityReport) -> Table:
    accuracy = "Same class" if report.fp32.top1 is None else "Top-1"
    heads = columns(
        "Unit",
        ">Only it: SQNR",
        f">Only it: {accuracy}",
        ">All but it: SQNR",
        f">All but it: {accuracy}",
        ">MACs",
        ">Parameters",
    )
    rows = tuple(
        (
            name(unit.unit),
            decibels(unit.only_on.sqnr_db),
            _accuracy(unit.only_on),
            decibels(unit.only_off.sqnr_db),
            _accuracy(unit.only_off),
            Cell(percent_text(unit.mac_share, 1), unit.mac_share),
            count(unit.parameters),
        )
        for unit in report.units
    )
    return Table("INT8 sensitivity of each unit", heads, rows, SENSITIVITY)


def _accuracy(effect: Effect) -> Cell:
    share = effect.agreement if effect.top1 is None else effect.top1
    return Cell(percent_text(share), share)


def _mixed(report: MixedPrecision) -> list[Block]:
    drop = report.drop
    text = (
        f"Mixed precision: a drop of {drop.points:.2f} points (standard error {drop.standard_error:.2f}) where "
        f"{report.max_drop:g} is allowed, on {drop.images:,} images of {report.dataset}; "
        f"{len(report.kept)} of {report.units} units stay out of INT8."
    )
    blocks: list[Block] = [Text(text), *(Text(sentence(note), "warn") for note in report.notes)]
    if report.kept:
        heads = columns("Kept out of INT8", "Why", ">Alone in INT8", ">Part of all noise", ">MACs")
        rows = tuple(
            (
                name(unit.unit),
                Cell(unit.reason),
                decibels(unit.sqnr_db),
                Cell(percent_text(unit.noise_share, 1), unit.noise_share),
                Cell(percent_text(unit.mac_share, 1), unit.mac_share),
            )
            for unit in report.kept
        )
        blocks.append(Table("Units that stay in the fallback", heads, rows, MIXED))
    return blocks


def calibration_section(found: Findings) -> Section | None:
    """The images, what is wrong with them, and the range of every tensor. None where nothing is calibrated."""
    ranges, title = found.ranges, "Calibration"
    if ranges is None:
        if RANGES not in found.outdated:
            return None
        return found.absent("calibration", title, "The ranges are of other artifacts.", of=RANGES)
    algorithm = ranges.algorithm
    percentile = f" {algorithm.percentile:g} %" if algorithm.percentile is not None else ""
    lead = (
        f"{len(ranges.tensors)} tensors by {algorithm.method}{percentile} on "
        f"{counted(ranges.data.images, 'image')} of {ranges.data.name}."
    )
    blocks: list[Block] = []
    audit = audit_of(ranges.audit)
    if audit is not None:
        warnings = audit.warnings()
        blocks += [Text(sentence(warning), "warn") for warning in warnings] or [
            Text("The audit of the images found nothing wrong.", "good")
        ]
        blocks.append(Facts(tuple(_audit(audit))))
    blocks += [_ranges_figure(ranges), Fold(f"All {len(ranges.tensors)} ranges", (_ranges_table(ranges),))]
    return Section("calibration", title, lead, tuple(blocks))


def _audit(audit: AuditReport) -> list[tuple[str, str]]:
    facts = [("Images", f"{audit.used:,} of {audit.asked:,} asked for, {len(audit.unreadable)} unreadable")]
    if audit.classes is not None:
        classes = audit.classes
        facts.append(
            ("Classes", f"{classes.covered} of {classes.total}, {classes.fewest} to {classes.most} images each")
        )
    facts.append(("Duplicates", f"{audit.exact.count} exact, {audit.near.count} near"))
    if audit.overlap is not None:
        overlap = audit.overlap
        facts.append(
            (
                "Shared with the evaluation",
                f"{overlap.exact.count} exact, {overlap.near.count} near, of {overlap.images:,} images of {overlap.dataset}",
            )
        )
    odd = f"{audit.constant.count} of one colour, {audit.clipped.count} clipped, {audit.enlarged.count} enlarged"
    facts.append(("Unlike the field", odd))
    if audit.converted:
        facts.append(("Converted", "; ".join(f"{times} {what}" for what, times in audit.converted.items())))
    return facts


def _largest(tensor: TensorRange) -> float:
    return max(abs(tensor.minimum), abs(tensor.maximum))


def _ranges_figure(ranges: Ranges) -> Figure:
    shown = list(ranges.tensors.items())[:TALL]
    rows = [
        Row(tensor, f"{entry.threshold:.3g}", bar=(None, _largest(entry)), marks=((2, entry.threshold),))
        for tensor, entry in shown
    ]
    values = [value for _, entry in shown for value in (_largest(entry), entry.threshold)]
    axis = Axis.logarithmic(values, "magnitude (the tensor's own unit, log scale)")
    more = f" The first {TALL} of {len(ranges.tensors)}." if len(ranges.tensors) > TALL else ""
    caption = f"A bar ends at the largest magnitude in any image; what is beyond the threshold is clipped.{more}"
    return rows_figure(
        "Ranges, in the order of the graph", caption, rows, axis, legend=(Legend(2, "threshold", line=False),)
    )


def _ranges_table(ranges: Ranges) -> Table:
    heads = columns(
        "Tensor",
        ">Minimum",
        ">Maximum",
        (">Threshold", "The magnitude that becomes 127"),
        (">Of the largest", "Threshold divided by the largest magnitude"),
        ">Step",
    )
    rows = tuple(
        (
            name(tensor),
            number(entry.minimum, ".4g"),
            number(entry.maximum, ".4g"),
            number(entry.threshold, ".4g"),
            Cell(
                percent_text(entry.threshold / (_largest(entry) or entry.threshold), 1),
                entry.threshold / (_largest(entry) or entry.threshold),
            ),
            number(entry.scale, ".3g"),
        )
        for tensor, entry in ranges.tensors.items()
    )
    return Table("Range of every tensor", heads, rows, RANGES)
