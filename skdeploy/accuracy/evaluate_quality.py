"""``skdeploy evaluate`` of networks without classes, or with the user's own metric: on inputs and what should come out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from skdeploy.accuracy.evaluate import Chosen, EvaluationOptions, choose, evaluate, open_whole, write_receipts
from skdeploy.accuracy.gate import Evaluation
from skdeploy.accuracy.measure_quality import measure_quality
from skdeploy.accuracy.own_metric import OwnMetric, load_metric
from skdeploy.accuracy.quality import Quality
from skdeploy.bundle.evidence import keep_evidence
from skdeploy.core.errors import UsageError
from skdeploy.core.progress import Progress, Silent
from skdeploy.parity.tasks import task_of
from skdeploy.zoo.assumed import require_preprocessing

Found = TypeVar("Found")
Way = Callable[[Path, EvaluationOptions, Progress], Found]


def evaluate_any(
    folder: Path,
    options: EvaluationOptions,
    progress: Progress | None = None,
    *,
    counted: bool | None = None,
    by: Way[Evaluation] | None = None,
    by_pairs: Way[Quality] | None = None,
) -> Evaluation | Quality:
    """Accuracy against labels, or quality against what should come out: what the network's task or ``options.metric`` asks for.

    ``counted``: a baseline is given, and counts images with classes, or holds a figure of pairs; None without one.
    ``by`` and ``by_pairs``: ways to evaluate networks with classes and others, by parts or workers.
    Raises as ``evaluate`` and ``measure_quality``.
    """
    classes = counts_classes(folder, options)
    if counted is not None and counted is not classes:
        raise UsageError(
            f"the baseline {'counts images by their classes' if counted else 'holds a figure of pairs'}, but this evaluation "
            f"{'counts images by their classes' if classes else 'measures a figure of pairs'}",
            advice="make a new one with --save-baseline",
        )
    if classes:
        return (by or evaluate)(folder, options, progress or Silent())
    return (by_pairs or evaluate_quality)(folder, options, progress or Silent())


def counts_classes(folder: Path, options: EvaluationOptions) -> bool:
    """Whether labelled images are counted; else something is measured on pairs."""
    return options.metric is None and task_of(open_whole(folder).manifest.model).has_classes


def evaluate_quality(folder: Path, options: EvaluationOptions, progress: Progress | None = None) -> Quality:
    """Figures of a bundle's artifacts on pairs, each compared with a reference. Kept as the evidence ``quality``.

    Raises UsageError for options that count classes, and as ``measure_quality``.
    """
    tell = progress or Silent()
    chosen, own = chosen_for_pairs(folder, options, tell)
    found = measure_quality(
        chosen.runners,
        chosen.optional,
        options.data,
        own,
        tell,
        number=options.num_images,
        batch=options.batch,
        max_drop=options.max_drop,
        confidence=options.confidence,
        fresh=options.fresh,
    )
    keep_quality(chosen, found, options, tell)
    if options.receipt:
        decisions = {drop.second: drop.decision for drop in found.drops if drop.decision is not None}
        for path in write_receipts(chosen.bundle, found.artifacts, decisions):
            tell.note(f"receipt: {path}")
    return found


def chosen_for_pairs(folder: Path, options: EvaluationOptions, tell: Progress) -> tuple[Chosen, OwnMetric | None]:
    """The artifacts, and the user's own metric. Raises UsageError for options that count classes."""
    chosen = choose(folder, options)
    if options.class_order is not None:
        raise UsageError(
            "--class-order is for accuracy against class labels", advice="leave it out; --data gives inputs and targets"
        )
    for note in require_preprocessing(chosen.specs, options.assume_imagenet):
        tell.note(note)
    if len({spec.task for spec in chosen.specs.values()}) > 1:
        raise UsageError("the two bundles have different tasks", advice="compare networks with the same task")
    own = load_metric(options.metric) if options.metric is not None else None
    if own is not None:
        tell.note(f"running your code: --metric {own.name} from {own.file}")
    return chosen, own


def keep_quality(chosen: Chosen, found: Quality, options: EvaluationOptions, tell: Progress) -> None:
    """Keeps the finding as the evidence ``quality``, or in the file ``options.output``."""
    measured = {report.artifact for report in found.artifacts}
    about = [artifact for artifact in chosen.bundle.manifest.artifacts if artifact.path in measured]
    keep_evidence(chosen.bundle, "quality", found, about, tell, options.output)
