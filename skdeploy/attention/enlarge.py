"""Enlarging the object in the middle of an image, as the paper's section 4.4 does: by a central crop and a resize."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from skdeploy.core.errors import UsageError
from skdeploy.core.spec import ModelSpec

PAPER_SCALES: Final = (1.0, 1.25, 1.5, 1.75, 2.0)
MAX_SCALE: Final = 4.0  # a sixteenth of the image is left
ADVICE: Final = "give at least two different numbers from 1 to 4, such as --scales 1.0,1.5,2.0"

DEFINITION: Final = (
    "At scale s the shorter side of the original image is resized to round(s * resize) pixels, with the card's filter, and the "
    "input size is cropped from the centre: the central 1/s of what the network sees at 1.0, in one resampling. "
    "Scale 1.0 is the card's own preprocessing."
)


def enlarged(spec: ModelSpec, scale: float) -> ModelSpec:
    """The same card, whose crops show the centre ``scale`` times as large; ``DEFINITION`` says how.

    Photographs with more pixels than the input stay as sharp as they are; those with fewer are interpolated.
    """
    preprocess = spec.preprocess.model_copy(update={"resize": round(spec.shorter_side * scale)})
    return spec.model_copy(update={"preprocess": preprocess})


def read_scales(text: str) -> tuple[float, ...]:
    """Numbers from ``1.0,1.5,2.0``. Raises UsageError for what is not a number."""
    scales = []
    for part in text.split(","):
        try:
            scales.append(float(part))
        except ValueError as error:
            raise UsageError(f"--scales {text}: {part.strip()!r} is not a number", advice=ADVICE) from error
    return tuple(scales)


def check_scales(scales: Sequence[float], spec: ModelSpec) -> tuple[float, ...]:
    """The scales in ascending order. Raises UsageError: fewer than two, outside 1 to 4, repeated, or equal in whole pixels."""
    if len(scales) < 2:
        raise UsageError(f"--scales has {len(scales)} scale, but the experiment compares scales", advice=ADVICE)
    for scale in scales:
        if not (math.isfinite(scale) and 1 <= scale <= MAX_SCALE):
            raise UsageError(
                f"--scales: {scale:g} is not from 1 to {MAX_SCALE:g}; below 1 the image would not fill the input",
                advice=ADVICE,
            )
    ordered = tuple(sorted(scales))
    sizes = [enlarged(spec, scale).shorter_side for scale in ordered]
    for index in range(1, len(ordered)):
        if sizes[index] == sizes[index - 1]:
            raise UsageError(
                f"--scales: {ordered[index - 1]:g} and {ordered[index]:g} both resize to {sizes[index]} pixels",
                advice=ADVICE,
            )
    return ordered
