"""Accuracy against labels: of each artifact, of two on the same images, and the gate. What ``evaluate --json`` prints."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, model_validator

from skdeploy.accuracy.baseline import BaselineReport
from skdeploy.accuracy.budget import require_within_budget, sentence_of, worst_decision
from skdeploy.accuracy.statistics import (
    Decision,
    Pairs,
    decide,
    drop_interval,
    images_to_decide,
    mcnemar,
    passing_budget,
    wilson,
)
from skdeploy.bundle.runners import Runner
from skdeploy.core.spec import Frozen, Precision, SampleWord
from skdeploy.images import chance
from skdeploy.images.arrays import Labels
from skdeploy.images.audit_report import Unreadable

TOP: Final = 5
SHOWN: Final = 5

Strings = Annotated[tuple[str, ...], Field(strict=False)]
TopClasses = NDArray[np.signedinteger]


class Share(Frozen):
    """Counts of images: the share that is right, with Wilson's two-sided interval. None of no images."""

    correct: NonNegativeInt
    images: NonNegativeInt
    accuracy: float | None
    low: float
    high: float


class ClassAccuracy(Frozen):
    """Top-1 of the images with one label."""

    label: str
    top1: Share


class AccuracyReport(Frozen):
    """One artifact on one backend against the labels.

    ``top5`` only of more than 5 classes, and of logits. ``confusion``, (classes, classes): images with the label of the row
    that are taken for the class of the column.
    """

    artifact: str
    backend: str
    precision: Precision
    sha256: str
    images: int
    top1: Share
    top5: Share | None
    per_class: Annotated[tuple[ClassAccuracy, ...], Field(strict=False)]
    confusion: Annotated[tuple[Annotated[tuple[NonNegativeInt, ...], Field(strict=False)], ...], Field(strict=False)]

    @model_validator(mode="after")
    def _counted_once(self) -> AccuracyReport:
        counts = [(one.top1.correct, one.top1.images) for one in self.per_class]
        if {len(row) for row in self.confusion} - {len(counts)}:
            raise ValueError(f"a row of confusion is not {len(counts)} classes long")
        if [(row[label], sum(row)) for label, row in enumerate(self.confusion)] != counts:
            raise ValueError("confusion and per_class do not count the same images")
        return self

    @property
    def shown(self) -> str:
        return f"{self.artifact} on {self.backend}"

    @property
    def guessing(self) -> str:
        """Why this accuracy says nothing: it is not above that of naming one class each time. Empty if it is."""
        most = max((one.top1.images for one in self.per_class), default=0)
        counts = self.top1.correct, self.top1.images, most
        return chance.sentence(self.artifact, *counts) if chance.is_hopeless(*counts) else ""


class LogitsAgreement(Frozen):
    """How far the second artifact's logits are from the first's, as in ``backends/metrics.py``: none of it needs labels."""

    max_rel_error: float
    min_cosine: float
    min_sqnr_db: float
    sqnr_db: float


