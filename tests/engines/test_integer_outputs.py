"""TensorRT-RTX's parser takes outputs of each integer type, and booleans, as ArgMax, TopK, casts and comparisons make them."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import NodeProto, TensorProto, helper

from skdeploy.engines import obstacle
from skdeploy.engines.parsing import parser_refusal
from skdeploy.passes.foreign import INTEGERS

ABSENT = obstacle("tensorrt_rtx")[0]
pytestmark = pytest.mark.skipif(bool(ABSENT), reason=f"TensorRT-RTX: {ABSENT}")
CONSTANTS = [
    helper.make_tensor("half", TensorProto.FLOAT, [], [0.5]),
    helper.make_tensor("two", TensorProto.INT64, [1], [2]),
]
ARGMAX = helper.make_node("ArgMax", ["x"], ["classes"], axis=1, keepdims=0)


def refused(nodes: list[NodeProto], kind: int, shape: list[int | str], folder: Path) -> str | None:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 8, 8])],
        [helper.make_tensor_value_info("y", kind, shape)],
        CONSTANTS,
    )
    path = folder / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return parser_refusal(path)


@pytest.mark.parametrize("kind", INTEGERS)
def test_class_maps_of_each_type_are_taken(kind: int, tmp_path: Path) -> None:
    cast = helper.make_node("Cast", ["classes"], ["y"], to=kind)
    assert not refused([ARGMAX, cast], kind, ["n", 8, 8], tmp_path)


def test_places_of_a_topk_and_comparisons_are_taken(tmp_path: Path) -> None:
    topk = helper.make_node("TopK", ["x", "two"], ["values", "y"], axis=1)
    assert not refused([topk], TensorProto.INT64, ["n", 2, 8, 8], tmp_path)
    assert not refused([helper.make_node("Greater", ["x", "half"], ["y"])], TensorProto.BOOL, ["n", 4, 8, 8], tmp_path)


def test_a_type_that_skdeploy_refuses_is_refused_there_too(tmp_path: Path) -> None:
    cast = helper.make_node("Cast", ["classes"], ["y"], to=TensorProto.UINT16)
    assert refused([ARGMAX, cast], TensorProto.UINT16, ["n", 8, 8], tmp_path)
