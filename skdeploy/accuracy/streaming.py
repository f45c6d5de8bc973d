"""The same images through several artifacts at once, batch by batch: the next batch is decoded while this one is computed.

Each artifact's predictions are its own, so one that has predicted an image already does not run it again.
"""

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
from skdeploy.backends.logits import check_outputs, classes_given, run_batches
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

SAVE_SECONDS: Final = 10.0  # of work that a killed run loses at most,
SAVE_SHARE: Final = (
    100.0  # or as many times the seconds of a save, if that is longer: the logits of 1,000 classes are 200 MB
)
TELL_SECONDS: Final = 0.1

CropKind = tuple[InputSpec | None, Preprocess | None, tuple[ArrayInput, ...], tuple[tuple[str, DynamicSize], ...]]
FeedKind = tuple[CropKind, tuple[TensorSpec, ...]]
Feed = tuple[dict[str, Array], int]
Feeds = list[Feed]


@dataclass(frozen=True)
class Batch:
    """Images up to ``stop`` as feeds, for each kind that some session takes. ``rows``: those that a kind can be made of."""

    stop: int
    rows: dict[CropKind, list[int]]
    unreadable: dict[CropKind, dict[int, Unreadable]]
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
        yield from self._read_all([list(images[at : at + self._batch]) for at in images[start :: self._batch]])

    def some(self, rows: list[int]) -> Batch:
        """These images, as one batch."""
        (batch,) = self._read_all([rows])
        return batch

    def _read_all(self, spans: list[list[int]]) -> Iterator[Batch]:
        with ThreadPoolExecutor(min(WORKERS, cpu.cores()), "decode") as pool:
            read = partial(self._read, pool)
            # An array waits for no disk, and on one core a second thread would only take turns with the network.
            in_line = self._dataset.pixels is not None and cpu.cores() == 1
            yield from map(read, spans) if in_line else ahead(read, spans, workers=1, most=1)

    def _read(self, pool: ThreadPoolExecutor, rows: list[int]) -> Batch:
        readable: dict[CropKind, list[int]] = {}
        bad: dict[CropKind, dict[int, Unreadable]] = {}
        pixels: dict[CropKind, list[Pixels]] = {}
        for kind, spec in self._specs.items():
            crops: list[Crop | ImageError]
            if self._dataset.pixels is None:
                crops = list(pool.map(lambda index, spec=spec: self._dataset.crop_or_error(index, spec), rows))
            else:  # an array has nothing to decode, and threads would only wait for each other
                crops = [self._dataset.crop_or_error(index, spec) for index in rows]
            each = list(zip(rows, crops, strict=True))
            readable[kind] = [index for index, crop in each if isinstance(crop, Crop)]
            pixels[kind] = [crop.pixels for crop in crops if isinstance(crop, Crop)]
            bad[kind] = {
                index: Unreadable(name=self._dataset.name_of(index), reason=printable(crop.reason))
                for index, crop in each
                if isinstance(crop, ImageError)
            }
        feeds = {
            (kind, inputs): list(batches_of(pixels[kind], self._specs[kind], inputs, self._batch))
            for kind, inputs in self._inputs
        }
        return Batch(rows[-1] + 1, readable, bad, feeds)