class PairedReport(Frozen):
    """Two artifacts on the same images: does the second lose accuracy against the first?

    ``drop``, ``drop_low`` and ``drop_high`` are in percentage points of top-1; each bound has the confidence ``confidence``, in
    per cent and one-sided (``statistics.drop_interval``). ``agreement``: share of images with the same top class, right or
    wrong. ``decision`` and ``images_to_decide`` only with a budget, ``max_drop``, in percentage points; the number only where
    it is inconclusive, and only if there is one. ``logits`` where both see the same pixels. ``guessing``: why this is
    inconclusive, if the first is not better than naming the most frequent class each time.
    """

    first: str
    second: str
    pairs: Pairs
    mcnemar_p: float
    drop: float
    drop_low: float
    drop_high: float
    confidence: float
    agreement: float
    logits: LogitsAgreement | None = None
    max_drop: float | None = None
    decision: Decision | None = None
    images_to_decide: int | None = None
    sample: SampleWord = "image"
    guessing: str = ""

    @property
    def passing_budget(self) -> float:
        """The smallest budget that these images pass, in percentage points."""
        return passing_budget(self.pairs, self.confidence / 100)

    @property
    def images_more(self) -> int | None:
        """How many images more would decide; None if the drop is its budget: more images of the same kind never tell."""
        total = images_to_decide(self.pairs, (self.max_drop or 0) / 100, self.confidence / 100)
        return None if total is None else total - self.pairs.images

    @property
    def sentence(self) -> str:
        """The result of the gate in words."""
        interval = f"from {self.drop_low:+.2f} to {self.drop_high:+.2f} at {self.confidence:g} %"
        bounds = f"{self.drop:+.2f} points of top-1, {interval}"
        measured = f"{self.second} drops by {bounds}, against {self.first} on {self.pairs.images:,} {self.sample}s"
        return sentence_of(measured, self, f"{self.sample}s", chance.CAUSES)


class NotEvaluated(Frozen):
    """An artifact that cannot run on this machine, and why."""

    artifact: str
    backend: str
    reason: str


class Evaluation(Frozen):
    """A data set, the artifacts that ran on it, and the pairs that were compared.

    ``images`` were evaluated; ``unreadable`` were not, and are in no figure. Nothing is known of ``missing_classes``: they have
    no image. ``reused`` of the images were predicted by an earlier run of the same evaluation. ``baseline`` if one was given.
    ``image_notes``: what else to know of the images, such as the order of their classes.
    """

    kind: Literal["evaluation", "comparison"] = "evaluation"
    dataset: str
    dataset_sha256: str
    labels_sha256: str
    images: int
    reused: int
    unreadable: Annotated[tuple[Unreadable, ...], Field(strict=False)]
    classes: Strings
    missing_classes: Strings
    accuracies: Annotated[tuple[AccuracyReport, ...], Field(strict=False)]
    pairs: Annotated[tuple[PairedReport, ...], Field(strict=False)]
    not_evaluated: Annotated[tuple[NotEvaluated, ...], Field(strict=False)]
    confidence: float
    seconds: float
    baseline: BaselineReport | None = None
    image_notes: Strings = ()
    sample: SampleWord = "image"

    @model_validator(mode="after")
    def _of_the_same_classes(self) -> Evaluation:
        for report in self.accuracies:
            if self.classes != tuple(one.label for one in report.per_class):
                raise ValueError(f"per_class of {report.shown} does not have the labels of classes")
        return self

    @property
    def verdict(self) -> Decision | None:
        """The worst of the gate's decisions; None without a budget."""
        return worst_decision(self.pairs, self.baseline)

    def check(self, *, allow_inconclusive: bool = False) -> None:
        """Raises AccuracyError for a drop that is beyond the budget, or not shown to be within it."""
        require_within_budget(
            self.pairs,
            self.baseline,
            lost=lambda pair: f"{pair.second} drops by {pair.drop:+.2f} points of top-1, {pair.max_drop:g} allowed",
            allowed=lambda pair: f"{pair.second} (--max-drop {pair.max_drop:g})",
            less=less_drop(*(report.precision for report in self.accuracies)),
            check=chance.CHECK,
            samples="images",
            more="more labelled images",
            allow_inconclusive=allow_inconclusive,
        )


def less_drop(*precisions: Precision) -> str:
    """Advice on losing less accuracy in these precisions."""
    if any(precision.integer for precision in precisions):
        return (
            "calibrate on more or better images, keep sensitive layers in the fallback "
            "(`skdeploy export --int8 --data --max-drop`), or allow more"
        )
    if any(precision.weights_only for precision in precisions):
        return "keep sensitive weights out of INT8 (`skdeploy export --weight-only int8 --int8-keep`), or allow more"
    flag = next((precision.flag for precision in precisions if precision is not Precision.FP32), Precision.FP16.flag)
    return f"keep sensitive modules in FP32 (`skdeploy export {flag} --keep-fp32`), or allow more"


