"""Integer and boolean outputs: which of their values rounding may change, and what fails."""

from __future__ import annotations

import numpy as np
import pytest

from skdeploy.backends.base import Array
from skdeploy.backends.metrics import largest, largest_difference
from skdeploy.core.precision import Precision, Tolerance
from skdeploy.core.spec import ModelSpec, TensorSpec
from skdeploy.ir.deciding import Decision
from skdeploy.parity.infer_task import inferred_task
from skdeploy.parity.margins import margin
from skdeploy.parity.measured import iou_of_classes, measured
from skdeploy.parity.tasks import RAW, SEGMENTATION, TASKS
from tests import tiny

FP32 = Precision.FP32.tolerance  # max_rel_error 1e-4: decided beyond 2e-4 of the largest
RANDOM = np.random.default_rng(0)


def spec_of(task: str, *outputs: TensorSpec) -> ModelSpec:
    return tiny.spec().model_copy(update={"task": task, "outputs": outputs, "labels": ()})


IDS = TensorSpec(name="ids", dtype="int64", shape=("batch",))
MAP = TensorSpec(name="map", dtype="int64", shape=("batch", 8, 8))
LOGITS = TensorSpec(name="scores", dtype="float32", shape=("batch", 4, 8, 8))


def moved(logits: Array, error: float) -> Array:
    """The classes after an error of at most ``error`` of the largest logit, up or down at random."""
    largest_logit = np.abs(logits).max()
    return np.asarray((logits + largest_logit * RANDOM.choice([-error, error], logits.shape)).argmax(1))


@pytest.mark.parametrize("axis", [1, 2, -1])
def test_no_error_within_half_the_margin_changes_an_argmax(axis: int) -> None:
    logits = RANDOM.standard_normal((3, 4, 50)).astype(np.float32)
    made = logits.argmax(axis)
    wide = margin(Decision("ArgMax", ("x",), axis), {"x": logits}, made)
    assert wide is not None
    assert wide.shape == made.shape
    error = 0.05
    noise = np.abs(logits).max() * RANDOM.choice([-error, error], logits.shape).astype(np.float32)
    after = (logits + noise).argmax(axis)
    assert (after == made)[wide > 2 * error].all()
    assert not (after == made).all()  # the error is large enough to show


def test_the_places_of_a_topk_change_only_beside_their_neighbours() -> None:
    logits = RANDOM.standard_normal((200, 6)).astype(np.float32)
    made = (-logits).argsort(1)[:, :3]
    wide = margin(Decision("TopK", ("x",), 1), {"x": logits}, made)
    assert wide is not None
    error = 0.05
    after = (-(logits + np.abs(logits).max() * RANDOM.choice([-error, error], logits.shape))).argsort(1)[:, :3]
    assert (after == made)[wide > 2 * error].all()
    assert not (after == made).all()


def test_a_comparison_is_decided_by_its_distance() -> None:
    x = np.array([[0.0, 0.49, 0.51, 2.0]], np.float32)
    found = margin(Decision("Greater", ("x",), value=0.5), {"x": x}, x > 0.5)
    np.testing.assert_allclose(found, [[0.5, 0.01, 0.01, 1.5]], rtol=1e-5)  # twice the distance, by the largest, 2


def test_a_part_of_an_argmax_has_no_margins() -> None:
    logits = RANDOM.standard_normal((2, 4, 5)).astype(np.float32)
    assert margin(Decision("ArgMax", ("x",), 1), {"x": logits}, logits.argmax(1)[:, :2]) is None


def problems_of(task: str, spec: ModelSpec, reference: Array, found: Array, margins: Array | None) -> tuple[str, ...]:
    name = spec.outputs[0].name
    known = {} if margins is None else {name: margins}
    tolerance = TASKS[task].tolerance(spec, Precision.FP32)
    return TASKS[task].violations(
        measured(TASKS[task], {name: reference}, {name: found}, tolerance, spec, known), tolerance
    )


