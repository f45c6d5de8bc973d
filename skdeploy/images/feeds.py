"""Feeds of a graph's input: raw or normalised crops, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skdeploy.core.errors import UsageError
from skdeploy.core.spec import ModelSpec, TensorSpec
from skdeploy.images.dataset import Inputs, Pixels, normalise

RUN_BATCH: Final = 8  # small enough for the activations of 224 x 224 images, large enough to be quick


def feeds_of(pixels: Pixels | Inputs, spec: ModelSpec, inputs: Sequence[TensorSpec]) -> dict[str, NDArray[Any]]:
    """Turn crops, uint8 (N, H, W, C), into a session's input: raw pixels if it is uint8, else normalised planes.

    Samples (N,) are a feed for each input. Inputs that are normalised already, float32 (N, C, H, W), are taken as
    they are; UsageError if the graph wants pixels.
    """
    if pixels.dtype.names is not None:
        rows: Pixels = pixels
        return {each.name: np.ascontiguousarray(rows[each.name]) for each in inputs}
    target = inputs[0]
    if pixels.dtype == np.uint8:
        return {target.name: pixels if target.dtype == "uint8" else normalise(pixels.astype(np.uint8), spec.preprocess)}
    if target.dtype == "uint8":
        raise UsageError(
            "the graph takes images and normalises them itself (--embed-preprocess), but the golden file has "
            "normalised inputs",
            advice="save `images`, uint8 (N, H, W, C), in the golden file",
        )
    return {target.name: pixels}


def batches_of(
    crops: Iterable[Pixels | Inputs], spec: ModelSpec, inputs: Sequence[TensorSpec], batch: int = RUN_BATCH
) -> Iterator[tuple[dict[str, NDArray[Any]], int]]:
    """Feeds for all crops, uint8 (H, W, C) each, samples, or inputs, float32 (C, H, W) each, ``batch`` at a time.

    With each come how many images it holds. A graph of fixed batch gets its own size; the last batch is then filled up with
    copies of the last image, and so is one before a sample of another size. Only one batch is held at a time.
    """
    size = batch_of(inputs, batch)
    for chunk in _of_one_size(crops, size):
        fill = [chunk[-1]] * (size - len(chunk)) if isinstance(inputs[0].shape[0], int) else []
        stacked: NDArray[Any] = np.stack([*chunk, *fill])
        yield feeds_of(stacked, spec, inputs), len(chunk)


def batch_of(inputs: Sequence[TensorSpec], batch: int) -> int:
    """The batch that a graph is fed: its own if that is fixed, else ``batch``."""
    fixed = inputs[0].shape[0]
    return fixed if isinstance(fixed, int) else batch


def _of_one_size(crops: Iterable[Pixels | Inputs], most: int) -> Iterator[list[Pixels | Inputs]]:
    """Up to ``most`` crops at a time, in their order, all of one type and shape."""
    chunk: list[Pixels | Inputs] = []
    for crop in crops:
        if len(chunk) == most or (chunk and (crop.dtype, crop.shape) != (chunk[0].dtype, chunk[0].shape)):
            yield chunk
            chunk = []
        chunk.append(crop)
    if chunk:
        yield chunk
