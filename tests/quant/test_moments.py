"""Moments of what layers read, against what the layers compute: w^T P w is the sum of the squares of the outputs of w."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from skdeploy.backends.onnxruntime import OnnxRuntimeSession
from skdeploy.quant import moments
from skdeploy.quant.moments import Moments, rows_in_turn

IMAGES = 5
STEP = 2.0**-4  # a power of two: sums of products of integers stay exact in what ONNX Runtime adds up


def graph_of(operator: str, weight: NDArray[Any], shape: tuple[Any, ...], **attributes: Any) -> ir.Model:
    """x -> Q -> DQ -> the layer, with an INT8 weight."""
    constants = {
        "step": np.float32(STEP), "zero": np.int8(0), "one": np.float32(1), "weight": weight.astype(np.int8),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["integers"], name="q"),
        helper.make_node("DequantizeLinear", ["integers", "step", "zero"], ["read"], name="dq"),
        helper.make_node("DequantizeLinear", ["weight", "one", "zero"], ["float weight"], name="wdq"),
        helper.make_node(operator, ["read", "float weight"], ["y"], name="layer", **attributes),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * (1 + len(shape)))],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def integers(*shape: int, seed: int = 0, largest: int = 9) -> NDArray[np.float64]:
    return np.random.default_rng(seed).integers(-largest, largest + 1, shape).astype(np.float64)


CASES: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "3x3": ("Conv", (4, 3, 3, 3), (3, 7, 9), {"pads": [1, 0, 1, 2]}),
    "stride and dilation": ("Conv", (4, 3, 3, 2), (3, 11, 9), {"strides": [2, 1], "dilations": [2, 3]}),
    "groups": ("Conv", (8, 2, 3, 3), (8, 6, 5), {"group": 4, "pads": [1, 1, 1, 1]}),
    "pads by name": ("Conv", (2, 3, 3, 4), (3, 7, 6), {"auto_pad": "SAME_LOWER", "strides": [2, 1]}),
    "one axis": ("Conv", (4, 3, 5), (3, 20), {"pads": [2, 2]}),
    "three axes": ("Conv", (2, 2, 3, 1, 2), (2, 5, 4, 6), {"pads": [1, 0, 0, 1, 0, 1]}),
    "transposed": ("ConvTranspose", (4, 3, 2, 2), (4, 5, 6), {"strides": [2, 2], "group": 2}),
    "Gemm": ("Gemm", (6, 8), (8,), {"transB": 1}),
    "Gemm as it is": ("Gemm", (8, 6), (8,), {}),
    "MatMul": ("MatMul", (8, 6), (7, 8), {}),
}


def feeds(values: NDArray[np.float64], batch: int = 2) -> Iterable[tuple[dict[str, Any], int]]:
    for start in range(0, len(values), batch):
        yield {"x": (values[start : start + batch] * STEP).astype(np.float32)}, len(values[start : start + batch])


def measured(
    model: ir.Model, values: NDArray[np.float64], images: int = 1, batch: int = 2, threads: int | None = None
) -> Moments:
    """With ``images`` 1, so many places are wanted of an image that all of its places count."""
    ((_, rows),) = rows_in_turn(model, ["layer"], lambda: feeds(values, batch), images, threads)
    return rows.moments()


@pytest.mark.parametrize("case", CASES)
def test_products_and_sums_are_those_of_what_the_layer_multiplies(case: str) -> None:
    operator, shape, taken, attributes = CASES[case]
    weight = integers(*shape, seed=1)
    model = graph_of(operator, weight, taken, **attributes)
    values = integers(IMAGES, *taken)
    found = measured(model, values)
    with OnnxRuntimeSession(ir.to_proto(model).SerializeToString(), "cpu", 1) as session:
        outputs = session.run({"x": (values * STEP).astype(np.float32)})["y"].astype(np.float64) / STEP
    groups = attributes.get("group", 1)
    if operator == "ConvTranspose":  # strides as wide as the kernel: each output is one product
        rows = weight.reshape(groups, shape[0] // groups, -1).transpose(0, 2, 1)
    elif operator == "Conv":
        rows = weight.reshape(groups, shape[0] // groups, -1)
    else:
        rows = (weight if attributes.get("transB") else weight.T)[None]
    # All are integers below 2^53.
    assert np.einsum("gri,gij,grj->", rows, found.products, rows) == np.sum(outputs**2)
    assert np.einsum("gri,gi->", rows, found.sums) == np.sum(outputs)
    about = found.about(np.full(found.sums.shape, 2.0))
    wanted = found.products / found.count - 2 * (found.sums[:, None] + found.sums[:, :, None]) / found.count + 4
    assert about == pytest.approx(wanted, rel=1e-12, abs=1e-9)  # of float64, over numbers up to 81


def test_of_a_large_map_places_count_that_are_spread_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "FEWEST_ROWS", 64)
    model = graph_of("Conv", integers(4, 4, 1, 1), (4, 32, 48))
    values = np.zeros((4, 4, 32, 48))
    values[:, 0], values[:, 1] = np.arange(32)[:, None], np.arange(48)
    values[:, 2] = 1
    found = measured(model, values, images=4)
    assert 32 <= found.count <= 64  # 16 of an image, or fewer where rows and columns do not come out even
    rows, columns, ones, _ = found.sums[0] / found.count
    assert ones == 1
    assert rows == pytest.approx(15.5, abs=4)  # the middle, to half of the distance of places
    assert columns == pytest.approx(23.5, abs=6)


def test_layers_take_turns_where_memory_is_short_and_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = graph_of("Conv", integers(4, 3, 3, 3), (3, 8, 8))
    first = next(node for node in model.graph if node.name == "layer")
    weight = first.inputs[1]
    second = ir.node("Conv", [first.inputs[0], weight], outputs=[ir.val("z", first.outputs[0].dtype)], name="other")
    model.graph.append(second)
    values = integers(IMAGES, 3, 8, 8)
    started = []

    def batches() -> Iterable[tuple[dict[str, Any], int]]:
        started.append(True)
        return feeds(values)

    together = {name: rows.moments() for name, rows in rows_in_turn(model, ["layer", "other"], batches, 1)}
    assert len(started) == 1
    started.clear()
    monkeypatch.setattr(moments, "BUDGET_BYTES", 3 * 8 * 8)  # all that is read: the rows have 36 x 27 numbers
    assert len(list(rows_in_turn(model, ["layer", "other"], batches, 1))) == 2
    assert len(started) == 1, "what both layers read is in memory once"
    started.clear()
    monkeypatch.setattr(moments, "BUDGET_BYTES", 1)
    in_turn = {name: rows.moments() for name, rows in rows_in_turn(model, ["layer", "other"], batches, 1)}
    assert len(started) == 2
    for name in ("layer", "other"):
        assert (in_turn[name].products == together["layer"].products).all()


def test_neither_threads_nor_batches_change_a_bit() -> None:
    model = graph_of("Conv", integers(4, 3, 3, 3), (3, 40, 40))
    values = integers(9, 3, 40, 40, largest=127)
    found = [measured(model, values, 1, batch, threads) for batch, threads in ((1, 1), (4, 2), (9, 2))]
    for other in found[1:]:
        assert (other.products == found[0].products).all()
        assert (other.sums == found[0].sums).all()
