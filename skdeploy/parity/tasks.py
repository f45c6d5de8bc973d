"""Tasks of networks: what their outputs are, how two sets of outputs are compared, and when that fails."""

from __future__ import annotations

from typing import Final

from skdeploy.backends.base import Array
from skdeploy.backends.metrics import Metrics, Outputs, compare_outputs, same_classes
from skdeploy.core.errors import CardError, UsageError
from skdeploy.core.spec import CLASSIFICATION, ModelSpec, Precision, Tolerance
from skdeploy.parity.features import Features, Raw
from skdeploy.parity.image_to_image import ImageToImage
from skdeploy.parity.segmentation import Segmentation
from skdeploy.parity.task import Task


class Classification(Task):
    """Logits, (N, classes), or class numbers: error, cosine and SQNR, and whether the top class stays the same. Other outputs
    have error, cosine and SQNR too.
    """

    help = "one class per image"
    value = "logit"
    has_classes = True

    def measure(self, reference: Outputs, found: Outputs, tolerance: Tolerance, spec: ModelSpec, /) -> Metrics:
        metrics, name = compare_outputs(reference, found), spec.class_tensor.name
        if name not in reference:
            return metrics
        return metrics.model_copy(update=same_classes(reference[name], found[name], tolerance))

    def refusal(self, spec: ModelSpec) -> str:
        tells = spec.class_tensor
        fits = len(tells.shape) == 2 if tells.is_floating else tells.shape[1:] in ((), (1,))
        return "" if fits else f"takes (N, classes) or class numbers (N,), but the network gives {tells}"


FEATURES: Final = "features"
IMAGE_TO_IMAGE: Final = "image-to-image"
RAW: Final = "raw"
SEGMENTATION: Final = "segmentation"

# A new task is a module with a ``Task``, and a line here.
TASKS: Final[dict[str, Task]] = {
    CLASSIFICATION: Classification(),
    IMAGE_TO_IMAGE: ImageToImage(),
    SEGMENTATION: Segmentation(),
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


def tolerance_of(spec: ModelSpec, precision: Precision) -> Tolerance:
    """The limits of a precision: the card's, or where it gives none those of the precision and the task."""
    return task_of(spec).tolerance(spec, precision)


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
