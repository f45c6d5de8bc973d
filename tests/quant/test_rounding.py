"""Weights that make up for each other's errors: in the layer that reads them, in the ranges file, and in the INT8 graph."""

from __future__ import annotations

import base64
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from skdeploy.backends.onnxruntime import OnnxRuntimeSession
from skdeploy.core.errors import CalibrationError
from skdeploy.core.spec import ModelSpec
from skdeploy.ir.constants import weight_of
from skdeploy.ir.qdq import QuantizedWeight
from skdeploy.quant.quantize import Shared, prepared_by, quantize
from skdeploy.quant.ranges import Ranges, load_ranges
from skdeploy.quant.rounding import as_text, rounded_weight, with_rounding
from skdeploy.quant.weights import dequantized, quantize_weight
from tests.conftest import FAST
from tests.graphs.networks import run, traced
from tests.quant.noise import calibrated, dataset, normalised, pixels
from tests.quant.test_moments import CASES, STEP, graph_of, measured


@pytest.fixture
def ranges(spec: ModelSpec, graph: ir.Model) -> Ranges:
    return calibrated(graph, spec, dataset(24), weight_rounding="gptq")


def layer(operator: str, weight: NDArray[np.float32], attributes: dict[str, Any]) -> ir.Node:
    """A layer by itself, with its weight as a constant."""
    value = ir.val("weight", const_value=ir.tensor(weight, name="weight"))
    return ir.node(operator, [ir.val("x"), value], attributes, outputs=[ir.val("y")], name="layer")


def smooth(*shape: int) -> NDArray[np.float64]:
    """Maps whose neighbours are alike, as images are, and whose channels are too."""
    random = np.random.default_rng(3)
    values = random.normal(size=shape)
    for axis in range(1, len(shape)):
        values = np.cumsum(values, axis=axis) / np.sqrt(np.arange(1, shape[axis] + 1)).reshape(
            [-1 if at == axis else 1 for at in range(len(shape))]
        )
    return np.clip(np.rint(30 * values), -127, 127)


@pytest.mark.parametrize("case", CASES)
def test_the_layers_outputs_are_nearer_than_with_rounding_to_nearest(case: str) -> None:
    """Whatever the layout of the weight: the layer itself, in ONNX Runtime, says what the error does."""
    operator, shape, taken, attributes = CASES[case]
    weight = np.random.default_rng(5).normal(size=shape).astype(np.float32)
    values = smooth(12, *taken)
    model = graph_of(operator, np.zeros(shape), taken, **attributes)
    node = layer(operator, weight, attributes)
    nearest = quantize_weight(node, half=False)
    coarse = QuantizedWeight(nearest.values // 8, nearest.scales * 8, nearest.axis)  # so that rounding is what matters
    found = measured(model, values)
    moments = found.about(np.zeros(found.sums.shape))
    rounded = rounded_weight(node, weight_of(node), coarse, moments)
    assert rounded.shape == weight.shape

    def error(levels: NDArray[Any]) -> float:
        made = dequantized(QuantizedWeight(levels, coarse.scales, coarse.axis))
        with OnnxRuntimeSession(_float_layer(operator, made - weight, taken, attributes), "cpu", 1) as session:
            return float(np.sum(session.run({"x": (values * STEP).astype(np.float32)})["y"].astype(np.float64) ** 2))

    shape_of = [1] * weight.ndim
    if coarse.axis is not None:
        shape_of[coarse.axis] = -1
    to_nearest = np.clip(np.rint(weight / coarse.scales.reshape(shape_of)), -127, 127)
    # Neighbours that are alike leave much of the error free; a third less is far from what chance does.
    assert error(rounded) < 0.67 * error(to_nearest)


def _float_layer(operator: str, weight: NDArray[Any], taken: tuple[Any, ...], attributes: dict[str, Any]) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node(operator, ["x", "weight"], ["y"], **attributes)
    taken_by = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *taken])
    given = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * (1 + len(taken)))
    constant = numpy_helper.from_array(weight.astype(np.float32), "weight")
    model = helper.make_model(
        helper.make_graph([node], "graph", [taken_by], [given], [constant]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    done: bytes = model.SerializeToString()
    return done


def test_rows_whose_steps_fp16_rounds_otherwise_are_rounded_to_nearest() -> None:
    weight = np.random.default_rng(0).normal(size=(4, 40, 1, 1)).astype(np.float32)
    weight[1] *= 2.0**-12
    node = layer("Conv", weight, {})
    nearest = quantize_weight(node, half=False)
    inputs = smooth(200, 40)
    found = rounded_weight(node, weight_of(node), nearest, (inputs.T @ inputs / 200)[None])
    assert (found[1] == nearest.values[1]).all()
    assert (found != nearest.values).any()


def test_any_integers_come_back_from_their_text() -> None:
    random = np.random.default_rng(0)
    nearest, values = (random.integers(-127, 128, (3, 5, 2, 2)).astype(np.int8) for _ in range(2))
    weight = QuantizedWeight(nearest, np.ones(3, np.float32), 0)
    node = layer("Conv", np.zeros((3, 5, 2, 2), np.float32), {})
    assert (with_rounding(node, weight, {"layer": as_text(values, weight)}).values == values).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no base 64!", "is broken"),
        (base64.b64encode(b"not deflated").decode(), "is broken"),
        (base64.b64encode(zlib.compress(bytes(3))).decode(), "is not that of layer"),
        (base64.b64encode(zlib.compress(bytes(1 << 24))).decode(), "is not that of layer"),
    ],
)
def test_a_rounding_that_does_not_fit_is_refused(text: str, message: str) -> None:
    weight = QuantizedWeight(np.zeros((2, 2, 1, 1), np.int8), np.ones(2, np.float32), 0)
    node = layer("Conv", np.zeros((2, 2, 1, 1), np.float32), {})
    with pytest.raises(CalibrationError, match=message):
        with_rounding(node, weight, {"layer": text})
    with pytest.raises(CalibrationError, match="no rounding of the weight of layer"):
        with_rounding(node, weight, {"another": text})


