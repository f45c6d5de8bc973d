"""INT8: which units have it, and what it costs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from skdeploy.accuracy.quality import figure_text
from skdeploy.accuracy.quality import number as figure_number
from skdeploy.backends.metrics import decibels_text
from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.contents import MIXED
from skdeploy.bundle.station_facts import INT8_FACTS, TrainedInt8Facts, WeightOnlyFacts
from skdeploy.core.precision import PRECISIONS, Precision
from skdeploy.report.blocks import (
    Absent,
    Block,
    Cell,
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
    name,
    number,
    percent,
    percent_text,
    size_text,
)
from skdeploy.report.findings import Findings
from skdeploy.report.plots import TALL, Axis, Reference, Row, rows_figure

if TYPE_CHECKING:
    from skdeploy.quant.effect import Effect
    from skdeploy.quant.mixed import MixedPrecision
    from skdeploy.quant.sensitivity import SensitivityReport

SENSITIVITY: Final = "evidence/sensitivity.json"


def int8_section(found: Findings) -> Section:
    """Which layers are INT8, what each unit costs, and what --max-drop decided."""
    title = "INT8"
    graph = next((a for a in found.bundle.manifest.artifacts if isinstance(a.facts, INT8_FACTS)), None)
    narrow = next((a.facts for a in found.bundle.manifest.artifacts if isinstance(a.facts, WeightOnlyFacts)), None)
    if narrow is not None:
        return Section("int8", title, "", (Text(weight_only_text(narrow)),))
    if graph is None:
        command = f"skdeploy export {found.bundle.manifest.model.name} --int8 --calib DIR"
        return found.absent("int8", title, "Nothing in this bundle is INT8.", command)
    blocks: list[Block] = [Text(int8_text(graph))]
    if isinstance(graph.facts, TrainedInt8Facts):  # what each unit costs was settled in training
        return Section("int8", title, "", (*blocks, Text(_trained_text(graph.facts))))
    if found.sensitivity is None:
        command = f"skdeploy sensitivity {found.shell_folder}"
        blocks.append(
            Absent("What each unit costs was not measured.", command, outdated="sensitivity" in found.outdated)
        )
    else:
        findings = sensitivity_findings(found.sensitivity)
        table, keep, legend = findings.blocks
        fold = Fold(f"All {len(found.sensitivity.units)} units", (table, legend))
        totals = Text(totals_text(found.sensitivity))
        blocks += [Text(findings.lead), totals, _sensitivity_figure(found.sensitivity), keep, fold]
    if found.mixed is not None:
        blocks += mixed_findings(found.mixed, evaluated=found.accuracy is not None or found.quality is not None)
    elif MIXED in found.outdated:
        blocks.append(Absent("The search for mixed precision was of other artifacts.", outdated=True))
    return Section("int8", title, "", tuple(blocks))


def int8_text(graph: Artifact) -> str:
    """How much of the computation is INT8, and what stays in the fallback and why."""
    facts = graph.facts
    assert isinstance(facts, INT8_FACTS)  # the caller has looked
    weights, reasons = len(facts.int8_weights), Counter(facts.kept.values())
    stayed = ", ".join(f"{times} ({reason})" for reason, times in reasons.items())
    return (
        f"{percent_text(facts.int8_macs, 1)} of the computation is INT8: {weights} of {weights + len(facts.kept)} layers with "
        f"weights" + (f"; in {str(facts.fallback or '').upper()}: {stayed}" if stayed else "")
    )


def weight_only_text(facts: WeightOnlyFacts) -> str:
    """How many weights are INT8, what that saves, and which are not and why."""
    layers, reasons = len(facts.int8_weights), Counter(facts.kept.values())
    stayed = ", ".join(f"{times} ({reason})" for reason, times in reasons.items())
    fallback = PRECISIONS[facts.fallback or Precision.FP16].words
    asked = any(reason.startswith("--keep-fp32") for reason in facts.kept_fp32.values())
    single = ", and in FP32 where --keep-fp32 asks" if asked else ""
    return (
        f"INT8 weights in {layers} of {layers + len(facts.kept)} layers, arithmetic in {fallback}{single}: "
        f"{size_text(facts.weight_bytes_after)} of weights in place of {size_text(facts.weight_bytes_before)}"
        + (f"; weights in {fallback}: {stayed}" if stayed else "")
    )


def _trained_text(facts: TrainedInt8Facts) -> str:
    return (
        f"The scales are those of the file, from training. Without its Q/DQ the same network differs by "
        f"{facts.sqnr_to_float_db:.1f} dB SQNR."
    )


def sensitivity_findings(report: SensitivityReport) -> Section:
    """The units, the costliest first, the totals, and how to read them."""
    accuracy = _measured(report)
    of = f"{report.unit or 'Change'}" if report.figure else "Points"
    on, off = (
        f"{of} against FP32, with only this unit in INT8",
        f"{of} against everything in INT8, with all but this unit in it",
    )
    heads = columns(
        "unit",
        ">only it: SQNR",
        *([(f">{accuracy}", on)] if accuracy else []),
        ">all but it: SQNR",
        *([(f">{accuracy}", off)] if accuracy else []),
        ">MACs",
        ">parameters",
    )
    rows = tuple(
        (
            name(unit.unit),
            decibels(unit.only_on.sqnr_db),
            *([_change(unit.only_on, report.fp32)] if accuracy else []),
            decibels(unit.only_off.sqnr_db),
            *([_change(unit.only_off, report.all_int8)] if accuracy else []),
            percent(unit.mac_share),
            count(unit.parameters),
        )
        for unit in report.units
    )
    legend = (
        "only it: the noise that this unit brings; fewer dB cost more, 6 dB are twice the error. all but it: what is left once "
        "it stays in the fallback"
    )
    if report.figure:
        change = f"the change in {report.unit}" if report.unit else "the change"
        legend += f". {accuracy}: {change}, against FP32 and against everything in INT8"
    elif accuracy:
        legend += (
            f". {accuracy}: points against FP32, and against everything in INT8; one {report.sample} is "
            f"{100 / report.images:.2g} points, so trust the dB where few {report.sample}s differ"
        )
    keep = f"to keep the first: skdeploy export ... --int8-keep '{report.units[0].pattern}'"
    table = Table("INT8 sensitivity of each unit", heads, rows, SENSITIVITY, least=len(heads) - 1)
    lead = f"{report.model} in INT8 against FP32, on {report.images:,} {report.sample}s of {report.dataset}"
    return Section("sensitivity", "Sensitivity", lead, (table, Text(keep), Text(legend)))


def totals_text(report: SensitivityReport) -> str:
    """The cost of INT8 everywhere."""
    every = report.all_int8
    totals = f"everything in INT8: {decibels_text(every.sqnr_db)}"
    if every.agreement is not None:
        totals += f", same class as FP32 on {percent_text(every.agreement)}"
    if every.figure is not None and report.fp32.figure is not None:
        int8, fp32 = (figure_text(value, report.unit) for value in (every.figure, report.fp32.figure))
        totals += f", {report.figure} {int8}; FP32 {fp32}"
    if report.fp32.top1 is not None and every.top1 is not None:
        totals += f", top-1 {percent_text(every.top1)}; FP32 {percent_text(report.fp32.top1)}"
    return totals


def _measured(report: SensitivityReport) -> str:
    """The name of the figure beside the SQNR; empty if there is nothing."""
    if report.figure:
        return report.figure
    if report.fp32.agreement is None:
        return ""
    return "same class" if report.fp32.top1 is None else "top-1"


def _change(effect: Effect, against: Effect) -> Cell:
    """Points of top-1, or without labels of images with FP32's class, or the change of a figure; and the value itself."""
    if effect.figure is not None and against.figure is not None:
        changed = effect.figure - against.figure
        return Cell(f"{changed:+.3g}", changed, note=figure_number(effect.figure))
    now, then = ((one.agreement if effect.top1 is None else one.top1) or 0.0 for one in (effect, against))
    return Cell(f"{100 * (now - then):+.2f}", now - then, note=percent_text(now))


