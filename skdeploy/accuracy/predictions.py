"""The logits of one artifact for the images so far, and what those of two come to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from skdeploy.accuracy.gate import TOP, LogitsAgreement, TopClasses
from skdeploy.backends.base import Array
from skdeploy.backends.metrics import SMALLEST, sqnr_db
from skdeploy.core.spec import ModelSpec
from skdeploy.images.audit_report import Unreadable

BLOCK: Final = 1 << 20  # logits that are widened to float64 at a time


@dataclass
class Predictions:
    """Of the first ``done`` of N images. ``logits``, (N, classes) float32: NaN for an image that was not predicted. Of a
    network that gives class numbers these, (N, 1).

    ``unreadable``: the rows among them that cannot be read, and why.
    """

    logits: Array
    done: int = 0
    unreadable: dict[int, Unreadable] = field(default_factory=dict)

    @classmethod
    def none_yet(cls, images: int, spec: ModelSpec) -> Self:
        columns = 1 if spec.gives_numbers else spec.network.classes
        return cls(np.full((images, columns), np.nan, np.float32))

    @property
    def readable(self) -> NDArray[np.bool_]:
        """(N,): which images were predicted."""
        return np.asarray(~np.isnan(self.logits[:, 0]))


def top_classes(given: Array, spec: ModelSpec) -> TopClasses:
    """The best classes, best first, of what ``Predictions.logits`` holds: of class numbers the one that there is, (N, 1)."""
    return given.astype(np.int64) if spec.gives_numbers else best_classes(given)


def best_classes(logits: Array) -> TopClasses:
    """The up to 5 classes with the largest logits, (N, classes) -> (N, 5), best first; of equal ones the lower number."""
    left, rows = np.array(logits), np.arange(len(logits))
    found = np.empty((len(logits), min(TOP, logits.shape[1])), np.int64)
    for place in found.T:
        place[:] = left.argmax(axis=1)  # the first of equal ones
        left[rows, place] = -np.inf
    return found


def logits_agreement(reference: Array, found: Array) -> LogitsAgreement:
    """Of an artifact's logits with a reference's, both (N, classes), finite."""
    ref, error, got, product, worst, largest = np.concatenate(list(_sums(reference, found))).T
    norms = np.sqrt(ref * got)
    cosine = np.asarray((ref == 0) & (got == 0), np.float64)  # of zeros: 1 with zeros, else 0
    np.divide(product, norms, out=cosine, where=norms > 0)
    decibels = [sqnr_db(float(signal), float(noise)) for signal, noise in zip(ref, error, strict=True)]
    return LogitsAgreement(
        max_rel_error=float(worst.max()) / max(float(largest.max()), SMALLEST),
        min_cosine=float(cosine.min()),
        min_sqnr_db=min(decibels),
        sqnr_db=sqnr_db(float(ref.sum()), float(error.sum())),
    )


def _sums(reference: Array, found: Array) -> Iterator[NDArray[np.float64]]:
    """Image by image, (n, 6): sum of ref^2, error^2, found^2 and ref * found over the logits, the largest |error| and |ref|."""
    step = max(1, BLOCK // reference.shape[1])
    for start in range(0, len(reference), step):
        ref, got = (logits[start : start + step].astype(np.float64) for logits in (reference, found))
        error = got - ref
        columns = (
            np.sum(ref**2, axis=1),
            np.sum(error**2, axis=1),
            np.sum(got**2, axis=1),
            np.sum(ref * got, axis=1),
            np.abs(error).max(axis=1),
            np.abs(ref).max(axis=1),
        )
        yield np.stack(columns, axis=1)
