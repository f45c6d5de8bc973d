"""Samples in two halves: one chooses, and the other, which has chosen nothing, says how good the choice is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from skdeploy.accuracy.mean_drop import LEAST
from skdeploy.core.errors import UsageError
from skdeploy.images.dataset import Dataset
from skdeploy.images.pairs import PairedData
from skdeploy.images.selection import select

SEED: Final = 15  # of the split: always the same, so that no second run sees other images in its halves
SCREENING: Final = 256  # images that all ways are screened on


@dataclass(frozen=True)
class Halves:
    """``screening`` is the beginning of ``choosing``, balanced over the classes as both halves are."""

    screening: Dataset
    choosing: Dataset
    confirming: Dataset


def halves(dataset: Dataset) -> Halves:
    """Every second image of a balanced order chooses: ``images.selection.select`` with a fixed seed.

    The split depends on the number of images and their labels alone. Raises UsageError for less than two images.
    """
    if len(dataset) < 2:
        raise UsageError(
            f"{dataset.name} has {len(dataset)} image, but tune needs some to choose on and others to confirm",
            advice="give more images with --data",
        )
    order = _by_class(dataset)
    choosing, confirming = order.take(range(0, len(order), 2)), order.take(range(1, len(order), 2))
    return Halves(choosing.take(range(min(SCREENING, len(choosing)))), choosing, confirming)


def unlabelled_halves(dataset: Dataset, word: str) -> Halves:
    """The same of samples without a truth, each called ``word``. Raises UsageError for fewer than pairs need."""
    if len(dataset) < 2 * LEAST:
        raise UsageError(
            f"{dataset.name} has {len(dataset)} {word}s, but tune needs {LEAST} to choose on and {LEAST} others to confirm",
            advice=f"give more {word}s with --data",
        )
    return halves(dataset)


@dataclass(frozen=True)
class PairHalves:
    """``screening`` is the beginning of ``choosing``."""

    screening: PairedData
    choosing: PairedData
    confirming: PairedData


def pair_halves(pairs: PairedData) -> PairHalves:
    """Every second pair of a shuffled order chooses. The split depends on the number of pairs alone.

    Raises UsageError for fewer than two times as many as an interval needs.
    """
    if len(pairs) < 2 * LEAST:
        raise UsageError(
            f"{pairs.name} has {len(pairs)} pairs, but tune needs {LEAST} to choose on and {LEAST} others to confirm",
            advice="give more pairs with --data",
        )
    order = [int(place) for place in np.random.default_rng(SEED).permutation(len(pairs))]
    choosing, confirming = pairs.take(order[0::2]), pairs.take(order[1::2])
    return PairHalves(choosing.take(range(min(SCREENING, len(choosing)))), choosing, confirming)


def _by_class(dataset: Dataset) -> Dataset:
    """A balanced order in which the images of a class follow each other by twos: one for each half."""
    order = select(dataset, len(dataset), SEED)
    if order.labels is None:
        return order
    turns: dict[int, int] = {}
    places: list[tuple[int, int]] = []
    labels: list[int] = order.labels.tolist()
    for index, label in enumerate(labels):
        turn = turns.get(label, 0)
        turns[label] = turn + 1
        places.append((turn // 2, index))
    by_turn = sorted(range(len(places)), key=lambda index: (places[index][0], labels[index], index))
    return order.take(by_turn)
