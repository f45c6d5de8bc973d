"""The worst image of a comparison as it is kept: three PNG files, and what is said of them. Needs no arrays."""

from __future__ import annotations

import colorsys
from typing import Annotated, Final

from pydantic import Field

from skdeploy.core.spec import Frozen

SIDE: Final = 320  # pixels: what a page shows three of in a row
GOLDEN_ANGLE: Final = 0.381966  # of a turn: hues one after the other that never come near an earlier one

# Okabe and Ito's, which the colour-blind tell apart; the first class is most often the background.
COLOURS: Final = ("#2b3038", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")

Png = Annotated[str, Field(pattern=r"^iVBORw0KGgo[A-Za-z0-9+/]*={0,2}$")]  # begins as every PNG does
Side = Annotated[int, Field(ge=1, le=SIDE)]


class Pictures(Frozen):
    """Three PNG files in base64, ``width`` x ``height`` pixels each.

    ``part``: which part of the image they show, empty where it is all. ``apart``: how far the image is from the reference's, in
    words. ``gain``: what the difference is multiplied by; None where pixels have classes, of which ``classes`` are seen.
    """

    reference: Png
    found: Png
    difference: Png
    width: Side
    height: Side
    apart: str
    part: str = ""
    gain: float | None = None
    classes: Annotated[tuple[int, ...], Field(strict=False)] = ()


class WorstImage(Frozen):
    """The image in which ``found``, an artifact on a backend, is furthest from what it is compared with, ``against``."""

    found: str
    against: str
    image: str
    pictures: Pictures


def colour_of(number: int) -> str:
    """The colour of a class, as ``#rrggbb``."""
    if number < len(COLOURS):
        return COLOURS[number]
    hue, light = number * GOLDEN_ANGLE % 1, (0.45, 0.65, 0.8)[number % 3]
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, light, 0.7))
