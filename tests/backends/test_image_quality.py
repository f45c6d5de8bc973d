"""PSNR and SSIM against scikit-image's, which is another author's."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from skdeploy.backends.image_quality import grey_levels, psnr_db, ssim
from skdeploy.backends.metrics import EXACT_DB

MEAN, STD = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)


def photographs(size: tuple[int, int] = (48, 60)) -> NDArray[np.float64]:
    """Grey levels with edges and slopes, (2, 3, H, W)."""
    rows, columns = np.indices(size)
    one = 127 + 80 * np.sin(rows / 5) * np.cos(columns / 7)
    other = np.where((rows // 9 + columns // 11) % 2, 30.0, 220.0)
    return np.stack([np.stack([one, one * 0.8, other]), np.stack([other, one * 0.5, 255 - other])])


@pytest.mark.parametrize("noise", [0.3, 5.0, 60.0])
@pytest.mark.parametrize("size", [(48, 60), (7, 9), (8, 7)])
def test_both_are_those_of_scikit_image(noise: float, size: tuple[int, int]) -> None:
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    images = photographs(size)
    spoilt = np.clip(images + np.random.default_rng(0).normal(0, noise, images.shape), 0, 255)
    for image, other, ratio, alike in zip(images, spoilt, psnr_db(images, spoilt), ssim(images, spoilt), strict=True):
        assert ratio == pytest.approx(peak_signal_noise_ratio(image, other, data_range=255), rel=1e-9)
        wanted = structural_similarity(image, other, data_range=255, channel_axis=0)
        assert alike == pytest.approx(wanted, abs=1e-9)  # cumulative sums of float64 over some thousand pixels


def test_an_image_is_itself() -> None:
    images = photographs()
    np.testing.assert_array_equal(psnr_db(images, images), EXACT_DB)
    np.testing.assert_allclose(ssim(images, images), 1, atol=1e-12)


def test_a_small_image_is_one_window() -> None:
    assert ssim(photographs((3, 4)), photographs((3, 4))).shape == (2,)
    assert (ssim(photographs((3, 4)), 255 - photographs((3, 4))) < 0.5).all()


def test_grey_levels_are_what_the_preprocessing_was_made_of() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (2, 3, 4, 5))
    normalised = (pixels / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    np.testing.assert_allclose(grey_levels(normalised, MEAN, STD), pixels, atol=1e-9)
    np.testing.assert_array_equal(grey_levels(normalised + 9, MEAN, STD), 255)
    np.testing.assert_allclose(
        grey_levels(pixels[:, :1] / 255, MEAN, STD), pixels[:, :1], atol=1e-9
    )  # one channel: 0..1
