"""Accuracy against labels, with intervals, the paired gate, and where the confusions are."""

from __future__ import annotations

from typing import Final

from skdeploy.accuracy.gate import AccuracyReport, Evaluation, PairedReport, Share
from skdeploy.report.blocks import (
    Block,
    Cell,
    Figure,
    Fold,
    Section,
    Table,
    Text,
    Tone,
    columns,
    count,
    counted,
    name,
    number,
    percent_text,
    sentence,
)
from skdeploy.report.findings import Findings
from skdeploy.report.plots import Axis, Reference, Row, rows_figure
from skdeploy.report.verdict import DECISIONS

SOURCE: Final = "evidence/accuracy.json"
CONFUSIONS: Final = 50  # pairs of classes in the table: those that happen most


def accuracy_section(found: Findings) -> Section:
    """Top-1 and top-5 of each artifact, the drop against its budget, and classes one by one."""
    evaluation = found.accuracy
    if evaluation is None:
        command = f"skdeploy evaluate {found.shell_folder} --data DIR --max-drop 0.5"
        return found.absent("accuracy", "Accuracy", "Accuracy against labels was not measured.", command)
    lead = (
        f"{evaluation.images:,} labelled images of {evaluation.dataset}. Intervals of accuracies are Wilson's, two-sided, at "
        f"{evaluation.confidence:g} %."
    )
    blocks: list[Block] = [_accuracy_table(evaluation)]
    if evaluation.accuracies:
        blocks.append(_accuracy_figure(evaluation))
    blocks += [
        Text(sentence(pair.sentence), "" if pair.decision is None else DECISIONS[pair.decision][0])
        for pair in evaluation.pairs
    ]
    if evaluation.pairs:
        blocks += [_drop_figure(evaluation.pairs), _pairs_table(evaluation.pairs)]
    if evaluation.accuracies:
        last = evaluation.accuracies[-1]
        blocks.append(Fold(f"Accuracy of {len(last.per_class)} classes", (_classes_table(evaluation.accuracies),)))
        confusions = _confusions_table(last, evaluation.classes)
        if confusions.rows:
            blocks.append(Fold(f"Most frequent confusions of {last.artifact}", (confusions,)))
    if evaluation.missing_classes:
        absent_classes = ", ".join(evaluation.missing_classes[:10])
        more = len(evaluation.missing_classes) - 10
        blocks.append(Text(f"No image of: {absent_classes}" + (f" and {more} more." if more > 0 else "."), "warn"))
    if evaluation.unreadable:
        first = evaluation.unreadable[0]
        passed_over = counted(len(evaluation.unreadable), "image")
        text = f"{passed_over} could not be read and is in no figure; first {first.name}: {first.reason}."
        blocks.append(Text(text, "warn"))
    blocks += [
        Text(f"Not evaluated here: {absent.artifact} on {absent.backend}: {absent.reason}.", "warn")
        for absent in evaluation.not_evaluated
    ]
    return Section("accuracy", "Accuracy", lead, tuple(blocks))


def _accuracy_table(evaluation: Evaluation) -> Table:
    heads = columns(
        "Artifact",
        "Backend",
        "Precision",
        ">Top-1",
        ">Top-5",
        (">Right", "Images whose top class is the label"),
    )
    rows = tuple(
        (
            name(a.artifact),
            Cell(a.backend),
            Cell(a.precision.words),
            _share(a.top1),
            Cell("", -1.0) if a.top5 is None else _share(a.top5),
            Cell(f"{a.top1.correct:,} of {a.top1.images:,}", float(a.top1.correct)),
        )
        for a in evaluation.accuracies
    )
    return Table("Accuracy of each artifact", heads, rows, SOURCE)


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
    caption = (
        "The artifacts saw the same images, so that their difference is surer than these intervals tell: see below."
    )
    return rows_figure("Top-1 with intervals", caption, rows, axis)


def _drop_figure(pairs: tuple[PairedReport, ...]) -> Figure:
    rows = [
        Row(
            pair.second,
            f"{pair.drop:+.2f}",
            interval=(pair.drop_low, pair.drop_high),
            marks=((0, pair.drop),),
            tone="" if pair.decision is None else DECISIONS[pair.decision][0],
        )
        for pair in pairs
    ]
    budgets = sorted({pair.max_drop for pair in pairs if pair.max_drop is not None})
    ends = [end for row in rows if row.interval for end in row.interval]
    axis = Axis.linear([0.0, *budgets, *ends], "drop of top-1 (percentage points), less is better")
    references = [Reference(budget, f"budget {budget:g}") for budget in budgets]
    caption = f"Each end of an interval has {pairs[0].confidence:g} % confidence by itself (Tango's score interval)."
    return rows_figure("Drop against the reference, on the same images", caption, rows, axis, references=references)


def _pairs_table(pairs: tuple[PairedReport, ...]) -> Table:
    heads = columns(
        "Compared",
        "Against",
        "Decision",
        ">Drop, points",
        (">Lost", "Images that only the reference has right"),
        (">Gained", "Images that only the compared artifact has right"),
        (">McNemar p", "Exact, two-sided"),
        (">Same class", "Share of images with the same top class, right or wrong"),
    )
    rows = []
    for pair in pairs:
        tone: Tone = "" if pair.decision is None else DECISIONS[pair.decision][0]
        rows.append(
            (
                name(pair.second),
                name(pair.first),
                Cell(pair.decision or "no budget", tone=tone),
                Cell(f"{pair.drop:+.2f}", pair.drop, note=f"{pair.drop_low:+.2f} to {pair.drop_high:+.2f}"),
                count(pair.pairs.only_first),
                count(pair.pairs.only_second),
                number(pair.mcnemar_p, ".3g"),
                Cell(percent_text(pair.agreement), pair.agreement),
            )
        )
    return Table("Paired comparisons", heads, tuple(rows), SOURCE)


def _classes_table(accuracies: tuple[AccuracyReport, ...]) -> Table:
    """A row a class, a column an artifact."""
    heads = columns("Class", ">Images", *(f">{a.artifact} on {a.backend}" for a in accuracies))
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
    heads = columns("Label", "Taken for", ">Images", ">Of the label")
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
