"""How far the outputs of an INT8 graph are from FP32's on samples whose truth nobody knows, and the gate by ``--min-sqnr``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from skdeploy.accuracy.mean_drop import Drop, drop_of_ratio, images_for
from skdeploy.accuracy.statistics import Decision, decide
from skdeploy.backends.metrics import EXACT_DB
from skdeploy.core.spec import Frozen, SampleWord

# Of a ratio of power: what no difference at all counts as, so that a draw of exact samples has a number.
LEAST_NOISE: Final = 10.0 ** (-EXACT_DB / 10)
SMALLEST: Final = 1e-300  # in place of the power of outputs that are all zero

Power = NDArray[np.float64]


@dataclass(frozen=True)
class Powers:
    """Sums of squares of each sample, (N, outputs) each: of FP32's output, of its difference, and of the output itself."""

    names: tuple[str, ...]
    signal: Power
    noise: Power
    found: Power

    def sqnr_db(self, weights: Power) -> Power:
        """The SQNR of the worst output, where samples are drawn as often as ``weights``, (draws, N), says: (draws,)."""
        ratio = (weights @ self.noise) / np.maximum(weights @ self.signal, SMALLEST)
        worst: Power = np.maximum(ratio, LEAST_NOISE).max(1)
        return -10 * np.log10(worst)

    @property
    def cosines(self) -> Power:
        """Of each sample and output: (N, outputs). <a, b> = (|a|^2 + |b|^2 - |a - b|^2) / 2."""
        size = np.sqrt(self.signal * self.found)
        product = (self.signal + self.found - self.noise) / 2
        return np.where(size > 0, product / np.maximum(size, SMALLEST), (self.signal == self.found).astype(float))


class OutputError(Frozen):
    """One output: SQNR in dB over all samples, and the cosine of the worst sample."""

    name: str
    sqnr_db: float
    min_cosine: float


class ErrorReport(Frozen):
    """The second artifact's outputs against the first's, on the same samples.

    ``sqnr_db`` is the worst output's, over all samples; ``low_db`` and ``high_db`` are its bounds, each one-sided with
    ``confidence`` in per cent: samples are drawn anew, as for a mean IoU (``accuracy/mean_drop.py``). ``decision`` only with a
    limit, ``min_sqnr_db``; ``images_to_decide`` only where it is inconclusive, and only if there is a number.
    """

    first: str
    second: str
    images: int
    sample: SampleWord = "image"
    sqnr_db: float
    low_db: float
    high_db: float
    confidence: float
    outputs: Annotated[tuple[OutputError, ...], Field(strict=False)]
    min_sqnr_db: float | None = None
    decision: Decision | None = None
    images_to_decide: int | None = None

    @property
    def guessing(self) -> str:
        """Nothing: FP32 is compared with itself, and not with a truth."""
        return ""

    @property
    def worst(self) -> OutputError:
        """The output with the lowest SQNR."""
        return min(self.outputs, key=lambda output: output.sqnr_db)

    @property
    def sentence(self) -> str:
        """The result in words."""
        of = f" at {self.worst.name}, its worst output," if len(self.outputs) > 1 else ""
        said = (
            f"{self.second} has {self.sqnr_db:.2f} dB SQNR{of} against {self.first} on {self.images:,} {self.sample}s, from "
            f"{self.low_db:.2f} to {self.high_db:.2f} at {self.confidence:g} %; lowest cosine {self.min_cosine:.6f}"
        )
        if self.decision is None:
            return said
        limit = f"the limit of {self.min_sqnr_db:g} dB"
        if self.decision == "pass":
            return f"{said}: above {limit}"
        if self.decision == "fail":
            return f"{said}: below {limit}"
        if self.images_to_decide is None:
            return f"{said}: exactly at {limit}, so more {self.sample}s may not decide it"
        return (
            f"{said}: too few {self.sample}s to tell whether that is above {limit}; about {self.images_to_decide:,} such "
            f"{self.sample}s would decide"
        )

    @property
    def min_cosine(self) -> float:
        """The lowest cosine of any sample and output."""
        return min(output.min_cosine for output in self.outputs)


def error_report(
    powers: Powers, names: Sequence[str], confidence: float, min_sqnr_db: float | None, sample: SampleWord
) -> ErrorReport:
    """From two samples on. ``names``: of the two artifacts. ``confidence`` in per cent."""
    count = len(powers.noise)
    found: Drop = drop_of_ratio(lambda weights: -powers.sqnr_db(weights), count, confidence / 100)
    decision = None if min_sqnr_db is None else decide((found.low, found.high), -min_sqnr_db)
    more = None
    if min_sqnr_db is not None and decision == "inconclusive":
        more = images_for(found, -min_sqnr_db, confidence / 100)
    one = np.ones((1, count))
    outputs = tuple(
        OutputError(
            name=name,
            sqnr_db=float(Powers((name,), *(of[:, [place]] for of in _all(powers))).sqnr_db(one)[0]),
            min_cosine=float(powers.cosines[:, place].min()),
        )
        for place, name in enumerate(powers.names)
    )
    return ErrorReport(
        first=names[0],
        second=names[1],
        images=count,
        sample=sample,
        sqnr_db=-found.drop,
        low_db=-found.high,
        high_db=-found.low,
        confidence=confidence,
        outputs=outputs,
        min_sqnr_db=min_sqnr_db,
        decision=decision,
        images_to_decide=more,
    )


def _all(powers: Powers) -> tuple[Power, Power, Power]:
    return powers.signal, powers.noise, powers.found
