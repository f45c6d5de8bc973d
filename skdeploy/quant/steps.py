"""INT8 steps as numbers that a graph holds, with the same relative precision at every magnitude.

A step is the scale of a Q/DQ pair. Strong typing gives it the type of the tensor beside it, so next to FP16 it must be an FP16
number, and FP16's range binds. Next to FP32 it has FP16's 11 significant bits too, and FP32's range: so the same function at
another scale, by powers of two, has the same integers.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

BITS: Final = 11  # of FP16's significand
# The step of a channel or a tensor of zeros, which no step spoils and none may be zero: FP16 holds it.
SILENT: Final = 2.0**-16
SMALLEST: Final = (
    2.0**-126
)  # FP32's smallest normal number: GPUs flush what is below to zero, and a step of zero divides
# FP16's numbers below 2^-14 are multiples of 2^-24. From 32 of these on a step is rounded by 1/64 at most: 0.13 dB.
SMALLEST_HALF: Final = 2.0**-24 * 2**5
LARGEST_HALF: Final = float(np.finfo(np.float16).max)


def rounded_step(step: NDArray[np.floating], *, half: bool) -> NDArray[np.float32]:
    """Steps as FP16 numbers if ``half``, else as FP32 numbers of 11 bits; never zero. A step of zero, as silent ones have,
    becomes ``SILENT``. For ``half``, a smaller one than ``SMALLEST_HALF`` is raised to it: ``quantize`` says where.
    """
    least = SMALLEST_HALF if half else SMALLEST
    held = np.where(step > 0, np.maximum(step, least), SILENT)
    if half:
        return held.astype(np.float16).astype(np.float32)
    mantissa, exponent = np.frexp(held)
    rounded: NDArray[np.float32] = np.ldexp(np.rint(np.ldexp(mantissa, BITS)), exponent - BITS).astype(np.float32)
    return rounded
