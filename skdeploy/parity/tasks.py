"""Tasks of networks: what their outputs are, how two sets of outputs are compared, and when that fails."""

from __future__ import annotations

from typing import Final

from skdeploy.backends.base import Array
from skdeploy.backends.logits import OUTPUT
from skdeploy.backends.metrics import Metrics, Outputs, compare_logits, compare_outputs
from skdeploy.core.errors import CardError, UsageError
from skdeploy.core.spec import CLASSIFICATION, ModelSpec, Tolerance
from skdeploy.parity.task import Task

FEATURES: Final = "features"
RAW: Final = "raw"


class Classification(Task):
    """Logits, (N, classes): error, cosine and SQNR, and whether the top class stays the same."""

    help = "one class per image"
    value = "logit"
    has_classes = True

    def measure(self, reference: Outputs, found: Outputs, tolerance: Tolerance, _: ModelSpec, /) -> Metrics:
        return compare_logits(reference[OUTPUT], found[OUTPUT], tolerance)


class Features(Task):
    """An embedding or maps of a backbone, any number of outputs (N, ...): error, cosine and SQNR of each."""

    help = "vectors or maps per image"

    def measure(self, reference: Outputs, found: Outputs, _: Tolerance, __: ModelSpec, /) -> Metrics:
        return compare_outputs(reference, found)


class Raw(Features):
    """Any outputs, (N, ...), of which nothing more is known: error, cosine and SQNR of each."""

    help = "any outputs"


# A new task is a module with a ``Task``, and a line here.
TASKS: Final[dict[str, Task]] = {
    CLASSIFICATION: Classification(),
    FEATURES: Features(),
    RAW: Raw(),
}
FORMER: Final = {"embedding": FEATURES}  # names that earlier cards and bundles have


def check_task_name(name: str | None) -> None:
    """Raises UsageError for a ``--task`` that is not known."""
    if name is not None and name not in TASKS:
        raise UsageError(f"--task {name}: there is no such task", advice=f"choose from: {_known()}")


def _known() -> str:
    return ", ".join(f"{name} ({task.help})" for name, task in TASKS.items())


def task_of(spec: ModelSpec) -> Task:
    """The task of a card. Raises CardError for one that is not known, and for labels where there are no classes."""
    name = FORMER.get(spec.task, spec.task)
    if name not in TASKS:
        raise CardError(f"the card {spec.name} has an unknown task {spec.task!r}", advice=f"choose from: {_known()}")
    task = TASKS[name]
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
            f"{what} needs classes, but {spec.name} has the task {spec.task!r}: {task_of(spec).help}, without labels",
            advice="use `skdeploy verify`, which compares its outputs with the reference's",
        )


def judged(spec: ModelSpec, outputs: Outputs) -> dict[str, Array]:
    """The outputs that are compared."""
    return {wanted.name: outputs[wanted.name] for wanted in spec.given}
