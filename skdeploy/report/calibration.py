"""The images that INT8 is calibrated on, and the ranges that were measured."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from skdeploy.bundle.contents import RANGES
from skdeploy.images.audit_report import AuditReport, audit_of
from skdeploy.quant.methods import Choice
from skdeploy.report.blocks import (
    Facts,
    Figure,
    Fold,
    Legend,
    Section,
    Table,
    Text,
    columns,
    counted,
    name,
    number,
    percent,
)
from skdeploy.report.findings import Findings
from skdeploy.report.plots import TALL, Axis, Row, rows_figure

if TYPE_CHECKING:
    from skdeploy.quant.ranges import Ranges, TensorRange


def calibration_findings(ranges: Ranges) -> Section:
    """How ranges were made, and of which images. Their warnings are shown while they are read, and on the page."""
    algorithm, audit = ranges.algorithm, audit_of(ranges.audit)
    used = ranges.choice.candidate if ranges.choice is not None else algorithm
    percentile = f" {used.percentile:g} %" if used.percentile is not None else ""
    switches = {
        "equalized": algorithm.equalize,
        "biases corrected": algorithm.bias_correction,
        "shifted": algorithm.shift and not algorithm.shift_padded,
        "shifted before padding too": algorithm.shift_padded,
        "pixels exact": algorithm.exact_input,
        "weights rounded by GPTQ": algorithm.weight_rounding == "gptq" and not _is_to_nearest(ranges.choice),
    }
    on = ", ".join(word for word, given in switches.items() if given) or "nothing else"
    lead = (
        f"{counted(len(ranges.tensors), 'tensor')} by {used.method}{percentile} on "
        f"{counted(ranges.data.images, 'image' if audit is None else audit.sample)} of {ranges.data.name}; {on}"
    )
    chosen = (_choice_facts(ranges.choice),) if ranges.choice is not None and ranges.choice.scores else ()
    return Section("calibration", "Calibration", lead, chosen if audit is None else (*chosen, audit_facts(audit)))


def _choice_facts(choice: Choice) -> Facts:
    """The score of each method, the best first."""
    whole = [name for name in choice.ranking if choice.scores[name].images == choice.scored]
    rows = [
        (
            f"SQNR in dB on {choice.scored} held back",
            ", ".join(f"{name} {choice.scores[name].sqnr_db:.2f}" for name in whole),
        )
    ]
    if given_up := [name for name in choice.ranking if name not in whole]:
        before = [(name, choice.scores[name]) for name in given_up]
        shown = ", ".join(f"{name} {score.sqnr_db:.2f} on {score.images}" for name, score in before)
        rows.append(("given up before", shown))
    if choice.nearest is not None:
        better = "better than GPTQ's" if _is_to_nearest(choice) else "GPTQ's are kept"
        rows.append(("with weights to nearest", f"{choice.nearest.sqnr_db:.2f}: {better}"))
    return Facts(tuple(rows), f"choice of the method: {choice.candidate}")


def _is_to_nearest(choice: Choice | None) -> bool:
    return choice is not None and choice.weight_rounding == "nearest"


def audit_facts(audit: AuditReport) -> Facts:
    """Facts about the calibration images."""
    classes, overlap = audit.classes, audit.overlap
    used = [f"{counted(audit.used, audit.sample)} from {audit.dataset}"]
    used += [f"{audit.asked:,} asked for"] if audit.used < audit.asked else []
    used += [f"{len(audit.unreadable):,} unreadable"] if audit.unreadable else []
    rows = [("used", ", ".join(used))]
    covered = "not known, without labels"
    if classes is not None:
        fewest = "" if classes.fewest == classes.most else f"{classes.fewest:,} to "
        covered = f"{classes.covered} of {classes.total}, {fewest}{counted(classes.most, audit.sample)} each"
    rows.append(("classes", covered))
    rows.append(("duplicates", _counts({"exact": audit.exact.count, "near": audit.near.count})))
    if overlap is not None:
        shared = _counts({"exact": overlap.exact.count, "near": overlap.near.count})
        rows.append((f"shared with the {overlap.images:,} {audit.sample}s of {overlap.dataset}", shared))
    odd = {"of one colour": audit.constant.count, "clipped": audit.clipped.count, "enlarged": audit.enlarged.count}
    if any(odd.values()):
        rows.append(("unlike the field", _counts(odd)))
    if audit.converted:
        rows.append(("converted", "; ".join(f"{times} {what}" for what, times in audit.converted.items())))
    return Facts(tuple(rows), f"calibration {audit.sample}s")


def _counts(counts: dict[str, int]) -> str:
    """Those that are not 0, or none."""
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count) or "none"


def calibration_section(found: Findings) -> Section | None:
    """The findings, and the range of every tensor. None where nothing is calibrated."""
    ranges = found.ranges
    if ranges is None:
        if RANGES not in found.outdated:
            return None
        return found.absent("calibration", "Calibration", "The ranges are of other artifacts.", of=RANGES)
    section, audit = calibration_findings(ranges), audit_of(ranges.audit)
    warnings = [Text(warning, "warn") for warning in audit.warnings()] if audit is not None else []
    if audit is not None and not warnings:
        warnings = [Text(f"the audit of the {audit.sample}s found nothing wrong", "good")]
    fold = Fold(f"All {len(ranges.tensors)} ranges", (_ranges_table(ranges),))
    return replace(section, blocks=(*warnings, *section.blocks, _ranges_figure(ranges), fold))


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
    caption = f"A bar ends at the largest magnitude of all; what is beyond the threshold is clipped.{more}"
    return rows_figure(
        "Ranges, in the order of the graph", caption, rows, axis, legend=(Legend(2, "threshold", line=False),)
    )


def _ranges_table(ranges: Ranges) -> Table:
    heads = columns(
        "tensor",
        ">minimum",
        ">maximum",
        (">threshold", "The magnitude that becomes 127"),
        (">of the largest", "Threshold divided by the largest magnitude"),
        ">step",
    )
    rows = tuple(
        (
            name(tensor),
            number(entry.minimum, ".4g"),
            number(entry.maximum, ".4g"),
            number(entry.threshold, ".4g"),
            percent(entry.threshold / (_largest(entry) or entry.threshold)),
            number(entry.scale, ".3g"),
        )
        for tensor, entry in ranges.tensors.items()
    )
    return Table("Range of every tensor", heads, rows, RANGES)
