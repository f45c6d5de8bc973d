"""What a graph's input is fed with: crops as they are, or normalised, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Final

import numpy as np

from skdeploy.backends.base import Array
from skdeploy.quant.dataset import Inputs, Pixels, normalise
from skdeploy.spec import ModelSpec, TensorSpec

RUN_BATCH: Final = 8  # small enough for the activations of 224 x 224 images, large enough to be quick


def feeds_of(pixels: Pixels, spec: ModelSpec, inputs: Sequence[TensorSpec]) -> dict[str, Array]:
    """What a session wants of some crops, uint8 (N, H, W, C): raw pixels if its input is uint8, else normalised planes."""
    target = inputs[0]
    array: Pixels | Inputs = pixels if target.dtype == "uint8" else normalise(pixels, spec.preprocess)
    return {target.name: array}


def batches_of(
    crops: Iterable[Pixels], spec: ModelSpec, inputs: Sequence[TensorSpec], batch: int = RUN_BATCH
) -> Iterator[tuple[dict[str, Array], int]]:
    """Feeds for all crops, uint8 (H, W, C) each, ``batch`` at a time, and how many images each holds.

    A graph of fixed batch gets its own size; the last batch is then filled up with copies of the last image. Only one batch is
    held at a time.
    """
    fixed = inputs[0].shape[0]
    size = fixed if isinstance(fixed, int) else batch
    rest = iter(crops)
    while chunk := list(islice(rest, size)):
        count = len(chunk)
        if isinstance(fixed, int):
            chunk += [chunk[-1]] * (size - count)
        yield feeds_of(np.stack(chunk), spec, inputs), count
