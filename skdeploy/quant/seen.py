"""All that one pass of calibration keeps of the tensors it watches: integers, extrema and exact sums.

So what several threads, or several machines, have seen of different images can be merged in any order, to the same bits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from skdeploy.quant.exact_sums import LIMBS, ExactSums
from skdeploy.quant.observers import BINS, MagnitudeHistogram, MinMax, NotFiniteError

GROUPS: Final = 2  # of images: the first ones, which ranges are fitted to before a choice of method, and the others

Arrays = Mapping[str, NDArray[Any]]


class Seen:
    """For each group of images an observer of each tensor; per channel, sums of means and largest magnitudes of all images.

    ``images`` is how many were seen. ``kind`` is the observer: ``MinMax``, or ``MagnitudeHistogram`` where magnitudes count.
    """

    def __init__(self, tensors: Sequence[str], kind: type[MinMax]) -> None:
        self.tensors = tuple(tensors)
        self.kind = kind
        self.images = 0
        self.groups: list[dict[str, MinMax]] = [{name: kind() for name in tensors} for _ in range(GROUPS)]
        self.sums: dict[str, ExactSums] = {}
        self.maxima: dict[str, NDArray[np.float32]] = {}

    def update(
        self,
        name: str,
        values: NDArray[np.float32],
        groups: Sequence[int],
        extrema: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
    ) -> None:
        """Takes a tensor of some images, (N, ...), and the group of each.

        ``extrema`` are the minimum and the maximum of each image, (N,), where they are known: ``values`` may then be some of
        the tensor. Raises NotFiniteError.
        """
        if extrema is not None and not (finite := np.isfinite(extrema).all(axis=0)).all():
            raise NotFiniteError(int(finite.argmin()))
        start = 0
        for group, members in groupby(groups):
            end = start + len(list(members))
            known = (
                None if extrema is None else (float(extrema[0][start:end].min()), float(extrema[1][start:end].max()))
            )
            try:
                self.groups[group][name].update(values[start:end], known)
            except NotFiniteError as error:
                raise NotFiniteError(start + error.image) from error
            start = end

    def add_means(self, name: str, rows: NDArray[np.floating]) -> None:
        """Takes the means over space of some images, (N, C)."""
        if name not in self.sums:
            self.sums[name] = ExactSums.of(rows.shape[1])
        self.sums[name].add(rows)

    def add_maxima(self, name: str, maxima: NDArray[np.float32]) -> None:
        """Takes the largest magnitudes of some images, (C,)."""
        self.maxima[name] = np.maximum(self.maxima[name], maxima) if name in self.maxima else maxima

    def merge(self, other: Self) -> None:
        """As if this one had seen all that ``other`` saw."""
        self.images += other.images
        for mine, theirs in zip(self.groups, other.groups, strict=True):
            for name, observer in mine.items():
                observer.merge(theirs[name])
        for name, sums in other.sums.items():
            if name in self.sums:
                self.sums[name].merge(sums)
            else:
                self.sums[name] = ExactSums(sums.limbs.copy())
        for name, maxima in other.maxima.items():
            self.add_maxima(name, maxima)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All but the largest magnitudes of channels, for a file: ``merge_arrays`` reads it."""
        observers = [[of[name] for name in self.tensors] for of in self.groups]
        found: dict[str, NDArray[Any]] = {
            "values": np.array([[each.count for each in of] for of in observers], np.int64),
            "range": np.array([[[each.minimum, each.maximum] for each in of] for of in observers], np.float64),
        }
        if self.kind is MagnitudeHistogram:
            counted = [[each for each in of if isinstance(each, MagnitudeHistogram)] for of in observers]
            found["zeros"] = np.array([[each.zeros for each in of] for of in counted], np.int64)
            bins = np.array([[each.counts for each in of] for of in counted], np.int64)
            found["bins"] = bins.astype(np.min_scalar_type(int(bins.max(initial=0))))
        for place, name in enumerate(self.tensors):
            if name in self.sums:
                found[f"sums{place}"] = self.sums[name].limbs
        return found

    def merge_arrays(self, found: Arrays, images: int, means: Collection[str]) -> None:
        """Merges what ``arrays`` gave of ``images`` images; ``means``: the tensors that have sums, if there are images.

        Raises ValueError or KeyError for arrays of anything else.
        """
        other = type(self)(self.tensors, self.kind)
        other.images = images
        shape = (GROUPS, len(self.tensors))
        values, extrema = _whole(found["values"], shape), found["range"]
        if extrema.shape != (*shape, 2):
            raise ValueError("the ranges have another shape")
        for group, of in enumerate(other.groups):
            for place, name in enumerate(self.tensors):
                of[name].count = int(values[group, place])
                of[name].minimum, of[name].maximum = map(float, extrema[group, place])
        if self.kind is MagnitudeHistogram:
            zeros, bins = _whole(found["zeros"], shape), _whole(found["bins"], (*shape, BINS))
            if not np.array_equal(bins.sum(axis=2) + zeros, values):
                raise ValueError("the histograms do not count all values")
            for group, of in enumerate(other.groups):
                for place, observer in enumerate(of.values()):
                    assert isinstance(observer, MagnitudeHistogram)  # as self.kind says
                    observer.restore(int(zeros[group, place]), bins[group, place].copy())
        for place, name in enumerate(self.tensors):
            if name in means and images:
                limbs = found[f"sums{place}"]
                if limbs.ndim != 2 or limbs.shape[0] != LIMBS or limbs.dtype != np.int64:
                    raise ValueError("the sums have another shape")
                other.sums[name] = ExactSums(limbs)
        self.merge(other)


def _whole(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.int64]:
    if array.shape != shape or array.dtype.kind not in "iu":
        raise ValueError("the counts have another shape")
    return array.astype(np.int64)
