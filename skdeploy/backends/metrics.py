"""How far two sets of outputs are apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from skdeploy.core.spec import Frozen, Tolerance

Logits = NDArray[Any]
Outputs = Mapping[str, NDArray[Any]]  # by name, (N, ...) each


class Agreement(Frozen):
    """An output of integers or booleans, (N, ...), beside a reference's: how many of its ``values`` are the ``same``.

    ``decided``: the share among the values that rounding cannot change, None where nothing tells which these are
    (``ir/deciding.py``), and then ``undecided`` says why. ``miou``: of a map of classes.
    """

    values: int
    same: int
    decided: float | None = None
    undecided: str = Field(default="", exclude_if=lambda why: not why)
    miou: float | None = None


class Errors(Frozen):
    """How far one output (N, ...) is from a reference; see ``Metrics``."""

    max_abs_error: float
    max_rel_error: float
    min_cosine: float
    min_sqnr_db: float
    sqnr_db: float
    error_image: int | None = None
    worst_image: int | None = None


class Metrics(Frozen):
    """Errors of outputs (N, ...) against a reference.

    ``max_abs_error``: of any value. ``max_rel_error``: the same divided by the largest magnitude in the reference.
    ``min_cosine``: of the worst image. ``min_sqnr_db``, ``sqnr_db``: signal to noise, 10 log10(sum ref^2 / sum error^2), of the
    worst image and of all. ``top1_agreement``: share of images with the same top class. ``top1_decided``: the same share among
    the images whose reference margin is wider than twice ``max_rel_error`` allows, so that rounding alone cannot flip them;
    both are None for outputs that are not logits. ``error_image`` and ``worst_image`` are the numbers of the images with the
    largest error and the least SQNR; None in reports of earlier versions. ``figures``: what a task measures besides, by name;
    ``figure_image``: the number of the image that is worst by them, where images have figures of their own.
    ``outputs``: the same of each output where there are several; the metrics are then those of the worst.
    ``integers``: how far those outputs agree that have no floating-point values. Without any other there are no errors: None.
    """

    images: int
    max_abs_error: float | None
    max_rel_error: float | None
    min_cosine: float | None
    min_sqnr_db: float | None
    sqnr_db: float | None
    top1_agreement: float | None = None
    top1_decided: float | None = None
    error_image: int | None = None
    worst_image: int | None = None
    figure_image: int | None = Field(default=None, exclude_if=lambda image: image is None)
    figures: dict[str, float] = Field(default={}, exclude_if=lambda figures: not figures)
    outputs: dict[str, Errors] = Field(default={}, exclude_if=lambda outputs: not outputs)
    integers: dict[str, Agreement] = Field(default={}, exclude_if=lambda integers: not integers)

    @classmethod
    def without_errors(cls, images: int) -> Self:
        """Of outputs that are not floating point."""
        return cls(
            images=images, max_abs_error=None, max_rel_error=None, min_cosine=None, min_sqnr_db=None, sqnr_db=None
        )

    @property
    def same_class(self) -> int | None:
        """The number of images with the same top class."""
        return None if self.top1_agreement is None else round(self.top1_agreement * self.images)

    @property
    def figures_text(self) -> str:
        """The task's own figures, in words."""
        return ", ".join(f"{name} {value}" for name, value in figures_in_words(self.figures).items())


# float64 has 16 digits, 320 dB: what is reported for no difference at all, where the ratio is infinite.
EXACT_DB: Final = 300.0

# Values that are compared at once: maps of large images, in float64 and several times, would not fit into memory.
AT_ONCE: Final = 1 << 22

LEVELS: Final = 255  # the largest byte

# Divides in place of a reference that is all zero, and keeps the quotient a number that JSON has.
SMALLEST: Final = 1e-30


def is_floating(values: NDArray[Any]) -> bool:
    return values.dtype.kind == "f"


def compare_values(reference: NDArray[Any], found: NDArray[Any]) -> Metrics:
    """Metrics of ``found`` against ``reference``, both of one shape (N, ...) and finite; computed in float64."""
    return Metrics(images=len(reference), **_errors(reference, found).model_dump())


