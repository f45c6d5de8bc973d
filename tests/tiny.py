"""The one small card of the tests (fixtures/tiny.toml) for where the card is not the subject; its images, an empty bundle."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skdeploy.bundle.manifest import Manifest
from skdeploy.checkpoints.weights_record import WeightsRecord
from skdeploy.core.spec import ModelSpec, Precision
from skdeploy.zoo.cards import read_card

CARD: Final = Path(__file__).parent / "fixtures/tiny.toml"

Pixels = NDArray[np.uint8]


@cache
def spec() -> ModelSpec:
    """5 classes without labels, 3 x 32 x 32 from 36."""
    return read_card(CARD)


def spec_of(channels: int = 3, *, height: int = 32, width: int = 32, **preprocess: Any) -> ModelSpec:
    """The card with another input or preprocessing."""
    sizes = {"channels": channels, "height": height, "width": width}
    changed = {
        "input": spec().input.model_copy(update=sizes),
        "preprocess": spec().preprocess.model_copy(update=preprocess),
    }
    return spec().model_copy(update=changed)


def head(precision: Precision = Precision.FP32, **changes: Any) -> Manifest:
    """The manifest of a bundle before its first artifact."""
    made = Manifest(
        skdeploy="0",
        created="2026-01-01T00:00:00+00:00",
        model=spec(),
        weights=WeightsRecord(source="random", seed=0),
        precision=precision,
    )
    return made.model_copy(update=changes)


def noise(*shape: int, seed: int = 0) -> Pixels:
    """Uniform in 0..255: every value of an image is busy."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(folder: Path, *names: str) -> None:
    """Images of noise that the card's resize leaves as they are, in folders that are made for them."""
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(36, 36, 3, seed=seed)).save(folder / name)
