"""Compares a way to make INT8 with FP32 by the outputs alone, for samples without labels or targets."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np

from skdeploy.accuracy.kept import Kept
from skdeploy.accuracy.reuse import CHECK_TOLERANCE, key_of
from skdeploy.accuracy.streaming import SAVE_SECONDS, TELL_SECONDS, bar
from skdeploy.backends.base import Session
from skdeploy.backends.logits import check_outputs, run_batches
from skdeploy.backends.onnxruntime import OnnxRuntimeSession, load_graph
from skdeploy.backends.rounding import RoundNarrow
from skdeploy.bundle.runners import Runner
from skdeploy.core.errors import ParityError
from skdeploy.core.progress import Progress
from skdeploy.core.spec import ModelSpec
from skdeploy.images.dataset import Dataset
from skdeploy.images.feeds import batches_of
from skdeploy.ir.deciding import with_sources
from skdeploy.ir.large import portable
from skdeploy.tuning.error import ErrorReport, Power, Powers, error_report
from skdeploy.tuning.judges import REFERENCE, Judge, Part, batch_of
from skdeploy.tuning.split import Halves
from skdeploy.tuning.workshop import Made

LAYOUT: Final = 1  # of what is kept
CHECKED: Final = 4  # samples of an earlier run that are measured again
COLUMNS: Final = ("signal", "noise", "found")


@dataclass
class ByError(Judge):
    """Samples without a truth: SQNR and cosine of each output. Integer outputs are compared by the floats that decide them.

    ``min_sqnr_db``: the limit, or None. FP32 runs again beside each graph, since its maps of many images are much memory.
    """

    reference: Runner
    parts: Halves
    spec: ModelSpec
    confidence: float
    min_sqnr_db: float | None
    tell: Progress

    def screened(self, made: Made, name: str) -> float:
        powers = self._powers(made, self.parts.screening, name)
        return float(powers.sqnr_db(np.ones((1, len(powers.noise))))[0])

    def compared(self, made: Made, part: Part, name: str) -> ErrorReport:
        images = self.parts.choosing if part == "choosing" else self.parts.confirming
        powers = self._powers(made, images, name)
        return error_report(powers, (REFERENCE, name), self.confidence, self.min_sqnr_db, self.spec.sample_word)

    def _powers(self, made: Made, images: Dataset, name: str) -> Powers:
        """Of all images: those of an earlier run where they hold, else new ones, which are kept.

        Raises UsageError for an image that cannot be read, ParityError for outputs that are not finite.
        """
        batch, count = batch_of(self.spec), len(images)
        with _opened(self.reference, made, self.spec) as two:
            powers = Powers(two.names, *(np.full((count, len(two.names)), np.nan) for _ in COLUMNS))
            columns = {column: getattr(powers, column) for column in COLUMNS}
            samples = [images.digest, count, batch, self.reference.artifact.sha256]
            kept = Kept(key_of(made.runner, ["error", LAYOUT, *samples]))
            done, _, note = kept.load(columns)
            if done and not note:
                note = self._differing(two, images, powers, done, name)
                done = 0 if note else done
            if note:
                self.tell.note(note)
            first, started = done, time.perf_counter()
            told = saved = started
            for start in range(done, count, batch):
                rows = range(start, min(start + batch, count))
                for column, values in zip(columns.values(), two.measured(images, rows, name), strict=True):
                    column[rows.start : rows.stop] = values
                done, now = rows.stop, time.perf_counter()
                if now - told >= TELL_SECONDS:
                    told = now
                    self.tell.update(bar(done, count, first, now - started, self.spec.sample_word))
                if now - saved >= SAVE_SECONDS:
                    saved = now
                    kept.save(columns, done, {})
        if done > first:
            kept.save(columns, done, {})
        if kept.problem:
            self.tell.note(f"figures cannot be saved, so an interrupted run starts again: {kept.problem}")
        return powers

    def _differing(self, two: _Two, images: Dataset, known: Powers, done: int, name: str) -> str:
        """How some samples, chosen at random, differ when they are measured again; empty if they do not."""
        for index in sorted(random.sample(range(done), min(CHECKED, done))):
            signal, noise, _ = two.measured(images, range(index, index + 1), name)
            apart = np.abs(np.sqrt(noise[0]) - np.sqrt(known.noise[index]))
            if not (apart <= CHECK_TOLERANCE * np.sqrt(signal[0])).all():
                return (
                    f"cannot use the figures of an earlier run, so all are made again: {name} gives other outputs for "
                    f"{images.name_of(index)} now"
                )
        return ""


@dataclass(frozen=True)
class _Two:
    """FP32 and another graph, open; ``names`` of the outputs, and what each session calls them."""

    spec: ModelSpec
    sessions: tuple[Session, Session]
    named: tuple[dict[str, str], dict[str, str]]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.named[0])

    def measured(self, images: Dataset, rows: range, name: str) -> tuple[Power, Power, Power]:
        """Signal, noise and power of some images, (rows, outputs) each."""
        crops = [images.crop(row, self.spec).pixels for row in rows]
        parts: list[tuple[Power, Power, Power]] = []
        one, two = (
            run_batches(session, batches_of(crops, self.spec, session.inputs, len(crops))) for session in self.sessions
        )
        for (expected, count), (found, _) in zip(one, two, strict=True):
            for shown, outputs in ((REFERENCE, expected), (name, found)):
                problems = check_outputs(outputs, count, self.spec)
                if problems:
                    raise ParityError(
                        f"{shown} gives no usable outputs, from {images.name_of(rows.start)} on: {problems[0]}",
                        advice="check the artifact with `skdeploy verify`: the weights or the precision do not suit this "
                        "image",
                    )
            flat = [
                [outputs[named[key]].reshape(count, -1).astype(np.float64) for key in self.names]
                for outputs, named in zip((expected, found), self.named, strict=True)
            ]
            sums = [((a**2).sum(1), ((b - a) ** 2).sum(1), (b**2).sum(1)) for a, b in zip(*flat, strict=True)]
            signal, noise, power = (np.stack(column, 1) for column in zip(*sums, strict=True))
            parts.append((signal, noise, power))
        signal, noise, power = (np.concatenate(column) for column in zip(*parts, strict=True))
        return signal, noise, power


@contextmanager
def _opened(reference: Runner, made: Made, spec: ModelSpec) -> Iterator[_Two]:
    graph, other = load_graph(reference.bundle.check(reference.artifact)), load_graph(made.path)
    RoundNarrow()(other)
    with (
        with_sources(graph) as names,
        with_sources(other) as theirs,
        OnnxRuntimeSession(portable(graph), "cpu", None) as one,
        OnnxRuntimeSession(portable(other), "cpu", None) as two,
    ):
        yield _Two(spec, (one, two), (dict(names), dict(theirs)))