def mixed_findings(mixed: MixedPrecision, *, evaluated: bool = False) -> Iterator[Block]:
    """The units that stayed in the fallback under ``--max-drop``, why, and what it saved.

    ``evaluated``: what it cost on these images is said elsewhere.
    """
    from skdeploy.quant.mixed import digits, in_unit
    from skdeploy.quant.truth import Drop

    drop, runs = mixed.drop, mixed.evaluations
    if not evaluated:
        found, fp32 = (
            (percent_text(top1 or 0.0) if value is None else figure_text(value, mixed.unit))
            for top1, value in ((mixed.top1, mixed.value), (mixed.fp32_top1, mixed.fp32_value))
        )
        counts = f": {drop.lost} lost, {drop.gained} gained" if isinstance(drop, Drop) else ""
        yield Text(
            f"{mixed.figure} {found}, FP32 {fp32}: a drop of {in_unit(drop.points, mixed.unit)} (standard error "
            f"{digits(drop.standard_error, mixed.unit)}), allowed {mixed.max_drop:g}, on {mixed.images:,} images of "
            f"{mixed.dataset}{counts}"
        )
    if mixed.kept:
        yield _kept_table(mixed)
        yield Text(
            "alone: SQNR with only this unit in INT8; noise: its part of all units'. in INT8 too: SQNR with this unit added to "
            f"the INT8 ones; saved: from there to the mix's {mixed.sqnr_db:.1f} dB; drop: "
            f"in {mixed.unit or mixed.figure} with it added, where run"
        )
        yield Text("to ask for the same again: " + " ".join(f"--int8-keep '{pattern}'" for pattern in mixed.keep))
        yield Text(
            f"{len(mixed.kept)} of {mixed.units} units kept out of INT8; {counted(runs, 'run')} of INT8 on all images"
            + (f", {mixed.units} units on {mixed.ranking_images}" if runs > 1 else "")
        )
    if not evaluated:
        yield from (Text(note, "warn") for note in mixed.notes)


