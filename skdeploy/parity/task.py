"""A task: what a network's outputs are, how two sets of them are compared, and when that fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from skdeploy.backends.base import Array
from skdeploy.backends.logits import OUTPUT, check_outputs
from skdeploy.backends.metrics import Metrics, Outputs, violations
from skdeploy.core.spec import ModelSpec, Tolerance


class Task(Protocol):
    """One task. ``help`` says in a few words what it is for, ``value`` what one number of an output is called.

    ``outputs`` names what is compared, with one row an image; a graph may have others. ``has_classes``: an image has one true
    class, so there are labels, top-1 and the accuracy gate.
    """

    help: str
    value: str = "value"
    outputs: tuple[str, ...] = (OUTPUT,)
    has_classes: bool = False

    def check(self, outputs: dict[str, Array], images: int, spec: ModelSpec) -> tuple[str, ...]:
        """Reasons why a comparison is pointless: an output is missing, has another shape or type, or is not finite."""
        return check_outputs(outputs, images, spec)

    def measure(self, reference: Outputs, found: Outputs, tolerance: Tolerance, /) -> Metrics:
        """How far ``found`` is from ``reference``, both checked. What is special to a task goes into the figures."""
        ...

    def violations(
        self, metrics: Metrics, tolerance: Tolerance, name_of: Callable[[int], str] | None = None, /
    ) -> tuple[str, ...]:
        """List what is out of tolerance; an empty list means parity. ``name_of`` names an image."""
        return violations(metrics, tolerance, name_of, self.value)
