"""The truth by which ways are judged on ``--data``: labels, targets, or nothing but FP32's own outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Protocol

from skdeploy.accuracy.evaluate import labelled_images
from skdeploy.accuracy.measure_quality import require_confidence
from skdeploy.accuracy.measures import OF_TASKS, Measure, measures_of
from skdeploy.accuracy.own_metric import load_metric
from skdeploy.backends.base import Session
from skdeploy.bundle.runners import Runner
from skdeploy.core.errors import UsageError
from skdeploy.core.progress import Progress
from skdeploy.core.spec import ClassOrder, ModelSpec
from skdeploy.images.dataset import EVALUATION, Dataset, open_dataset
from skdeploy.images.labels import FORMS
from skdeploy.images.pairs import LAYOUT, PairedData, has_targets, open_pairs
from skdeploy.parity.tasks import task_of
from skdeploy.tuning.by_error import ByError
from skdeploy.tuning.judges import ByLabels, ByPairs, Judge
from skdeploy.tuning.report import Sample
from skdeploy.tuning.split import Halves, PairHalves, halves, pair_halves, unlabelled_halves

IN_PLACE: Final = "or --min-sqnr DB in place of --max-drop, which compares with FP32 and needs no truth"


class Truth(Protocol):
    """The samples, in halves, and who judges by them. ``word``: what one is called."""

    @property
    def word(self) -> Sample: ...

    @property
    def inputs(self) -> Dataset: ...

    @property
    def parts(self) -> Halves | PairHalves: ...

    def judge(self, reference: tuple[Runner, Session], spec: ModelSpec, tell: Progress) -> Judge: ...


@dataclass(frozen=True)
class Asked:
    """Options of ``tune`` that are about a truth. ``max_drop`` in the unit measured, ``confidence`` in per cent."""

    data: Path
    max_drop: float
    confidence: float
    class_order: ClassOrder | None
    metric: str | None


@dataclass(frozen=True)
class _Labels:
    """Labelled images."""

    inputs: Dataset
    asked: Asked
    word: Sample = "labelled image"

    @cached_property
    def parts(self) -> Halves:
        return halves(self.inputs)

    def judge(self, reference: tuple[Runner, Session], spec: ModelSpec, tell: Progress) -> Judge:
        return ByLabels(reference, self.parts, spec, self.asked.confidence, self.asked.max_drop, tell)


@dataclass(frozen=True)
class _Pairs:
    """Pairs, and what is measured of them."""

    pairs: PairedData
    measures: Sequence[Measure]
    asked: Asked
    word: Sample = "pair"

    @property
    def inputs(self) -> Dataset:
        return self.pairs.inputs

    @cached_property
    def parts(self) -> PairHalves:
        return pair_halves(self.pairs)

    def judge(self, reference: tuple[Runner, Session], spec: ModelSpec, tell: Progress) -> Judge:
        return ByPairs(reference, self.parts, spec, self.measures, self.asked.confidence, self.asked.max_drop, tell)


@dataclass(frozen=True)
class _Outputs:
    """Samples alone."""

    inputs: Dataset
    confidence: float
    min_sqnr_db: float | None
    word: Sample

    @cached_property
    def parts(self) -> Halves:
        return unlabelled_halves(self.inputs, self.word)

    def judge(self, reference: tuple[Runner, Session], spec: ModelSpec, tell: Progress) -> Judge:
        return ByError(reference[0], self.parts, spec, self.confidence, self.min_sqnr_db, tell)


def truth_in(asked: Asked, spec: ModelSpec, tell: Progress) -> Truth:
    """Labelled images or pairs, as the task and ``--metric`` ask. Raises UsageError where there are none."""
    if asked.metric is None and task_of(spec).has_classes:
        images = open_dataset(asked.data, archive=EVALUATION, spec=spec)
        if images.labels is None:
            reason = f": {images.unlabelled}" if images.unlabelled else ""
            raise UsageError(
                f"--max-drop needs labels, and {images.name} has none{reason}", advice=f"{FORMS}; {IN_PLACE}"
            )
        dataset = labelled_images(asked.data, spec, None, asked.class_order)
        for note in dataset.notes:
            tell.note(note)
        return _Labels(dataset, asked)
    if asked.class_order is not None:
        raise UsageError(
            "--class-order is for images with class labels", advice="leave it out; --data gives inputs and targets"
        )
    if asked.metric is None and not (OF_TASKS.get(spec.task) and spec.takes_images):
        what = f"the task {spec.task!r}" if spec.task not in OF_TASKS else "networks that take arrays"
        raise UsageError(
            f"--max-drop needs a measure of accuracy, and skdeploy has none for {what}",
            advice=f"give --metric module:function with pairs; {IN_PLACE}",
        )
    if not has_targets(asked.data, spec):
        raise UsageError(f"--max-drop needs targets, and {asked.data} has none", advice=f"{LAYOUT}; {IN_PLACE}")
    own = load_metric(asked.metric) if asked.metric is not None else None
    if own is not None:
        tell.note(f"running your code: --metric {own.name} from {own.file}")
    measures, pairs = measures_of(spec, own), open_pairs(asked.data, spec)
    for note in pairs.notes:
        tell.note(note)
    require_confidence(asked.confidence, measures)
    return _Pairs(pairs, measures, asked)


def without_truth(data: Path, spec: ModelSpec, confidence: float, min_sqnr_db: float | None, tell: Progress) -> Truth:
    """The samples alone; of pairs, the inputs. A note says so where there is a truth that is not used. Raises UsageError."""
    pairs = not task_of(spec).has_classes and has_targets(data, spec)
    images = open_pairs(data, spec).inputs if pairs else open_dataset(data, archive=EVALUATION, spec=spec)
    unused = "targets" if pairs else "labels" if task_of(spec).has_classes and images.labels is not None else ""
    if unused:
        tell.note(f"the {unused} of {images.name} are not used: give --max-drop to choose by them")
    return _Outputs(images, confidence, min_sqnr_db, spec.sample_word)
