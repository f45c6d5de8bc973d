"""The input of a stage, or of the user's serving code, compared with the card's."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from skdeploy.backends.base import Array
from skdeploy.blame.layers import decibels
from skdeploy.core.errors import UsageError
from skdeploy.core.files import open_file
from skdeploy.core.spec import ModelSpec, Preprocess
from skdeploy.images.dataset import Inputs, Pixels
from skdeploy.images.numpy_file import READING
from skdeploy.parity.cause import Cause, explain

VAGUE: Final = ("differs", "channel factors")  # what another form of the same input may explain better


def expected_input(pixels: Pixels, preprocess: Preprocess) -> NDArray[np.float64]:
    """The card's input of crops, (p / 255 - mean) / std in float64: uint8 (N, H, W, C) -> (N, C, H, W)."""
    planes = (pixels / 255.0 - np.asarray(preprocess.mean)) / np.asarray(preprocess.std)
    return np.asarray(planes.transpose(0, 3, 1, 2))


def explain_input(pixels: Pixels, fed: Array, preprocess: Preprocess, limit: float) -> Cause:
    """Why ``fed`` is not the input of these crops. ``limit``: the SQNR, in dB, at which two inputs are the same.

    What an error looks like depends on where in the preprocessing it is: channels that are swapped before normalisation get
    each other's mean and std. So the pixels that would have been normalised to ``fed`` are looked at too.
    """
    planes = pixels.transpose(0, 3, 1, 2) / 255.0
    for scale, what in ((1, "0..1"), (255, "0..255")):
        same = decibels(planes * scale, fed)
        if same is not None and same >= limit:
            return Cause("not normalised", f"it is the pixels as {what}, without mean and std")
    cause = explain(expected_input(pixels, preprocess), fed)
    if cause.kind not in VAGUE:
        return cause
    mean, std = (np.asarray(values)[:, None, None] for values in (preprocess.mean, preprocess.std))
    before = explain(planes, fed * std + mean)
    return cause if before.kind in VAGUE else Cause(before.kind, f"before normalisation, {before.words}")


def read_fed(path: Path, images: int, spec: ModelSpec) -> Inputs:
    """An .npy of network inputs, float32 (N, C, H, W). Raises UsageError: not readable, or of another type or shape."""
    if not spec.takes_images:
        raise UsageError(
            f"{spec.name} takes arrays, which skdeploy does not prepare, so there is nothing to compare {path} with",
            advice="compare the outputs for your own inputs: `skdeploy verify --golden`",
        )
    advice = "save what your code feeds for the same images, in the same order: numpy.save(FILE, inputs)"
    try:
        with open_file(path) as file:
            array = np.load(file, allow_pickle=False)
    except READING as error:
        raise UsageError(f"cannot read {path} as .npy: {error}", advice=advice) from error
    wanted = (images, *spec.input.shape)
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.shape != wanted:
        shown = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise UsageError(f"{path} holds {shown}, but the images need float32{list(wanted)}", advice=advice)
    return array