def _errors(reference: NDArray[Any], found: NDArray[Any]) -> Errors:
    step = max(1, AT_ONCE // max(reference[0].size, 1))
    parts = [_part(reference[at : at + step], found[at : at + step]) for at in range(0, len(reference), step)]
    errors, cosine = (np.concatenate([part[place] for part in parts]) for place in (0, 1))
    decibels = [db for part in parts for db in part.decibels]
    scale = max(SMALLEST, *(part.largest for part in parts))
    return Errors(
        max_abs_error=float(np.max(errors)),
        max_rel_error=float(np.max(errors)) / scale,
        min_cosine=float(np.min(cosine)),
        min_sqnr_db=min(decibels),
        sqnr_db=sqnr_db(sum(part.signal for part in parts), sum(part.noise for part in parts)),
        error_image=int(errors.argmax()),
        worst_image=int(np.argmin(decibels)),
    )


class _Part(NamedTuple):
    """Some images: the largest error, the cosine and the SQNR of each; the largest value and the powers of all."""

    errors: NDArray[np.float64]
    cosine: NDArray[np.float64]
    decibels: list[float]
    largest: float
    signal: float
    noise: float


def _part(reference: NDArray[Any], found: NDArray[Any]) -> _Part:
    expected, got = (array.reshape(len(array), -1).astype(np.float64) for array in (reference, found))
    error = got - expected
    norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(got, axis=1)
    cosine = np.asarray(~expected.any(axis=1) & ~got.any(axis=1), dtype=np.float64)  # of zeros: 1 with zeros, else 0
    np.divide(np.sum(expected * got, axis=1), norms, out=cosine, where=norms > 0)
    return _Part(
        np.max(np.abs(error), axis=1),
        cosine,
        [sqnr_db(_power(e), _power(d)) for e, d in zip(expected, error, strict=True)],
        float(np.max(np.abs(expected))),
        _power(expected),
        _power(error),
    )


def compare_outputs(reference: Outputs, found: Outputs) -> Metrics:
    """The same of all outputs: each by itself, and the worst of each figure."""
    rows = {name: _errors(value, found[name]) for name, value in reference.items()}
    images = len(next(iter(reference.values())))
    each = list(rows.values())
    if len(each) == 1:
        return Metrics(images=images, **each[0].model_dump())
    farthest, noisiest = (
        max(each, key=lambda row: row.max_rel_error),
        min(each, key=lambda row: row.min_sqnr_db),
    )
    return Metrics(
        images=images,
        max_abs_error=farthest.max_abs_error,
        max_rel_error=farthest.max_rel_error,
        min_cosine=min(row.min_cosine for row in each),
        min_sqnr_db=noisiest.min_sqnr_db,
        sqnr_db=min(row.sqnr_db for row in each),
        error_image=farthest.error_image,
        worst_image=noisiest.worst_image,
        outputs=rows,
    )


def same_classes(reference: Logits, found: Logits, tolerance: Tolerance) -> dict[str, float]:
    """``top1_agreement`` and ``top1_decided`` of logits (N, classes)."""
    expected = reference.astype(np.float64)
    agree = expected.argmax(1) == found.argmax(1)
    ordered = np.sort(expected, axis=1)
    margin = ordered[:, -1] - ordered[:, -2] if ordered.shape[1] > 1 else np.full(len(ordered), np.inf)
    decided = margin > 2 * tolerance.max_rel_error * np.max(np.abs(expected))
    return {
        "top1_agreement": float(np.mean(agree)),
        "top1_decided": float(np.mean(agree[decided])) if decided.any() else 1.0,
    }


def compare_logits(reference: Logits, found: Logits, tolerance: Tolerance) -> Metrics:
    """Metrics of logits (N, classes), with the agreement of their top classes."""
    return compare_values(reference, found).model_copy(update=same_classes(reference, found, tolerance))


def largest(outputs: Outputs) -> float:
    """The largest magnitude of any floating-point value."""
    floats = (value for value in outputs.values() if is_floating(value))
    return max((float(np.max(np.abs(value.astype(np.float64)))) for value in floats), default=0.0) or SMALLEST


def largest_difference(expected: Outputs, found: Outputs, scale: Outputs | None = None) -> float:
    """The largest difference of any value, relative to the largest in the same output of ``scale``, or else of ``expected``.

    Of integers and booleans it is the share of values that differ: an error of 1e-4 of the largest logit moves about 1e-4 of
    them over a border. Of bytes, which may be grey levels, it is their mean difference, or the largest but for the one that
    rounding moves, of 255. Infinite where an output is missing, has another shape or is not finite.
    """
    worst = 0.0
    for name, value in expected.items():
        got = found.get(name)
        if got is None or got.shape != value.shape or not (np.isfinite(value).all() and np.isfinite(got).all()):
            return np.inf
        if value.dtype == np.uint8 and value.size and value.max() > 1:
            apart = np.abs(got.astype(np.int64) - value)
            worst = max(worst, float(np.mean(apart)) / LEVELS, float(np.max(apart) - 1) / LEVELS)
            continue
        if not is_floating(value):
            worst = max(worst, float(np.mean(got != value)))
            continue
        difference = float(np.max(np.abs(got.astype(np.float64) - value)))
        worst = max(worst, difference / largest({name: (scale or expected)[name]}))
    return worst


def violations(
    metrics: Metrics, tolerance: Tolerance, name_of: Callable[[int], str] | None = None, value: str = "logit"
) -> tuple[str, ...]:
    """List what is out of tolerance; an empty list means parity. A NaN metric is a violation. ``name_of`` names an image, and
    ``value`` is what an output holds.
    """

    problems = _beyond(metrics, tolerance, name_of, value)
    if metrics.outputs:
        each = metrics.outputs.items()
        problems = [f"{name}: {said}" for name, errors in each for said in _beyond(errors, tolerance, name_of, "value")]
    for name, agreement in metrics.integers.items():
        problems += _unequal(name, agreement, tolerance)
    if metrics.top1_decided is not None and not metrics.top1_decided >= tolerance.min_top1_agreement:
        problems.append(
            f"top-1 agreement {metrics.top1_decided:.4f}, at least {tolerance.min_top1_agreement} "
            "(where the first class leads by more than max_rel_error can move)"
        )
    return tuple(problems)


def _unequal(name: str, agreement: Agreement, tolerance: Tolerance) -> list[str]:
    if agreement.miou is not None:
        return []  # of maps of classes the task judges its own figures
    differing, decided = agreement.values - agreement.same, agreement.decided
    if decided is not None and not decided >= tolerance.min_top1_agreement:
        return [f"{name}: {decided:.4f} of the decided values are equal, at least {tolerance.min_top1_agreement:g}"]
    # Of five class ids one is a fifth: rounding may change one that is not decided.
    allowed = max(decided is not None, (1 - (tolerance.min_equal or 0)) * agreement.values)
    if differing <= allowed:
        return []
    shown = f"{agreement.same:,} of {agreement.values:,}"
    unknown = f" (which of them rounding may change is not known: {agreement.undecided})" if agreement.undecided else ""
    return [f"{name}: {shown} values are equal, at least {tolerance.min_equal:.1%}{unknown}"]


def _beyond(
    errors: Errors | Metrics, tolerance: Tolerance, name_of: Callable[[int], str] | None, value: str
) -> list[str]:
    def where(image: int | None) -> str:
        return f" in {name_of(image)}" if name_of is not None and image is not None else ""

    problems: list[str] = []
    if errors.max_rel_error is None or errors.min_cosine is None or errors.min_sqnr_db is None:
        return problems  # nothing is floating point
    if not errors.max_rel_error <= tolerance.max_rel_error:
        problems.append(
            f"max error {errors.max_rel_error:.2e} of the largest {value}{where(errors.error_image)}, "
            f"allowed {tolerance.max_rel_error:.0e}"
        )
    if not errors.min_cosine >= tolerance.min_cosine:
        problems.append(f"cosine {errors.min_cosine:.6f}, at least {tolerance.min_cosine}")
    if not errors.min_sqnr_db >= tolerance.min_sqnr_db:
        found = f"{errors.min_sqnr_db:.1f} dB{where(errors.worst_image)}"
        problems.append(f"SQNR {found}, at least {tolerance.min_sqnr_db:.0f} dB")
    return problems


def decibels_text(value: float | None) -> str:
    """``30.1 dB``; ``exact`` where there is no error at all, ``not finite`` where it cannot be measured."""
    if value is None or not np.isfinite(value):
        return "not finite"
    return "exact" if value >= EXACT_DB else f"{value:.1f} dB"


def sqnr_db(signal: float, noise: float) -> float:
    """SQNR of two powers, 10 log10(signal / noise), at most ``EXACT_DB``."""
    if noise == 0:
        return EXACT_DB
    return min(EXACT_DB, 10 * float(np.log10(max(signal, np.finfo(np.float64).tiny)) - np.log10(noise)))


def _power(values: NDArray[np.float64]) -> float:
    return float(np.sum(values * values))


_WORDS: Final[Mapping[str, tuple[str, Callable[[float], str]]]] = {
    "psnr_db": ("PSNR", decibels_text),
    "ssim": ("SSIM", "{:.4f}".format),
    "same_8bit": ("same 8-bit values", "{:.2%}".format),
    "miou": ("mIoU", "{:.4f}".format),
    "same_pixels": ("same pixels", "{:.2%}".format),
    "decided_pixels": ("same decided pixels", "{:.2%}".format),
    "pair_error": ("pairs that change sides", "{:.2%}".format),
    "same_values": ("equal values", "{:.2%}".format),
    "decided_values": ("equal decided values", "{:.2%}".format),
}


def figures_in_words(figures: Mapping[str, float]) -> dict[str, str]:
    """A task's figures as people read them, by the names that they read."""
    found = {}
    for name, value in figures.items():
        words, shown = _WORDS.get(name, (name, "{:.4g}".format))
        found[words] = shown(value)
    return found
