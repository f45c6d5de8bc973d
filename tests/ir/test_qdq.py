"""Q/DQ pairs as TensorRT takes them, and the arithmetic they stand for."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from skdeploy.ir.constants import constant, drop_unused, free_name, numbers
from skdeploy.ir.nodes import maker
from skdeploy.ir.placement import Placement, place
from skdeploy.ir.qdq import InsertQDQ, QuantizedWeight
from tests.graphs.quantizable import (
    MAKERS,
    check,
    graph,
    images,
    normal,
    outputs,
    placed,
    scales_of,
    small,
    weights_of,
)

Array = NDArray[Any]
op = onnx.helper.make_node
every_graph = pytest.mark.parametrize("name", MAKERS)
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


def quantized(name: str) -> tuple[ir.Model, Placement]:
    model, placement = placed(name)
    InsertQDQ(placement, scales_of(model, placement), weights_of(model, placement))(model)
    return model, placement


@cache
def once_quantized(name: str) -> tuple[ir.Model, Placement]:
    """The same. Do not change it."""
    return quantized(name)


def broken_rules(model: ir.Model) -> list[str]:
    """TensorRT's rules for explicit quantization: shared/knowledge, "Q/DQ rules"."""
    found = []
    for node in model.graph:
        if node.op_type in QUANTIZERS:
            scale, zero = map(numbers, node.inputs[1:])
            if scale.dtype != np.float32 or not (scale > 0).all() or not np.isfinite(scale).all():
                found.append(f"{node.name}: scale")
            if zero.dtype != np.int8 or zero.any() or zero.shape != scale.shape:
                found.append(f"{node.name}: zero point")
        elif node.op_type in ("Conv", "Gemm", "MatMul"):
            made = [maker(value) for value in node.inputs]
            is_int8 = [producer is not None and producer.op_type == "DequantizeLinear" for producer in made]
            if is_int8[1] != is_int8[0] and is_int8[1]:
                found.append(f"{node.name}: INT8 weights and other inputs")
            if any(is_int8[2:]):
                found.append(f"{node.name}: its bias is quantized")
            if is_int8[1]:
                values, scale = map(numbers, made[1].inputs[:2])
                rows_first = node.op_type == "Conv" or node.attributes.get_int("transB", 0)
                axis = made[1].attributes.get_int("axis", 1)
                if axis != (0 if rows_first else 1) or values.shape[axis] != len(scale) or values.dtype != np.int8:
                    found.append(f"{node.name}: scales along another axis than its output channels")
    return found


@every_graph
def test_every_graph_follows_tensorrts_rules(name: str) -> None:
    model, placement = once_quantized(name)
    check(model)
    assert broken_rules(model) == []
    assert [value for value in model.graph.initializers.values() if not value.uses()] == []
    quantizers = [node for node in model.graph if node.op_type == "QuantizeLinear"]
    assert sorted(str(node.inputs[0].name) for node in quantizers) == sorted(placement.tensors)
    assert all(np.isfinite(values).all() for values in outputs(model, images(model)).values())


@every_graph
def test_readers_get_what_the_placement_says(name: str) -> None:
    model, placement = once_quantized(name)
    nodes = {node.name: node for node in model.graph}
    for tensor, edges in placement.readers.items():
        for edge in edges:
            producer = maker(nodes[edge.node].inputs[edge.index])
            assert producer.op_type == "DequantizeLinear"
            assert producer.inputs[0].producer().inputs[0].name == tensor
        for edge in placement.raw.get(tensor, ()):
            assert nodes[edge.node].inputs[edge.index].name == tensor
    for name_of_node in placement.kept:
        assert nodes[name_of_node].inputs[1].is_initializer()


def damaged(what: str) -> ir.Model:
    model, _ = quantized("sknet")
    nodes = {node.name: node for node in model.graph}
    conv, activation = nodes["stages.0.0.expand.conv/Conv"], nodes["pool/MaxPool_quantized"]
    if what == "scale":
        activation.replace_input_with(1, constant(model.graph, "s", np.float32(0)))
    elif what == "zero point":
        activation.replace_input_with(2, constant(model.graph, "z", np.uint8(0)))
    elif what == "axis":
        conv.inputs[1].producer().attributes["axis"] = ir.AttrInt64("axis", 1)
    elif what == "bias":
        scale, zero = constant(model.graph, "s", np.float32(1)), constant(model.graph, "z", np.int32(0))
        values = constant(model.graph, "v", np.zeros(16, np.int32))
        node = ir.node("DequantizeLinear", [values, scale, zero], name="b")
        model.graph.insert_before(conv, [node])
        conv.replace_input_with(2, node.outputs[0])
    elif what == "inputs":
        conv.replace_input_with(0, conv.inputs[0].producer().inputs[0].producer().inputs[0])
    return model


