"""The worst image, as three pictures side by side."""

from __future__ import annotations

from typing import Final

from skdeploy.parity.worst_image import WorstImage, colour_of
from skdeploy.report.blocks import Picture, Pictures, more

SWATCHES: Final = 12  # classes that are named beside their colours


def worst_pictures(worst: WorstImage, title: str, said: str) -> Pictures:
    """Draw an image. ``said`` is why it is the worst, and follows its name."""
    shown = worst.pictures
    labels = (f"Reference: {worst.against}", worst.found, _difference(shown.gain))
    files = (shown.reference, shown.found, shown.difference)
    pictures = tuple(
        Picture(label, f"{label}, of {worst.image}", png, shown.width, shown.height)
        for label, png in zip(labels, files, strict=True)
    )
    part = f" Shown: {shown.part}." if shown.part else ""
    classes = tuple((colour_of(number), f"class {number}") for number in shown.classes[:SWATCHES])
    return Pictures(title, f"{worst.image} {said}.{part}", pictures, classes, more(shown.classes, SWATCHES))


def _difference(gain: float | None) -> str:
    if gain is None:
        return "Pixels that differ, in white"
    return "Difference" if gain == 1 else f"Difference times {gain:,.0f}"
