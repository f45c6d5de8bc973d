"""The preprocessing that Triton runs is skdeploy's own, bit for bit, and refuses what that refuses."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from skdeploy.core.spec import ModelSpec
from skdeploy.images.dataset import normalise
from skdeploy.images.decoding import ORIENTATION, ImageError, crop_file
from skdeploy.serve.triton.models.preprocess import UnusableError, crop, network_input
from skdeploy.serve.triton.repository import preprocess_card
from tests import tiny

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")


def encoded(mode: str, kind: str, size: tuple[int, int] = (53, 41), **options: Any) -> bytes:
    image = Image.fromarray(tiny.noise(size[1], size[0], 3, seed=len(mode))).convert(mode)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def both(content: bytes, spec: ModelSpec, folder: Path) -> tuple[Any, Any]:
    """The input that skdeploy makes of an image file, and the one that the model of Triton makes."""
    path = folder / "image"
    path.write_bytes(content)
    card = json.loads(json.dumps(preprocess_card(spec, "float32")))  # as config.pbtxt carries it
    own = normalise(crop_file(path, spec).pixels[None], spec.preprocess)
    return own, network_input(crop(content, card)[None], card)


def check(content: bytes, spec: ModelSpec, folder: Path) -> None:
    own, theirs = both(content, spec, folder)
    assert own.dtype == theirs.dtype
    assert np.array_equal(own, theirs)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("mode", "kind"),
    [(mode, "TIFF") for mode in MODES]
    + [("L", "JPEG"), ("RGB", "JPEG"), ("CMYK", "JPEG"), ("RGBA", "PNG"), ("P", "PNG"), ("P", "GIF"), ("RGB", "WEBP")],
)
def test_each_kind_of_image_gives_the_same_bits(mode: str, kind: str, channels: int, tmp_path: Path) -> None:
    values = {"mean": (0.4,) * channels, "std": (0.23,) * channels}
    check(encoded(mode, kind), tiny.spec_of(channels, **values), tmp_path)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(31, 90), (200, 37), (36, 36), (35, 37)])
def test_each_interpolation_and_size_gives_the_same_bits(
    interpolation: str, size: tuple[int, int], tmp_path: Path
) -> None:
    check(encoded("RGB", "PNG", size), tiny.spec_of(interpolation=interpolation), tmp_path)


@pytest.mark.parametrize("exif", ["ignore", "apply"])
def test_orientation_is_what_the_card_says(exif: str, tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[ORIENTATION] = 6
    check(encoded("RGB", "JPEG", exif=turned), tiny.spec_of(exif=exif), tmp_path)


def test_without_a_resize_images_are_only_cut_and_smaller_ones_are_refused(tmp_path: Path) -> None:
    spec = tiny.spec_of(resize=None)
    check(encoded("RGB", "PNG"), spec, tmp_path)
    with pytest.raises(UnusableError, match="nothing is enlarged"):
        crop(encoded("RGB", "PNG", (31, 50)), preprocess_card(spec, "float32"))


@pytest.mark.parametrize(
    "content", [b"", b"GIF89a", encoded("RGB", "PNG")[:200], encoded("I;16", "PNG"), encoded("F", "TIFF")]
)
def test_what_skdeploy_refuses_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(content)
    with pytest.raises(ImageError):
        crop_file(path, tiny.spec())
    with pytest.raises(UnusableError):
        crop(content, preprocess_card(tiny.spec(), "float32"))


def test_a_graph_that_normalises_itself_gets_the_pixels(tmp_path: Path) -> None:
    content, card = encoded("RGB", "PNG"), preprocess_card(tiny.spec(), "uint8")
    path = tmp_path / "image"
    path.write_bytes(content)
    found = network_input(crop(content, card)[None], card)
    assert found.dtype == np.uint8
    assert np.array_equal(found[0], crop_file(path, tiny.spec()).pixels)
