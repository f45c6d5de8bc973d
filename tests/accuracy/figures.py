"""What tests of evaluations share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skdeploy.accuracy.gate import Evaluation

IMAGES = 61  # no multiple of a batch


def figures(evaluation: Evaluation) -> dict[str, Any]:
    return evaluation.model_dump(exclude={"seconds", "reused"})


def folder_of_images(folder: Path, pixels: NDArray[np.uint8], labels: Sequence[int]) -> Path:
    for index, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / str(label) / f"{index:03}.png")
    return folder
