"""How a way to make INT8 is compared with FP32 while tuning: on labelled images, or on pairs with the task's own measure.

Without either: ``by_error.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal, Protocol

from skdeploy.accuracy.gate import PairedReport, paired_report
from skdeploy.accuracy.measure_quality import drop_of
from skdeploy.accuracy.measures import Measure
from skdeploy.accuracy.predictions import Predictions, logits_agreement, top_classes
from skdeploy.accuracy.quality import QualityDrop
from skdeploy.accuracy.quality_rows import Measuring, untouched_figures
from skdeploy.accuracy.reuse import predictions_of
from skdeploy.backends.base import Session
from skdeploy.backends.metrics import sqnr_db
from skdeploy.backends.onnxruntime import load_graph
from skdeploy.backends.rounding import RoundNarrow
from skdeploy.bundle.runners import Runner
from skdeploy.core.progress import Progress
from skdeploy.core.spec import ModelSpec
from skdeploy.images.dataset import Dataset
from skdeploy.images.feeds import RUN_BATCH
from skdeploy.images.pairs import PairedData
from skdeploy.quant.effect import BATCH_PIXELS, MAX_BATCH, Samples
from skdeploy.tuning.report import Compared
from skdeploy.tuning.split import Halves, PairHalves
from skdeploy.tuning.workshop import Made

REFERENCE: Final = "FP32"
Part = Literal["choosing", "confirming"]


class Judge(Protocol):
    """Samples, and an FP32 graph. ``confidence`` in per cent, ``max_drop`` in its unit."""

    def screened(self, made: Made, name: str) -> float:
        """The SQNR in dB of a graph's outputs against FP32's, on the samples that screen."""
        ...

    def compared(self, made: Made, part: Part, name: str) -> Compared:
        """How much worse a graph is than FP32 on samples that choose, or confirm."""
        ...


@dataclass
class ByLabels(Judge):
    """Labelled images: right and wrong."""

    reference: tuple[Runner, Session]
    parts: Halves
    spec: ModelSpec
    confidence: float
    max_drop: float
    tell: Progress
    _known: dict[int, Predictions] = field(default_factory=dict)

    @cached_property
    def _samples(self) -> Samples:
        """Of class numbers, whose error shows in the floats that decide them."""
        graph = load_graph(self.reference[0].bundle.check(self.reference[0].artifact))
        return Samples.of(graph, self.spec, self.parts.screening.load(self.spec), None)

    def screened(self, made: Made, name: str) -> float:
        if self.spec.gives_numbers:
            return noise_of(made, self._samples, name)
        logits = self._compared(made, self.parts.screening, name).logits
        assert logits is not None  # both see the same images
        return logits.sqnr_db

    def compared(self, made: Made, part: Part, name: str) -> PairedReport:
        return self._compared(made, self.parts.choosing if part == "choosing" else self.parts.confirming, name)

    def _run(self, runner: Runner, session: Session, images: Dataset) -> Predictions:
        (found,), _ = predictions_of([(runner, session)], images, batch_of(self.spec), self.tell)
        return found

    def _compared(self, made: Made, images: Dataset, name: str) -> PairedReport:
        if id(images) not in self._known:
            self._known[id(images)] = self._run(*self.reference, images)
        before = self._known[id(images)]
        with made.runner.open() as session:
            after = self._run(made.runner, session, images)
        assert images.labels is not None  # labelled_images
        there = before.readable & after.readable
        logits = None if self.spec.gives_numbers else logits_agreement(before.logits[there], after.logits[there])
        return paired_report(
            top_classes(before.logits[there], self.spec),
            top_classes(after.logits[there], self.spec),
            images.labels[there],
            self.confidence / 100,
            self.max_drop,
            names=(REFERENCE, name),
            logits=logits,
        )


@dataclass
class ByPairs(Judge):
    """Pairs, by the first of the measures. Outputs that are integers are screened by the floats that decide them."""

    reference: tuple[Runner, Session]
    parts: PairHalves
    spec: ModelSpec
    measures: Sequence[Measure]
    confidence: float
    max_drop: float
    tell: Progress

    @cached_property
    def _samples(self) -> Samples:
        runner, kind = self.reference[0], self.measures[0].kind
        graph = load_graph(runner.bundle.check(runner.artifact))
        return Samples.of(graph, self.spec, self.parts.screening.crops(self.spec, kind), None)

    def screened(self, made: Made, name: str) -> float:
        return noise_of(made, self._samples, name)

    def compared(self, made: Made, part: Part, name: str) -> QualityDrop:
        pairs: PairedData = self.parts.choosing if part == "choosing" else self.parts.confirming
        with made.runner.open() as session:
            opened = [self.reference, (made.runner, session)]
            tables, _ = Measuring(opened, pairs, self.measures[:1], batch_of(self.spec), self.tell).rows(says=False)
        first = self.measures[0]
        rows = [[table.rows[first.name]] for table in tables]
        first.check(rows[0][0])
        runners = [runner for runner, _ in opened]
        untouched = dict(untouched_figures(tables[0]))
        drop = drop_of(runners, rows, 1, first, 0, self.confidence, self.max_drop, pairs, untouched)
        return drop.model_copy(update={"first": REFERENCE, "second": name})


def noise_of(made: Made, samples: Samples, name: str) -> float:
    """The SQNR of what was made, in dB, on samples that FP32 has run on."""
    model = load_graph(made.path)
    RoundNarrow()(model)
    return sqnr_db(1.0, samples.run(model, name, judged=False).noise)


def batch_of(spec: ModelSpec) -> int:
    """How many samples run at once: small ones go together."""
    return min(MAX_BATCH, max(RUN_BATCH, BATCH_PIXELS // spec.places))
