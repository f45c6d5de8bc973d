"""``skdeploy evaluate`` of networks without classes, or with the user's own metric: on inputs and what should come out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from skdeploy.accuracy.evaluate import EvaluationOptions, choose, evaluate, open_whole, write_receipts
from skdeploy.accuracy.gate import Evaluation
from skdeploy.accuracy.measure_quality import measure_quality
from skdeploy.accuracy.own_metric import load_metric
from skdeploy.accuracy.quality import Quality
from skdeploy.bundle.evidence import keep_evidence
from skdeploy.core.errors import UsageError
from skdeploy.core.progress import Progress, Silent
from skdeploy.parity.tasks import task_of
from skdeploy.zoo.assumed import require_preprocessing


def evaluate_any(
    folder: Path,
    options: EvaluationOptions,
    progress: Progress | None = None,
    *,
    counted: bool | None = None,
    by: Callable[[Path, EvaluationOptions, Progress], Evaluation] | None = None,
) -> Evaluation | Quality:
    """Accuracy against labels, or quality against what should come out: what the network's task or ``options.metric`` asks for.

    ``counted``: a baseline is given, and counts images with classes, or holds a figure of pairs; None without one.
    ``by``: a way to evaluate that takes classes only, by parts or workers.
    Raises as ``evaluate`` and ``measure_quality``.
    """
    spec = open_whole(folder).manifest.model
    classes = options.metric is None and task_of(spec).has_classes
    if counted is not None and counted is not classes:
        raise UsageError(
            f"the baseline {'counts images by their classes' if counted else 'holds a figure of pairs'}, but this evaluation "
            f"{'counts images by their classes' if classes else 'measures a figure of pairs'}",
            advice="make a new one with --save-baseline",
        )
    if by is not None:
        return by(folder, options, progress or Silent())
    if classes:
        return evaluate(folder, options, progress)
    return evaluate_quality(folder, options, progress)


def evaluate_quality(folder: Path, options: EvaluationOptions, progress: Progress | None = None) -> Quality:
    """Figures of a bundle's artifacts on pairs, each compared with a reference. Kept as the evidence ``quality``.

    Raises UsageError for options that count classes, and as ``measure_quality``.
    """
    chosen, tell = choose(folder, options), progress or Silent()
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
    measured = {report.artifact for report in found.artifacts}
    about = [artifact for artifact in chosen.bundle.manifest.artifacts if artifact.path in measured]
    keep_evidence(chosen.bundle, "quality", found, about, tell, options.output)
    if options.receipt:
        decisions = {drop.second: drop.decision for drop in found.drops if drop.decision is not None}
        for path in write_receipts(chosen.bundle, found.artifacts, decisions):
            tell.note(f"receipt: {path}")
    return found
