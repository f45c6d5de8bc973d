"""Reading graphs: Q/DQ and casts away, sizes resolved, and refusals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto

from skdeploy.core.errors import ExportError, UsageError
from skdeploy.core.precision import PRECISIONS, Precision
from skdeploy.ir.placement import Edge, place
from skdeploy.passes.half import HalfPrecision
from skdeploy.planning.plain import dims, read_plain, require_size
from skdeploy.planning.roofline import types_of
from skdeploy.quant.weight_only import narrow_weights
from tests.planning.graphs import conv, graph, node, plain, residual, weight
from tests.refused import refused


def test_quantized_weights_and_maps_are_seen_through() -> None:
    nodes = [
        node("QuantizeLinear", "q", "x", "s", "z"),
        node("DequantizeLinear", "d", "q_y", "s", "z"),
        node("DequantizeLinear", "dw", "w", "sw", "zw", axis=0),
        conv("a", "d_y", "dw_y"),
    ]
    weights = {
        "s": np.float32(1),
        "z": np.int8(0),
        "w": np.ones((8, 8, 1, 1), np.int8),
        "sw": np.ones(8, np.float32),
        "zw": np.zeros(8, np.int8),
    }
    read = plain(graph(nodes, weights, (1, 8, 4, 4), "a_y"))
    assert [each.op_type for each in read.model.graph] == ["Conv"]
    assert read.scales == {Edge("a", 0): "s"}
    assert read.int8_weights == {"a"}


def test_casts_between_floats_go_and_those_to_integers_stay() -> None:
    nodes = [
        node("Cast", "c", "x", to=TensorProto.FLOAT16),
        node("Cast", "back", "c_y", to=TensorProto.FLOAT),
        node("Cast", "whole", "back_y", to=TensorProto.INT32),
        node("Cast", "out", "whole_y", to=TensorProto.FLOAT),
    ]
    read = plain(graph(nodes, {}, (1, 8), "out_y"))
    assert [each.name for each in read.model.graph] == ["whole", "out"]
    assert read.precision is Precision.FP16


@pytest.mark.parametrize("batch", [1, 5])
def test_an_open_batch_is_the_one_asked_for(batch: int) -> None:
    read = plain(residual(), batch)
    assert read.dynamic
    assert {dims(value)[0] for each in read.model.graph for value in each.outputs} == {batch}


def test_shapes_that_a_graph_does_not_tell_are_inferred() -> None:
    model = residual()
    for each in model.graph:
        each.outputs[0].shape = None
    assert dims(next(iter(plain(model, 2).model.graph)).outputs[0]) == (2, 8, 4, 4)


def test_nodes_without_names_get_some() -> None:
    nodes = [node("Relu", "", "x"), node("Relu", "same", "_y"), node("Neg", "same", "same_y")]
    nodes[2].output[0] = "out"
    names = [each.name for each in plain(graph(nodes, {}, (1, 8), "out")).model.graph]
    assert len(set(names)) == 3
    assert all(names)


@pytest.mark.parametrize("batch", [0, -3])
def test_a_batch_below_one_is_refused(batch: int) -> None:
    with pytest.raises(UsageError, match="must be at least 1"):
        plain(residual(), batch)


def test_a_batch_that_the_graph_does_not_take_is_refused() -> None:
    model = graph([conv("a", "x", "w")], {"w": weight(8, 8)}, (4, 8, 4, 4), "a_y")
    with pytest.raises(UsageError, match="fixed to a batch of 4, not 2"):
        plain(model, 2)


def test_an_open_image_size_is_asked_for_and_taken() -> None:
    nodes = [conv("a", "x", "w")]
    one, other = (graph(nodes, {"w": weight(8, 8)}, ("n", 8, "h", "w_"), "a_y") for _ in range(2))
    with refused(ExportError, "the size of the input x", "--imgsz"):
        plain(one)
    read = read_plain(other, "tiny.onnx", None, (6, 10))
    assert dims(next(iter(read.model.graph)).outputs[0]) == (1, 8, 6, 10)


@pytest.mark.parametrize(
    ("shape", "size", "words"),
    [
        ((1, 8, 6, 10), (6, 10), ""),
        ((1, 8, 6, 10), (10, 6), "fixed to images of 6x10, not 10x6"),
        ((1, 8, 6, "w"), (6, 12), ""),
        ((1, 8, 6, "w"), (8, 12), "fixed to images of 6xw, not 8x12"),
        ((1, 8), (6, 10), ""),  # no image
    ],
)
def test_a_size_that_the_graph_does_not_take_is_refused(
    shape: tuple[int | str, ...], size: tuple[int, int], words: str
) -> None:
    model = graph([node("Relu", "r", "x")], {}, shape, "r_y")
    if not words:
        require_size(model, "tiny.onnx", size)
        return
    with refused(UsageError, words, "--imgsz"):
        require_size(model, "tiny.onnx", size)


def test_a_shape_that_depends_on_the_data_is_refused_by_name() -> None:
    nodes = [node("NonZero", "where", "x")]
    model = graph(nodes, {}, (1, 8), "where_y", half=False)
    with pytest.raises(ExportError, match="where_y, an output of the NonZero where, is unknown"):
        plain(model)


def test_placement_reads_a_plain_graph() -> None:
    assert place(plain(residual()).model).weighted == ("net.a/Conv", "net.b/Conv")


LOWERED: dict[str, Callable[[ir.Model], ir.Model]] = {
    "fp32": lambda model: model,
    "fp16": lambda model: HalfPrecision()(model).model,
    "weight-only-int8": lambda model: HalfPrecision()(narrow_weights(model).model).model,
}


@pytest.mark.parametrize("precision", LOWERED)
def test_the_plan_of_each_precision_is_that_of_the_fp32_graph(precision: str) -> None:
    """A bundle's last graph is what is planned, and it may be in any precision: what INT8 would be must not depend on that."""
    lowered = plain(LOWERED[precision](residual()))
    assert lowered.precision == precision
    for each in PRECISIONS.values():
        found = types_of(lowered, each)
        wanted = types_of(plain(residual()), each)
        assert set(found.weighted) == set(wanted.weighted)
        assert len(found.edges) == len(wanted.edges)
    assert set(types_of(lowered, PRECISIONS["int8"]).weighted) == {"net.a/Conv", "net.b/Conv"}
