"""From an image to the network's input: the same numbers as an independent implementation, whatever kind of image it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from skdeploy.core.errors import UsageError
from skdeploy.core.spec import ModelSpec, Preprocess
from skdeploy.images.dataset import affine, normalise, open_dataset
from tests.refused import refused
from tests.tiny import Pixels, noise, spec_of

Real = NDArray[np.float64]


def crop_of(image: Pixels, file: Path, spec: ModelSpec) -> Pixels:
    """What the card makes of an image in a file."""
    Image.fromarray(image).save(file)
    (found,) = open_dataset(file).load(spec)
    return found


# ----- against an independent implementation, in float64


def triangle(x: Real) -> Real:
    return np.maximum(1 - np.abs(x), 0)


def cubic(x: Real) -> Real:
    """Keys 1981 with a = -0.5."""
    x = np.abs(x)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def lanczos(x: Real) -> Real:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


def resampling(source: int, target: int, kernel: Callable[[Real], Real]) -> Real:
    """The matrix (target, source) that resamples a row; when it shrinks, the kernel widens, so that nothing is skipped."""
    scale = source / target
    centres = (np.arange(target)[:, None] + 0.5) * scale
    weights = kernel((np.arange(source)[None, :] + 0.5 - centres) / max(scale, 1.0))
    return np.asarray(weights / weights.sum(1, keepdims=True))


def expected_crop(image: Pixels, resize: int, height: int, width: int, kernel: Callable[[Real], Real]) -> Real:
    rows, columns = image.shape[:2]
    factor = resize / min(rows, columns)
    tall, wide = int(rows * factor), int(columns * factor)  # as torchvision truncates
    resized = np.einsum("ij,jkc->ikc", resampling(rows, tall, kernel), image.astype(np.float64))
    resized = np.einsum("kl,ilc->ikc", resampling(columns, wide, kernel), resized)
    top, left = round((tall - height) / 2), round((wide - width) / 2)
    return np.clip(resized, 0, 255)[top : top + height, left : left + width]


@pytest.mark.parametrize(("rows", "columns"), [(60, 90), (91, 47), (20, 33), (36, 36)])
@pytest.mark.parametrize(
    # Pillow rounds to 8 bits after each of its two passes: half a level from the first, times the sum of the magnitudes of
    # the second's weights (1, 1.25 and 1.6 at most), and half a level from the second. On average it is less than half.
    ("interpolation", "kernel", "levels"),
    [("bilinear", triangle, 1.01), ("bicubic", cubic, 1.14), ("lanczos", lanczos, 1.32)],
)
def test_resize_and_crop_are_those_of_an_independent_implementation(
    interpolation: str, kernel: Callable[[Real], Real], levels: float, rows: int, columns: int, tmp_path: Path
) -> None:
    image = noise(rows, columns, 3) // 2 + 64  # room for the overshoot of the kernels with negative lobes
    found = crop_of(image, tmp_path / "x.png", spec_of(height=28, resize=36, interpolation=interpolation))
    expected = expected_crop(image, 36, 28, 32, kernel)
    error = np.abs(found - expected)
    assert found.shape == expected.shape
    assert error.max() <= levels
    assert error.mean() <= 0.5
    shifted = np.abs(found[:, 1:] - expected[:, :-1])  # what a crop that is off by one pixel would look like
    assert shifted.mean() > 5


def test_nearest_takes_the_pixel_under_the_centre(tmp_path: Path) -> None:
    image = noise(72, 108, 3)
    found = crop_of(image, tmp_path / "x.png", spec_of(interpolation="nearest"))
    assert np.array_equal(found, image[1::2, 1::2][2:34, 11:43])


def test_an_image_of_the_right_size_is_not_touched(tmp_path: Path) -> None:
    image = noise(36, 36, 3)
    assert np.array_equal(crop_of(image, tmp_path / "x.png", spec_of()), image[2:34, 2:34])


@pytest.mark.parametrize(
    ("mean", "std"), [((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.0,), (1.0,)), ((0.286,), (0.353,))]
)
def test_normalisation_is_that_of_float64(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(len(mean), axis=3)
    preprocess = Preprocess(resize=16, mean=mean, std=std)
    found = normalise(pixels, preprocess)
    expected = ((pixels / 255.0 - np.asarray(mean)) / np.asarray(std)).transpose(0, 3, 1, 2)
    assert found.dtype == np.float32
    assert found.shape == (1, len(mean), 16, 16)
    # Scale, offset, product and sum are each rounded by 2^-24 of values up to 255 / (255 * 0.22) = 4.5.
    assert np.max(np.abs(found - expected)) <= 4 * 2**-24 * 4.5


def test_normalisation_as_one_multiply_add_maps_the_mean_to_zero() -> None:
    scale, offset = affine(Preprocess(resize=1, mean=(0.2, 0.4), std=(0.5, 0.25)))
    assert np.allclose(255 * np.array([0.2, 0.4]) * scale + offset, 0, atol=1e-6)  # two roundings of values around 1
    assert np.allclose(255 * np.array([0.7, 0.65]) * scale + offset, 1, atol=1e-6)


# ----- kinds of images


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *((mode, "png") for mode in ("RGB", "L", "LA", "RGBA", "P", "1")),
        *(("CMYK", "jpg"), ("L", "jpg"), ("RGB", "webp"), ("RGB", "bmp"), ("CMYK", "tif"), ("P", "tif")),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_image_gives_the_channels_of_the_network(
    mode: str, suffix: str, channels: int, tmp_path: Path
) -> None:
    Image.fromarray(noise(40, 50, 3)).convert(mode).save(tmp_path / f"x.{suffix}")
    with Image.open(tmp_path / f"x.{suffix}") as image:
        assert image.mode == mode
    pixels = open_dataset(tmp_path).load(spec_of(channels))
    assert pixels.shape == (1, 32, 32, channels)
    assert pixels.dtype == np.uint8
    assert np.ptp(pixels) > 0


def test_grey_becomes_three_equal_channels_and_colour_becomes_luma(tmp_path: Path) -> None:
    grey = noise(36, 36)
    found = crop_of(grey, tmp_path / "x.png", spec_of(3))
    assert np.array_equal(found, np.stack([grey[2:34, 2:34]] * 3, axis=2))
    colour = noise(36, 36, 3)
    found = crop_of(colour, tmp_path / "y.png", spec_of(1))
    luma = colour @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    assert np.max(np.abs(found[..., 0] - luma[2:34, 2:34])) <= 1.0  # rounded to a level, from 16-bit coefficients


def test_alpha_is_dropped_as_training_pipelines_do(tmp_path: Path) -> None:
    rgba = noise(36, 36, 4)
    assert np.array_equal(crop_of(rgba, tmp_path / "x.png", spec_of()), rgba[2:34, 2:34, :3])


# EXIF 2.32, table 6, tag 0x0112: what shows the stored rows upright.
TURNED_BACK: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: stored[::-1, ::-1],
    4: np.flipud,
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored, 1),
}


def turned(orientation: int, file: Path) -> Pixels:
    """Saves an image as a camera does that was held so; its rows as they are stored."""
    stored = noise(36, 60, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(file, exif=exif)
    return stored


def centre(image: Pixels) -> Pixels:
    top, left = (image.shape[0] - 32) // 2, (image.shape[1] - 32) // 2
    return image[top : top + 32, left : left + 32]


@pytest.mark.parametrize("orientation", TURNED_BACK)
def test_an_image_that_a_camera_turned_is_turned_back(orientation: int, tmp_path: Path) -> None:
    stored = turned(orientation, tmp_path / "x.png")
    (found,) = open_dataset(tmp_path / "x.png").load(spec_of(exif="apply"))
    assert np.array_equal(found, centre(TURNED_BACK[orientation](stored)))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", TURNED_BACK)
def test_by_default_an_image_is_what_training_loaders_open(orientation: int, suffix: str, tmp_path: Path) -> None:
    """torchvision's pil_loader and timm's ImageDataset: open, convert to RGB."""
    file = tmp_path / f"x.{suffix}"
    turned(orientation, file)
    with Image.open(file) as image:
        loaded = np.asarray(image.convert("RGB"))
    crop = open_dataset(file).crop(0, spec_of())
    assert np.array_equal(crop.pixels, centre(loaded))
    assert crop.orientation == (1 if suffix == "tif" else orientation)  # Pillow has turned a TIFF already


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_more_than_8_bits_a_channel_are_refused_and_not_clipped(dtype: Any, tmp_path: Path) -> None:
    Image.fromarray((noise(40, 40) * 200.0).astype(dtype)).save(tmp_path / "x.tif")
    with refused(UsageError, r"x\.tif has more than 8 bits per channel \(mode (I;16|I|F)\)"):
        open_dataset(tmp_path).load(spec_of())


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp", "tif"])
def test_a_truncated_image_and_a_text_file_are_named(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"x.{suffix}"
    Image.fromarray(noise(64, 64, 3)).save(file)
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"no picture"):
        file.write_bytes(content)
        with refused(UsageError, f"cannot read the image {file}", "give other images"):
            open_dataset(tmp_path).load(spec_of())


def test_an_image_that_cannot_be_read_has_no_digest(tmp_path: Path) -> None:
    (tmp_path / "x.png").symlink_to("/proc/self/mem")  # address 0 is mapped in no process
    with refused(UsageError, r"cannot read an image: cannot read .*x\.png: Input/output error"):
        _ = open_dataset(tmp_path).digest