def test_one_decided_class_id_that_changes_fails_and_one_that_is_not_decided_passes() -> None:
    reference = np.array([0, 1, 2, 3, 4])
    found = np.array([0, 1, 2, 3, 0])
    spec = spec_of(RAW, IDS)
    decided, close = np.full(5, 0.1), np.array([0.1, 0.1, 0.1, 0.1, 1e-5])
    assert problems_of(RAW, spec, reference, found, decided) == (
        "ids: 0.8000 of the decided values are equal, at least 1",
    )
    assert problems_of(RAW, spec, reference, found, close) == ()
    assert problems_of(RAW, spec, reference, found, None) == ("ids: 4 of 5 values are equal, at least 99.9%",)
    two = np.array([0, 1, 2, 4, 0])
    assert problems_of(RAW, spec, reference, two, np.full(5, 1e-5)) == ("ids: 3 of 5 values are equal, at least 99.9%",)


def test_a_map_of_classes_is_judged_by_its_overlap_and_its_decided_pixels() -> None:
    reference = RANDOM.integers(0, 4, (2, 8, 8))
    spec = spec_of(SEGMENTATION, MAP)
    assert problems_of(SEGMENTATION, spec, reference, reference.copy(), np.ones(reference.shape)) == ()
    shifted = np.roll(reference, 1, axis=2)
    said = problems_of(SEGMENTATION, spec, reference, shifted, np.ones(reference.shape))
    assert [problem.split()[0] for problem in said] == ["mIoU", "class"]


def test_logits_beside_their_map_give_the_least_of_both() -> None:
    logits = RANDOM.standard_normal((2, 4, 8, 8)).astype(np.float32)
    spec = spec_of(SEGMENTATION, LOGITS, MAP)
    reference = {"scores": logits, "map": logits.argmax(1)}
    wrong = reference["map"].copy()
    wrong[1, 0, 0] = (wrong[1, 0, 0] + 1) % 4
    found = measured(TASKS[SEGMENTATION], reference, {"scores": logits, "map": wrong}, FP32, spec)
    assert found.min_sqnr_db == 300  # of the logits
    assert found.figures["same_pixels"] == 127 / 128
    assert found.figures["miou"] < 1
    assert found.figure_image == 1
    assert found.integers["map"].same == 127


def test_the_overlap_of_class_numbers_is_that_of_sets() -> None:
    one, other = np.array([0, 0, 7, 7]), np.array([0, 7, 7, -1])
    # 0: 1 of 2; 7: 1 of 3; -1: 0 of 1
    assert iou_of_classes(one, other) == pytest.approx((1 / 2 + 1 / 3 + 0) / 3)


def test_self_comparisons_count_integers_that_differ() -> None:
    one, other = {"y": np.array([1, 2, 3, 4])}, {"y": np.array([1, 2, 3, 5])}
    assert largest_difference(one, other) == 0.25
    assert largest(one) < 1e-20  # no float is there, and nothing to divide by
    assert largest_difference({"y": np.array([True, False])}, {"y": np.array([True, True])}) == 0.5


@pytest.mark.parametrize(
    ("fed", "floats", "integers", "task"),
    [
        ((2, 3, 8, 8), [], [(2, 8, 8)], SEGMENTATION),
        ((2, 3, 8, 8), [], [(2, 1, 8, 8)], SEGMENTATION),
        ((2, 3, 8, 8), [(2, 5, 8, 8)], [(2, 8, 8)], SEGMENTATION),
        ((2, 1, 4, 8, 8), [], [(2, 4, 8, 8)], SEGMENTATION),
        ((2, 3, 8, 8), [], [(2,)], RAW),
        ((2, 3, 8, 8), [(2, 5)], [(2,)], RAW),
        ((2, 3, 8, 8), [(2, 5, 8, 8)], [(2,)], RAW),
        ((), [], [(2, 8, 8)], RAW),
    ],
)
def test_shapes_suggest_a_task(
    fed: tuple[int, ...], floats: list[tuple[int, ...]], integers: list[tuple[int, ...]], task: str
) -> None:
    assert inferred_task(fed, floats, integers)[0] == task


def test_a_card_may_ask_for_more_or_less() -> None:
    spec = spec_of(RAW, IDS)
    own = Tolerance(max_rel_error=1e-4, min_cosine=0.99, min_sqnr_db=20, min_equal=0.5)
    asked = spec.model_copy(update={"tolerance": {Precision.FP32: own}})
    assert TASKS[RAW].tolerance(asked, Precision.FP32).min_equal == 0.5
    assert TASKS[RAW].tolerance(spec, Precision.INT8).min_equal == 0.85
    assert TASKS[RAW].tolerance(spec_of(RAW, LOGITS), Precision.INT8).min_equal is None
