"""Accuracy against labels, with intervals, the paired gate, and where the confusions are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from skdeploy.accuracy.gate import AccuracyReport, Evaluation, PairedReport, Share
from skdeploy.backends.metrics import decibels_text
from skdeploy.images.chance import CAUSES
from skdeploy.parity.tasks import task_of
from skdeploy.report.blocks import (
    Block,
    Cell,
    Figure,
    Finding,
    Fold,
    Section,
    Table,
    Text,
    columns,
    count,
    counted,
    digest,
    more,
    name,
    percent_text,
)
from skdeploy.report.drops import absent_findings, baseline_findings, drop_figure, drop_finding
from skdeploy.report.findings import Findings
from skdeploy.report.plots import Axis, Row, rows_figure

SOURCE: Final = "evidence/accuracy.json"
SHOWN: Final = 5  # images and classes that are named
WEAKEST: Final = 3
CONFUSIONS: Final = 50  # pairs of classes in the table: those that happen most


def accuracy_findings(evaluation: Evaluation, *, allow_inconclusive: bool = True, runs: bool = True) -> Section:
    """Each artifact's accuracy, what the gate and the baseline decided, and what the figures do not cover.

    Without ``runs``, engines that cannot run here are left out: something else has named them.
    """
    blocks: list[Block] = [_pair_finding(pair, allow_inconclusive) for pair in evaluation.pairs]
    blocks += baseline_findings(evaluation.baseline)
    blocks.append(_accuracy_table(evaluation))
    blocks += [Text(_weakest(report)) for report in evaluation.accuracies[-1:]]
    blocks += [Text(note, "warn") for note in (*evaluation.image_notes, *_not_covered(evaluation))]
    blocks += absent_findings(evaluation.not_evaluated if runs else ())
    lead = (
        f"{counted(evaluation.images, f'labelled {evaluation.sample}')} of {evaluation.dataset}; intervals are Wilson's, "
        f"two-sided, at {evaluation.confidence:g} %"
    )
    return Section("accuracy", "Accuracy", lead, tuple(blocks))


def accuracy_section(found: Findings) -> Section:
    """The findings, with drawings and the classes one by one."""
    evaluation = found.accuracy
    if evaluation is None:
        command = f"skdeploy evaluate {found.shell_folder} --data DIR --max-drop 0.5"
        if not task_of(found.manifest.model).has_classes:
            text = "Quality against what should come out was not measured."
            return found.absent("accuracy", "Accuracy", text, command.replace("DIR", "PAIRS"), of="quality")
        return found.absent("accuracy", "Accuracy", "Accuracy against labels was not measured.", command)
    section = accuracy_findings(evaluation)
    blocks: list[Block] = []
    if evaluation.accuracies:
        blocks.append(_accuracy_figure(evaluation))
    if evaluation.pairs:
        source = " (Tango's score interval)"
        blocks.append(drop_figure(evaluation.pairs, "top-1 (percentage points)", "+.2f", "images", source))
    if evaluation.accuracies:
        last = evaluation.accuracies[-1]
        blocks.append(Fold(f"Accuracy of {len(last.per_class)} classes", (_classes_table(evaluation.accuracies),)))
        confusions = _confusions_table(last, evaluation.classes)
        if confusions.rows:
            blocks.append(Fold(f"Most frequent confusions of {last.artifact}", (confusions,)))
    return replace(section, blocks=(*section.blocks, *blocks))


def _accuracy_table(evaluation: Evaluation) -> Table:
    heads = columns(
        "artifact",
        "backend",
        "precision",
        ">top-1",
        ">top-5",
        (">right", "Images whose top class is the label"),
        "sha256",
    )
    rows = tuple(
        (
            name(a.artifact),
            Cell(a.backend),
            Cell(a.precision.words),
            _share(a.top1),
            Cell("", -1.0) if a.top5 is None else _share(a.top5),
            Cell(f"{a.top1.correct:,} of {a.top1.images:,}", float(a.top1.correct)),
            digest(a.sha256),
        )
        for a in evaluation.accuracies
    )
    return Table("accuracy of each artifact", heads, rows, SOURCE, least=5, group="accuracy", case="{0} on {1}")


def _weakest(report: AccuracyReport) -> str:
    seen = [one for one in report.per_class if one.top1.accuracy is not None]
    weakest = sorted(seen, key=lambda one: one.top1.accuracy or 0)[:WEAKEST]
    return f"weakest classes of {report.artifact}: " + "; ".join(
        f"{one.label} {_share(one.top1).whole}" for one in weakest
    )


def _pair_finding(pair: PairedReport, allow_inconclusive: bool) -> Finding:
    """The decision of the gate, and how many images each of the two has right."""
    counts, logits = pair.pairs, pair.logits
    detail = (
        f"both right {counts.both_right:,}, only the first {counts.only_first:,}, only the second {counts.only_second:,}, "
        f"both wrong {counts.both_wrong:,}; McNemar p {pair.mcnemar_p:.3g}; same class {percent_text(pair.agreement)}"
    )
    if logits is not None:
        detail += f"; logits within {logits.max_rel_error:.1e}, SQNR {decibels_text(logits.sqnr_db)}"
    return drop_finding(pair, f"{pair.second} against {pair.first}", detail, allow_inconclusive)


def _not_covered(evaluation: Evaluation) -> Iterator[str]:
    bad, missing, classes = evaluation.unreadable, evaluation.missing_classes, len(evaluation.classes)
    first = evaluation.accuracies[0] if evaluation.accuracies else None
    said = any(pair.guessing for pair in evaluation.pairs)
    if first is not None and first.guessing and not said:
        yield f"{first.guessing}: {CAUSES}"
    if bad:
        names = "; ".join(f"{image.name}: {image.reason}" for image in bad[:SHOWN])
        yield f"{counted(len(bad), evaluation.sample)} cannot be read and are in no figure: {names}{more(bad, SHOWN)}"
    if missing:
        names = ", ".join(missing[:SHOWN]) + more(missing, SHOWN)
        have = "has" if len(missing) == 1 else "have"
        yield f"{len(missing)} of {classes} classes {have} no {evaluation.sample}, and nothing is known of them: {names}"


def _share(share: Share) -> Cell:
    return Cell(
        percent_text(share.accuracy), share.accuracy or 0.0, note=f"{100 * share.low:.2f} to {100 * share.high:.2f}"
    )


def _accuracy_figure(evaluation: Evaluation) -> Figure:
    rows = [
        Row(
            f"{a.artifact} on {a.backend}",
            percent_text(a.top1.accuracy),
            interval=(100 * a.top1.low, 100 * a.top1.high),
            marks=((index, 100 * (a.top1.accuracy or 0.0)),),
        )
        for index, a in enumerate(evaluation.accuracies)
    ]
    ends = [end for row in rows if row.interval for end in row.interval]
    axis = Axis.linear(ends, "top-1 accuracy (%)")
    caption = "The artifacts saw the same images, so their difference is known better than these intervals suggest: see below."
    return rows_figure("Top-1 with intervals", caption, rows, axis)


def _classes_table(accuracies: tuple[AccuracyReport, ...]) -> Table:
    """A row a class, a column an artifact."""
    heads = columns("class", ">images", *(f">{a.artifact} on {a.backend}" for a in accuracies))
    rows = tuple(
        (Cell(same[0].label), count(same[0].top1.images), *(_share(one.top1) for one in same))
        for same in zip(*(a.per_class for a in accuracies), strict=True)
    )
    return Table("Top-1 of each class", heads, rows, SOURCE)


def _confusions_table(report: AccuracyReport, classes: tuple[str, ...]) -> Table:
    wrong = [
        (images, label, taken)
        for label, row in enumerate(report.confusion)
        for taken, images in enumerate(row)
        if images and taken != label
    ]
    wrong.sort(key=lambda found: (-found[0], found[1], found[2]))
    heads = columns("label", "taken for", ">images", ">of the label")
    rows = tuple(
        (
            Cell(classes[label]),
            Cell(classes[taken]),
            count(images),
            Cell(percent_text(images / sum(report.confusion[label]), 1), images / sum(report.confusion[label])),
        )
        for images, label, taken in wrong[:CONFUSIONS]
    )
    return Table(f"Confusions of {report.artifact}, most frequent first", heads, rows, SOURCE)
