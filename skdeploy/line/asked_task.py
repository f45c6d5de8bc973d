"""The task of an ONNX file or a module: as its card or ``--task`` says, else by the shapes of its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from skdeploy.checkpoints.own_module import Shown, sizes_of
from skdeploy.core.errors import CardError, UsageError
from skdeploy.core.spec import CLASSIFICATION, TensorSpec
from skdeploy.line.options import ExportOptions
from skdeploy.parity.infer_task import gives_image, inferred_task
from skdeploy.parity.tasks import FEATURES, IMAGE_TO_IMAGE, SEGMENTATION
from skdeploy.zoo.cards import load_interface_card
from skdeploy.zoo.class_output import Asked as AskedOutput
from skdeploy.zoo.class_output import ClassOutput, class_output

KNOWN_CLASSES: Final = (10, 100, 1000)  # of CIFAR and ImageNet
OF_MAPS: Final = (IMAGE_TO_IMAGE, SEGMENTATION)  # tasks whose outputs cannot be logits of one class an image


@dataclass(frozen=True)
class Asked:
    """``task``: None if nobody says it. ``has_classes``: whether the network is a classifier; None if it is to be seen.

    ``classes``: how many there are, if the user or the card says it; ``output``: the card's output with the classes.
    """

    task: str | None
    has_classes: bool | None
    classes: int | None = None
    output: str = ""

    @classmethod
    def of(cls, options: ExportOptions) -> Self:
        """Raises UsageError for a card and a ``--task`` that contradict each other, and CardError."""
        card = load_interface_card(options.card)[0] if options.card is not None else None
        if card is None:
            return cls(options.task, None if options.task is None else options.task == CLASSIFICATION, options.classes)
        if options.task not in (None, card.task):
            raise UsageError(
                f"--task {options.task}, but the card {options.card} has the task {card.task}",
                advice="leave --task out, or correct the card",
            )
        if card.task in OF_MAPS and card.network.classes:
            raise CardError(
                f"the card {options.card} has network.classes, which {card.task} has not: the network itself shows how "
                "many values a pixel has",
                advice="remove classes from the card",
            )
        return cls(card.task, card.network.classes > 0, card.network.classes or None, card.class_output)

    def of_outputs(self, shown: Shown, factory: str) -> ClassOutput | None:
        """The output of a module with the classes, from what 2 images or samples gave."""
        asked = AskedOutput(self.has_classes, self.output, self.classes)
        return class_output(list(shown.values()), asked, factory)

    def said(self, found: ClassOutput, outputs: Sequence[TensorSpec], *, picked: bool = False) -> list[str]:
        """Notes on where the classes come from: of several outputs, or class numbers."""
        notes = []
        which = next((one for one in outputs if one.name == found.name), None)
        if which is not None and not which.is_floating:
            why = f"it picks one of {found.classes}" if picked else f"{found.classes} classes"
            other = "" if self.has_classes else "; for anything else give --task raw"
            notes.append(f"task: {CLASSIFICATION}: {found.name} has class numbers, {why}, so no top-5{other}")
        elif len(outputs) > 1 and not self.output:
            notes.append(
                f"task: {CLASSIFICATION}: the classes are those of {found.name} (N, {found.classes}); for another output name "
                "it first in --outputs, or as class_output in a card"
            )
        return notes

    def doubt(self, classes: int, *, labels: bool, softmax: bool = False) -> list[str]:
        """A note that logits may be embeddings, where nothing but their shape says that they are logits."""
        if self.has_classes is not None or labels or softmax or classes in KNOWN_CLASSES:
            return []
        return [f"task: {CLASSIFICATION}, by the output's shape (N, {classes}); for embeddings give --task {FEATURES}"]

    def task_of(
        self, image: tuple[int, ...], outputs: Sequence[TensorSpec], *, normalised: bool = False
    ) -> tuple[str, list[str]]:
        """The task, and a note if shapes decided it: of an input, (N, ...), and of outputs; none if they tell the class."""
        if self.task is not None or not outputs:
            return self.task or CLASSIFICATION, []
        shapes, integers = (
            [sizes_of(one) for one in outputs if one.is_floating is floating] for floating in (True, False)
        )
        task, why = inferred_task(image, shapes, integers, normalised=normalised)
        if len(outputs) == 1 and gives_image(image, outputs[0]):
            task, why = IMAGE_TO_IMAGE, f"images in, images out, as {outputs[0].dtype}"
        return task, [f"task: {task}, by the shapes of the outputs: {why}; choose another with --task"]
