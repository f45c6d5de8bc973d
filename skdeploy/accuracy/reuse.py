"""The predictions of each artifact: those of an earlier run where they hold, else made now and kept."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from skdeploy.accuracy.kept import Kept
from skdeploy.accuracy.predictions import Predictions
from skdeploy.accuracy.streaming import Reader, crop_kind, logits_of, predict_all
from skdeploy.backends.base import Session
from skdeploy.bundle.runners import Runner
from skdeploy.core.files import digest_json
from skdeploy.core.progress import Progress
from skdeploy.core.spec import INTERFACE, ModelSpec
from skdeploy.images.dataset import Dataset
from skdeploy.shards.machine import machine_kind, versions

LAYOUT: Final = 3  # of what is kept of an artifact; 2 was of several artifacts at once, 1 of images turned by EXIF
CHECKED: Final = 16  # images of an earlier run that are predicted again
# Of the largest logit: FP32 rounds at 6e-8, TensorRT's FP16 at 5e-4, and batches of other sizes may sum in another order.
CHECK_TOLERANCE: Final = 5e-3


def predictions_of(
    opened: Sequence[tuple[Runner, Session]],
    dataset: Dataset,
    batch: int,
    tell: Progress,
    *,
    fresh: bool = False,
    found: Callable[[list[int]], object] | None = None,
) -> tuple[list[Predictions], list[int]]:
    """Predictions of all images by each artifact, and how many of them an earlier run had made; ``found`` gets that before
    the rest is made. ``fresh``: none.

    Raises as ``predict_all``.
    """
    tell.update("digest of the images")
    digest = dataset.digest
    kept = [Kept(key_of(runner, [digest, len(dataset), batch])) for runner, _ in opened]
    predictions = [Predictions.none_yet(len(dataset), runner.spec) for runner, _ in opened]
    if not fresh:
        for (runner, session), cache, of in zip(opened, kept, predictions, strict=True):
            _take(runner, session, cache, of, dataset, batch, tell)
    reused = [of.done for of in predictions]
    if found is not None:
        found(reused)

    def save(n: int) -> None:
        kept[n].save({"logits": predictions[n].logits}, predictions[n].done, predictions[n].unreadable)

    predict_all(opened, dataset, batch, predictions, save, tell)
    problem = next((cache.problem for cache in kept if cache.problem), "")
    if problem:
        tell.note(f"predictions cannot be saved, so an interrupted run starts again: {problem}")
    return predictions, reused


def _take(
    runner: Runner, session: Session, cache: Kept, into: Predictions, dataset: Dataset, batch: int, tell: Progress
) -> None:
    """Fills ``into`` with what an earlier run predicted, if a sample of it is predicted alike now."""
    done, unreadable, note = cache.load({"logits": into.logits})
    if note:
        tell.note(note)
    if not done:
        return
    into.done, into.unreadable = done, unreadable
    known = ~np.isnan(into.logits[:done, 0])
    differs = "" if done in (len(dataset), done // batch * batch) else "it does not end with a batch"
    if not differs and known.sum() + len(unreadable) != done:
        differs = "its content does not belong to this evaluation"
    differs = differs or _checked(runner, session, into, dataset, batch)
    if differs:
        tell.note(f"cannot use the predictions of an earlier run, so all are made again: {cache.path}: {differs}")
        into.logits[:] = np.nan
        into.done, into.unreadable = 0, {}


def tell_of_reuse(runners: Sequence[Runner], reused: Sequence[int], count: int, tell: Progress, word: str) -> None:
    """Say what an earlier run had made already, of ``count`` images or pairs; nothing if it had made nothing."""
    whole = [runner.name for runner, done in zip(runners, reused, strict=True) if done == count]
    if min(reused) == count:
        tell.note("predictions of an earlier run are reused; `skdeploy evaluate --fresh` makes new ones")
    elif min(reused):
        tell.note(f"an earlier run was interrupted after {min(reused):,} of {count:,} {word}s: continuing from there")
    elif whole:
        tell.note(f"predictions of {', '.join(whole)} are reused; `skdeploy evaluate --fresh` makes new ones")


def key_of(runner: Runner, samples: object) -> str:
    """Equal keys, equal outputs of an artifact on samples, which ``samples`` identifies as JSON. Labels change none, and
    whoever corrects them need not run anything again.
    """
    return digest_json(
        [
            LAYOUT,
            [runner.artifact.sha256, runner.backend, repr(runner.options), reads_of(runner.spec)],
            samples,
            [versions(), machine_kind()],
        ]
    )


def reads_of(spec: ModelSpec) -> object:
    """The fields of a card that decide what an artifact is fed and gives, as JSON."""
    return spec.model_dump(mode="json", by_alias=True, include={"network", "class_output", *INTERFACE})


def _checked(runner: Runner, session: Session, predictions: Predictions, dataset: Dataset, batch: int) -> str:
    """Predicts a few images of an earlier run again, chosen at random. Returns how they differ, empty if they do not."""
    rows = sorted(random.sample(range(predictions.done), min(CHECKED, predictions.done)))
    kind = crop_kind(runner.spec)
    read = Reader([(runner, session)], dataset, batch).some(rows)
    logits = logits_of(runner, session, read.feeds[kind, session.inputs], lambda n: dataset.name_of(read.rows[kind][n]))
    again = dict(zip(read.rows[kind], logits, strict=True))
    tolerance = 0.0 if runner.spec.gives_numbers else CHECK_TOLERANCE
    for row in rows:
        if (row in predictions.unreadable) == (row in again):
            return f"{dataset.name_of(row)} is readable in one run only"
        if (
            row in again
            and not np.abs(predictions.logits[row] - again[row]).max() <= tolerance * np.abs(again[row]).max()
        ):
            what = "classes" if runner.spec.gives_numbers else "logits"
            return f"{runner.name} gives other {what} for {dataset.name_of(row)} now"
    return ""
