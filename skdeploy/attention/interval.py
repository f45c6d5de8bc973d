"""Student's t, for intervals of means over few images."""

from __future__ import annotations

import math
from functools import cache
from typing import Final

CONFIDENCE: Final = 0.95
NORMAL: Final = 1.959963984540054  # the quantile that t tends to
MANY: Final = 1000  # degrees of freedom from which two terms of the expansion are right to 3e-6


@cache
def half_width(images: int) -> float:
    """How many standard errors the 95 % interval of a mean over ``images`` reaches to each side: 12.7 for two, 1.96 for many.

    Abramowitz and Stegun, 26.7.3, 26.7.4 and, for many images, 26.7.5.
    """
    degrees = images - 1
    if degrees < 1:
        raise ValueError("one image tells nothing of how images differ")
    if degrees > MANY:
        return NORMAL + (NORMAL**3 + NORMAL) / (4 * degrees)
    low, high = NORMAL, 13.0  # 12.7 with one degree of freedom
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < CONFIDENCE else (low, middle)
    return low


def _within(t: float, degrees: int) -> float:
    """The probability of -t..t."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(2 + odd, degrees - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
