"""Figures of samples against their ground truth: PSNR and SSIM of images, IoU of masks, a function of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from skdeploy.accuracy.own_metric import OwnMetric
from skdeploy.backends.base import Array
from skdeploy.backends.image_quality import channels_first, levels_of, psnr_db, ssim
from skdeploy.core.errors import UsageError
from skdeploy.core.spec import ModelSpec
from skdeploy.images.targets import IGNORED, Kind, check_classes
from skdeploy.parity.segmentation import class_map, confusions, threshold_of
from skdeploy.parity.tasks import IMAGE_TO_IMAGE, SEGMENTATION

Outputs = Mapping[str, Array]  # of one sample, without the batch
Target = NDArray[Any]
Rows = NDArray[np.float64]  # (N, columns)
Weights = NDArray[np.float64]  # (draws, N)


class Measure(Protocol):
    """One figure. ``unit`` follows its numbers; ``sign`` is -1 if less is better; ``is_mean``: a mean over samples.

    ``is_kept``: the rows of an earlier run may be used, since the same code makes them.
    """

    name: str
    unit: str
    sign: int = 1
    is_mean: bool = True
    is_kept: bool = True
    kind: Kind

    def columns(self, spec: ModelSpec) -> int:
        """How many numbers a row has."""
        del spec
        return 1

    def of(self, outputs: Outputs, target: Target, shown: str, spec: ModelSpec) -> list[float]:
        """The row of one sample, from which ``figure`` is made. ``shown`` names its target. Raises UsageError."""
        ...

    def figure(self, rows: Rows, weights: Weights) -> NDArray[np.float64]:
        """The figure of all samples, (draws,), for each set of weights."""
        return np.asarray(weights @ rows[:, 0] / weights.sum(1))

    def check(self, rows: Rows) -> None:
        """Raises UsageError where the samples show nothing, so that no drop could be seen."""
        del rows

    def untouched(self, pixels: NDArray[np.uint8], target: Target) -> float | None:
        """The figure of an input that nothing was done to; None if it is not of the target's kind."""
        del pixels, target
        return None


class _OfImages(Measure):
    kind = "image"
    compare: Callable[[Any, Any], NDArray[np.float64]]

    def of(self, outputs: Outputs, target: Target, shown: str, spec: ModelSpec) -> list[float]:
        tells = spec.given[0]
        output = channels_first(outputs[tells.name][None], tells)[0]
        expected = target.transpose(2, 0, 1)[None].astype(np.float64)
        if output.shape != expected.shape[1:]:
            raise UsageError(
                f"the network gives {_shown(output.shape)} (channels, height, width), but {shown} is "
                f"{_shown(expected.shape[1:])}",
                advice="the task image-to-image compares images of the same size; for others give --metric",
            )
        levels = levels_of(output[None], spec.preprocess.mean, spec.preprocess.std)
        return [float(type(self).compare(expected, levels)[0])]

    def untouched(self, pixels: NDArray[np.uint8], target: Target) -> float | None:
        if pixels.shape != target.shape:
            return None
        before, after = (image.transpose(2, 0, 1)[None].astype(np.float64) for image in (target, pixels))
        return float(type(self).compare(before, after)[0])


class Psnr(_OfImages):
    """Of values 0..255 that are clipped but not rounded, all channels at once; of each image at most ``CEILING_DB``.

    Nothing nearer can be told, since targets are rounded to 8 bits themselves. One image that a network gives exactly would
    count 300 dB, and outweigh a hundred others in a mean.
    """

    name, unit = "PSNR", "dB"

    @staticmethod
    def compare(reference: Any, found: Any) -> NDArray[np.float64]:
        return np.minimum(psnr_db(reference, found), CEILING_DB)


class Ssim(_OfImages):
    """With a window of 7 pixels, the mean of all channels."""

    name, unit, compare = "SSIM", "", staticmethod(ssim)


