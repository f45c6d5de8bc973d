"""How alike two images are, as people who restore images measure it: PSNR, SSIM, and the 8-bit values themselves."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skdeploy.backends.metrics import sqnr_db
from skdeploy.core.spec import TensorSpec

Images = NDArray[Any]  # (N, C, H, W)

PEAK: Final = 255.0
WINDOW: Final = 7  # pixels a side, with equal weights: scikit-image's default
K1, K2 = 0.01, 0.03  # Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment" (2004), section III.C


def grey_levels(values: Images, mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float64]:
    """A network's images, (N, C, H, W), on the scale 0..255 and clipped to it, but not rounded.

    They are normalised as its inputs are: p / 255 = value * std + mean. Without a mean for each channel they are 0..1.
    """
    channels = values.shape[1]
    scale, shift = (std, mean) if len(mean) == channels else ((1.0,) * channels, (0.0,) * channels)
    levels: NDArray[np.float64] = values.astype(np.float64) * np.reshape(scale, (-1, 1, 1)) + np.reshape(
        shift, (-1, 1, 1)
    )
    return np.asarray(np.clip(PEAK * levels, 0, PEAK))


def channels_first(images: Images, output: TensorSpec) -> Images:
    """An output's images as (N, C, H, W), whatever its layout."""
    return images.transpose(0, 3, 1, 2) if output.channels_axis == 3 else images


def levels_of(images: Images, mean: tuple[float, ...], std: tuple[float, ...]) -> NDArray[np.float64]:
    """Images, (N, C, H, W), on the scale 0..255: bytes are that already, floats are normalised as ``grey_levels`` says."""
    return images.astype(np.float64) if images.dtype == np.uint8 else grey_levels(images, mean, std)


def psnr_db(reference: Images, found: Images) -> NDArray[np.float64]:
    """10 log10(255^2 / mean squared error) of each image, (N,), of grey levels; at most ``metrics.EXACT_DB``."""
    errors = np.mean((found - reference) ** 2, axis=tuple(range(1, reference.ndim)))
    return np.array([sqnr_db(PEAK**2, float(error)) for error in errors])


def ssim(reference: Images, found: Images) -> NDArray[np.float64]:
    """The mean structural similarity of each image, (N,), of grey levels: over all windows inside it, and all channels.

    An image that is smaller than the window is one window.
    """
    count = [min(WINDOW, side) for side in reference.shape[2:]]
    samples = count[0] * count[1]
    unbiased = samples / max(samples - 1, 1)
    one, other = _means(reference, count), _means(found, count)
    spread_one = unbiased * (_means(reference * reference, count) - one * one)
    spread_other = unbiased * (_means(found * found, count) - other * other)
    shared = unbiased * (_means(reference * found, count) - one * other)
    c1, c2 = (K1 * PEAK) ** 2, (K2 * PEAK) ** 2
    similar = (2 * one * other + c1) * (2 * shared + c2)
    similar /= (one * one + other * other + c1) * (spread_one + spread_other + c2)
    return np.asarray(similar.mean(axis=(1, 2, 3)))


def _means(values: Images, window: list[int]) -> NDArray[np.float64]:
    """The mean of each window that lies inside."""
    found = np.asarray(values, np.float64)
    for axis, size in zip((2, 3), window, strict=True):
        total = np.cumsum(found, axis=axis)
        first = np.take(total, [size - 1], axis=axis)
        rest = np.take(total, range(size, total.shape[axis]), axis=axis)
        found = (
            np.concatenate([first, rest - np.take(total, range(total.shape[axis] - size), axis=axis)], axis=axis) / size
        )
    return found
