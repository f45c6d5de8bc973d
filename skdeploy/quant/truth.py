"""The true answers of samples, and how much worse than FP32 an INT8 graph is at it."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from skdeploy.backends.base import Array
from skdeploy.backends.logits import class_of_each
from skdeploy.core.errors import UsageError
from skdeploy.core.spec import Frozen, ModelSpec
from skdeploy.images import chance

TOP1: Final = "top-1"
POINTS: Final = "points"  # percentage points
ROUNDING: Final = 1e-9  # of a budget in points times a number of images, which float64 holds to 1e-13
CONFIDENCE: Final = 1.96  # standard errors each way: 95 % of a normal distribution

Labels = NDArray[np.integer[Any]]
Rows = NDArray[np.float64]  # (N, columns)


class Drop(Frozen):
    """Accuracy of a graph against FP32's on the same images: ``lost`` were right and are wrong, ``gained`` the reverse."""

    images: int
    lost: int
    gained: int

    @property
    def points(self) -> float:
        """Percentage points of top-1 that are lost; negative if accuracy rose."""
        return 100 * (self.lost - self.gained) / self.images

    @property
    def standard_error(self) -> float:
        """Of ``points``, for paired images: the standard deviation of an image's loss of 1, 0 or -1, by sqrt(images)."""
        net = self.lost - self.gained
        return 100 * sqrt(self.lost + self.gained - net * net / self.images) / self.images

    @property
    def margin(self) -> float:
        """Each way, at 95 %."""
        # Where no image changed, the rule of three: what 95 % of such sets stay below is 3 in as many images.
        return CONFIDENCE * self.standard_error or 300 / self.images

    def fits(self, max_drop: float) -> bool:
        """Whether no more than this many points are lost."""
        return 100 * (self.lost - self.gained) <= max_drop * self.images + ROUNDING


class FigureDrop(Frozen):
    """The same of any figure, in its own unit: ``points`` are lost, negative if it became better."""

    images: int
    points: float
    standard_error: float

    @property
    def margin(self) -> float:
        """Each way, at 95 %."""
        return CONFIDENCE * self.standard_error

    def fits(self, max_drop: float) -> bool:
        """Whether no more than this is lost."""
        return self.points <= max_drop


class Truth(Protocol):
    """The true answer of each of some samples. ``figure`` is what is measured against it, in ``unit``."""

    @property
    def figure(self) -> str: ...

    @property
    def unit(self) -> str: ...

    def check(self, samples: int, spec: ModelSpec) -> None:
        """Raises UsageError unless there is a true answer for each of the samples, and one that the network can give."""

    def row(self, index: int, outputs: Mapping[str, Array], spec: ModelSpec) -> list[float]:
        """Of one sample, from which ``value`` is made. ``outputs`` are those of the sample, without the batch."""
        ...

    def value(self, rows: Rows) -> float:
        """The figure of all samples: of top-1 a share, of others in ``unit``."""
        ...

    def drop(self, before: Rows, after: Rows) -> Drop | FigureDrop:
        """How much of the figure is lost from FP32 to another graph, on the same samples."""
        ...

    def guessing(self, rows: Rows) -> str:
        """Why no drop can be seen: FP32 is not better than what needs no network. Empty if it is."""
        ...


class ClassLabels(Truth):
    """Class numbers, (N,)."""

    figure, unit = TOP1, POINTS

    def __init__(self, labels: Labels) -> None:
        self.labels = np.asarray(labels)

    def check(self, samples: int, spec: ModelSpec) -> None:
        labels, classes = self.labels, spec.network.classes
        if labels.shape != (samples,) or not np.issubdtype(labels.dtype, np.integer):
            raise UsageError(
                f"labels are {labels.dtype} of shape {labels.shape}, but there are {samples} images",
                advice="give one class number per image",
            )
        bad = np.flatnonzero((labels < 0) | (labels >= classes))
        if len(bad):
            raise UsageError(
                f"image {bad[0]} has label {labels[bad[0]]}, but {spec.name} has {classes} classes",
                advice=f"labels must be from 0 to {classes - 1}, in the order of the network's outputs",
            )

    def row(self, index: int, outputs: Mapping[str, Array], spec: ModelSpec) -> list[float]:
        name = spec.class_tensor.name
        (found,) = class_of_each({name: outputs[name][None]}, spec)
        return [float(found == self.labels[index])]

    def value(self, rows: Rows) -> float:
        return float(np.mean(rows))

    def drop(self, before: Rows, after: Rows) -> Drop:
        return Drop(images=len(before), lost=int(np.sum(before > after)), gained=int(np.sum(before < after)))

    def guessing(self, rows: Rows) -> str:
        right, images, most = int(rows.sum()), len(rows), int(np.bincount(self.labels).max())
        return "" if chance.beats_guessing(right, images, most) else chance.sentence("FP32", right, images, most)
