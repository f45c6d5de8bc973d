"""Pairs to judge a denoiser on: crops of photographs that it was not trained on, with and without noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skdeploy.images.dataset import photographs
from tests.networks.skff_unet import SIGMA

HELD_OUT: Final = frozenset({"astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png"})
SIDE: Final = 64

Images = NDArray[Any]


def noisy_pairs(count: int, seed: int = 0, *, held_out: bool = True) -> tuple[Images, Images]:
    """Noisy and clean crops, uint8 (count, 64, 64, 3) each."""
    random = np.random.default_rng(seed)
    files = [file for file in photographs().files if (file.name in HELD_OUT) == held_out]
    pictures = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    clean = []
    for index in range(count):
        picture = pictures[index % len(pictures)]
        top, left = (random.integers(side - SIDE + 1) for side in picture.shape[:2])
        clean.append(picture[top : top + SIDE, left : left + SIDE])
    truth = np.stack(clean)
    noisy = truth + random.normal(0, SIGMA, truth.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8), truth


def write_pairs(folder: Path, noisy: Images, clean: Images) -> Path:
    """As PNG files of the same names in ``input`` and ``target``."""
    for name, images in (("input", noisy), ("target", clean)):
        (folder / name).mkdir(parents=True)
        for index, image in enumerate(images):
            Image.fromarray(image).save(folder / name / f"{index:03}.png")
    return folder
