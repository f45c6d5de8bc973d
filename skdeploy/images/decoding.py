"""From one image file to the network's crop: decoding, the channels that the network takes, resize and centre crop."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from skdeploy.core.errors import UsageError
from skdeploy.core.files import open_file
from skdeploy.core.spec import ModelSpec

if TYPE_CHECKING:
    from PIL import Image

# uint8, (H, W, C) or (N, H, W, C). Of a network that does not take images, its samples: rows of a structured array, () or (N,),
# with a field for each input (``samples.py``), which stack, slice and join as images do.
Pixels = NDArray[Any]

SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")  # torchvision's

FORMATS: Final = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM", "GIF")
"""Pillow's names of what is decoded, whatever a file is called: of its other formats, EPS runs Ghostscript."""
MAX_FILE_BYTES: Final = 1 << 30  # a TIFF of 300 megapixels, from where on Pillow takes any image for a bomb

GREY_OR_RGB: Final = (1, 3)  # channels of what image files hold

ORIENTATION: Final = 0x0112  # EXIF 2.32, table 6

REMOVE: Final = "remove it, or give other images"

# What Pillow's decoders raise on damaged files. DecompressionBombError, which needs Pillow to be named, is added where used.
DECODING: Final = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError, struct.error, zlib.error,
)  # fmt: skip


def printable(name: str) -> str:
    """A file name that cannot break a line, a terminal or JSON: whatever does not print is written as an escape."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in name)


class ImageError(UsageError):
    """One image that cannot be used. ``reason`` says why, without the file's name."""

    def __init__(self, message: str, reason: str, *, advice: str = REMOVE) -> None:
        super().__init__(message, advice=advice)
        self.reason = reason


@dataclass(frozen=True)
class Crop:
    """A network input as pixels, uint8 (H, W, C), or one row of samples, and what had to be done to the image to get it.

    ``mode`` is Pillow's name of the image's kind; ``alpha``: it had transparency, which is dropped; ``animated``: it had
    several frames, of which this is the first; ``scale`` is the factor of the resize, above 1 where the image was enlarged;
    ``orientation`` is EXIF's, 1 for an image whose rows are stored upright.
    """

    pixels: Pixels
    scale: float
    mode: str
    alpha: bool = False
    animated: bool = False
    orientation: int = 1


@contextmanager
def open_image(file: Path) -> Iterator[Image.Image]:
    """The image in a file of one of ``FORMATS``, not decoded yet. Raises OSError, and what Pillow raises."""
    from PIL import Image

    with open_file(file, MAX_FILE_BYTES) as content, Image.open(content, formats=FORMATS) as image:
        yield image


def reason_of(error: Exception) -> str:
    """Why Pillow cannot read a file, on one line."""
    said = getattr(error, "strerror", None) or str(error)  # of a missing file, without its number and name again
    said = re.sub(r" <\S+ name=\d+>", "", said)  # a number of this process, another one in the next
    return " ".join(said.split()) or type(error).__name__


def crop_file(file: Path, spec: ModelSpec) -> Crop:
    """Reads a file as training pipelines do. Raises ImageError naming it: not readable, or more than 8 bits a channel.

    The first frame of several, its rows as they are stored unless the card says ``exif = "apply"``, to the network's channels
    with ``Image.convert``, which drops alpha and knows no colour profiles: what timm's and torchvision's data sets do with
    ``Image.open``, and so what the network was trained on. Pillow turns a TIFF upright itself when it loads it.
    """
    from PIL import Image, ImageOps

    if spec.input.channels not in GREY_OR_RGB:
        reason = f"an image file has 1 or 3 channels, but {spec.name} takes {spec.input.channels}"
        raise ImageError(f"{file}: {reason}", reason, advice="give .npy files of uint8, (H, W, C)")
    try:
        with open_image(file) as image:
            animated = bool(getattr(image, "is_animated", False))
            image.load()
            orientation = int(image.getexif().get(ORIENTATION, 1))
            if spec.preprocess.exif == "apply":
                ImageOps.exif_transpose(image, in_place=True)  # in place: a camera's photograph is 36 MB
            mode, alpha = image.mode, image.has_transparency_data
            image.info.pop("transparency", None)  # of palette images: Pillow warns that convert will drop it
            deep = mode.startswith(("I", "F"))
            converted = image if deep or mode == mode_of(spec) else image.convert(mode_of(spec))
    except (*DECODING, Image.DecompressionBombError) as error:
        reason = reason_of(error)
        raise ImageError(f"cannot read the image {file}: {reason}", reason) from error
    if deep:
        reason = f"more than 8 bits per channel (mode {mode}); the file does not say how to scale them"
        raise ImageError(f"the image {file} has {reason}", reason, advice="convert it to 8 bits, as for training")
    _check_size(converted, spec, str(file))
    return Crop(*cropped(converted, spec), mode, alpha, animated, orientation)


def crop_array(pixels: Pixels, spec: ModelSpec, shown: str = "an image") -> Crop:
    """The same from raw pixels, uint8 (H, W, C): each channel by itself where there are neither 1 nor 3. Raises ImageError."""
    from PIL import Image

    _check_size(Image.fromarray(pixels[..., 0]), spec, shown)
    if spec.input.channels not in GREY_OR_RGB:
        planes = [cropped(Image.fromarray(pixels[..., channel]), spec) for channel in range(pixels.shape[2])]
        return Crop(np.concatenate([plane for plane, _ in planes], axis=2), planes[0][1], mode_of(spec))
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return Crop(*cropped(image.convert(mode_of(spec)), spec), image.mode)


def _check_size(image: Image.Image, spec: ModelSpec, shown: str) -> None:
    """Raises ImageError for an image that is only cropped, and is smaller than the crop."""
    wanted = spec.input
    if spec.preprocess.resize is None and (image.height < wanted.height or image.width < wanted.width):
        reason = (
            f"{image.height} x {image.width} pixels, but the network takes {wanted.height} x {wanted.width}, and nothing is "
            "enlarged"
        )
        raise ImageError(
            f"{shown} has {reason}", reason, advice="remove smaller images, or export with a smaller --imgsz"
        )


def mode_of(spec: ModelSpec) -> str:
    """Pillow's name of the channels that the network takes."""
    return {1: "L", 3: "RGB"}.get(spec.input.channels, f"{spec.input.channels} channels")


def cropped(image: Image.Image, spec: ModelSpec) -> tuple[Pixels, float]:
    """Shorter side to ``resize``, if there is one, centre crop to (height, width); and the factor of the resize."""
    from PIL import Image

    size = spec.input
    resize = spec.preprocess.resize or min(image.size)
    scale = resize / min(image.size)
    if scale != 1:
        # The longer side is cut off, not rounded: torchvision's Resize, which nearly every network was evaluated with, does so.
        shorter = min(image.size)
        resized = (resize * image.width // shorter, resize * image.height // shorter)
        image = image.resize(resized, Image.Resampling[spec.preprocess.interpolation.upper()])
    left, top = round((image.width - size.width) / 2), round((image.height - size.height) / 2)
    image = image.crop((left, top, left + size.width, top + size.height))
    return np.asarray(image, dtype=np.uint8).reshape(size.height, size.width, -1), scale