@pytest.mark.parametrize("what", ["scale", "zero point", "axis", "bias", "inputs"])
def test_the_check_of_the_rules_sees(what: str) -> None:
    assert any(what in rule for rule in broken_rules(damaged(what)))


# --------------------------------------------------------------------------------------------------------------- the numbers


def on_levels(values: Array, scale: float) -> NDArray[np.float64]:
    """Rounded to the nearest of 256 levels, ties to even, in float32 as the ONNX standard divides."""
    levels = np.clip(np.rint(values.astype(np.float32) / np.float32(scale)), -128, 127)
    return levels.astype(np.float64) * float(np.float32(scale))


def convolved(x: Array, w: Array, bias: Array | None, stride: int, pad: int, groups: int) -> NDArray[np.float64]:
    """A convolution by its definition."""
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    out, into, size = w.shape[0], w.shape[1], w.shape[2]
    height = (padded.shape[2] - size) // stride + 1
    result = np.zeros((len(x), out, height, height))
    for o in range(out):
        start = o // (out // groups) * into
        for i in range(height):
            for j in range(height):
                window = padded[:, start : start + into, i * stride : i * stride + size, j * stride : j * stride + size]
                result[:, o, i, j] = (window * w[o]).sum(axis=(1, 2, 3)) + (0 if bias is None else bias[o])
    return result


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize(("groups", "stride", "pad"), [(1, 1, 0), (2, 2, 1)])
def test_a_convolution_computes_what_fake_quantization_does(
    bias: bool, corrected: bool, groups: int, stride: int, pad: int
) -> None:
    weights = {"w": normal(8, 8 // groups, 3, 3), "b": normal(8, seed=1)}
    inputs = ["input", "w", "b"] if bias else ["input", "w"]
    node = op("Conv", inputs, ["y"], group=groups, strides=[stride] * 2, pads=[pad] * 4)
    model = small([node], ("N", 8, 7, 7), weights if bias else {"w": weights["w"]})
    scales = np.linspace(0.005, 0.02, 8).astype(np.float32)  # the largest weights saturate
    values = np.clip(np.rint(weights["w"] / scales[:, None, None, None]), -127, 127).astype(np.int8)
    new = normal(8, seed=2) if corrected else None
    InsertQDQ(place(model), {"input": 0.013}, {"m/Conv": QuantizedWeight(values, scales, 0, new)})(model)
    x = normal(2, 8, 7, 7, seed=3)
    added = new if corrected else weights["b"] if bias else None
    rounded = values.astype(np.float64) * scales[:, None, None, None]
    expected = convolved(on_levels(x, 0.013), rounded, added, stride, pad, groups)
    found = outputs(model, x)["y"]
    # A product of seventy-two in float32: 72 roundings of 2^-24 at most.
    assert np.abs(found - expected).max() < 72 * 2.0**-24 * np.abs(expected).max() * 4
    unquantized = convolved(x, weights["w"], added, stride, pad, groups)
    assert np.abs(found - unquantized).max() > 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("layer", ["Gemm", "Gemm transB", "MatMul"])
def test_a_matrix_computes_what_fake_quantization_does(layer: str) -> None:
    columns_last = layer != "Gemm transB"
    weight = normal(6, 5) if columns_last else normal(5, 6)
    attributes = {} if columns_last else {"transB": 1}
    inputs = ["input", "w"] if layer == "MatMul" else ["input", "w", "b"]
    constants = {"w": weight, "b": normal(5, seed=1)}
    node = op(layer.split()[0], inputs, ["y"], **attributes)
    model = small([node], ("N", 6), {name: constants[name] for name in inputs[1:]})
    placement = place(model)
    made = weights_of(model, placement)
    InsertQDQ(placement, {"input": 0.02}, made)(model)
    assert broken_rules(model) == []
    (given,) = made.values()
    scales = given.scales[None, :] if columns_last else given.scales[:, None]
    np.testing.assert_allclose(given.values * scales, weight, atol=np.abs(weight).max() / 100)
    matrix = given.values.astype(np.float64) * scales
    x = normal(3, 6, seed=3)
    expected = on_levels(x, 0.02) @ (matrix if columns_last else matrix.T) + (
        0 if layer == "MatMul" else constants["b"]
    )
    np.testing.assert_allclose(outputs(model, x)["y"], expected, atol=1e-5)  # six products of numbers up to 3


def test_a_weight_that_two_layers_share_is_quantized_for_each() -> None:
    nodes = [op("Conv", ["input", "w"], ["a"], name="one"), op("Conv", ["a", "w"], ["y"], name="two")]
    model = small(nodes, (2, 4, 5, 5), {"w": normal(4, 4, 1, 1)})
    placement = place(model)
    first, second = (
        QuantizedWeight(np.full((4, 4, 1, 1), value, np.int8), np.full(4, 0.5, np.float32), 0) for value in (2, 3)
    )
    InsertQDQ(placement, {"input": 0.5, "a": 0.5}, {"one": first, "two": second})(model)
    check(model)
    assert broken_rules(model) == []
    feed = np.ones((2, 4, 5, 5), np.float32)
    # 1 * 1 summed over four channels is 4, times 1.5 over four channels is 24.
    np.testing.assert_array_equal(outputs(model, feed)["y"], np.full((2, 4, 5, 5), 24, np.float32))


def test_a_classifier_alone_in_a_graph_of_odd_names() -> None:
    nodes = [op("Gemm", ["input", "w, 1 (a)"], ["y"], name="fc:0 / main//Gemm", transB=1)]
    model = small(nodes, (2, 4), {"w, 1 (a)": normal(3, 4)})
    placement = place(model)
    InsertQDQ(placement, {"input": 0.1}, weights_of(model, placement))(model)
    check(model)
    assert broken_rules(model) == []
    assert model.graph.inputs[0].name == "input"


def test_names_that_are_taken_are_left_to_their_owners() -> None:
    """A foreign graph whose constants and tensors are called as ours would be."""
    nodes = [
        op("Conv", ["input", "w"], ["a"], name="one"),
        op("Add", ["a", "input_scale"], ["input_quantized"], name="/input_quantized"),
        op("Add", ["input_quantized", "w_int8"], ["w_scale"], name="/input_dequantized"),
        op("Add", ["w_scale", "zero_point_int8"], ["y"], name="/weight_dequantized"),
    ]
    taken = {"input_scale": np.float32(1), "w_int8": np.float32(2), "zero_point_int8": np.float32(3)}
    model = small(nodes, (2, 4, 5, 5), {"w": normal(4, 4, 1, 1)} | taken)
    feed = np.clip(normal(2, 4, 5, 5), -1.9, 1.9)  # without saturation
    before = outputs(model, feed)["y"]
    placement = place(model)
    InsertQDQ(placement, {"input": 1 / 64}, weights_of(model, placement))(model)
    check(model)
    assert broken_rules(model) == []
    assert np.abs(outputs(model, feed)["y"] - before).max() < 0.1  # of 6 added: a lost constant would show


def test_a_network_output_that_is_quantized_inside_leaves_as_it_is() -> None:
    nodes = [op("Conv", ["input", "w"], ["a"], name="one"), op("Conv", ["a", "w"], ["y"], name="two")]
    model = small(nodes, (2, 4, 5, 5), {"w": normal(4, 4, 1, 1)}, ("a", "y"))
    placement = place(model)
    InsertQDQ(placement, {"input": 1.0, "a": 1.0}, weights_of(model, placement))(model)
    assert [value.name for value in model.graph.outputs] == ["a", "y"]
    found = outputs(model, normal(2, 4, 5, 5))["a"]
    assert not np.array_equal(found, np.rint(found))


@pytest.mark.parametrize("opset", [19, 20, 21])
def test_opsets_of_our_exports_are_taken(opset: int) -> None:
    model = small([op("Conv", ["input", "w"], ["y"])], (2, 4, 5, 5), {"w": normal(4, 4, 1, 1)}, opset=opset)
    placement = place(model)
    InsertQDQ(placement, {"input": 0.1}, weights_of(model, placement))(model)
    check(model)
    assert outputs(model, normal(2, 4, 5, 5))["y"].shape == (2, 4, 5, 5)


# ---------------------------------------------------------------------------------------------------------------- constants


def test_a_constant_takes_no_name_that_somebody_has() -> None:
    model = graph("sknet")
    owner = next(iter(model.graph.initializers))
    assert free_name(model.graph, owner) == f"{owner}_2"
    assert free_name(model.graph, "input") == "input_2"
    assert free_name(model.graph, "stem.conv/Conv") == "stem.conv/Conv_2"
    first = constant(model.graph, "new", np.float32(1))
    assert constant(model.graph, "new", np.float32(2)).name == "new"  # nobody reads the first
    assert model.graph.initializers["new"] is not first


def test_what_nobody_reads_goes_and_all_else_stays() -> None:
    model = graph("sknet")
    before = set(model.graph.initializers)
    constant(model.graph, "unused", np.float32(1))
    drop_unused(model.graph)
    assert set(model.graph.initializers) == before
