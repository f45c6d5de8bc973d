"""The same images through several artifacts at once, batch by batch: the next batch is decoded while this one is computed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from skdeploy.accuracy.gate import NotEvaluated
from skdeploy.accuracy.predictions import Predictions
from skdeploy.backends.base import Array, Session
from skdeploy.backends.logits import OUTPUT, check_outputs, run_batches
from skdeploy.bundle.runners import Runner
from skdeploy.core import cpu
from skdeploy.core.errors import DependencyError, ParityError, UsageError
from skdeploy.core.interface import ArrayInput, DynamicSize
from skdeploy.core.listing import some_lines
from skdeploy.core.progress import Progress
from skdeploy.core.spec import InputSpec, ModelSpec, Preprocess, TensorSpec
from skdeploy.images.audit_report import Unreadable
from skdeploy.images.dataset import Dataset, printable
from skdeploy.images.decoding import Crop, ImageError, Pixels
from skdeploy.images.feeds import batches_of
from skdeploy.images.reading import MAX_UNREADABLE, WORKERS, ahead

SAVE_SECONDS: Final = 10.0  # of work that a killed run loses at most; a save takes some ms
TELL_SECONDS: Final = 0.1

CropKind = tuple[InputSpec | None, Preprocess | None, tuple[ArrayInput, ...], tuple[tuple[str, DynamicSize], ...]]
FeedKind = tuple[CropKind, tuple[TensorSpec, ...]]
Feed = tuple[dict[str, Array], int]
Feeds = list[Feed]


@dataclass(frozen=True)
class Batch:
    """Images ``start`` to ``stop`` as feeds, for each kind that some session takes. ``rows`` are those that can be read."""

    start: int
    stop: int
    rows: list[int]
    unreadable: list[Unreadable]
    feeds: dict[FeedKind, Feeds]


@contextmanager
def open_all(
    runners: Sequence[Runner], optional: Sequence[Runner]
) -> Iterator[tuple[list[tuple[Runner, Session]], list[NotEvaluated]]]:
    """Sessions of all that run here, closed at the end, and the reasons of what does not. Raises what opening one of
    ``runners`` raises; ``optional`` ones are recorded instead, where a package, driver or device is missing.
    """
    opened: list[tuple[Runner, Session]] = []
    absent: list[NotEvaluated] = []
    with ExitStack() as stack:
        for runner in (*runners, *optional):
            try:
                opened.append((runner, stack.enter_context(runner.open())))
            except DependencyError as error:
                if runner in runners:
                    raise
                absent.append(NotEvaluated(artifact=runner.name, backend=runner.backend, reason=error.message))
        yield opened, absent


def crop_kind(spec: ModelSpec) -> CropKind:
    """Equal kinds see the same pixels."""
    return (spec.image, spec.image_preprocess, spec.inputs, tuple(spec.sizes.items()))


class Reader:
    """Decodes, crops and normalises one batch, once for all sessions that take the same."""

    def __init__(self, opened: Sequence[tuple[Runner, Session]], dataset: Dataset, batch: int) -> None:
        self._dataset, self._batch = dataset, batch
        self._specs = {crop_kind(runner.spec): runner.spec for runner, _ in opened}
        self._inputs = {(crop_kind(runner.spec), session.inputs) for runner, session in opened}

    def batches(self, start: int) -> Iterator[Batch]:
        """From image ``start`` on, one batch ahead of whoever takes them."""
        images = range(len(self._dataset))
        spans = (images[at : at + self._batch] for at in images[start :: self._batch])
        with ThreadPoolExecutor(min(WORKERS, cpu.cores()), "decode") as pool:
            yield from ahead(partial(self._read, pool), spans, workers=1, most=1)

    def _read(self, pool: ThreadPoolExecutor, rows: range) -> Batch:
        found: dict[CropKind, list[Crop | ImageError]] = {}
        for kind, spec in self._specs.items():
            if self._dataset.pixels is None:
                found[kind] = list(pool.map(lambda index, spec=spec: self._dataset.crop_or_error(index, spec), rows))
            else:  # an array has nothing to decode, and threads would only wait for each other
                found[kind] = [self._dataset.crop_or_error(index, spec) for index in rows]
        bad: dict[int, Unreadable] = {}
        for crops in found.values():
            for index, crop in zip(rows, crops, strict=True):
                if isinstance(crop, ImageError):
                    bad[index] = Unreadable(name=self._dataset.name_of(index), reason=printable(crop.reason))
        # All kinds have the same rows: those that every one of them can be made of.
        pixels: dict[CropKind, list[Pixels]] = {
            kind: [
                crop.pixels
                for index, crop in zip(rows, crops, strict=True)
                if isinstance(crop, Crop) and index not in bad
            ]
            for kind, crops in found.items()
        }
        feeds = {
            (kind, inputs): list(batches_of(pixels[kind], self._specs[kind], inputs, self._batch))
            for kind, inputs in self._inputs
        }
        readable = [index for index in rows if index not in bad]
        return Batch(rows.start, rows.stop, readable, [bad[index] for index in sorted(bad)], feeds)


def predict_all(
    opened: Sequence[tuple[Runner, Session]],
    dataset: Dataset,
    batch: int,
    predictions: Predictions,
    save: Callable[[Predictions], object],
    progress: Progress,
) -> None:
    """Goes on from ``predictions.done`` to the end; ``save`` is called every few seconds, and when it ends for any reason.

    Raises UsageError where more than 1 % of the images cannot be read, ParityError for logits that are not finite.
    """
    allowed = int(MAX_UNREADABLE * len(dataset))
    first, started = predictions.done, time.perf_counter()
    saved = told = started
    _check_unreadable(predictions, allowed, dataset)
    try:
        for read in Reader(opened, dataset, batch).batches(first):
            logits = [_logits(runner, session, read, dataset) for runner, session in opened]
            if read.rows:
                predictions.add(read.rows, logits)
            predictions.unreadable += read.unreadable
            predictions.done = read.stop
            _check_unreadable(predictions, allowed, dataset)
            now = time.perf_counter()
            if now - told >= TELL_SECONDS:
                told = now
                progress.update(bar(predictions.done, len(dataset), first, now - started))
            if now - saved >= SAVE_SECONDS:
                save(predictions)
                saved = time.perf_counter()
    finally:
        if predictions.done > first:
            save(predictions)


def logits_of(runner: Runner, session: Session, feeds: Iterable[Feed], name_of: Callable[[int], str]) -> Array:
    """Logits of some feeds, (N, classes), without the fill of a fixed batch. ``name_of`` names the n-th image.

    Raises ParityError for logits that are missing, of another shape, or not finite.
    """
    parts: list[Array] = []
    for outputs, count in run_batches(session, feeds):
        problems = check_outputs(outputs, count, runner.spec)
        if problems:
            at = sum(map(len, parts))
            raise ParityError(
                f"{runner.shown} gives no usable logits from {name_of(at)} on: {problems[0]}",
                advice="check the artifact with `skdeploy verify`: the weights or the precision do not suit this image",
            )
        parts.append(outputs[OUTPUT])
    return np.concatenate(parts) if parts else np.empty((0, runner.spec.network.classes), np.float32)


def _logits(runner: Runner, session: Session, read: Batch, dataset: Dataset) -> Array:
    feeds = read.feeds[crop_kind(runner.spec), session.inputs]
    return logits_of(runner, session, feeds, lambda n: dataset.name_of(read.rows[n]))


def _check_unreadable(predictions: Predictions, allowed: int, dataset: Dataset) -> None:
    bad = predictions.unreadable
    if len(bad) <= allowed:
        return
    shown = some_lines([f"{image.name}: {image.reason}" for image in bad])
    raise UsageError(
        f"{len(bad)} of the first {predictions.done} images of {dataset.name} cannot be read; of all "
        f"{len(dataset)}, at most {allowed} may be unreadable (1 %):\n{shown}",
        advice="remove or replace them: accuracy on the rest would be that of another data set",
    )


def bar(done: int, total: int, first: int, seconds: float) -> str:
    """A line on how far an evaluation is."""
    rate = (done - first) / max(seconds, 1e-9)
    filled = 20 * done // total
    left = (total - done) / max(rate, 1e-9)
    return f"{'━' * filled}{'─' * (20 - filled)} {done:,} of {total:,} images, {rate:,.0f} a second, {left:,.0f} s left"
