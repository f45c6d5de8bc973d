"""Which ways to make INT8 are tried: those that the options of a calibration and of a recipe have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal, get_args

from pydantic import JsonValue

from skdeploy.core.errors import UsageError
from skdeploy.core.options import words_of
from skdeploy.core.spec import CalibrationMethod, Frozen
from skdeploy.line.calibration import DEFAULT_NUMBER, CalibrationOptions
from skdeploy.quant.recipe import Recipe

PERCENTILES: Final = (99.99, 99.999)
ROUNDING: Final = "weight_rounding"  # tried where calibration has a choice of it
Fallback = Literal["fp16", "fp32"]
FALLBACKS: Final[tuple[Fallback, ...]] = get_args(Fallback)


class Candidate(Frozen):
    """One way: options of the calibration by name, the precision of what is not INT8, and the modules that stay in it.

    ``units`` are the names of units whose modules ``keep`` matches.
    """

    calibration: dict[str, JsonValue]
    fallback: Fallback
    keep: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    regroup: int | None = None

    @property
    def name(self) -> str:
        """How people tell it from the others."""
        words = [str(value) for value in self.calibration.values() if value is not None]
        words.append(f"{self.fallback} fallback")
        if self.units:
            words.append(f"{len(self.units)} kept")
        if self.regroup is not None:
            words.append(f"regroup {self.regroup}")
        return ", ".join(words)

    def options(self, images: Path, number: int | None) -> CalibrationOptions:
        """The calibration's options on these images."""
        chosen: dict[str, Any] = dict(self.calibration)
        return CalibrationOptions(images=images, number=number or DEFAULT_NUMBER, **chosen)

    def words(self, images: Path, number: int | None) -> list[str]:
        """The options of `skdeploy export --int8` that make it."""
        words = [*words_of(self.options(images, number)), "--int8-fallback", self.fallback]
        for pattern in self.keep:
            words += ["--int8-keep", pattern]
        return words if self.regroup is None else [*words, "--regroup", str(self.regroup)]


def candidates(methods: Sequence[str]) -> list[Candidate]:
    """Every calibration that is tried, with every fallback. ``methods``: only these; entropy is tried if it is named: it costs
    most, and did best on no network seen.
    """
    known = [str(method) for method in CalibrationMethod]
    for method in methods:
        if method not in known:
            raise UsageError(f"--calib-method {method} does not exist", advice=f"choose one of {', '.join(known)}")
    default = [
        str(CalibrationMethod.AUTO)
    ]  # the default comes first; on other images it may not be the best of the others
    wanted = methods or default + [method for method in known if method not in (*default, CalibrationMethod.ENTROPY)]
    return [
        Candidate(calibration=calibration, fallback=fallback)
        for calibration in _calibrations(list(dict.fromkeys(wanted)))
        for fallback in FALLBACKS
    ]


def _calibrations(methods: Sequence[str]) -> Iterator[dict[str, JsonValue]]:
    for method in methods:
        percentiles = PERCENTILES if method == CalibrationMethod.PERCENTILE else (None,)
        for percentile in percentiles:
            for rounding in roundings():
                found: dict[str, JsonValue] = {"method": method}
                if percentile is not None:
                    found["percentile"] = percentile
                if rounding is not None:
                    found[ROUNDING] = rounding
                yield found


def roundings() -> tuple[str | None, ...]:
    """The ways to round weights that calibration and recipes both know; None for the only one."""
    if ROUNDING not in CalibrationOptions.model_fields or ROUNDING not in Recipe.model_fields:
        return (None,)
    return tuple(get_args(Recipe.model_fields[ROUNDING].annotation))
