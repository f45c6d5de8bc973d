"""The halves of labelled images: one chooses, one confirms."""

from __future__ import annotations

import numpy as np
import pytest

from skdeploy.core.errors import UsageError
from skdeploy.images.dataset import Dataset
from skdeploy.tuning.split import SCREENING, halves


def dataset(labels: list[int]) -> Dataset:
    pixels = np.zeros((len(labels), 2, 2, 1), np.uint8)
    return Dataset("d", pixels=pixels, labels=np.array(labels), numbers=np.arange(len(labels)))


def numbers(part: Dataset) -> list[int]:
    assert part.numbers is not None
    return [int(number) for number in part.numbers]


@pytest.mark.parametrize("labels", [[0, 1] * 400, [0] * 500 + [1] * 300, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] * 71, [0] * 7])
def test_every_image_is_in_one_half_and_classes_are_shared_evenly(labels: list[int]) -> None:
    """Classes that take turns, too: every second image would be every second class."""
    parts = halves(dataset(labels))
    both = numbers(parts.choosing) + numbers(parts.confirming)
    assert sorted(both) == list(range(len(labels)))
    assert parts.choosing.labels is not None
    assert parts.confirming.labels is not None
    counts = [np.bincount(part.labels, minlength=10) for part in (parts.choosing, parts.confirming)]
    assert np.abs(counts[0] - counts[1]).max() <= 1


def test_screening_is_a_balanced_part_of_the_half_that_chooses() -> None:
    parts = halves(dataset([0] * 900 + [1] * 900))
    assert len(parts.screening) == SCREENING
    assert set(numbers(parts.screening)) <= set(numbers(parts.choosing))
    assert parts.screening.labels is not None
    assert abs(int(parts.screening.labels.sum()) - SCREENING // 2) <= 1
    assert len(halves(dataset([0, 1] * 10)).screening) == 10  # fewer images than that are all there is


def test_the_split_is_always_the_same_and_does_not_follow_the_order_of_the_images() -> None:
    labels = [0] * 100
    assert numbers(halves(dataset(labels)).choosing) == numbers(halves(dataset(labels)).choosing)
    assert len(set(numbers(halves(dataset(labels)).choosing)) & set(range(50))) not in (0, 50)


def test_one_image_cannot_be_split() -> None:
    with pytest.raises(UsageError, match="has 1 image, but tune needs some to choose on"):
        halves(dataset([0]))
