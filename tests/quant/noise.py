"""Images for tiny networks, and their calibration: what the tests of INT8 start from."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from skdeploy.core.spec import CalibrationMethod, ModelSpec, TensorSpec
from skdeploy.images.dataset import Dataset
from skdeploy.quant.calibrate import CalibrationSettings, calibrate
from skdeploy.quant.ranges import ALGORITHM_VERSION, Algorithm, Ranges
from tests.graphs.networks import (
    MEAN,
    STD,
)

Pixels = NDArray[np.uint8]


def pixels(count: int, *, seed: int = 0, height: int = 20, width: int = 24) -> Pixels:
    """Noise with blobs, uint8 (N, H, W, 3): crops of the card's size."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(128, 60, (count, height // 4, width // 4, 3)).repeat(4, axis=1).repeat(4, axis=2)
    return (coarse + rng.normal(0, 30, (count, height, width, 3))).clip(0, 255).astype(np.uint8)


def framed(crops: Pixels) -> Pixels:
    """Images of 24 x 24, as the card resizes to, whose middle rows are these crops of 20 x 24."""
    return np.pad(crops, ((0, 0), (2, 2), (0, 0), (0, 0)), mode="edge")


def dataset(count: int, *, seed: int = 0) -> Dataset:
    return Dataset("noise with blobs", pixels=framed(pixels(count, seed=seed)))


def normalised(images: Pixels) -> NDArray[np.float32]:
    """What the card of ``networks.card`` says, by its formula in float64."""
    return ((images / 255 - MEAN) / STD).transpose(0, 3, 1, 2).astype(np.float32)


def input_of(model: ir.Model) -> tuple[TensorSpec, ...]:
    """The interface that a bundle would say the graph has."""
    value = model.graph.inputs[0]
    assert value.shape is not None
    shape = tuple(size if isinstance(size, int) else str(size.value) for size in value.shape)
    dtype = "uint8" if value.dtype is ir.DataType.UINT8 else "float32"
    return (TensorSpec(name="input", dtype=dtype, shape=shape),)


def calibrated(
    model: ir.Model, spec: ModelSpec, images: Dataset, *, batch: int = 8, progress: Any = None, **algorithm: Any
) -> Ranges:
    """By minmax unless another method is given: the quickest."""
    algorithm = {"method": CalibrationMethod.MINMAX, "version": ALGORITHM_VERSION, **algorithm}
    settings = CalibrationSettings(Algorithm(**algorithm), len(images), batch)
    return calibrate(model, input_of(model), spec, images, settings, progress=progress)
