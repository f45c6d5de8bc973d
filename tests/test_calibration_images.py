"""The committed images are what calibration/README.md says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1] / "calibration"
FASHION, DIGITS = ROOT / "fashion", ROOT / "digits"
both_sets = pytest.mark.parametrize("folder", [FASHION, DIGITS], ids=["fashion", "digits"])


@pytest.mark.parametrize(("file", "count"), [("calibration.npz", 512), ("evaluation.npz", 2000)])
def test_images_and_labels_have_the_documented_form(file: str, count: int) -> None:
    with np.load(FASHION / file) as arrays:
        assert set(arrays) == {"images", "labels"}
        images, labels = arrays["images"], arrays["labels"]
    assert (images.dtype, images.shape) == (np.uint8, (count, 28, 28, 1))
    assert (labels.dtype, labels.shape) == (np.int64, (count,))
    assert labels[:10].tolist() == list(range(10))
    assert np.ptp(np.bincount(labels)) <= 1  # any prefix is balanced
    assert images.min() == 0
    assert images.max() == 255


@pytest.mark.parametrize(("file", "count"), [("calibration.npz", 512), ("evaluation.npz", 1000)])
def test_images_of_digits_have_the_documented_form(file: str, count: int) -> None:
    with np.load(DIGITS / file) as arrays:
        assert set(arrays) == {"images", "labels"}
        images, labels = arrays["images"], arrays["labels"]
    assert (images.dtype, images.shape) == (np.uint8, (count, 32, 32, 3))
    assert (labels.dtype, labels.shape) == (np.int64, (count,))
    # MNIST's own order: a class has a tenth, give or take 4 standard errors of such a count
    assert np.abs(np.bincount(labels, minlength=10) - count / 10).max() < 4 * (0.09 * count) ** 0.5


@both_sets
def test_no_image_is_in_both_files(folder: Path) -> None:
    seen = []
    for file in ("calibration.npz", "evaluation.npz"):
        with np.load(folder / file) as arrays:
            seen.append({image.tobytes() for image in arrays["images"]})
    assert not seen[0] & seen[1]


@pytest.mark.parametrize(("name", "row", "label"), [("t-shirt", 10, 0), ("sneaker", 17, 7)])
def test_the_examples_are_images_of_the_evaluation_set(name: str, row: int, label: int) -> None:
    with np.load(FASHION / "evaluation.npz") as arrays:
        pixels, labels = arrays["images"][row, ..., 0], arrays["labels"]
    assert labels[row] == label
    assert np.array_equal(np.asarray(Image.open(FASHION.parent / f"examples/{name}.png")), pixels)