def predict_all(
    opened: Sequence[tuple[Runner, Session]],
    dataset: Dataset,
    batch: int,
    predictions: Sequence[Predictions],
    save: Callable[[int], object],
    progress: Progress,
    whole: int | None = None,
) -> None:
    """Goes on from where each artifact's ``predictions`` are to the end; ``save(n)`` keeps the n-th one's, every few seconds
    and when it ends for any reason. ``whole``: the images of the data set that ``dataset`` is a shard of.

    Raises UsageError where more than 1 % of the images cannot be read, ParityError for logits that are not finite.
    """
    first = min(done.done for done in predictions)
    todo = [n for n, of in enumerate(predictions) if of.done < len(dataset)]
    saved_at = {n: of.done for n, of in enumerate(predictions)}
    started = time.perf_counter()
    told, next_save = started, started + SAVE_SECONDS

    def save_all() -> None:
        for n in todo:
            if predictions[n].done > saved_at[n]:
                saved_at[n] = predictions[n].done
                save(n)

    check_unreadable(predictions, dataset, whole)
    if not todo:
        return
    try:
        for read in Reader([opened[n] for n in todo], dataset, batch).batches(first):
            for n in todo:
                if predictions[n].done < read.stop:
                    _add(predictions[n], *opened[n], read, dataset)
            check_unreadable(predictions, dataset, whole)
            now = time.perf_counter()
            if now - told >= TELL_SECONDS:
                told = now
                progress.update(bar(read.stop, len(dataset), first, now - started, dataset.word))
            if now >= next_save:
                save_all()
                after = time.perf_counter()
                next_save = after + max(SAVE_SECONDS, SAVE_SHARE * (after - now) if SAVE_SECONDS else 0)
    finally:
        save_all()


def _add(predictions: Predictions, runner: Runner, session: Session, read: Batch, dataset: Dataset) -> None:
    kind = crop_kind(runner.spec)
    rows = read.rows[kind]
    if rows:
        found = logits_of(runner, session, read.feeds[kind, session.inputs], lambda n: dataset.name_of(rows[n]))
        predictions.logits[rows] = found
    predictions.unreadable |= read.unreadable[kind]
    predictions.done = read.stop


def logits_of(runner: Runner, session: Session, feeds: Iterable[Feed], name_of: Callable[[int], str]) -> Array:
    """Logits of some feeds, (N, classes), or class numbers (N, 1), without the fill of a fixed batch. ``name_of`` names the
    n-th image.

    Raises ParityError for outputs that are missing, of another shape, or not finite.
    """
    parts: list[Array] = []
    what = "classes" if runner.spec.gives_numbers else "logits"
    for outputs, count in run_batches(session, feeds):
        problems = check_outputs(outputs, count, runner.spec)
        if problems:
            at = sum(map(len, parts))
            raise ParityError(
                f"{runner.shown} gives no usable {what} from {name_of(at)} on: {problems[0]}",
                advice="check the artifact with `skdeploy verify`: the weights or the precision do not suit this image",
            )
        parts.append(classes_given(outputs, runner.spec))
    return np.concatenate(parts) if parts else Predictions.none_yet(0, runner.spec).logits


def unreadable_in_any(predictions: Sequence[Predictions]) -> list[Unreadable]:
    """Images that some artifact cannot have, in their order: they count for none."""
    found: dict[int, Unreadable] = {}
    for of in predictions:
        found |= of.unreadable
    return [found[row] for row in sorted(found)]


def check_unreadable(predictions: Sequence[Predictions], dataset: Dataset, whole: int | None = None) -> None:
    """Raises UsageError where more than 1 % of the images cannot be read: of ``whole`` images, of which these are a shard."""
    whole = len(dataset) if whole is None else whole
    allowed = int(MAX_UNREADABLE * whole)
    bad = unreadable_in_any(predictions)
    if len(bad) <= allowed:
        return
    shown = some_lines([f"{image.name}: {image.reason}" for image in bad])
    raise UsageError(
        f"{len(bad)} of the first {max(of.done for of in predictions)} {dataset.word}s of {dataset.name} cannot be read; of "
        f"all {whole}, at most {allowed} may be unreadable (1 %):\n{shown}",
        advice="remove or replace them: accuracy on the rest would be that of another data set",
    )


def bar(done: int, total: int, first: int, seconds: float, word: str = "image") -> str:
    """A line on how far an evaluation is."""
    rate = (done - first) / max(seconds, 1e-9)
    filled = 20 * done // total
    left = (total - done) / max(rate, 1e-9)
    return (
        f"{'━' * filled}{'─' * (20 - filled)} {done:,} of {total:,} {word}s, {rate:,.0f} a second, {left:,.0f} s left"
    )
