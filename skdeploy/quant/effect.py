"""The outputs of a graph on samples: how far they are from FP32's outputs, and from what should come out."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from skdeploy.backends.base import Array
from skdeploy.backends.logits import check_outputs, class_of_each, outputs_by_batch
from skdeploy.backends.metrics import sqnr_db
from skdeploy.backends.onnxruntime import OnnxRuntimeSession
from skdeploy.core.errors import CalibrationError, UsageError
from skdeploy.core.spec import CLASSIFICATION, Frozen, ModelSpec
from skdeploy.images.dataset import Pixels
from skdeploy.images.feeds import RUN_BATCH
from skdeploy.ir.deciding import with_sources
from skdeploy.ir.large import portable
from skdeploy.quant.truth import TOP1, Rows, Truth

Crops = Sequence[Pixels] | Pixels  # uint8 (H, W, C) each
Outputs = dict[str, Array]  # (N, ...) each

BATCH_PIXELS: Final = (
    RUN_BATCH * 224 * 224
)  # in one batch: RUN_BATCH is for images of 224 x 224, small ones go together
MAX_BATCH: Final = 256


class Effect(Frozen):
    """The outputs of a graph against FP32's: SQNR over all samples in dB, of the worst output.

    ``agreement``, of networks with classes: the share of images with the same top class. ``top1`` is the share of images whose
    top class is the label, if there are labels; ``figure`` what is measured against the targets of pairs, in its own unit.
    """

    sqnr_db: float
    agreement: float | None = None
    top1: float | None = None
    figure: float | None = None


@dataclass(frozen=True)
class Outcome:
    """A run over all samples: noise power by signal power, the share with the same top class, and the rows of the truth."""

    noise: float
    agreement: float | None
    rows: Rows | None


@dataclass(frozen=True)
class Samples:
    """Samples, what should come out of them if that is known, and what the FP32 graph makes of them: its floating-point
    outputs, and what decides others (``ir/deciding.py``).

    ``places`` are those of the samples in ``reference``, ``classes`` and ``truth``, which may hold more; ``rows`` are FP32's.
    ``classes``: FP32's class of each, of a classifier.
    """

    spec: ModelSpec
    crops: Crops
    truth: Truth | None
    reference: Outputs
    places: NDArray[np.int64]
    rows: Rows | None
    classes: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, model: ir.Model, spec: ModelSpec, crops: Crops, truth: Truth | None) -> Samples:
        """Runs the FP32 graph once. Its outputs are kept in a temporary file, since maps of many images are much memory.

        Raises UsageError: no images, a truth that does not fit. CalibrationError: outputs that are not finite.
        """
        if not len(crops):
            raise UsageError("there are no images to measure INT8 on", advice="give some with --data")
        if truth is not None:
            truth.check(len(crops), spec)
        rows, reference, classes = list[list[float]](), Outputs(), list[NDArray[np.int64]]()
        with ExitStack() as stack:
            files: dict[str, IO[bytes]] = {}
            last: Outputs = {}
            for start, outputs, last in _batches(model, spec, crops, "nothing in INT8"):
                for name, values in last.items():
                    if name not in files:
                        files[name] = stack.enter_context(tempfile.TemporaryFile())
                    files[name].write(np.ascontiguousarray(values).tobytes())
                rows += _rows(truth, outputs, range(start, len(crops)), spec)
                classes += [class_of_each(outputs, spec)] if spec.task == CLASSIFICATION else []
            for name, file in files.items():
                file.flush()
                shape = (len(crops), *last[name].shape[1:])
                reference[name] = np.memmap(file, last[name].dtype, "r", shape=shape)
        known = np.concatenate(classes) if classes else None
        return cls(spec, crops, truth, reference, np.arange(len(crops)), np.asarray(rows) if truth else None, known)

    def part(self, count: int) -> Samples:
        """At most ``count`` of the samples, spread evenly: images often come sorted by class. Runs nothing."""
        chosen = np.unique(np.linspace(0, len(self.crops) - 1, min(count, len(self.crops))).round().astype(int))
        return Samples(
            self.spec,
            [self.crops[index] for index in chosen],
            self.truth,
            self.reference,
            self.places[chosen],
            None if self.rows is None else self.rows[chosen],
            self.classes,
        )

    def run(self, model: ir.Model, shown: str, *, judged: bool = True) -> Outcome:
        """Run another graph on them. ``shown`` is what an error calls it; without ``judged`` there are no rows."""
        signal, noise = (dict.fromkeys(self.reference, 0.0) for _ in range(2))
        same, rows = 0, list[list[float]]()
        for start, outputs, sources in _batches(model, self.spec, self.crops, shown):
            places = self.places[start : start + len(next(iter(outputs.values())))]
            for name, reference in self.reference.items():
                expected = reference[places].astype(np.float64)
                signal[name] += float(np.sum(expected**2))
                noise[name] += float(np.sum((sources[name] - expected) ** 2))
            if self.classes is not None:
                same += int(np.count_nonzero(class_of_each(outputs, self.spec) == self.classes[places]))
            if judged:
                rows += _rows(self.truth, outputs, places, self.spec)
        return Outcome(
            max(noise[name] / max(signal[name], np.finfo(np.float64).tiny) for name in noise),
            same / len(self.crops) if self.classes is not None else None,
            np.asarray(rows) if judged and self.truth is not None else None,
        )

    @property
    def exact(self) -> Outcome:
        """The outcome of FP32 itself."""
        return Outcome(0.0, 1.0 if self.spec.task == CLASSIFICATION else None, self.rows)

    def effect(self, outcome: Outcome) -> Effect:
        """As people read it."""
        value = None if self.truth is None or outcome.rows is None else self.truth.value(outcome.rows)
        top1 = self.truth is not None and self.truth.figure == TOP1
        return Effect(
            sqnr_db=sqnr_db(1.0, outcome.noise),
            agreement=outcome.agreement,
            top1=value if top1 else None,
            figure=None if top1 else value,
        )


def _rows(
    truth: Truth | None, outputs: Mapping[str, Array], places: Sequence[int] | NDArray[np.int64], spec: ModelSpec
) -> list[Any]:
    if truth is None:
        return []
    count = len(next(iter(outputs.values())))
    return [
        truth.row(int(place), {name: value[row] for name, value in outputs.items()}, spec)
        for row, place in zip(range(count), places, strict=False)
    ]


def _batches(model: ir.Model, spec: ModelSpec, crops: Crops, shown: str) -> Iterator[tuple[int, Outputs, Outputs]]:
    """A batch at a time: the place of its first sample, the outputs of a graph, and the floats that its error is measured by.

    Raises CalibrationError for outputs that cannot be compared, naming ``shown``.
    """
    batch = min(MAX_BATCH, max(RUN_BATCH, BATCH_PIXELS // spec.places))
    start = 0
    with with_sources(model) as names, OnnxRuntimeSession(portable(model), "cpu", None) as session:
        for made, count in outputs_by_batch(session, crops, spec, batch):
            outputs = {wanted.name: made[wanted.name] for wanted in spec.given if wanted.name in made}
            sources = {key: made[name] for key, name in names.items()}
            problems = check_outputs(outputs | sources, count, spec)
            if problems:
                what = "logits" if spec.task == CLASSIFICATION else "outputs"
                raise CalibrationError(
                    f"{spec.name} with {shown} gives no {what} to measure: {problems[0]}, {start} images on",
                    advice="calibrate again; if FP32 itself is not finite, check the weights",
                )
            yield start, outputs, sources
            start += count
