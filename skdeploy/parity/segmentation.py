"""Networks that give a class for each pixel, or for each voxel of a volume or each frame of a sequence."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from skdeploy.backends.base import Array
from skdeploy.backends.metrics import Metrics, Outputs, compare_outputs
from skdeploy.core.spec import ModelSpec, Tolerance
from skdeploy.parity import limits
from skdeploy.parity.pictures import pictures_of_classes
from skdeploy.parity.task import Task
from skdeploy.parity.worst_image import Pictures


class Segmentation(Task):
    """Logits or probabilities of each class, (N, classes, ...), or of the one class that there is, (N, 1, ...); or the classes
    themselves, integers or booleans, (N, ...) or (N, 1, ...).

    ``miou``: the intersection over union of the two maps of classes, over all images, its mean over the classes that either
    has. ``same_pixels``: the share of pixels with the same class; ``decided_pixels``: the share among those whose margin in the
    reference is wider than twice the error allowed, so that rounding alone cannot flip them.
    """

    help = "a class per pixel"
    value = "logit"
    gives_maps = True
    limits = limits.MASKS

    def refusal(self, spec: ModelSpec) -> str:
        wrong = [output for output in spec.given if len(output.shape) < 3]
        return f"takes maps, (N, classes, H, W), but the network gives {wrong[0]}" if wrong else ""

    def measure(self, reference: Outputs, found: Outputs, tolerance: Tolerance, spec: ModelSpec, /) -> Metrics:
        del spec
        each, others = [], []
        for name, expected in reference.items():
            agreement, differing = _agreement(expected, found[name], tolerance)
            each.append(agreement)
            others.append(differing / expected[0, 0].size)
        figures = {name: min(one[name] for one in each) for name in each[0]}
        most = np.max(others, axis=0)  # of each image, in any output
        worst = int(most.argmax()) if most.any() else None
        return compare_outputs(reference, found).model_copy(update={"figures": figures, "figure_image": worst})

    def pictures(self, reference: Outputs, found: Outputs, image: int, spec: ModelSpec, /) -> Pictures | None:
        del spec
        shown = []
        for name, expected in reference.items():
            begins = threshold_of(expected)
            before, after = (class_map(each[image, None], begins)[0] for each in (expected, found[name]))
            shown.append((float(np.mean(before != after)), before, after))
        _, before, after = max(shown, key=lambda one: one[0])
        return pictures_of_classes(before, after)

    def violations(
        self, metrics: Metrics, tolerance: Tolerance, name_of: Callable[[int], str] | None = None, /
    ) -> tuple[str, ...]:
        problems = super().violations(metrics, tolerance, name_of)
        miou, decided = metrics.figures["miou"], metrics.figures.get("decided_pixels", 1.0)
        if tolerance.min_miou is not None and not miou >= tolerance.min_miou:
            problems += (f"mIoU {miou:.4f} with the reference, at least {tolerance.min_miou:g}",)
        if not decided >= tolerance.min_top1_agreement:
            problems += (f"class agreement {decided:.4f} of decided pixels, at least {tolerance.min_top1_agreement:g}",)
        return problems


def classes_of_pixels(maps: Array, threshold: float = 0.0) -> NDArray[np.int64]:
    """The class of each pixel: (N, classes, ...) to (N, ...). With one class: 1 above the ``threshold``, else 0."""
    return (maps[:, 0] > threshold).astype(np.int64) if maps.shape[1] == 1 else np.asarray(maps.argmax(1))


def class_map(made: Array, threshold: float = 0.0) -> NDArray[np.int64]:
    """The same, also of an output that holds the classes: integers or booleans, (N, H, W) or (N, 1, H, W)."""
    if made.dtype.kind == "f":
        return classes_of_pixels(made, threshold)
    return np.asarray(made[:, 0] if made.ndim > 3 and made.shape[1] == 1 else made, np.int64)


def threshold_of(maps: Array) -> float:
    """Where one class begins: at 0 of logits, at a half of probabilities."""
    return 0.5 if maps.ndim > 1 and maps.shape[1] == 1 and maps.min() >= 0 and maps.max() <= 1 else 0.0


def confusions(one: NDArray[np.int64], other: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """How many pixels have each pair of classes, (classes, classes)."""
    pairs = np.bincount((one * classes + other).ravel(), minlength=classes * classes)
    return np.asarray(pairs.reshape(classes, classes), np.int64)


def mean_iou(counts: NDArray[np.int64]) -> float:
    """The mean intersection over union of the classes that either side has."""
    shared = np.diag(counts)
    union = counts.sum(0) + counts.sum(1) - shared
    return float(np.mean(shared[union > 0] / union[union > 0]))


def _agreement(reference: Array, found: Array, tolerance: Tolerance) -> tuple[dict[str, float], NDArray[np.int64]]:
    """The figures of an output, and the number of pixels with another class in each image, (N,)."""
    threshold, classes = threshold_of(reference), max(2, reference.shape[1])
    needed = 2 * tolerance.max_rel_error * float(np.max(np.abs(reference)))
    counts, differing, decided, agreed = np.zeros((classes, classes), np.int64), [], 0, 0
    for one, other in zip(reference[:, None], found[:, None], strict=True):  # an image at a time
        before, after = classes_of_pixels(one, threshold), classes_of_pixels(other, threshold)
        wide = _margin(one, threshold) > needed
        counts += confusions(before, after, classes)
        differing.append(int(np.count_nonzero(before != after)))
        decided += int(np.count_nonzero(wide))
        agreed += int(np.count_nonzero((before == after) & wide))
    figures = {
        "miou": mean_iou(counts),
        "same_pixels": (int(counts.sum()) - sum(differing)) / int(counts.sum()),
        "decided_pixels": agreed / decided if decided else 1.0,
    }
    return figures, np.array(differing)


def _margin(maps: Array, threshold: float) -> Array:
    """How far the class of a pixel is above the next one; of one class, twice how far it is from the threshold."""
    if maps.shape[1] == 1:
        return np.asarray(2 * np.abs(maps[:, 0] - threshold))
    two = np.partition(maps, maps.shape[1] - 2, axis=1)
    return np.asarray(two[:, -1] - two[:, -2])
