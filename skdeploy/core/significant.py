"""Figures as people read them: a number of significant digits, and no exponent."""

from __future__ import annotations

from math import floor, log10


def significant(value: float, digits: int = 3) -> str:
    """``0.00482``, ``1.62``, ``12,300``: the digits before the point are never cut off, and 0 is ``0``."""
    if not value:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")  # first, for 9.996 has one digit more before its point than it seems
    return f"{rounded:,.{max(0, digits - 1 - floor(log10(abs(rounded))))}f}"
