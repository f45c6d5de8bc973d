"""Images in a NumPy file: raw uint8 pixels. Other content is recognised by its values, with how to undo it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skdeploy.core.errors import UsageError
from skdeploy.images.decoding import GREY_OR_RGB, Pixels
from skdeploy.images.numpy_file import read_npz_or_npy

Labels = NDArray[np.int64]

MAX_LABEL: Final = 10**9 - 1  # no network has as many classes, and it fits any integer


def is_class_number(text: str) -> bool:
    """Whether a text is a whole number from 0 that may be a label."""
    return text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_LABEL))


def read_arrays(source: Path, channels: tuple[int, ...] = GREY_OR_RGB) -> tuple[Pixels, Labels | None]:
    """Images, uint8 (N, H, W, C), and labels (N,), if any, of an .npz (``images``, ``labels``) or an .npy.

    ``channels``: the numbers of channels that may be. Raises UsageError: not readable, no images, not raw
    pixels (with what they look like), labels that are not class numbers.
    """
    content = read_npz_or_npy(source, ("images", "labels"))
    if isinstance(content, np.ndarray):
        images, labels = content, None
    elif "images" in content:
        images, labels = content["images"], content.get("labels")
    else:
        raise UsageError(
            f"{source} has no array named 'images', only {sorted(content)}",
            advice="save with np.savez(file, images=...)",
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in channels or not len(images):
        looks, undo = _looks_like(images)
        if images.ndim == 4 and images.shape[1] in channels and images.shape[3] not in channels:
            undo += "; put the channels last: images.transpose(0, 2, 3, 1)"
        raise UsageError(
            f"{source} holds {images.dtype} of shape {images.shape}{looks}",
            advice=f"give raw uint8 pixels, {_forms(channels)}, not normalised{undo}",
        )
    return images, None if labels is None else checked_labels(source, labels, len(images))


def read_planes(source: Path, channels: int) -> Pixels:
    """One image of as many channels, uint8 (H, W, C), from its own .npy, or the ``image`` of an .npz. Raises UsageError."""
    content = read_npz_or_npy(source, ("image",), advice="save with np.save(file, image)")
    planes = content if isinstance(content, np.ndarray) else content["image"]
    if planes.dtype != np.uint8 or planes.ndim != 3 or planes.shape[2] != channels or not planes.size:
        looks, undo = _looks_like(planes)
        if planes.ndim == 3 and planes.shape[0] == channels:
            undo += "; put the channels last: image.transpose(1, 2, 0)"
        raise UsageError(
            f"{source} holds {planes.dtype} of shape {planes.shape}{looks}",
            advice=f"give raw uint8 pixels, (H, W, {channels}), not normalised{undo}",
        )
    return planes


def _forms(channels: tuple[int, ...]) -> str:
    if channels == GREY_OR_RGB:
        return "(N, H, W), (N, H, W, 1) or (N, H, W, 3)"
    return f"(N, H, W, {channels[0]})"


def checked_labels(source: Path, labels: NDArray[Any], count: int) -> Labels:
    """Labels (N,) of ``count`` samples. Raises UsageError for what are no class numbers."""
    if labels.shape != (count,):
        raise UsageError(
            f"{source} holds {count} inputs and labels of shape {labels.shape}", advice="give one label for each, (N,)"
        )
    if labels.dtype.kind not in "iu" or int(labels.min()) < 0 or int(labels.max()) > MAX_LABEL:
        odd = f" from {labels.min()} to {labels.max()}" if labels.dtype.kind in "iuf" else ""
        raise UsageError(
            f"the labels in {source} are not class numbers: {labels.dtype}{odd}",
            advice="labels must be whole numbers from 0, in the order of the network's outputs",
        )
    return labels.astype(np.int64)


def _looks_like(images: NDArray[Any]) -> tuple[str, str]:
    """Guess from the values of an array what was done to its pixels, and how to undo it."""
    if images.dtype.kind not in "iuf" or images.dtype == np.uint8 or not images.size:
        return "", ""
    if not np.isfinite(images).all():
        return ", with values that are not finite", ""
    low, high = float(images.min()), float(images.max())
    span = f", from {low:.4g} to {high:.4g}"
    if low < 0:
        undo = ": save the images before mean and std are applied (skdeploy normalises as the card says)"
        return f"{span}: these seem to be normalised already, because raw pixels are never negative", undo
    if high > 255:
        return f"{span}: more than 8 bits per channel", ""
    if images.dtype.kind == "f" and high <= 1:
        return f"{span}: pixels scaled to 0..1", ": np.rint(255 * images).astype(np.uint8)"
    return f"{span}: pixels of 0..255 in the wrong type", ": np.rint(images).astype(np.uint8)"
