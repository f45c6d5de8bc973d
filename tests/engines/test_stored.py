"""INT8 weights in real plans of TensorRT-RTX: found byte for byte, of every kind of layer, and not where others are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from skdeploy import engines
from skdeploy.engines._build import BatchProfile, BuildOptions, EngineReport
from skdeploy.engines.stored import FEWEST, stored_weights
from skdeploy.passes.half import HalfPrecision
from skdeploy.quant.weight_only import narrow_weights

pytest.importorskip("tensorrt_rtx", reason="needs skdeploy[rtx]")

# Each layer of x: its operator, weight, the shape of what it reads, attributes.
LAYERS: tuple[tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]], ...] = (
    ("Conv", (32, 64, 3, 3), (1, 64, 8, 8), {"pads": [1] * 4}),
    ("Conv", (16, 4, 3, 3), (1, 16, 8, 8), {"pads": [1] * 4, "group": 4}),
    ("Conv", (8, 16, 3), (1, 16, 32), {}),
    ("Conv", (8, 16, 2, 2, 2), (1, 16, 4, 4, 4), {}),
    ("ConvTranspose", (16, 8, 2, 2), (1, 16, 8, 8), {"strides": [2, 2]}),
    ("ConvTranspose", (16, 4, 2, 2), (1, 16, 8, 8), {"strides": [2, 2], "group": 4}),
    ("Gemm", (8, 16), (1, 16), {"transB": 1}),
    ("MatMul", (16, 8), (1, 4, 16), {}),
)


def network(seed: int, layers: tuple[int, ...] = tuple(range(len(LAYERS)))) -> ir.Model:
    """These layers side by side, each with an input and an output of its own."""
    rng = np.random.default_rng(seed)
    nodes, inputs, outputs, constants = [], [], [], []
    for index in layers:
        operator, weight, shape, attributes = LAYERS[index]
        nodes.append(
            helper.make_node(
                operator, [f"x{index}", f"w{index}"], [f"y{index}"], name=f"l{index}/{operator}", **attributes
            )
        )
        inputs.append(helper.make_tensor_value_info(f"x{index}", TensorProto.FLOAT, shape))
        outputs.append(helper.make_tensor_value_info(f"y{index}", TensorProto.FLOAT, None))
        constants.append(numpy_helper.from_array(rng.standard_normal(weight).astype(np.float32), f"w{index}"))
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return ir.from_proto(onnx.shape_inference.infer_shapes(made))


def build(model: ir.Model, folder: Path) -> EngineReport:
    ir.save(model, folder / "model.onnx")
    options = BuildOptions(BatchProfile(1, 1, 1))
    return engines.build("tensorrt_rtx", folder / "model.onnx", folder / "model.plan", options, lambda *_: None)


def test_the_plan_holds_the_integers_of_every_kind_of_layer(tmp_path: Path) -> None:
    narrow = HalfPrecision()(narrow_weights(network(0)).model).model
    report = build(narrow, tmp_path)
    stored = report.proof.stored
    assert stored is not None
    integers = [value.const_value for value in narrow.graph.initializers.values() if value.dtype == ir.DataType.INT8]
    weights = [each.numpy() for each in integers if each is not None and len(each.shape) > 1]
    assert stored.weights == stored.found == len(LAYERS) == len(weights)
    assert stored.weight_bytes == stored.found_bytes == sum(each.nbytes for each in weights)
    assert f"all {len(LAYERS)} INT8 weights" in report.proof.text()
    assert not report.proof.wider  # the arithmetic is FP16, as in the graph
    assert {layer.wanted for layer in report.proof.weighted} == {"fp16"}

    other = HalfPrecision()(narrow_weights(network(1)).model).model
    plan = (tmp_path / "model.plan").read_bytes()
    of_others = stored_weights(other, plan)
    assert of_others is not None
    assert of_others.found == 0
    assert "0 of 8 INT8 weights" in of_others.text()


def test_a_plan_in_fp16_does_not_hold_them(tmp_path: Path) -> None:
    """The same values, rounded to INT8 and stored as FP16: what a compiler makes that folds the DequantizeLinear."""
    narrow = HalfPrecision()(narrow_weights(network(0, (0,))).model).model
    small = build(narrow, tmp_path).weights_memory_bytes
    folded = narrow.clone()
    (dequantize,) = [node for node in folded.graph if node.op_type == "DequantizeLinear"]
    stored, scale = (dequantize.inputs[index].const_value.numpy() for index in (0, 1))  # type: ignore[union-attr]  # weights are constants
    values = stored.astype(np.float16) * scale.reshape(-1, 1, 1, 1)
    weight = ir.val("folded", const_value=ir.tensor(values, name="folded"))
    folded.graph.register_initializer(weight)
    dequantize.outputs[0].replace_all_uses_with(weight)
    folded.graph.remove(dequantize, safe=True)
    report = build(folded, tmp_path)
    assert report.proof.stored is None  # nothing is INT8 in that graph
    # 18,432 weights, by the compiler's own count: scales and padding are some 2 kB.
    assert small is not None
    assert report.weights_memory_bytes is not None
    assert 18_432 < small < 22_000
    assert report.weights_memory_bytes > 36_864
    found = stored_weights(narrow, (tmp_path / "model.plan").read_bytes())
    assert found is not None
    assert (found.weights, found.found) == (1, 0)


def test_what_proves_nothing_is_not_counted() -> None:
    assert stored_weights(network(0), b"") is None  # no INT8
    short = HalfPrecision()(narrow_weights(network(0, (6,))).model).model
    (weight,) = [
        value
        for value in short.graph.initializers.values()
        if value.dtype == ir.DataType.INT8 and len(value.shape or ()) == 2
    ]
    assert weight.const_value is not None
    assert weight.const_value.size >= FEWEST
    weight.const_value = ir.tensor(np.full((8, 16), 7, np.int8), name=weight.name)
    assert stored_weights(short, b"\x07" * 1000) is None  # one value alone could be anything
