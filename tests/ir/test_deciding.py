"""What decides integer outputs: found behind an ArgMax, a TopK and a comparison, whatever carries the values on."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import ModelProto, TensorProto, helper

from skdeploy.core.errors import UsageError
from skdeploy.ir.deciding import Decision, Undecided, decision_of, float_sources, integer_outputs, with_sources

CONSTANTS = [
    helper.make_tensor("half", TensorProto.FLOAT, [], [0.5]),
    helper.make_tensor("zero", TensorProto.INT64, [1], [0]),
    helper.make_tensor("two", TensorProto.INT64, [1], [2]),
    helper.make_tensor("each", TensorProto.FLOAT, [4], [0, 1, 2, 3]),
]


def model_of(nodes: list[tuple[str, str, str, dict[str, Any]]], kind: int = TensorProto.INT64) -> ir.Model:
    """Of (operator, its inputs, its outputs, its attributes), from ``x`` through ``logits`` to ``y``."""
    made = [helper.make_node("Relu", ["x"], ["logits"])]
    made += [helper.make_node(op, reads.split(), gives.split(), **options) for op, reads, gives, options in nodes]
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", kind, None)],
        CONSTANTS,
    )
    proto: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    import onnx

    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


ARGMAX = Decision("ArgMax", ("logits",), 1)
DECIDED = {
    "argmax": ([("ArgMax", "logits", "y", {"axis": 1, "keepdims": 0})], ARGMAX),
    "cast": (
        [
            ("ArgMax", "logits", "a", {"axis": 1}),
            ("Cast", "a", "b", {"to": TensorProto.INT32}),
            ("Identity", "b", "y", {}),
        ],
        ARGMAX,
    ),
    "counted from one": ([("ArgMax", "logits", "a", {"axis": 1}), ("Add", "a two", "y", {})], ARGMAX),
    "twice": ([("ArgMax", "logits", "a", {"axis": 1}), ("Add", "a a", "y", {})], ARGMAX),
    "one of them": ([("ArgMax", "logits", "a", {"axis": 1}), ("Equal", "a two", "y", {})], ARGMAX),
    "turned": ([("ArgMax", "logits", "a", {"axis": 1}), ("Transpose", "a", "y", {"perm": [0, 1]})], ARGMAX),
    "as floats and back": (
        [
            ("ArgMax", "logits", "a", {"axis": 1}),
            ("Cast", "a", "b", {"to": TensorProto.FLOAT}),
            ("Mul", "b half", "c", {}),
            ("Greater", "c half", "y", {}),
        ],
        ARGMAX,
    ),
    "topk": ([("TopK", "logits two", "values y", {"axis": 1})], Decision("TopK", ("logits",), 1)),
    "smallest": (
        [("TopK", "logits two", "values y", {"axis": 1, "largest": 0})],
        Decision("TopK", ("logits",), 1, smallest=True),
    ),
    "the first of them": (
        [("TopK", "logits two", "values a", {"axis": 1}), ("Gather", "a zero", "y", {"axis": 1})],
        Decision("TopK", ("logits",), 1),
    ),
    "comparison": ([("Greater", "logits half", "y", {})], Decision("Greater", ("logits",), value=0.5)),
    "of two": ([("Relu", "x", "other", {}), ("Less", "logits other", "y", {})], Decision("Less", ("logits", "other"))),
}


@pytest.mark.parametrize("name", DECIDED)
def test_what_decides_is_found(name: str) -> None:
    nodes, wanted = DECIDED[name]
    gives_bools = nodes[-1][0] in ("Greater", "Less", "Equal")
    kind = TensorProto.BOOL if gives_bools else TensorProto.INT32 if name == "cast" else TensorProto.INT64
    model = model_of(nodes, kind)
    (output,) = integer_outputs(model)
    found = decision_of(output)
    assert isinstance(found, Decision), found  # Undecided is the other answer
    assert found._replace(made="", moves=(), changed=False) == wanted
    assert found.changed == (name in ("counted from one", "twice", "one of them", "as floats and back"))
    assert [value.name for value in float_sources(model)] == list(wanted.tensors)


UNDECIDED = {
    "a sum of two": (
        [("ArgMax", "logits", "a", {"axis": 1}), ("ArgMin", "logits", "b", {"axis": 1}), ("Add", "a b", "y", {})],
        "makes values of 2 tensors",
    ),
    "a cast of floats": ([("Cast", "logits", "y", {"to": TensorProto.INT64})], "makes integers of numbers that logits"),
    "unsorted": ([("TopK", "logits two", "values y", {"axis": 1, "sorted": 0})], "in any order"),
    "a count": ([("ArgMax", "logits", "a", {"axis": 1}), ("ReduceSum", "a", "y", {})], "(ReduceSum)? ?lies between"),
    "a computed choice": (
        [("ArgMax", "logits", "a", {"axis": 1}), ("GatherElements", "a a", "y", {"axis": 1})],
        "GatherElements",
    ),
}


@pytest.mark.parametrize("name", UNDECIDED)
def test_where_nothing_simple_decides_the_error_is_still_measured_before_it(name: str) -> None:
    nodes, why = UNDECIDED[name]
    model = model_of(nodes)
    found = decision_of(integer_outputs(model)[0])
    assert isinstance(found, Undecided)  # this is the claim: no Decision
    assert re.search(why, found.why), found.why
    assert [value.name for value in float_sources(model)] == ["logits"]


def test_the_error_of_rounded_numbers_is_measured_before_the_rounding() -> None:
    model = model_of([("Round", "logits", "a", {}), ("Cast", "a", "y", {"to": TensorProto.UINT8})], TensorProto.UINT8)
    assert [value.name for value in float_sources(model)] == ["logits"]


def test_one_number_for_each_channel_is_not_one_threshold() -> None:
    model = model_of([("Greater", "logits each", "y", {})], TensorProto.BOOL)
    found = decision_of(integer_outputs(model)[0])
    assert isinstance(found, Undecided)  # this is the claim: no Decision
    assert "4 numbers" in found.why


def test_the_graph_gives_its_sources_only_as_long_as_it_is_asked() -> None:
    model = model_of([("ArgMax", "logits", "y", {"axis": 1})])
    with with_sources(model) as names:
        assert names == {"source 0": "logits"}
        assert [value.name for value in model.graph.outputs] == ["y", "logits"]
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_a_graph_without_floating_point_is_refused() -> None:
    model = model_of([("Shape", "x", "y", {})])
    model.graph.inputs[0].dtype = ir.DataType.INT64  # nothing that it is made of is floating point
    with pytest.raises(UsageError, match="no error can be measured"), with_sources(model):
        pass


def test_constants_are_no_sources() -> None:
    model = model_of([("Greater", "logits half", "y", {})], TensorProto.BOOL)
    assert [value.name for value in float_sources(model)] == ["logits"]
    assert np.isfinite(CONSTANTS[0].float_data).all()
