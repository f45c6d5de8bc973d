"""Labels for accuracy: matched with the network's classes, or refused; never guessed."""

from __future__ import annotations

import re
from pathlib import Path

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


def folders(folder: Path, *names: str) -> Dataset:
    """A class folder of one image each; nothing is decoded."""
    for name in names:
        (folder / name).mkdir()
        (folder / name / "1.png").touch()
    return open_dataset(folder)


def labels_of(dataset: Dataset, spec: ModelSpec) -> dict[str, int]:
    found = as_the_network_counts(dataset, spec)
    assert found.labels is not None
    return {found.files[index].parent.name: int(label) for index, label in enumerate(found.labels)}


def test_class_folders_are_matched_with_the_cards_labels_by_name(tmp_path: Path) -> None:
    dataset = folders(tmp_path, "bag", "Ankle Boot", "t-shirt_top", "TROUSER")
    assert labels_of(dataset, FASHION) == {"bag": 8, "Ankle Boot": 9, "t-shirt_top": 0, "TROUSER": 1}
    assert as_the_network_counts(dataset, FASHION).classes == FASHION.labels


def test_a_class_folder_that_is_no_label_is_named(tmp_path: Path) -> None:
    with refused(
        UsageError, r"1 of 3 class folders .* no labels of the card sknet-fashion: Boots\n", "T-shirt/top, Trouser"
    ):
        as_the_network_counts(folders(tmp_path, "Bag", "Boots", "Coat"), FASHION)


def test_numbers_on_a_card_with_labels_are_counted_once_their_order_is_said(tmp_path: Path) -> None:
    """Folders 0, 1, ... are how MNIST and CIFAR are unpacked; the labels alone do not say that they are its numbers."""
    dataset = folders(tmp_path, "8", "0")
    with refused(UsageError, r"2 of 2 class folders .* no labels", "--class-order number"):
        as_the_network_counts(dataset, FASHION)
    assert labels_of(dataset, FASHION.model_copy(update={"class_order": "number"})) == {"8": 8, "0": 0}
    named = TINY.model_copy(update={"labels": ("8", "a", "b", "c", "0"), "class_order": "number"})  # labels come first
    assert labels_of(dataset, named) == {"8": 0, "0": 4}


def test_folders_that_are_one_label_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one name but for case"):
        as_the_network_counts(folders(tmp_path, "Bag", "bag", "Coat"), FASHION)


def test_labels_of_a_card_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    spec = TINY.model_copy(update={"labels": ("a", "A", "b", "c", "d")})
    with pytest.raises(UsageError, match="differ only in case or punctuation"):
        as_the_network_counts(folders(tmp_path, "a", "b"), spec)


def of(classes: int, **more: object) -> ModelSpec:
    """The tiny card without labels, with so many classes."""
    return TINY.model_copy(update={"network": TINY.network.model_copy(update={"classes": classes}), **more})


def test_folders_named_by_numbers_are_these_classes(tmp_path: Path) -> None:
    dataset = folders(tmp_path, "0", "3", "2")
    found = as_the_network_counts(dataset, TINY)
    assert labels_of(dataset, TINY) == {"0": 0, "3": 3, "2": 2}
    assert "counted by number" in found.notes[0]


TWELVE = tuple(map(str, range(12)))


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (TWELVE, 12),
        (("0", "10", "2"), 12),  # some of the twelve
        (("10", "11"), 12),  # as wide as the widest, but not padded
        (tuple(map(str, range(1, 13))), 12),  # from 1
        (("5", "10", "20"), 3),  # any other numbers
    ],
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
    flag = as_the_network_counts(dataset, of(12, class_order="name"), "number")  # a flag before the card
    assert dict(zip((file.parent.name for file in flag.files), flag.labels.tolist(), strict=True)) == by_number
    (note,) = as_the_network_counts(dataset, of(12), "name").notes
    assert "counted by name, as torchvision's ImageFolder does: 0, 1, 10, 11, 2 and 7 more are" in note


@pytest.mark.parametrize(
    ("names", "classes", "labels"),
    [
        (("00", "10", "11"), 12, [0, 10, 11]),  # padded: both orders are one
        (tuple(f"{n:02}" for n in range(1, 13)), 12, list(range(12))),  # padded, from 1
        (tuple("123"), 3, [0, 1, 2]),
    ],
)
def test_numbers_with_one_order_are_taken_in_it(
    names: tuple[str, ...], classes: int, labels: list[int], tmp_path: Path
) -> None:
    assert labels_of(folders(tmp_path, *names), of(classes)) == dict(zip(names, labels, strict=True))


def test_an_order_by_number_needs_numbers(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"1 of 5 class folders .* not named by numbers.*: x"):
        as_the_network_counts(folders(tmp_path, *"123x4"), TINY, "number")


def test_an_empty_class_folder_counts_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    assert labels_of(folders(tmp_path, *"acde"), TINY) == {"a": 0, "c": 2, "d": 3, "e": 4}


def test_a_folder_without_images_need_not_be_a_label(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    assert labels_of(folders(tmp_path, "bag", "coat"), FASHION) == {"bag": 8, "coat": 4}


def test_numbers_beyond_the_classes_are_named(tmp_path: Path) -> None:
    dataset = folders(tmp_path, "0", "10", "2")
    with refused(UsageError, r"10/1\.png in .* has label 10, and tiny has 5 classes", "0 to 4"):
        as_the_network_counts(dataset, TINY)


def test_one_number_written_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="are one number"):
        as_the_network_counts(folders(tmp_path, "1", "01"), TINY)


def test_as_many_folders_as_classes_are_these_in_sorted_order(tmp_path: Path) -> None:
    assert labels_of(folders(tmp_path, *"edcba"), TINY) == {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4}


def test_fewer_folders_than_classes_without_names_are_a_guess(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="4 class folders, tiny has 5 classes and no labels"):
        as_the_network_counts(folders(tmp_path, *"abcd"), TINY)


def test_numbers_are_taken_as_they_are_and_get_the_cards_names() -> None:
    dataset = Dataset("x", pixels=np.zeros((3, 28, 28, 1), np.uint8), labels=np.array([9, 0, 3]))
    found = as_the_network_counts(dataset, FASHION)
    assert found.labels.tolist() == [9, 0, 3]
    assert found.classes == FASHION.labels


def test_a_number_beyond_the_classes_is_named() -> None:
    dataset = Dataset("x", pixels=np.zeros((3, 28, 28, 1), np.uint8), labels=np.array([9, 10, 3]))
    with pytest.raises(UsageError, match=r"images\[1\] in x has label 10, and sknet-fashion has 10 classes"):
        as_the_network_counts(dataset, FASHION)


def test_images_without_labels_measure_no_accuracy(tmp_path: Path) -> None:
    (tmp_path / "x.png").touch()
    with refused(UsageError, "accuracy needs labels", "class folders"):
        as_the_network_counts(open_dataset(tmp_path), TINY)
