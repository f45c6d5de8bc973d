"""How far two sets of logits are apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from skdeploy.core.spec import Frozen, Tolerance

Logits = NDArray[Any]


class Metrics(Frozen):
    """Errors of logits (N, classes) against a reference.

    ``max_abs_error``: of any logit. ``max_rel_error``: the same divided by the largest magnitude in the reference.
    ``min_cosine``: of the worst image. ``min_sqnr_db``, ``sqnr_db``: signal to noise, 10 log10(sum ref^2 / sum error^2), of the
    worst image and of all. ``top1_agreement``: share of images with the same top class. ``top1_decided``: the same share among
    the images whose reference margin is wider than twice ``max_rel_error`` allows, so that rounding alone cannot flip them.
    ``error_image`` and ``worst_image`` are the numbers of the images with the largest error and the least SQNR; None in reports
    of earlier versions.
    """

    images: int
    max_abs_error: float
    max_rel_error: float
    min_cosine: float
    min_sqnr_db: float
    sqnr_db: float
    top1_agreement: float
    top1_decided: float
    error_image: int | None = None
    worst_image: int | None = None


# float64 has 16 digits, 320 dB: what is reported for no difference at all, where the ratio is infinite.
EXACT_DB: Final = 300.0

# Divides in place of a reference that is all zero, and keeps the quotient a number that JSON has.
SMALLEST: Final = 1e-30


def compare_logits(reference: Logits, found: Logits, tolerance: Tolerance) -> Metrics:
    """Metrics of ``found`` against ``reference``, both (N, classes) and finite; computed in float64."""
    expected, got = reference.astype(np.float64), found.astype(np.float64)
    error = got - expected
    scale = max(float(np.max(np.abs(expected))), SMALLEST)
    norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(got, axis=1)
    cosine = np.asarray(~expected.any(axis=1) & ~got.any(axis=1), dtype=np.float64)  # of zeros: 1 with zeros, else 0
    np.divide(np.sum(expected * got, axis=1), norms, out=cosine, where=norms > 0)
    agree = expected.argmax(1) == got.argmax(1)
    ordered = np.sort(expected, axis=1)
    margin = ordered[:, -1] - ordered[:, -2] if ordered.shape[1] > 1 else np.full(len(ordered), np.inf)
    decided = margin > 2 * tolerance.max_rel_error * scale
    decibels = [sqnr_db(_power(e), _power(d)) for e, d in zip(expected, error, strict=True)]
    return Metrics(
        images=len(expected),
        max_abs_error=float(np.max(np.abs(error))),
        max_rel_error=float(np.max(np.abs(error))) / scale,
        min_cosine=float(np.min(cosine)),
        min_sqnr_db=min(decibels),
        sqnr_db=sqnr_db(_power(expected), _power(error)),
        top1_agreement=float(np.mean(agree)),
        top1_decided=float(np.mean(agree[decided])) if decided.any() else 1.0,
        error_image=int(np.max(np.abs(error), axis=1).argmax()),
        worst_image=int(np.argmin(decibels)),
    )


def violations(metrics: Metrics, tolerance: Tolerance, name_of: Callable[[int], str] | None = None) -> tuple[str, ...]:
    """What is out of tolerance, in words; nothing means parity. A NaN metric is a violation. ``name_of`` names an image."""

    def where(image: int | None) -> str:
        return f" in image {name_of(image)}" if name_of is not None and image is not None else ""

    problems = []
    if not metrics.max_rel_error <= tolerance.max_rel_error:
        problems.append(
            f"max error {metrics.max_rel_error:.2e} of the largest logit{where(metrics.error_image)}, "
            f"allowed {tolerance.max_rel_error:.0e}"
        )
    if not metrics.min_cosine >= tolerance.min_cosine:
        problems.append(f"cosine {metrics.min_cosine:.6f}, at least {tolerance.min_cosine}")
    if not metrics.min_sqnr_db >= tolerance.min_sqnr_db:
        found = f"{metrics.min_sqnr_db:.1f} dB{where(metrics.worst_image)}"
        problems.append(f"SQNR {found}, at least {tolerance.min_sqnr_db:.0f} dB")
    if not metrics.top1_decided >= tolerance.min_top1_agreement:
        problems.append(f"top-1 agreement {metrics.top1_decided:.4f}, at least {tolerance.min_top1_agreement}")
    return tuple(problems)


def sqnr_db(signal: float, noise: float) -> float:
    """SQNR of two powers, 10 log10(signal / noise), at most ``EXACT_DB``."""
    if noise == 0:
        return EXACT_DB
    return min(EXACT_DB, 10 * float(np.log10(max(signal, np.finfo(np.float64).tiny)) - np.log10(noise)))


def _power(values: NDArray[np.float64]) -> float:
    return float(np.sum(values * values))
