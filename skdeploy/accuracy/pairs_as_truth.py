"""Pairs as what INT8 is measured against: for ``sensitivity`` and for the search for mixed precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Final

import numpy as np

from skdeploy.accuracy.mean_drop import LEAST, drop_of_mean, drop_of_ratio
from skdeploy.accuracy.measures import Measure, measures_of
from skdeploy.accuracy.own_metric import OwnMetric
from skdeploy.accuracy.untouched import useless
from skdeploy.backends.base import Array
from skdeploy.core.errors import UsageError
from skdeploy.core.spec import ModelSpec
from skdeploy.images.pairs import PairedData, open_pairs
from skdeploy.quant.effect import Crops
from skdeploy.quant.truth import FigureDrop, Rows, Truth

CONFIDENCE: Final = 0.95  # of bounds that nobody reads here: only the drop and its spread are used


@dataclass(frozen=True)
class PairsAsTruth(Truth):
    """Pairs, and the first figure of the task, or the user's own."""

    pairs: PairedData
    measure: Measure
    spec: ModelSpec
    own: OwnMetric | None = None

    @classmethod
    def of(cls, data: Path, spec: ModelSpec, own: OwnMetric | None, number: int | None = None) -> PairsAsTruth:
        """Pairs at a path, ``number`` of them at most. Raises UsageError."""
        measure = measures_of(spec, own)[0]
        return cls(open_pairs(data, spec, number), measure, spec, own)

    @property
    def figure(self) -> str:
        return self.measure.name

    @property
    def unit(self) -> str:
        return self.measure.unit

    @property
    def crops(self) -> Crops:
        return self.pairs.crops(self.spec, self.measure.kind)

    def check(self, samples: int, spec: ModelSpec) -> None:
        del spec
        if samples < LEAST:
            raise UsageError(f"{samples} pairs are too few: {LEAST} are needed", advice="give more pairs")

    def row(self, index: int, outputs: Mapping[str, Array], spec: ModelSpec) -> list[float]:
        target = self.pairs.target(index, spec, self.measure.kind)
        return self.measure.of(outputs, target, self.pairs.target_name(index), spec)

    def value(self, rows: Rows) -> float:
        return float(self.measure.figure(rows, np.ones((1, len(rows))))[0])

    def drop(self, before: Rows, after: Rows) -> FigureDrop:
        sign, figure = self.measure.sign, self.measure.figure
        if self.measure.is_mean:
            found = drop_of_mean(sign * (before - after)[:, 0], CONFIDENCE)
        else:
            found = drop_of_ratio(
                lambda weights: sign * (figure(before, weights) - figure(after, weights)), len(before), CONFIDENCE
            )
        return FigureDrop(images=found.images, points=found.drop, standard_error=found.spread / sqrt(found.images))

    def guessing(self, rows: Rows) -> str:
        self.measure.check(rows)
        measure, pairs, spec = self.measure, self.pairs, self.spec
        before = [measure.untouched(*pairs.read(index, spec, measure.kind)) for index in range(len(pairs))]
        known = [value for value in before if value is not None]
        as_they_are = float(np.mean(known)) if len(known) == len(before) else None
        return useless("FP32", measure.name, measure.unit, self.value(rows), as_they_are, measure.sign)
