"""The target of one pair, cut as its input is: the image that should come out, or a mask of classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from skdeploy.core.errors import UsageError
from skdeploy.core.spec import ModelSpec
from skdeploy.images.decoding import DECODING, ImageError, cropped, open_image, reason_of
from skdeploy.images.numpy_file import read_npz_or_npy

Kind = Literal["image", "mask", "array"]

TARGETS_KEY: Final = "targets"  # of an .npz
IGNORED: Final = 255  # of a mask: nobody says what is there, as in PASCAL VOC and Cityscapes
INDEXED: Final = ("1", "L", "P", "I", "I;16")  # Pillow's kinds of images whose pixels are one number


def unresized(spec: ModelSpec) -> ModelSpec:
    """The spec under which an image is only cut, to the network's size."""
    return spec.model_copy(update={"preprocess": spec.preprocess.model_copy(update={"resize": None})})


def image_target(given: NDArray[Any] | Path, shown: str, size: tuple[int, int], spec: ModelSpec) -> NDArray[np.uint8]:
    """The middle of an image, uint8 (k H, k W, C): k is how much larger it is than its input, of ``size``.

    Raises UsageError: not readable, not the size of its input or a multiple, not 8 bits.
    """
    pixels = _pixels(given, shown, spec)
    height, width = pixels.shape[:2]
    factor = height // size[0]
    if factor < 1 or (height, width) != (factor * size[0], factor * size[1]):
        raise UsageError(
            f"{shown} has {height} x {width} pixels, but its input {size[0]} x {size[1]}",
            advice="a target has the size of its input, or for a network that enlarges, a whole multiple of it",
        )
    # Cut in pixels of the input, and then enlarged: so the cut begins where the input's does.
    takes = spec.input
    top, left = round((size[0] - takes.height) / 2), round((size[1] - takes.width) / 2)
    rows, columns = (
        slice(factor * top, factor * (top + takes.height)),
        slice(factor * left, factor * (left + takes.width)),
    )
    return np.ascontiguousarray(pixels[rows, columns])


def mask_target(given: NDArray[Any] | Path, shown: str, size: tuple[int, int], spec: ModelSpec) -> NDArray[np.int64]:
    """The classes of the pixels that the network sees, (H, W): resized with the nearest neighbour, and cut, as the image is.

    Raises UsageError: not readable, not one number a pixel, another size than its image's.
    """
    from PIL import Image

    mask = pixels_of(given, shown, classes=True) if isinstance(given, Path) else given
    if mask.ndim == 3 and mask.shape[-1] == 1:
        mask = mask[..., 0]
    if mask.ndim != 2 or mask.dtype.kind not in "iub":
        raise UsageError(
            f"{shown} is not a mask of classes: {mask.dtype} of shape {mask.shape}",
            advice="give one whole number a pixel, the number of its class from 0, and 255 where none is to be judged",
        )
    if mask.shape != size:
        raise UsageError(
            f"{shown} has {mask.shape[0]} x {mask.shape[1]} pixels, but its image {size[0]} x {size[1]}",
            advice="a mask has the size of its image",
        )
    low, high = int(mask.min()), int(mask.max())
    if low < 0 or high > np.iinfo(np.uint16).max:
        raise UsageError(f"{shown} holds {low if low < 0 else high}, which is not a class", advice="count from 0")
    nearest = spec.model_copy(update={"preprocess": spec.preprocess.model_copy(update={"interpolation": "nearest"})})
    parts = [cropped(Image.fromarray(part.astype(np.uint8)), nearest)[0][..., 0] for part in (mask & 255, mask >> 8)]
    return np.asarray(parts[0], np.int64) + 256 * np.asarray(parts[1], np.int64)


def check_classes(mask: NDArray[np.int64], classes: int, shown: str) -> NDArray[np.int64]:
    """The mask, its values being classes or 255. For one class 0 and 1, or 0 and 255: then nothing is ignored.

    Raises UsageError naming a value beyond the classes.
    """
    if classes == 1:
        if bool(np.any(mask == IGNORED)) and not bool(np.any(mask == 1)):
            mask = np.where(mask == IGNORED, 1, mask)
        classes = 2
    wrong = np.unique(mask[(mask >= classes) & (mask != IGNORED)])
    if len(wrong):
        raise UsageError(
            f"{shown} holds the value {wrong[0]}, but the network has {classes} classes, 0 to {classes - 1}",
            advice="correct the mask; 255 marks pixels that are not to be judged",
        )
    return mask


def pixels_of(file: Path, shown: str, *, classes: bool = False) -> NDArray[Any]:
    """The pixels of a file as they are stored, (H, W) or (H, W, C); of a palette their numbers, not their colours.

    Raises UsageError: not readable, and with ``classes``, colours instead of numbers.
    """
    from PIL import Image

    if file.suffix.lower() in (".npy", ".npz"):
        content = read_npz_or_npy(file, (TARGETS_KEY, "target", "mask"), advice="save with np.save(file, target)")
        return content if isinstance(content, np.ndarray) else next(iter(content.values()))
    try:
        with open_image(file) as image:
            image.load()
            if classes and image.mode not in INDEXED:
                raise UsageError(
                    f"the mask {shown} has colours (mode {image.mode}), which do not say which class each is",
                    advice="write the class numbers as a grey or palette PNG",
                )
            return np.array(image, np.uint8 if image.mode == "1" else None)
    except (*DECODING, Image.DecompressionBombError) as error:
        reason = reason_of(error)
        raise ImageError(f"cannot read the target {shown}: {reason}", reason) from error


def _pixels(given: NDArray[Any] | Path, shown: str, spec: ModelSpec) -> NDArray[np.uint8]:
    """An image in the channels that the network gives, uint8 (H, W, C)."""
    from PIL import Image, ImageOps

    if not isinstance(given, Path) or given.suffix.lower() in (".npy", ".npz"):
        array = pixels_of(given, shown) if isinstance(given, Path) else given
        if array.dtype != np.uint8 or array.ndim not in (2, 3):
            raise UsageError(
                f"{shown} is {array.dtype} of shape {array.shape}", advice="give raw uint8 pixels, (H, W[, C])"
            )
        return np.asarray(array[..., None] if array.ndim == 2 else array, np.uint8)
    try:
        with open_image(given) as image:
            image.load()
            if image.mode.startswith(("I", "F")):
                raise UsageError(
                    f"the target {shown} has more than 8 bits per channel (mode {image.mode})",
                    advice="convert it to 8 bits, as its input",
                )
            if spec.preprocess.exif == "apply":
                ImageOps.exif_transpose(image, in_place=True)
            image.info.pop("transparency", None)  # of palette images: Pillow warns that convert will drop it
            found = np.asarray(image.convert("L" if output_channels(spec) == 1 else "RGB"), np.uint8)
            return found[..., None] if found.ndim == 2 else found
    except (*DECODING, Image.DecompressionBombError) as error:
        reason = reason_of(error)
        raise ImageError(f"cannot read the target {shown}: {reason}", reason) from error


def output_channels(spec: ModelSpec) -> int | None:
    """The channels of the first output; None where a name stands for them."""
    output = spec.given[0]
    found = output.shape[output.channels_axis] if len(output.shape) > 1 else None
    return found if isinstance(found, int) else None
