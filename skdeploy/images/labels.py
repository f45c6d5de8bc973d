"""Labels as the network counts its classes: accuracy means nothing without."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from skdeploy.core.errors import UsageError
from skdeploy.core.listing import some
from skdeploy.core.spec import ClassOrder, ModelSpec
from skdeploy.images.arrays import is_class_number
from skdeploy.images.dataset import Dataset

FORMS = "give class folders, a .txt list of `path,label`, or an .npz with `labels`"
SAY_ORDER = (
    "give --class-order name if the network was trained on such folders with torchvision's ImageFolder or "
    "timm, or --class-order number if the folders' numbers are those of its outputs; or set class_order in "
    "the card"
)


def as_the_network_counts(dataset: Dataset, spec: ModelSpec, order: ClassOrder | None = None) -> Dataset:
    """The images with labels 0..classes-1 in the order of the network's outputs.

    Numbers from a list or an .npz are taken as they are. Of class folders, ``order`` decides if it is given (--class-order).
    Else they are matched to the card's labels by name, ignoring case and all but letters and digits ("t-shirt_top" is
    "T-shirt/top"). Else, and where all folders are numbers that are no labels, the card's ``class_order`` decides. Else the
    order is taken only where there is one: folders named by numbers are these classes, and as many folders as the network has
    classes are these in sorted order (so torchvision's ImageFolder counts, and ImageNet's networks are trained); the notes say
    which. Raises UsageError for whatever would be a guess: no labels, other names or numbers, both orders.
    """
    if dataset.labels is None:
        reason = f": {dataset.unlabelled}" if dataset.unlabelled else ""
        raise UsageError(f"accuracy needs labels, and {dataset.name} has none{reason}", advice=FORMS)
    if dataset.classes:
        numbers, note = _numbers(dataset, spec, order)
        notes = (*dataset.notes, note) if note else dataset.notes
        dataset = replace(dataset, labels=np.array(numbers, np.int64)[dataset.labels], classes=spec.labels, notes=notes)
    elif spec.labels:
        dataset = replace(dataset, classes=spec.labels)
    assert dataset.labels is not None  # kept
    classes, highest = spec.network.classes, int(dataset.labels.max())
    if highest >= classes:
        first = int(np.argmax(dataset.labels))
        raise UsageError(
            f"{dataset.name_of(first)} in {dataset.name} has label {highest}, but {spec.name} has {classes} classes",
            advice=f"labels must be from 0 to {classes - 1}, in the order of the network's outputs",
        )
    return dataset


def _numbers(dataset: Dataset, spec: ModelSpec, order: ClassOrder | None) -> tuple[list[int], str]:
    """Which of the network's classes each class folder is, and in words how that was told, unless by the card's labels."""
    classes = spec.network.classes
    if order is None and spec.labels and not (spec.class_order and _only_numbers(dataset, spec)):
        return _by_label(dataset, spec), ""
    order = order or spec.class_order
    if order is None and not all(map(is_class_number, dataset.classes)):
        order = "name"
    if order is not None:
        return _in_order(order, dataset, spec)
    by_number = _by_number(dataset)
    whole = len(by_number) == classes
    if max(by_number) >= classes:
        if whole and by_number == sorted(by_number):  # 1..9 for 9 classes, 01..12 for 12
            return _in_order("name", dataset, spec)
        if not whole:
            return by_number, ""  # the caller names the image beyond the classes
    elif (whole and by_number == sorted(by_number)) or (
        not whole and (classes <= 10 or _padded(dataset.classes, classes))
    ):
        return _in_order("number", dataset, spec)
    numbers = sorted(by_number) if whole else range(classes)  # the folders of the training, some of which may lack here
    names = sorted(dataset.classes if whole else map(str, numbers))
    raise UsageError(
        f"the class folders in {dataset.name} are named by numbers, and their order is not known: by name it "
        f"is {some(names)}, by number {some([str(number) for number in numbers])}. {spec.name} has {classes} "
        "classes and no labels that decide it",
        advice=SAY_ORDER,
    )


def _in_order(order: ClassOrder, dataset: Dataset, spec: ModelSpec) -> tuple[list[int], str]:
    """The class of each folder by this order, and in words how they were counted."""
    if order == "number":
        words = f"number: the folder 0 is the first of {spec.network.classes} classes"
        return _by_number(dataset), f"class folders are counted by {words}"
    words = f"name, as torchvision's ImageFolder does: {some(dataset.classes)} are the classes from 0"
    return _by_name(dataset, spec), f"class folders are counted by {words}"


def _by_label(dataset: Dataset, spec: ModelSpec) -> list[int]:
    """The labels of the card that the folders are named by. A folder without images need not be one."""
    folders = dataset.classes
    known = {_plain(label): index for index, label in enumerate(spec.labels)}
    if len(known) < len(spec.labels):
        raise UsageError(
            f"labels of the card {spec.name} differ only in case or punctuation: folders cannot be matched",
            advice="give a .txt list of `path,label` with numbers",
        )
    holding = _holding(dataset)
    unknown = [folders[index] for index in holding if _plain(folders[index]) not in known]
    if unknown:
        raise UsageError(
            f"{len(unknown)} of {len(folders)} class folders in {dataset.name} are not labels of the card "
            f"{spec.name}: {some(unknown)}",
            advice=f"the card's labels are {some(spec.labels)}"
            + (f"; {SAY_ORDER}" if _only_numbers(dataset, spec) else ""),
        )
    if len({_plain(folders[index]) for index in holding}) < len(holding):
        raise UsageError(
            f"several class folders in {dataset.name} have names that differ only in case or punctuation",
            advice="join them",
        )
    return [known.get(_plain(folder), -1) for folder in folders]


def _by_number(dataset: Dataset) -> list[int]:
    """The numbers that the folders are named by."""
    folders = dataset.classes
    strange = [folder for folder in folders if not is_class_number(folder)]
    if strange:
        raise UsageError(
            f"{len(strange)} of {len(folders)} class folders in {dataset.name} are not named by numbers: "
            f"{some(strange)}",
            advice="name each folder by the number of its class, from 0, or give a .txt list of `path,label`",
        )
    numbers = [int(folder) for folder in folders]
    if len(set(numbers)) < len(numbers):
        raise UsageError(
            f"several class folders in {dataset.name} have the same number, such as 1 and 01", advice="join them"
        )
    return numbers


def _by_name(dataset: Dataset, spec: ModelSpec) -> list[int]:
    """The place of each folder among the sorted names: of all folders, or of those with images if only they are as many."""
    folders, classes = dataset.classes, spec.network.classes
    if len(folders) == classes:
        return list(range(classes))
    holding = _holding(dataset)
    if len(holding) == classes:
        place = {folder: index for index, folder in enumerate(holding)}
        return [place.get(index, -1) for index in range(len(folders))]
    raise UsageError(
        f"{dataset.name} has {len(folders)} class folders, but {spec.name} has {classes} classes and no "
        "labels: skdeploy cannot tell which folder is which class",
        advice="make a folder for each class, even without images; or name the folders by the numbers of their "
        "classes; or give a .txt list of `path,label`",
    )


def _holding(dataset: Dataset) -> list[int]:
    """The folders that hold images."""
    assert dataset.labels is not None  # of class folders
    found: list[int] = np.unique(dataset.labels).tolist()
    return found


def _only_numbers(dataset: Dataset, spec: ModelSpec) -> bool:
    """Whether all class folders are named by numbers, which are no labels of the card."""
    labels = set(map(_plain, spec.labels))
    return all(is_class_number(folder) and _plain(folder) not in labels for folder in dataset.classes)


def _padded(folders: tuple[str, ...], classes: int) -> bool:
    """Whether the numbers are written with leading zeros, so that their order is that of the names."""
    width = len(folders[0])
    return (
        width >= len(str(classes - 1))
        and all(len(folder) == width for folder in folders)
        and "0" in {folder[0] for folder in folders if width > 1}
    )


def _plain(name: str) -> str:
    return "".join(sign for sign in name.casefold() if sign.isalnum())
