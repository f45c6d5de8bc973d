"""Sums of floats without rounding, so that neither the order of the terms nor who adds them changes a bit."""

from __future__ import annotations

from fractions import Fraction
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

MANTISSA: Final = 24  # bits of float32
LOWEST: Final = (
    -176
)  # a multiple of LIMB_BITS below 2 ** -172, the last bit of the smallest float32 written with 24 bits
LIMB_BITS: Final = 16
LIMBS: Final = (128 - MANTISSA - LOWEST) // LIMB_BITS + 1  # up to 2 ** 128, the largest float32

Limbs = NDArray[np.int64]


class ExactSums:
    """Sums of float32 for each of C channels, as integers in units of 2 ** -176, in limbs that overlap: (18, C).

    A term is less than 2 ** 40 in its limb, so that 2 ** 23 terms fit.
    """

    def __init__(self, limbs: Limbs) -> None:
        self.limbs = limbs

    @classmethod
    def of(cls, channels: int) -> Self:
        """Sums of nothing."""
        return cls(np.zeros((LIMBS, channels), np.int64))

    def add(self, rows: NDArray[np.floating]) -> None:
        """Adds each row of (N, C), finite. Of float64, the first 48 bits count."""
        high = rows.astype(np.float32)
        self._add(high)
        if rows.dtype != np.float32:
            self._add((rows - high).astype(np.float32))

    def merge(self, other: Self) -> None:
        """As if this one had been given all that ``other`` was."""
        self.limbs += other.limbs

    def over(self, count: int) -> NDArray[np.float32]:
        """The sums divided by ``count``, (C,), each rounded once to float64 and once to float32."""
        totals = [sum(int(limb) << (LIMB_BITS * place) for place, limb in enumerate(column)) for column in self.limbs.T]
        return np.array([float(Fraction(total, count << -LOWEST)) for total in totals], np.float64).astype(np.float32)

    def _add(self, rows: NDArray[np.float32]) -> None:
        fractions, exponents = np.frexp(rows)
        places, shifts = np.divmod(exponents.astype(np.int64) - MANTISSA - LOWEST, LIMB_BITS)
        terms = np.ldexp(fractions, MANTISSA).astype(np.int64) << shifts
        np.add.at(self.limbs, (places, np.broadcast_to(np.arange(rows.shape[1]), rows.shape)), terms)