def share(correct: int, images: int, confidence: float) -> Share:
    """A share and its interval at a two-sided confidence in (0, 1)."""
    low, high = wilson(correct, images, confidence)
    return Share(correct=correct, images=images, accuracy=correct / images if images else None, low=low, high=high)


def class_names(labels: tuple[str, ...], classes: int) -> tuple[str, ...]:
    """The card's labels, or the numbers of the classes where it has none."""
    return labels or tuple(map(str, range(classes)))


def accuracy_report(
    top: TopClasses, labels: Labels, names: tuple[str, ...], confidence: float, runner: Runner
) -> AccuracyReport:
    """Accuracy from the best classes of each image, (N, up to 5), best first, or the only one known, (N, 1); and the labels,
    (N,), 0..len(names)-1.
    """
    images, classes = len(labels), len(names)
    right = top == labels[:, None]
    confusion = np.bincount(labels * classes + top[:, 0], minlength=classes * classes).reshape(classes, classes)
    of_class, hits = confusion.sum(axis=1), confusion.diagonal()
    return AccuracyReport(
        artifact=runner.name,
        backend=runner.backend,
        precision=runner.precision,
        sha256=runner.artifact.sha256,
        images=images,
        top1=share(int(right[:, 0].sum()), images, confidence),
        top5=share(int(right.any(axis=1).sum()), images, confidence) if classes > top.shape[1] == TOP else None,
        per_class=tuple(
            ClassAccuracy(label=name, top1=share(int(hit), int(count), confidence))
            for name, hit, count in zip(names, hits, of_class, strict=True)
        ),
        confusion=tuple(tuple(map(int, row)) for row in confusion),
    )


def paired_report(
    first: TopClasses,
    second: TopClasses,
    labels: Labels,
    confidence: float,
    max_drop: float | None,
    *,
    names: tuple[str, str],
    logits: LogitsAgreement | None = None,
    sample: SampleWord = "image",
) -> PairedReport:
    """The paired comparison of two artifacts' best classes, (N, up to 5) each; ``max_drop`` in percentage points.

    No budget is passed where neither artifact is better than chance: both then lose nothing, whatever they compute.
    """
    ours, theirs = first[:, 0] == labels, second[:, 0] == labels
    pairs = Pairs(
        both_right=int((ours & theirs).sum()),
        only_first=int((ours & ~theirs).sum()),
        only_second=int((~ours & theirs).sum()),
        both_wrong=int((~ours & ~theirs).sum()),
    )
    interval = drop_interval(pairs, confidence)
    decision = None if max_drop is None else decide(interval, max_drop / 100)
    counts = int(ours.sum()), pairs.images, int(np.bincount(labels).max(initial=0))
    knows = chance.beats_guessing(max(counts[0], int(theirs.sum())), *counts[1:])  # a gain over a guess is a gain
    passes_by_chance = decision == "pass" and not knows
    guessing = ""
    if passes_by_chance or (decision == "inconclusive" and chance.is_hopeless(*counts)):
        decision, guessing = "inconclusive", chance.sentence(names[0], *counts, sample)
    return PairedReport(
        first=names[0],
        second=names[1],
        pairs=pairs,
        mcnemar_p=mcnemar(pairs),
        drop=100 * pairs.drop,
        drop_low=100 * interval[0],
        drop_high=100 * interval[1],
        confidence=100 * confidence,
        agreement=float(np.mean(first[:, 0] == second[:, 0])),
        logits=logits,
        max_drop=max_drop,
        decision=decision,
        images_to_decide=images_to_decide(pairs, max_drop / 100, confidence)
        if max_drop is not None and decision == "inconclusive" and not guessing
        else None,
        guessing=guessing,
        sample=sample,
    )
