"""The worst image of a comparison as three small pictures: the reference's, what was found, and where the two differ.

They are made where outputs are compared, and kept with the figures: a report reads no image, which may have moved since.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skdeploy.backends.image_quality import PEAK, psnr_db
from skdeploy.parity.worst_image import SIDE, Pictures, colour_of

SIDES: Final = (SIDE, 240, 160, 96)  # tried until the three files fit: 3 x 96 x 96 pixels of 3 bytes are 83 kB
LARGEST: Final = 300_000  # bytes of the three files together, 400 kB in base64
Pixels = NDArray[np.uint8]  # (H, W) of grey, (H, W, 3) of colours


def pictures_of_image(reference: NDArray[np.float64], found: NDArray[np.float64]) -> Pictures:
    """Of grey levels 0..255, (C, H, W): in grey or colours, or of other channels the one that differs most."""
    apart = f"PSNR {float(psnr_db(reference[None], found[None])[0]):.1f} dB"
    error, part = np.abs(found - reference), []
    if len(reference) not in (1, 3):
        channel = int(error.sum((1, 2)).argmax())
        part.append(f"channel {channel + 1} of {len(reference)}")
        reference, found, error = (each[channel : channel + 1] for each in (reference, found, error))
    gain = _gain(float(error.max()))
    layers = [_pixels(each) for each in (reference, found, np.minimum(error * gain, PEAK))]
    return _cut(layers, error.sum(0), part, apart=apart, gain=gain)


def pictures_of_classes(reference: NDArray[np.int64], found: NDArray[np.int64]) -> Pictures | None:
    """Of the class of each pixel, (..., H, W): the slice where most differ. None for a sequence: it has no pixels."""
    if reference.ndim < 2:
        return None
    apart = f"{100 * np.mean(reference != found):.3g} % of its pixels have another class"
    before, after = (each.reshape(-1, *each.shape[-2:]) for each in (reference, found))
    place = int((before != after).sum((1, 2)).argmax())
    part = [f"slice {place + 1} of {len(before)}"] if len(before) > 1 else []
    before, after = before[place], after[place]
    differ = before != after
    colours = np.array([_rgb(colour_of(each)) for each in range(int(max(before.max(), after.max())) + 1)], np.uint8)
    layers = [colours[before], colours[after], (differ * 255).astype(np.uint8)]
    classes = np.union1d(before, after)
    return _cut(layers, differ.astype(np.float64), part, apart=apart, classes=tuple(map(int, classes)))


def _cut(layers: Sequence[Pixels], error: NDArray[np.float64], part: Sequence[str], **more: Any) -> Pictures:
    """The files, of the part with the largest error if the whole is too large."""
    height, width = error.shape
    for side in SIDES:
        top, left = _corner(error, min(side, height), min(side, width))
        cut = [layer[top : top + side, left : left + side] for layer in layers]
        files = [_png(each) for each in cut]
        if sum(map(len, files)) <= LARGEST:
            break
    high, wide = cut[0].shape[:2]
    if (high, wide) != (height, width):
        where = "where they differ most" if error.any() else "of the centre"
        part = [*part, f"{wide:,} x {high:,} of {width:,} x {height:,} pixels, {where}"]
    reference, found, difference = (base64.b64encode(file).decode() for file in files)
    return Pictures(
        reference=reference,
        found=found,
        difference=difference,
        width=wide,
        height=high,
        part="; ".join(part),
        **more,
    )


def _corner(error: NDArray[np.float64], height: int, width: int) -> tuple[int, int]:
    """Top and left of the window with the largest sum; of the one in the centre if there is no error."""
    if not error.any():
        return (error.shape[0] - height) // 2, (error.shape[1] - width) // 2
    sums = np.pad(error, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    windows = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    top, left = np.unravel_index(int(windows.argmax()), windows.shape)
    return int(top), int(left)


def _gain(largest: float) -> float:
    """The largest of 1, 2, 5, 10, 20, ... with which the error is not clipped; 1 if there is none."""
    if largest <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(max(PEAK / largest, 1)))
    return float(max(step * power for step in (1, 2, 5) if step == 1 or step * power * largest <= PEAK))


def _pixels(levels: NDArray[np.float64]) -> Pixels:
    rounded = np.rint(levels).astype(np.uint8)
    return rounded[0] if len(rounded) == 1 else np.ascontiguousarray(rounded.transpose(1, 2, 0))


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def _png(pixels: Pixels) -> bytes:
    from PIL import Image  # reports are read without it

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return file.getvalue()
