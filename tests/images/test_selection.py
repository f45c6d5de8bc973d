"""The choice of calibration images: balanced, repeatable, the same on every machine."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from skdeploy.core.errors import UsageError
from skdeploy.images.dataset import Dataset, open_dataset
from skdeploy.images.selection import random_images, select
from skdeploy.zoo.cards import load_card
from tests.refused import refused
from tests.tiny import spec

FASHION = Path(__file__).parents[2] / "calibration/fashion"


def labelled(*counts: int) -> Dataset:
    """As many images of class i as ``counts[i]``, one class after the other."""
    labels = np.repeat(np.arange(len(counts)), counts).astype(np.int64)
    return Dataset("x", pixels=np.zeros((len(labels), 2, 2, 1), np.uint8), labels=labels)


def places(dataset: Dataset) -> list[int]:
    assert dataset.numbers is not None
    return [int(number) for number in dataset.numbers]


def per_class(dataset: Dataset) -> Counter[int]:
    return Counter(dataset.labels.tolist())


@pytest.mark.parametrize("count", [1, 7, 10, 25, 99])
def test_classes_differ_by_one_image_at_most(count: int) -> None:
    dataset = labelled(500, 40, 33, 60, 20, 20, 20, 20, 20, 20)
    for seed in range(5):
        counts = per_class(select(dataset, count, seed))
        assert sum(counts.values()) == count
        assert max(counts.values()) - min(counts[label] for label in range(10)) <= 1


def test_a_class_that_runs_out_leaves_its_place_to_the_others() -> None:
    counts = per_class(select(labelled(2, 50, 50), 20, 0))
    assert counts[0] == 2
    assert sorted([counts[1], counts[2]]) == [9, 9]


def test_any_beginning_is_as_balanced_as_the_whole() -> None:
    chosen = select(labelled(30, 30, 30), 90, 3)
    for end in range(1, 91):
        counts = Counter(chosen.labels[:end].tolist())
        assert max(counts.values()) - min(counts[label] for label in range(3)) <= 1


def test_which_classes_have_one_more_is_left_to_the_seed() -> None:
    extra = {label for seed in range(30) for label in per_class(select(labelled(9, 9, 9), 1, seed))}
    assert extra == {0, 1, 2}


def test_all_images_are_taken_once_where_there_are_fewer() -> None:
    for dataset in (labelled(3, 4), Dataset("x", pixels=np.zeros((7, 2, 2, 1), np.uint8))):
        assert sorted(places(select(dataset, 512, 0))) == list(range(7))


def test_without_labels_every_image_is_chosen_as_often() -> None:
    dataset = Dataset("x", pixels=np.zeros((20, 2, 2, 1), np.uint8))
    chosen = Counter(place for seed in range(400) for place in places(select(dataset, 5, seed)))
    # Binomial(400, 1/4): 100 expected, standard deviation 8.7; 5 of these are passed once in 90,000 times for 20 images.
    assert all(abs(chosen[place] - 100) < 5 * 8.7 for place in range(20))


def test_the_choice_is_the_same_everywhere() -> None:
    # From `for i in 0 1 2 3 4 5; do printf '3:%d' $i | sha256sum | sed "s/-/$i/"; done | sort`; with labels, in turns.
    unlabelled = Dataset("x", pixels=np.zeros((6, 2, 2, 1), np.uint8))
    assert places(select(unlabelled, 6, 3)) == [5, 4, 1, 2, 3, 0]
    assert places(select(labelled(3, 3), 6, 3)) == [5, 1, 4, 2, 3, 0]
    assert places(select(labelled(3, 3), 3, 3)) == [5, 1, 4]


def test_the_seed_and_only_the_seed_changes_the_choice() -> None:
    dataset = open_dataset(FASHION)
    assert places(select(dataset, 100, 1)) == places(select(open_dataset(FASHION), 100, 1))
    assert set(places(select(dataset, 100, 1))) != set(places(select(dataset, 100, 2)))
    assert set(per_class(select(dataset, 100, 1)).values()) == {10}


def test_files_are_chosen_without_being_opened(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no picture")
    chosen = select(open_dataset(tmp_path), 2, 0)
    assert {chosen.name_of(index)[0] for index in range(2)} == {"a", "b"}


@pytest.mark.parametrize("count", [0, -3])
def test_no_images_are_no_calibration(count: int) -> None:
    for call in (lambda: select(labelled(3), count, 0), lambda: random_images(spec(), count, 0)):
        with refused(UsageError, "at least 1", "--calib-num"):
            call()


# ----- noise


def test_noise_is_uniform_marked_and_reaches_the_network_unsmoothed() -> None:
    card, _ = load_card("sknet50")
    noise = random_images(card, 3, 5)
    assert noise.random
    assert not open_dataset(FASHION).random
    pixels = noise.load(card)
    assert pixels.shape == (3, 224, 224, 3)
    counts = np.bincount(pixels.ravel(), minlength=256)
    mean = pixels.size / 256
    chi = float(((counts - mean) ** 2 / mean).sum())
    assert abs(chi - 255) < 6 * np.sqrt(2 * 255)  # chi-squared with 255 degrees of freedom, 6 standard deviations
    margin = (card.preprocess.resize - 224) // 2
    assert np.array_equal(pixels, noise.pixels[:, margin : margin + 224, margin : margin + 224])


def test_noise_depends_on_the_seed_alone() -> None:
    assert random_images(spec(), 2, 7).digest == random_images(spec(), 2, 7).digest
    assert random_images(spec(), 2, 7).digest != random_images(spec(), 2, 8).digest
    pixels = random_images(spec(), 2, 7).pixels
    # np.random.PCG64(7).random_raw() with NumPy 2.4, its lowest byte first: pinned, so that another stream shows.
    assert pixels.ravel()[:8].tobytes() == (0xA00641A9F1E54A8B).to_bytes(8, "little")


def test_a_chosen_part_of_noise_stays_noise() -> None:
    assert select(random_images(spec(), 4, 0), 2, 0).random
