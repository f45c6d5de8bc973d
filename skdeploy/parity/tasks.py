"""What networks are for: what their outputs are, how two sets of outputs are compared, and what of that is a failure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from skdeploy.backends.base import Array
from skdeploy.backends.logits import OUTPUT, check_outputs
from skdeploy.backends.metrics import Metrics, Outputs, compare_logits, compare_values, violations
from skdeploy.core.errors import CardError, UsageError
from skdeploy.core.spec import CLASSIFICATION, ModelSpec, Tolerance


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
        """What makes a comparison pointless: an output is missing, has another shape or type, or is not finite."""
        return check_outputs(outputs, images, spec)

    def measure(self, reference: Outputs, found: Outputs, tolerance: Tolerance, /) -> Metrics:
        """How far ``found`` is from ``reference``, both checked. What is special to a task goes into the figures."""
        ...

    def violations(
        self, metrics: Metrics, tolerance: Tolerance, name_of: Callable[[int], str] | None = None, /
    ) -> tuple[str, ...]:
        """What is out of tolerance, in words; nothing means parity. ``name_of`` names an image."""
        return violations(metrics, tolerance, name_of, self.value)


class Classification(Task):
    """Logits, (N, classes): error, cosine and SQNR, and whether the top class stays the same."""

    help = "one class an image"
    value = "logit"
    has_classes = True

    def measure(self, reference: Outputs, found: Outputs, tolerance: Tolerance, /) -> Metrics:
        return compare_logits(reference[OUTPUT], found[OUTPUT], tolerance)


class Embedding(Task):
    """A vector for each image, (N, values): error, cosine and SQNR. ``network.classes`` of the card is its length."""

    help = "one vector an image"

    def measure(self, reference: Outputs, found: Outputs, _: Tolerance, /) -> Metrics:
        return compare_values(reference[OUTPUT], found[OUTPUT])


# A new task is one ``Task`` and a line here.
TASKS: Final[dict[str, Task]] = {CLASSIFICATION: Classification(), "embedding": Embedding()}


def task_of(spec: ModelSpec) -> Task:
    """The task of a card. Raises CardError for one that is not known, and for labels where there are no classes."""
    if spec.task not in TASKS:
        known = ", ".join(f"{name} ({task.help})" for name, task in TASKS.items())
        raise CardError(
            f"the card {spec.name} has the task {spec.task!r}, which is not known", advice=f"tasks: {known}"
        )
    task = TASKS[spec.task]
    if spec.labels and not task.has_classes:
        raise CardError(
            f"the card {spec.name} has labels, and its task {spec.task!r} has no classes",
            advice=f"take out labels, or the task: without one it is {CLASSIFICATION}",
        )
    return task


def require_classes(spec: ModelSpec, what: str) -> None:
    """Raises UsageError for a task without classes: ``what`` is an option or verb that counts them."""
    if not task_of(spec).has_classes:
        raise UsageError(
            f"{what} needs classes, and {spec.name} has the task {spec.task!r}: {TASKS[spec.task].help}, without labels",
            advice="`skdeploy verify` compares its outputs with the reference's",
        )


def judged(task: Task, outputs: dict[str, Array]) -> dict[str, Array]:
    """The outputs that a task compares."""
    return {name: outputs[name] for name in task.outputs}
