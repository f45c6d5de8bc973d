"""Simple explanations of an error that can be tested; nothing if none holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from skdeploy.backends.base import Array
from skdeploy.core.precision import FP16_MAX

Kind = Literal[
    "overflow",
    "not finite",
    "not normalised",
    "saturation",
    "permuted channels",
    "offset",
    "factor",
    "channel factors",
    "differs",
]
# An explanation holds if undoing it leaves at most this share of the error's power (13 dB less).
UNEXPLAINED: Final = 0.05
VALUES_A_NUMBER: Final = 4  # an explanation with as many numbers as there are values explains anything
Real = NDArray[np.float64]


@dataclass(frozen=True)
class Cause:
    """One explanation, and in words how it shows."""

    kind: Kind
    words: str


@dataclass(frozen=True)
class Int8Range:
    """The values that an INT8 tensor can hold, its offset added."""

    low: float
    high: float


def explain(expected: Array, found: Array, held: Int8Range | None = None) -> Cause:
    """The first explanation that holds, of ``found`` in place of ``expected``; both of one shape.

    ``held`` is the range of an INT8 tensor.
    """
    want, got = expected.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(got)
    if not finite.all():
        return _not_finite(want, got)
    power = float(np.sum((got - want) ** 2))
    if held is not None:
        clipped = np.clip(want, held.low, held.high)
        outside = float(np.mean(want != clipped))
        if _explained(np.sum((got - clipped) ** 2), power, 1, want) or _mostly(np.sum((clipped - want) ** 2), power):
            reach = want.min(), want.max()
            return Cause(
                "saturation",
                f"INT8 saturates: {outside:.1%} of its values are outside {held.low:.4g} .. {held.high:.4g}, "
                f"which is all that its scale can hold; they reach from {reach[0]:.4g} to {reach[1]:.4g}",
            )
    permuted = _permutation(want, got)
    if permuted:
        return Cause("permuted channels", permuted)
    offset = float(np.mean(got - want))
    if _explained(np.sum((got - want - offset) ** 2), power, 1, want):
        return Cause("offset", f"every value is off by {offset:.4g}")
    factor = float(np.sum(got * want) / max(np.sum(want * want), np.finfo(np.float64).tiny))
    if _explained(np.sum((got - factor * want) ** 2), power, 1, want):
        return Cause("factor", f"it is {factor:.4g} times the expected value")
    return _channel_factors(want, got, power) or Cause("differs", "its values differ without a simple pattern")


def _not_finite(want: Real, got: Real) -> Cause:
    infinite, nan = int(np.isinf(got).sum()), int(np.isnan(got).sum())
    largest = float(np.max(np.abs(want[np.isfinite(want)]), initial=0.0))
    counted = " and ".join(f"{count} {what}" for count, what in ((infinite, "infinite"), (nan, "NaN")) if count)
    if largest > FP16_MAX or (infinite and largest > FP16_MAX / 2):
        return Cause(
            "overflow",
            f"{counted} of {got.size} values: it should reach {largest:.4g}, but FP16 ends at {FP16_MAX:.0f}",
        )
    return Cause("not finite", f"{counted} of {got.size} values; the largest expected is {largest:.4g}")


def _permutation(want: Real, got: Real) -> str:
    """How the channels, axis 1, stand if each is one of those expected; empty if they do not, or are in order."""
    if want.ndim < 2 or want.shape[1] < 2:
        return ""
    channels = want.shape[1]
    rows, others = (np.moveaxis(array, 1, 0).reshape(channels, -1) for array in (want, got))
    # Each channel is known by its mean and its spread; the two sorted lists must match value by value.
    order, taken = (np.lexsort((array.mean(1), np.linalg.norm(array, axis=1))) for array in (rows, others))
    power = float(np.sum((others - rows) ** 2))
    if not _explained(np.sum((others[taken] - rows[order]) ** 2), power, 0, want):
        return ""
    source = np.empty(channels, np.int64)
    source[taken] = order
    if np.array_equal(source, np.arange(channels)[::-1]):
        return "its channels are in reverse order" + (", such as BGR for RGB" if channels == 3 else "")
    moved = np.flatnonzero(source != np.arange(channels))
    shown = ", ".join(f"{place} has {source[place]}" for place in moved[:4])
    return f"{len(moved)} of {channels} channels are permuted: {shown}{', ...' if len(moved) > 4 else ''}"


def _channel_factors(want: Real, got: Real, power: float) -> Cause | None:
    """found = a_c expected + b_c, as another epsilon or another channel's statistics in a normalisation make it."""
    if want.ndim < 2:
        return None
    channels = want.shape[1]
    rows, others = (np.moveaxis(array, 1, 0).reshape(channels, -1) for array in (want, got))
    centred, spread = rows - rows.mean(1, keepdims=True), others - others.mean(1, keepdims=True)
    variance = np.sum(centred**2, axis=1)
    slope = np.sum(centred * spread, axis=1) / np.where(variance > 0, variance, 1)
    rest = spread - slope[:, None] * centred
    if not _explained(np.sum(rest**2), power, 2 * channels, want):
        return None
    alive = slope[variance > 0]
    return Cause(
        "channel factors",
        f"each channel has its own factor and offset, with factors from {alive.min():.4g} to "
        f"{alive.max():.4g}: the normalisation (epsilon, statistics) or the weight scales differ",
    )


def _explained(rest: float, power: float, numbers: int, values: Real) -> bool:
    return values.size >= VALUES_A_NUMBER * numbers and power > 0 and float(rest) <= UNEXPLAINED * power


def _mostly(part: float, power: float) -> bool:
    """Whether a part of the error is at least half of its power: the rest of INT8's error is rounding."""
    return power > 0 and float(part) >= power / 2
