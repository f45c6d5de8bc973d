"""The pair on which an artifact loses most against the first, remembered while all are run, and then shown in pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from skdeploy.accuracy.measures import Measure
from skdeploy.backends.base import Array
from skdeploy.bundle.runners import Runner
from skdeploy.images.pairs import PairedData
from skdeploy.parity.tasks import task_of
from skdeploy.parity.worst_image import WorstImage

Outputs = Mapping[str, Array]  # of one pair, without the batch


class WorstPair:
    """Keeps the outputs of one pair. Of a figure that is not a mean over pairs no pair is worst, and nothing is kept."""

    def __init__(self, runners: Sequence[Runner], measure: Measure) -> None:
        self._runners, self._measure = runners, measure
        self._drop = -np.inf
        self._found: tuple[int, int, dict[str, Array], dict[str, Array]] | None = None

    def see(self, index: int, rows: Sequence[Sequence[float]], outputs: Sequence[Outputs]) -> None:
        """Take in one pair: the row of the measure, and the outputs, of each runner."""
        if not self._measure.is_mean:
            return
        for n in range(1, len(rows)):
            drop = self._measure.sign * (rows[0][0] - rows[n][0])
            if drop > self._drop:
                before, after = ({name: np.array(each) for name, each in outputs[at].items()} for at in (0, n))
                self._drop, self._found = drop, (index, n, before, after)

    def shown(self, pairs: PairedData) -> WorstImage | None:
        """Make the pictures; None where the outputs cannot be seen, or another bundle's have other names or shapes."""
        if self._found is None:
            return None
        index, n, before, after = self._found
        first, second = self._runners[0], self._runners[n]
        names = [output.name for output in first.spec.given]
        if any(name not in after or after[name].shape != before[name].shape for name in names):
            return None
        one, other = ({name: each[name][None] for name in names} for each in (before, after))
        pictures = task_of(first.spec).pictures(one, other, 0, first.spec)
        if pictures is None:
            return None
        return WorstImage(found=second.shown, against=first.shown, image=pairs.name_of(index), pictures=pictures)
