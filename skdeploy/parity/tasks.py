"""Tasks of networks: what their outputs are, how two sets of outputs are compared, and when that fails."""

from __future__ import annotations

from typing import Final

from skdeploy.backends.base import Array
from skdeploy.backends.logits import OUTPUT
from skdeploy.backends.metrics import Metrics, Outputs, compare_logits, compare_values
from skdeploy.core.errors import CardError, UsageError
from skdeploy.core.spec import CLASSIFICATION, ModelSpec, Tolerance
from skdeploy.parity.task import Task


class Classification(Task):
    """Logits, (N, classes): error, cosine and SQNR, and whether the top class stays the same."""

    help = "one class per image"
    value = "logit"
    has_classes = True

    def measure(self, reference: Outputs, found: Outputs, tolerance: Tolerance, /) -> Metrics:
        return compare_logits(reference[OUTPUT], found[OUTPUT], tolerance)


class Embedding(Task):
    """A vector for each image, (N, values): error, cosine and SQNR. ``network.classes`` of the card is its length."""

    help = "one vector per image"

    def measure(self, reference: Outputs, found: Outputs, _: Tolerance, /) -> Metrics:
        return compare_values(reference[OUTPUT], found[OUTPUT])


# A new task is a module with a ``Task``, and a line here.
TASKS: Final[dict[str, Task]] = {CLASSIFICATION: Classification(), "embedding": Embedding()}


def task_of(spec: ModelSpec) -> Task:
    """The task of a card. Raises CardError for one that is not known, and for labels where there are no classes."""
    if spec.task not in TASKS:
        known = ", ".join(f"{name} ({task.help})" for name, task in TASKS.items())
        raise CardError(f"the card {spec.name} has an unknown task {spec.task!r}", advice=f"choose from: {known}")
    task = TASKS[spec.task]
    if spec.labels and not task.has_classes:
        raise CardError(
            f"the card {spec.name} has labels, but its task {spec.task!r} has no classes",
            advice=f"remove the labels, or remove the task: the default is {CLASSIFICATION}",
        )
    return task


def require_classes(spec: ModelSpec, what: str) -> None:
    """Raises UsageError for a task without classes: ``what`` is an option or verb that counts them."""
    if not task_of(spec).has_classes:
        raise UsageError(
            f"{what} needs classes, but {spec.name} has the task {spec.task!r}: {TASKS[spec.task].help}, "
            "without labels",
            advice="use `skdeploy verify`, which compares its outputs with the reference's",
        )


def judged(task: Task, outputs: dict[str, Array]) -> dict[str, Array]:
    """The outputs that a task compares."""
    return {name: outputs[name] for name in task.outputs}
