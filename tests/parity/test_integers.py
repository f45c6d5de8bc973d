"""Integer and boolean outputs: which of their values rounding may change, and what fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession

from skdeploy.backends.base import Array
from skdeploy.backends.metrics import largest, largest_difference
from skdeploy.core.precision import Precision, Tolerance
from skdeploy.core.spec import InputSpec, ModelSpec, TensorSpec
from skdeploy.ir.deciding import Decision
from skdeploy.parity.infer_task import inferred_task
from skdeploy.parity.margins import Margins, margin, margins_of
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
    assert (after == made)[wide > 2 * error * np.abs(logits).max()].all()
    assert not (after == made).all()  # the error is large enough to show


def test_the_places_of_a_topk_change_only_beside_their_neighbours() -> None:
    logits = RANDOM.standard_normal((200, 6)).astype(np.float32)
    made = (-logits).argsort(1)[:, :3]
    wide = margin(Decision("TopK", ("x",), 1), {"x": logits}, made)
    assert wide is not None
    error = 0.05
    after = (-(logits + np.abs(logits).max() * RANDOM.choice([-error, error], logits.shape))).argsort(1)[:, :3]
    assert (after == made)[wide > 2 * error * np.abs(logits).max()].all()
    assert not (after == made).all()


def test_a_comparison_is_decided_by_its_distance() -> None:
    x = np.array([[0.0, 0.49, 0.51, 2.0]], np.float32)
    found = margin(Decision("Greater", ("x",), value=0.5), {"x": x}, x > 0.5)
    np.testing.assert_allclose(found, [[1, 0.02, 0.02, 3]], rtol=1e-5)  # twice the distance


def test_a_part_of_an_argmax_has_no_margins() -> None:
    logits = RANDOM.standard_normal((2, 4, 5)).astype(np.float32)
    assert margin(Decision("ArgMax", ("x",), 1), {"x": logits}, logits.argmax(1)[:, :2]) is None


def problems_of(task: str, spec: ModelSpec, reference: Array, found: Array, margins: Array | None) -> tuple[str, ...]:
    name = spec.outputs[0].name
    known = Margins({}, {name: "of a test"}) if margins is None else Margins({name: margins})
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
    assert problems_of(RAW, spec, reference, found, None) == (
        "ids: 4 of 5 values are equal, at least 99.9% (which of them rounding may change is not known: of a test)",
    )
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


CARRIED: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
    "one off": [("Add", "ids one", {})],
    "channels last": [("Transpose", "ids", {"perm": [0, 2, 3, 1]})],
    "another order": [("Gather", "ids order", {"axis": 2})],
    "a table of numbers": [("Gather", "table ids", {})],
    "a palette": [
        ("Gather", "palette ids", {}),
        ("Squeeze", "0 axis1", {}),
        ("Transpose", "0", {"perm": [0, 3, 1, 2]}),
    ],
    "rows": [("Reshape", "ids rows", {}), ("Transpose", "0", {"perm": [0, 2, 1]}), ("Unsqueeze", "0 axis1", {})],
    "every other": [("Slice", "ids first last axis3 step", {}), ("Cast", "0", {"to": TensorProto.INT32})],
    "backwards": [("Slice", "ids end start axis3 back", {})],
    "turned batch": [("Transpose", "ids", {"perm": [2, 0, 1, 3]}), ("Transpose", "0", {"perm": [1, 0, 2, 3]})],
}
NUMBERS = {
    "one": 1,
    "order": [3, 1, 0, 2],
    "table": [7, 1, 7],
    "palette": [[0, 0, 0], [255, 0, 9], [1, 2, 3]],
    "rows": [0, 4, 40],
    "axis1": [1],
    "axis3": [3],
    "first": [1],
    "last": [99],
    "step": [2],
    "end": [-1],
    "start": [-99],
    "back": [-1],
}
SIDES = (8, 20)


def carrying(name: str, batch: int | str, *, places: bool) -> ModelProto:
    """Class ids of each pixel and what carries them on, to ``y``; with ``places`` the same from any integers ``ids``."""
    nodes = [] if places else [helper.make_node("Mul", ["input", "scale"], ["logits"], "scale")]
    nodes += [] if places else [helper.make_node("ArgMax", ["logits"], ["ids"], "best", axis=1)]
    for number, (operator, reads, options) in enumerate(CARRIED[name]):
        read = [f"made{number - 1}" if each == "0" else each for each in reads.split()]
        gives = "y" if number == len(CARRIED[name]) - 1 else f"made{number}"
        nodes.append(helper.make_node(operator, read, [gives], f"n{number}", **options))
    kind = TensorProto.INT32 if name == "every other" else TensorProto.INT64
    fed = (
        helper.make_tensor_value_info("ids", TensorProto.INT64, [batch, 1, *SIDES])
        if places
        else helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, *SIDES])
    )
    read = {each for node in nodes for each in node.input}
    constants = [
        numpy_helper.from_array(np.array(value, np.int64), key) for key, value in NUMBERS.items() if key in read
    ]
    constants += [] if places else [numpy_helper.from_array(np.float32(1.5), "scale")]
    graph = helper.make_graph(nodes, "g", [fed], [helper.make_tensor_value_info("y", kind, None)], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(made, strict_mode=True)


@pytest.mark.parametrize("batch", ["batch", 2])
@pytest.mark.parametrize("name", CARRIED)
def test_margins_go_where_the_graph_takes_the_ids(name: str, batch: int | str, tmp_path: Path) -> None:
    onnx.save(carrying(name, batch, places=False), tmp_path / "m.onnx")
    spec = tiny.spec().model_copy(
        update={
            "input": InputSpec(channels=3, height=SIDES[0], width=SIDES[1]),
            "task": RAW,
            "outputs": (),
            "labels": (),
        }
    )
    pixels = RANDOM.integers(0, 256, (20, *SIDES, 3), dtype=np.uint8)  # more than one batch, and one that is not full
    found = margins_of(tmp_path / "m.onnx", pixels, spec)
    assert found.unknown == {}

    std, mean = np.array(spec.preprocess.std), np.array(spec.preprocess.mean)
    logits = 1.5 * ((pixels / 255 - mean) / std)
    ordered = np.sort(logits, axis=3)
    own = (ordered[..., 2] - ordered[..., 1]) / np.abs(logits).max()
    twin = InferenceSession(
        carrying(name, "batch", places=True).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    # ONNX Runtime itself carries the places on: of 20 images at once, unless a table turns them into other numbers.
    places = np.arange(own.size).reshape(20, 1, *SIDES)
    if name in ("a table of numbers", "a palette"):
        expected = own if name == "a table of numbers" else np.repeat(own[:, None], 3, axis=1)
        np.testing.assert_allclose(found.known["y"].reshape(expected.shape), expected, atol=1e-5)
        return
    (carried,) = twin.run(["y"], {"ids": places})
    expected = own.reshape(-1)[carried - (1 if name == "one off" else 0)]
    np.testing.assert_allclose(found.known["y"], expected, atol=1e-5)  # float32 inputs beside float64 ones


def test_the_graph_says_why_it_knows_no_margins(tmp_path: Path) -> None:
    proto = carrying("one off", "batch", places=False)
    proto.graph.node[2].input[1] = "ids"
    proto.graph.node[2].op_type = "Concat"
    proto.graph.node[2].attribute.append(helper.make_attribute("axis", 1))
    proto.graph.node[2].input[0] = "best2"
    proto.graph.node.insert(2, helper.make_node("ArgMin", ["logits"], ["best2"], "least", axis=1))
    onnx.save(onnx.shape_inference.infer_shapes(proto), tmp_path / "m.onnx")
    spec = tiny.spec().model_copy(update={"input": InputSpec(channels=3, height=SIDES[0], width=SIDES[1])})
    found = margins_of(tmp_path / "m.onnx", RANDOM.integers(0, 256, (2, *SIDES, 3), dtype=np.uint8), spec)
    assert found.unknown == {"y": "the node n0 (Concat) makes values of 2 tensors"}
