"""Labels for accuracy: matched with the network's classes, or refused; never guessed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skdeploy.core.errors import UsageError
from skdeploy.core.spec import ModelSpec
from skdeploy.images.dataset import Dataset, open_dataset
from skdeploy.images.labels import as_the_network_counts
from skdeploy.zoo.cards import load_card
from tests.refused import refused
from tests.tiny import spec

TINY = spec()
FASHION, _ = load_card("sknet-fashion")  # 10 classes, labels
TWELVE = tuple(map(str, range(12)))
FROM_1 = tuple(map(str, range(1, 13)))


def folders(folder: Path, *names: str) -> Dataset:
    """A class folder of one image each, empty where the name begins with a minus; nothing is decoded."""
    for name in names:
        (folder / name.removeprefix("-")).mkdir()
        if not name.startswith("-"):
            (folder / name / "1.png").touch()
    return open_dataset(folder)


def labels_of(dataset: Dataset, *order: Any) -> dict[str, int]:
    found = as_the_network_counts(dataset, *order)
    return {found.files[index].parent.name: int(label) for index, label in enumerate(found.labels)}


def of(classes: int, **more: object) -> ModelSpec:
    """The tiny card without labels, with so many classes."""
    return TINY.model_copy(update={"network": TINY.network.model_copy(update={"classes": classes}), **more})


@pytest.mark.parametrize(
    ("names", "spec", "labels"),
    [
        (("bag", "Ankle Boot", "t-shirt_top", "TROUSER"), FASHION, [8, 9, 0, 1]),
        (("bag", "coat", "-notes"), FASHION, [8, 4]),  # a folder without images need not be a label
        (("0", "3", "2"), TINY, [0, 3, 2]),  # named by numbers
        (("00", "10", "11"), of(12), [0, 10, 11]),  # padded: both orders are one
        (tuple(f"{n:02}" for n in range(1, 13)), of(12), list(range(12))),  # padded, from 1
        (tuple("123"), of(3), [0, 1, 2]),
        (tuple("edcba"), TINY, [4, 3, 2, 1, 0]),  # as many as classes, in sorted order
        (("a", "-b", "c", "d", "e"), TINY, [0, 2, 3, 4]),  # the empty one counts
    ],
)
def test_class_folders_with_one_order_are_taken_in_it(
    names: tuple[str, ...], spec: ModelSpec, labels: list[int], tmp_path: Path
) -> None:
    dataset = folders(tmp_path, *names)
    assert labels_of(dataset, spec) == dict(zip((n for n in names if n[0] != "-"), labels, strict=True))
    assert as_the_network_counts(dataset, spec).classes == spec.labels


@pytest.mark.parametrize(
    ("names", "spec", "order", "words", "advice"),
    [
        (("Bag", "Boots", "Coat"), FASHION, None, "1 of 3 class .* not labels of .*: Boots\n", "T-shirt/top, Trouser"),
        (("Bag", "bag", "Coat"), FASHION, None, "differ only in case", "join them"),
        (("a", "b"), of(5, labels=tuple("aAbcd")), None, "differ only in case or punctuation", "`path,label`"),
        (tuple("123x4"), TINY, "number", "1 of 5 class folders .* not named by numbers.*: x", "from 0"),
        (("0", "10", "2"), TINY, None, r"10/1\.png in .* has label 10, but tiny has 5 classes", "0 to 4"),
        (("1", "01"), TINY, None, "have the same number", "join them"),
        (tuple("abcd"), TINY, None, "4 class folders, but tiny has 5 classes and no labels", "make a folder for each"),
    ],
)
def test_class_folders_that_would_be_guessed_are_refused(
    names: tuple[str, ...], spec: ModelSpec, order: Any, words: str, advice: str, tmp_path: Path
) -> None:
    with refused(UsageError, words, advice):
        as_the_network_counts(folders(tmp_path, *names), spec, order)


def test_numbers_on_a_card_with_labels_are_counted_once_their_order_is_said(tmp_path: Path) -> None:
    """Folders 0, 1, ... are how MNIST and CIFAR are unpacked; the labels alone do not say that they are its numbers."""
    dataset = folders(tmp_path, "8", "0")
    with refused(UsageError, r"2 of 2 class folders .* are not labels", "--class-order number"):
        as_the_network_counts(dataset, FASHION)
    assert labels_of(dataset, FASHION.model_copy(update={"class_order": "number"})) == {"8": 8, "0": 0}
    named = of(5, labels=("8", "a", "b", "c", "0"), class_order="number")  # labels come first
    assert labels_of(dataset, named) == {"8": 0, "0": 4}


@pytest.mark.parametrize(
    ("names", "classes"),
    # All and some of the twelve; as wide as the widest, but not padded; from 1; any other numbers.
    [(TWELVE, 12), (("0", "10", "2"), 12), (("10", "11"), 12), (FROM_1, 12), (("5", "10", "20"), 3)],
)
def test_numbers_with_two_orders_are_refused_until_one_is_said(
    names: tuple[str, ...], classes: int, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="their order is not known") as error:
        as_the_network_counts(folders(tmp_path, *names), of(classes))
    assert "--class-order name" in error.value.advice
    assert "class_order" in error.value.advice
    told = re.search(r"by name it is (.+), by number (.+)\. tiny", error.value.message)
    assert told[1] != told[2]


def test_the_order_of_class_folders_is_what_the_user_or_the_card_says(tmp_path: Path) -> None:
    dataset = folders(tmp_path, *TWELVE)
    by_name = {name: place for place, name in enumerate(sorted(TWELVE))}  # what torchvision's find_classes does
    by_number = {name: int(name) for name in TWELVE}
    assert by_name["10"] == 2
    assert labels_of(dataset, of(12, class_order="name")) == by_name
    assert labels_of(dataset, of(12, class_order="number")) == by_number
    assert labels_of(dataset, of(12, class_order="name"), "number") == by_number  # a flag before the card
    (note,) = as_the_network_counts(dataset, of(12), "name").notes
    assert "counted by name, as torchvision's ImageFolder does: 0, 1, 10, 11, 2 and 7 more are" in note
    (note,) = as_the_network_counts(dataset, of(12), "number").notes
    assert "counted by number" in note


def test_numbers_of_an_array_are_taken_as_they_are_if_the_network_has_them() -> None:
    dataset = Dataset("x", pixels=np.zeros((3, 28, 28, 1), np.uint8), labels=np.array([9, 0, 3]))
    found = as_the_network_counts(dataset, FASHION)
    assert (found.labels.tolist(), found.classes) == ([9, 0, 3], FASHION.labels)
    dataset.labels[1] = 10
    with refused(UsageError, r"images\[1\] in x has label 10, but sknet-fashion has 10 classes"):
        as_the_network_counts(dataset, FASHION)


def test_images_without_labels_measure_no_accuracy(tmp_path: Path) -> None:
    (tmp_path / "x.png").touch()
    with refused(UsageError, "accuracy needs labels", "class folders"):
        as_the_network_counts(open_dataset(tmp_path), TINY)