def _kept_table(mixed: MixedPrecision) -> Table:
    from skdeploy.quant.truth import POINTS

    heads = columns(
        "kept out of INT8",
        ">alone",
        ">noise",
        ">MACs",
        ">in INT8 too",
        ">saved",
        ">drop",
        "why",
    )
    rows = tuple(
        (
            name(unit.unit),
            decibels(unit.sqnr_db),
            percent(unit.noise_share),
            percent(unit.mac_share),
            decibels(unit.sqnr_before),
            decibels(mixed.sqnr_db - unit.sqnr_before),
            Cell("", math.nan)
            if unit.drop_before is None
            else number(unit.drop_before, ".2f" if mixed.unit == POINTS else ".3g"),
            Cell(unit.reason),
        )
        for unit in mixed.kept
    )
    return Table("units that stay in the fallback", heads, rows, MIXED, least=7)


def _sensitivity_figure(report: SensitivityReport) -> Figure:
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
    what = "outputs" if report.all_int8.agreement is None else "logits"
    values = [_error(effect) for unit in shown for effect in (unit.only_on, unit.only_off)]
    axis = Axis.linear([0.0, all_int8, *values], f"error of the {what} (% of their own size), longer is worse")
    caption = (
        f"Root mean square of the error and of FP32's {what}, on {report.images:,} {report.sample}s of {report.dataset}. "
        f"At the right the same in dB; everything in INT8 has {report.all_int8.sqnr_db:.1f} dB. 6 dB less are twice the error."
    )
    legend = (Legend(1, "all but this unit in INT8", line=False),)
    return rows_figure(
        "What each unit alone costs in INT8, the costliest first",
        caption,
        rows,
        axis,
        references=[Reference(all_int8, "everything in INT8")],
        legend=legend,
    )


def _error(effect: Effect) -> float:
    """In per cent of the signal, of which the SQNR is 10 log10 of the power's ratio."""
    return float(100 * 10 ** (-effect.sqnr_db / 20))