NUMBERS: Final = 257  # of an integer map: those of an 8-bit mask, and one for all others, which no mask has


class MeanIoU(Measure):
    """Of the classes that any mask or output has, over all pixels of all images that are not 255."""

    name, unit, is_mean, kind = "mIoU", "points", False, "mask"

    def columns(self, spec: ModelSpec) -> int:
        output = spec.given[0]
        classes = 1 if output.dtype == "bool" else NUMBERS if not output.is_floating else output.shape[1]
        if not isinstance(classes, int):
            raise UsageError(
                f"{spec.name} gives {output}, an unknown number of classes", advice="export it with fixed classes"
            )
        return 2 * max(2, classes)

    def of(self, outputs: Outputs, target: Target, shown: str, spec: ModelSpec) -> list[float]:
        maps = outputs[spec.given[0].name][None]
        found = class_map(maps, threshold_of(maps))[0]
        classes = maps.shape[1] if maps.dtype.kind == "f" else 1 if maps.dtype == bool else NUMBERS
        if found.shape != target.shape:
            raise UsageError(
                f"the network gives maps of {_shown(found.shape)}, but {shown} is cut to {_shown(target.shape)}",
                advice="enlarge the logits to the size of the image in the network, or give --metric",
            )
        truth = check_classes(target, classes, shown)
        judged = truth != IGNORED if classes > 1 else np.ones(truth.shape, bool)
        known = np.where((found >= 0) & (found < classes), found, NUMBERS - 1) if classes == NUMBERS else found
        counts = confusions(truth[judged], known[judged], max(2, classes))
        shared = np.diag(counts)
        return [*shared.tolist(), *(counts.sum(0) + counts.sum(1) - shared).tolist()]

    def check(self, rows: Rows) -> None:
        if not rows.any():
            raise UsageError(
                f"no pixel of any mask is judged: all are {IGNORED}, which means that nobody says what is there",
                advice="give masks with the numbers of classes",
            )

    def figure(self, rows: Rows, weights: Weights) -> NDArray[np.float64]:
        shared, union = np.split(weights @ rows, 2, axis=1)
        there = union > 0
        ratios = np.divide(shared, union, out=np.zeros_like(shared), where=there)
        return np.asarray(100 * ratios.sum(1) / np.maximum(there.sum(1), 1))


class Own(Measure):
    """A function of the user's own, of one sample."""

    unit = ""
    is_kept = False

    def __init__(self, metric: OwnMetric, kind: Kind) -> None:
        self.name, self.kind, self.sign, self._metric = metric.name, kind, metric.sign, metric

    def of(self, outputs: Outputs, target: Target, shown: str, spec: ModelSpec) -> list[float]:
        del spec
        return [self._metric.of(dict(outputs), target, shown)]


# Rounding has an error of 1/12 in power: 10 log10(255^2 * 12).
CEILING_DB: Final = 58.92
OF_TASKS: Final[dict[str, tuple[Measure, ...]]] = {
    IMAGE_TO_IMAGE: (Psnr(), Ssim()),
    SEGMENTATION: (MeanIoU(),),
}
KINDS: Final[dict[str, Kind]] = {IMAGE_TO_IMAGE: "image", SEGMENTATION: "mask"}


def measures_of(spec: ModelSpec, own: OwnMetric | None) -> tuple[Measure, ...]:
    """The measures of a network: the user's own metric, if there is one, else those of its task; the first has the budget.

    Raises UsageError for a task that has none.
    """
    if own is not None:
        return (Own(own, KINDS.get(spec.task, "array") if spec.takes_images else "array"),)
    found = OF_TASKS.get(spec.task, ())
    if not found or not spec.takes_images:
        what = f"the task {spec.task!r}" if not found else "networks that take arrays"
        raise UsageError(
            f"skdeploy has no measure of accuracy for {what}",
            advice="give your own: --metric module:function, which gets the outputs of a sample and its target",
        )
    return found


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