def bits(model: ir.Model) -> bytes:
    done: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return done


def test_the_file_is_enough_to_make_the_graph_again_bit_for_bit(
    spec: ModelSpec, graph: ir.Model, ranges: Ranges, tmp_path: Path
) -> None:
    ranges.write(tmp_path / "r.json")
    for half in (True, False):
        first = quantize(graph, spec, ranges, half=half)
        again = quantize(traced(spec, FAST), spec, load_ranges(tmp_path / "r.json"), half=half)
        assert bits(first.model) == bits(again.model)
        plain = quantize(graph, spec, calibrated(graph, spec, dataset(24)), half=half)
        assert bits(first.model) != bits(plain.model)
        assert first.scales == plain.scales


def test_layers_that_stay_out_of_int8_change_no_other_layers_weights(
    spec: ModelSpec, graph: ir.Model, ranges: Ranges
) -> None:
    whole = quantize(graph, spec, ranges)
    part = quantize(graph, spec, ranges, (r"^stem\.",))
    assert len(part.placement.weighted) < len(whole.placement.weighted)
    for name in part.placement.weighted:
        assert (int8_of(part.model, name) == int8_of(whole.model, name)).all()


def test_graphs_that_share_their_weights_are_those_that_do_not(
    spec: ModelSpec, graph: ir.Model, ranges: Ranges
) -> None:
    """Other thresholds shift other tensors by other offsets, and the weights of both roundings are asked for."""
    nearest = ranges.algorithm.model_copy(update={"weight_rounding": "nearest"})
    plain = ranges.finished(nearest, None, {})
    tighter = plain.with_tensors(
        {key: (seen.minimum, seen.maximum, 0.7 * seen.threshold, None) for key, seen in plain.tensors.items()}
    )
    shared = Shared(prepared_by(graph, spec, ranges, ranges.algorithm))
    asked = (plain, ranges, tighter, tighter.finished(ranges.algorithm, None, ranges.rounding))
    together = [bits(quantize(graph, spec, each, half=False, shared=shared).model) for each in asked]
    assert together == [bits(quantize(graph, spec, each, half=False).model) for each in asked]
    assert len(set(together)) == len(asked)


def int8_of(model: ir.Model, name: str) -> NDArray[np.int8]:
    node = next(node for node in model.graph if node.name == name)
    value = node.inputs[1]
    assert value is not None
    producer = value.producer()
    assert producer is not None
    source = producer.inputs[0]
    assert source is not None
    assert source.const_value is not None
    found: NDArray[np.int8] = source.const_value.numpy()
    return found


def test_neither_the_batch_nor_the_processors_change_a_bit(spec: ModelSpec, graph: ir.Model, ranges: Ranges) -> None:
    assert calibrated(graph, spec, dataset(24), batch=5, weight_rounding="gptq").text() == ranges.text()
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert calibrated(graph, spec, dataset(24), weight_rounding="gptq").text() == ranges.text()
    finally:
        os.sched_setaffinity(0, allowed)


def test_without_bias_correction_the_mean_of_the_error_counts_too(spec: ModelSpec, graph: ir.Model) -> None:
    """No bias makes up for it then: moments about the mean would let it grow."""
    images = dataset(24)
    inputs = normalised(pixels(24))
    exact = run(graph, inputs)["logits"]
    error = {}
    for rounding in ("gptq", "nearest"):
        ranges = calibrated(graph, spec, images, weight_rounding=rounding, bias_correction=False)
        error[rounding] = float(
            np.mean(run(quantize(graph, spec, ranges, half=False).model, inputs)["logits"] - exact) ** 2
        )
    assert error["gptq"] < error["nearest"]
