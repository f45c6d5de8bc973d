"""What somebody's own serving code feeds the network with, to be compared with the card's preprocessing."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from skdeploy.errors import UsageError
from skdeploy.quant.dataset import Inputs
from skdeploy.spec import ModelSpec


def read_fed(path: Path, images: int, spec: ModelSpec) -> Inputs:
    """An .npy of network inputs, float32 (N, C, H, W). Raises UsageError: not readable, or of another type or shape."""
    advice = "save what your code feeds for the same images, in the same order: numpy.save(FILE, inputs)"
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{path} cannot be read as .npy: {error}", advice=advice) from error
    wanted = (images, *spec.input.shape)
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.shape != wanted:
        shown = f"{array.dtype}{list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise UsageError(f"{path} holds {shown}, and the images make float32{list(wanted)}", advice=advice)
    return array
