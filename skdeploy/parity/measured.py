"""One comparison: the task's own of floating-point outputs, and which values of integers and booleans are equal."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from skdeploy.backends.base import Array
from skdeploy.backends.metrics import Agreement, Metrics, Outputs, is_floating
from skdeploy.core.spec import ModelSpec, Tolerance
from skdeploy.parity.margins import NONE as NO_MARGINS
from skdeploy.parity.margins import Margins
from skdeploy.parity.task import Task


def measured(
    task: Task,
    reference: Outputs,
    found: Outputs,
    tolerance: Tolerance,
    spec: ModelSpec,
    margins: Margins = NO_MARGINS,
) -> Metrics:
    """How far ``found`` is from ``reference``, both checked. ``margins``: of integer outputs, where they are known."""
    if task.measures_integers:
        return task.measure(reference, found, tolerance, spec)
    floats = {name: value for name, value in reference.items() if is_floating(value)}
    images = len(next(iter(reference.values())))
    metrics = task.measure(floats, found, tolerance, spec) if floats else Metrics.without_errors(images)
    whole = {name: value for name, value in reference.items() if name not in floats}
    if not whole:
        return metrics
    needed = 2 * tolerance.max_rel_error
    rows = {
        name: agreement(
            value, found[name], margins.known.get(name), needed, maps=task.gives_maps, why=margins.unknown.get(name, "")
        )
        for name, value in whole.items()
    }
    word = "pixels" if task.gives_maps else "values"
    figures = dict(metrics.figures)
    each: list[tuple[str, float | None]] = []
    same_class = metrics.top1_agreement
    for name, row in rows.items():
        if task.has_classes and name == spec.class_tensor.name:
            same_class = row.same / row.values  # which of them are decided, ``integers`` has
            continue
        each += [("miou", row.miou), (f"same_{word}", row.same / row.values), (f"decided_{word}", row.decided)]
    for figure, share in each:
        if share is not None:
            figures[figure] = min(share, figures.get(figure, 1.0))
    return metrics.model_copy(
        update={
            "figures": figures,
            "integers": rows,
            "top1_agreement": same_class,
            "figure_image": _most_differing(whole, found) if metrics.figure_image is None else metrics.figure_image,
        }
    )


def agreement(
    reference: Array, found: Array, margin: Array | None, needed: float, *, maps: bool, why: str = ""
) -> Agreement:
    """Of one output, (N, ...). A value is decided if its ``margin`` is more than ``needed``; ``why`` there are none."""
    equal = reference == found
    wide = None if margin is None else margin > needed
    decided = None if wide is None else float(np.mean(equal[wide])) if wide.any() else 1.0
    return Agreement(
        values=reference.size,
        same=int(np.count_nonzero(equal)),
        decided=decided,
        undecided=why,
        miou=iou_of_classes(reference, found) if maps else None,
    )


def iou_of_classes(one: NDArray[np.integer], other: NDArray[np.integer]) -> float:
    """The mean intersection over union of the numbers that either map has."""
    numbers, places = np.unique(np.concatenate([one.ravel(), other.ravel()]), return_inverse=True)
    first, second = np.split(places, 2)
    shared = np.bincount(first[first == second], minlength=len(numbers))
    union = np.bincount(first, minlength=len(numbers)) + np.bincount(second, minlength=len(numbers)) - shared
    return float(np.mean(shared / union))


def _most_differing(reference: Outputs, found: Outputs) -> int | None:
    """The image in which most values differ; None where none does."""
    shares = [
        np.mean((value != found[name]).reshape(len(value), -1), axis=1)
        for name, value in reference.items()
        if value.size
    ]
    most = np.max(shares, axis=0)
    return int(most.argmax()) if most.any() else None
