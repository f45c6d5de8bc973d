"""Which of a network's outputs tells the class of a sample: logits (N, classes), or class numbers (N,) or (N, 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from skdeploy.core.errors import UsageError
from skdeploy.core.spec import TensorSpec

OF_CLASSES: Final = ("logit", "score", "prob", "class")  # in the names that people give


class ClassOutput(NamedTuple):
    """An output by its name, and the number of classes."""

    name: str
    classes: int


class Asked(NamedTuple):
    """``classifier``: whether the network is one; None if it is to be seen. ``output``: of a card, the output with the classes.

    ``classes``: how many there are; None if nobody says it. ``in_order``: the user chose the outputs, the classes first.
    """

    classifier: bool | None = None
    output: str = ""
    classes: int | None = None
    in_order: bool = False


def class_output(
    outputs: Sequence[TensorSpec],
    asked: Asked,
    shown: str,
    *,
    picked_from: Mapping[str, int] | None = None,
    scores_of: Mapping[str, str] | None = None,
    normalised: bool = False,
) -> ClassOutput | None:
    """The output with the classes, or None for a network that is not a classifier.

    ``outputs``: with the shapes that an example gave. ``picked_from``: of class numbers, how many there are to pick from, where
    the graph shows it; ``scores_of``: the output with the logits that they are picked by. ``normalised``: the first output is
    an embedding. Raises UsageError, naming ``shown``, for a classifier whose outputs tell no class.
    """
    if asked.classifier is False:
        return None
    widths, others = dict(picked_from or {}), dict(scores_of or {})
    scores = {one.name: int(one.shape[1]) for one in outputs if one.is_floating and len(one.shape) == 2}
    numbers = [one.name for one in outputs if not one.is_floating and one.shape[1:] in ((), (1,))]
    if asked.output:
        name: str | None = asked.output
        if name not in scores and name not in numbers:
            raise UsageError(
                f"{shown}: the card has class_output = {name!r}, but {_listed(outputs)}",
                advice="name an output that is (N, classes), or integers of (N,)",
            )
    elif asked.in_order:
        name = next((one.name for one in outputs if one.name in scores or one.name in widths), None)
    else:
        name = _likeliest(outputs, scores, asked.classes, widths, others)
    if normalised and not asked.classifier and name == outputs[0].name:
        return None
    if name is None and asked.classifier:
        name = next(iter([*scores, *numbers]), None)
        if name is None:
            raise UsageError(
                f"{shown}: {_listed(outputs)}, but a classifier gives (N, classes), or class numbers (N,)",
                advice="say what the network is for with --task, such as features or raw, or choose its outputs",
            )
    if name is None:
        return None
    classes = scores.get(name) or widths.get(name) or asked.classes
    if classes is None:
        raise UsageError(
            f"{shown}: {name} has class numbers, but nothing says how many classes there are",
            advice="give --classes, or `classes` under [network] of a card",
        )
    return ClassOutput(name, classes)


def _likeliest(
    outputs: Sequence[TensorSpec],
    scores: Mapping[str, int],
    classes: int | None,
    widths: Mapping[str, int],
    others: Mapping[str, str],
) -> str | None:
    """As many values as there are classes; class numbers and the logits that they are picked by; the first vector, unless its
    name says an embedding and that of another one logits.
    """
    fitting = [name for name, width in scores.items() if width == classes]
    if len(fitting) == 1:
        return fitting[0]
    for one in outputs:
        if one.name in widths:
            return others.get(one.name, one.name)
    if not outputs or outputs[0].name not in scores:
        return None
    named = [name for name in scores if any(word in name.lower() for word in OF_CLASSES)]
    return named[0] if named and outputs[0].name not in named else outputs[0].name


def _listed(outputs: Sequence[TensorSpec]) -> str:
    return f"its outputs are {'; '.join(f'{one.name}: {one.dtype}{list(one.shape)}' for one in outputs)}"
