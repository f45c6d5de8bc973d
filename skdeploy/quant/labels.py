"""Labels as the network counts its classes: accuracy means nothing without."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from skdeploy.errors import UsageError
from skdeploy.quant.arrays import MAX_LABEL
from skdeploy.quant.dataset import Dataset
from skdeploy.spec import ModelSpec

FORMS = "give class folders, a .txt list of `path,label`, or an .npz with `labels`"
SHOWN = 5  # of a list of names


def as_the_network_counts(dataset: Dataset, spec: ModelSpec) -> Dataset:
    """The images with labels 0..classes-1 in the order of the network's outputs.

    Numbers from a list or an .npz are taken as they are. Class folders are matched to the card's labels by name, ignoring case
    and all but letters and digits ("t-shirt_top" is "T-shirt/top"). Without labels on the card, folders named by numbers are
    these classes, and as many folders as the network has classes are these in sorted order (so torchvision's ImageFolder
    counts, and ImageNet's networks are trained). Raises UsageError for whatever would be a guess: no labels, other names or
    numbers.
    """
    if dataset.labels is None:
        raise UsageError(f"accuracy needs labels, and {dataset.name} has none", advice=FORMS)
    if dataset.classes:
        order = np.array(_numbers(dataset, spec), np.int64)
        dataset = replace(dataset, labels=order[dataset.labels], classes=spec.labels)
    elif spec.labels:
        dataset = replace(dataset, classes=spec.labels)
    assert dataset.labels is not None  # kept
    classes, highest = spec.network.classes, int(dataset.labels.max())
    if highest >= classes:
        first = int(np.argmax(dataset.labels))
        raise UsageError(
            f"{dataset.name_of(first)} in {dataset.name} has label {highest}, and {spec.name} has {classes} classes",
            advice=f"labels are from 0 to {classes - 1}, in the order of the network's outputs",
        )
    return dataset


def _numbers(dataset: Dataset, spec: ModelSpec) -> list[int]:
    """Which of the network's classes each class folder is."""
    folders = dataset.classes
    if spec.labels:
        known = {_plain(label): index for index, label in enumerate(spec.labels)}
        if len(known) < len(spec.labels):
            raise UsageError(
                f"labels of the card {spec.name} differ only in case or punctuation: folders cannot be matched",
                advice="give a .txt list of `path,label` with numbers",
            )
        unknown = [folder for folder in folders if _plain(folder) not in known]
        if unknown:
            more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
            raise UsageError(
                f"{len(unknown)} of {len(folders)} class folders in {dataset.name} are no labels of the card {spec.name}: "
                f"{', '.join(unknown[:SHOWN])}{more}",
                advice=f"the card's labels are {', '.join(spec.labels[:SHOWN])}{', ...' if len(spec.labels) > SHOWN else ''}",
            )
        numbers = [known[_plain(folder)] for folder in folders]
        if len(set(numbers)) < len(numbers):
            raise UsageError(
                f"several class folders in {dataset.name} have one name but for case or punctuation", advice="join them"
            )
        return numbers
    if all(folder.isascii() and folder.isdecimal() and len(folder) <= len(str(MAX_LABEL)) for folder in folders):
        numbers = [int(folder) for folder in folders]
        if len(set(numbers)) < len(numbers):
            raise UsageError(
                f"several class folders in {dataset.name} are one number, as 1 and 01 are", advice="join them"
            )
        return numbers
    if len(folders) != spec.network.classes:
        raise UsageError(
            f"{dataset.name} has {len(folders)} class folders, {spec.name} has {spec.network.classes} classes and no labels: "
            "which folder is which class?",
            advice="name the folders by the numbers of their classes, or give a .txt list of `path,label`",
        )
    return list(range(len(folders)))


def _plain(name: str) -> str:
    return "".join(sign for sign in name.casefold() if sign.isalnum())
