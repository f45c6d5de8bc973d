"""A task: what a network's outputs are, how two sets of them are compared, and when that fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from skdeploy.backends.base import Array
from skdeploy.backends.logits import check_outputs
from skdeploy.backends.metrics import Metrics, Outputs, violations
from skdeploy.core.spec import ModelSpec, Precision, Tolerance
from skdeploy.parity.limits import INTEGERS, NONE, Limits
from skdeploy.parity.worst_image import Pictures


class Task(Protocol):
    """One task. ``help`` says in a few words what it is for, ``value`` what one number of an output is called.

    ``has_classes``: an image has one true class, so there are labels, top-1 and the accuracy gate. ``gives_maps``: an integer
    output is a map of classes. ``measures_integers``: ``measure`` takes these too. ``limits`` are those of the task's own
    figures. The spec says which outputs are compared (``ModelSpec.given``), each with one row an image; a graph may have
    others.
    """

    help: str
    value: str = "value"
    has_classes: bool = False
    gives_maps: bool = False
    measures_integers: bool = False
    limits: Limits = NONE

    def check(self, outputs: dict[str, Array], images: int, spec: ModelSpec) -> tuple[str, ...]:
        """Reasons why a comparison is pointless: an output is missing, has another shape or type, or is not finite."""
        return check_outputs(outputs, images, spec)

    def refusal(self, spec: ModelSpec) -> str:
        """Why a network's outputs cannot be of this task, to follow the task's name; empty if they can."""
        del spec
        return ""

    def tolerance(self, spec: ModelSpec, precision: Precision) -> Tolerance:
        """The card's limits for a precision, with the precision's and the task's own where the card gives none."""
        filled = self.limits.fill(spec.tolerance.get(precision, precision.tolerance), precision)
        whole = not (self.gives_maps or self.measures_integers) and any(not wanted.is_floating for wanted in spec.given)
        return INTEGERS.fill(filled, precision) if whole else filled

    def measure(self, reference: Outputs, found: Outputs, tolerance: Tolerance, spec: ModelSpec, /) -> Metrics:
        """How far ``found`` is from ``reference``, both checked and floating point; other outputs have ``measured``.

        What is special to a task goes into the figures.
        """
        ...

    def pictures(self, reference: Outputs, found: Outputs, image: int, spec: ModelSpec, /) -> Pictures | None:
        """Show how far one image, by its number, is from the reference's; None where nothing can be seen."""
        del reference, found, image, spec
        return None

    def violations(
        self, metrics: Metrics, tolerance: Tolerance, name_of: Callable[[int], str] | None = None, /
    ) -> tuple[str, ...]:
        """List what is out of tolerance; an empty list means parity. ``name_of`` names an image."""
        return violations(metrics, tolerance, name_of, self.value)
