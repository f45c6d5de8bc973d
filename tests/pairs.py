"""Pairs of pictures and masks in the usual folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.networks import sk_unet


def save_masks(folder: Path, count: int, *, seed: int = 10_000_000, moved: int = 0) -> Path:
    """``images/`` and ``masks/``; ``moved``: the masks are moved by so many pixels."""
    masks = sk_unet.save_images(folder / "images", count, seed)
    (folder / "masks").mkdir()
    for number, mask in enumerate(masks):
        Image.fromarray(np.roll(mask, moved, 1).astype(np.uint8)).save(folder / "masks" / f"{number:04}.png")
    return folder
