"""A task as somebody else's package would bring it: bearings, where only the angle between two vectors counts."""

from __future__ import annotations

import numpy as np

from skdeploy.backends.metrics import Metrics, Outputs, compare_values
from skdeploy.core.spec import ModelSpec, Tolerance
from skdeploy.parity.task import Task


class Bearings(Task):
    """An output is a direction: its length is nothing."""

    help = "one bearing an image"

    def __init__(self, most_degrees: float) -> None:
        self.most_degrees = most_degrees

    def measure(self, reference: Outputs, found: Outputs, _: Tolerance, __: ModelSpec, /) -> Metrics:
        one, other = (
            value / np.linalg.norm(value, axis=1, keepdims=True)
            for value in (outputs["logits"].astype(np.float64) for outputs in (reference, found))
        )
        degrees = np.degrees(2 * np.arcsin(np.linalg.norm(one - other, axis=1) / 2))
        return compare_values(one, other).model_copy(update={"figures": {"degrees": float(degrees.max())}})

    def violations(self, metrics: Metrics, _: Tolerance, __: object = None, /) -> tuple[str, ...]:
        turned = metrics.figures["degrees"]
        return (
            () if turned <= self.most_degrees else (f"turned by {turned:.3g} degrees, at most {self.most_degrees:g}",)
        )
