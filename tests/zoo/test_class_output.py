"""Which output tells the class: by what the user says, the graph shows, the shapes and the names suggest."""

from __future__ import annotations

import pytest

from skdeploy.core.errors import UsageError
from skdeploy.core.spec import TensorSpec
from skdeploy.zoo.class_output import Asked, class_output


def outputs_of(**shapes: tuple[int, ...]) -> list[TensorSpec]:
    """Outputs of 2 samples; integers where the name says so."""
    kinds = {name: "int64" if name.startswith("id") else "float32" for name in shapes}
    return [TensorSpec(name=name, dtype=kinds[name], shape=shape) for name, shape in shapes.items()]


HEADS = outputs_of(a=(2, 16), b=(2, 10))
IDS = outputs_of(ids=(2,), vector=(2, 16), probs=(2, 10))


@pytest.mark.parametrize(
    ("outputs", "asked", "wanted"),
    [
        (HEADS, Asked(), ("a", 16)),
        (HEADS, Asked(classes=10), ("b", 10)),
        (HEADS, Asked(output="b"), ("b", 10)),
        (HEADS, Asked(False), None),
        (outputs_of(embedding=(2, 16), scores=(2, 10)), Asked(), ("scores", 10)),
        (outputs_of(map=(2, 8, 4, 4), scores=(2, 10)), Asked(), None),
        (outputs_of(map=(2, 8, 4, 4), scores=(2, 10)), Asked(True), ("scores", 10)),
        (outputs_of(b=(2, 10), scores=(2, 16)), Asked(in_order=True), ("b", 10)),
        (outputs_of(ids=(2, 1)), Asked(), None),
        (outputs_of(ids=(2, 1)), Asked(True, classes=7), ("ids", 7)),
        (outputs_of(ids=(2, 8, 8)), Asked(classes=7), None),
    ],
)
def test_the_output_with_the_classes(outputs: list[TensorSpec], asked: Asked, wanted: tuple[str, int] | None) -> None:
    assert class_output(outputs, asked, "it") == wanted


def test_class_numbers_are_judged_by_their_logits_where_these_are_an_output() -> None:
    assert class_output(IDS, Asked(), "it", picked_from={"ids": 10}) == ("ids", 10)
    assert class_output(IDS, Asked(), "it", picked_from={"ids": 10}, scores_of={"ids": "probs"}) == ("probs", 10)


def test_an_embedding_is_not_a_classifier_unless_somebody_says_so() -> None:
    assert class_output(HEADS, Asked(), "it", normalised=True) is None
    assert class_output(HEADS, Asked(True), "it", normalised=True) == ("a", 16)


@pytest.mark.parametrize(
    ("outputs", "asked", "message"),
    [
        (outputs_of(map=(2, 8, 4, 4)), Asked(True), r"map: float32\[2, 8, 4, 4\], but a classifier gives"),
        (outputs_of(ids=(2,)), Asked(True), "nothing says how many classes"),
        (HEADS, Asked(True, output="c"), "class_output = 'c', but its outputs are a"),
    ],
)
def test_what_tells_no_class_is_refused(outputs: list[TensorSpec], asked: Asked, message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        class_output(outputs, asked, "it")
    assert refused.value.advice
