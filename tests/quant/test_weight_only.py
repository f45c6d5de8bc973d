"""Weights alone as INT8: against numpy's own rounding and products, on the right axis, and with the reasons for what stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from skdeploy.backends.onnxruntime import open_model
from skdeploy.core.errors import CalibrationError, PrecisionError, UsageError
from skdeploy.ir.qdq import DEQUANTIZE, qdq_nodes
from skdeploy.passes.half import HalfPrecision
from skdeploy.quant.weight_only import growth_note, narrow_weights, saving
from tests.refused import refused

Array = NDArray[Any]


def layer(operator: str, weight: Array, x: tuple[int, ...], **attributes: Any) -> ir.Model:
    """One layer "net.layer/Op" with this weight: ``x`` is the shape of what it reads."""
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w"], ["y"], name=f"net.layer/{operator}", **attributes)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return ir.from_proto(onnx.shape_inference.infer_shapes(made))


def weights(*shape: int, seed: int = 0) -> Array:
    """Output channels, of axis 0, of very different sizes."""
    rng = np.random.default_rng(seed)
    sizes = np.exp2(rng.uniform(-4, 4, (shape[0], *[1] * (len(shape) - 1))))
    return (rng.standard_normal(shape) * sizes).astype(np.float32)


def run(model: ir.Model, x: Array) -> Array:
    with open_model(model.clone()) as session:
        (output,) = session.run({"x": x}).values()
    return output


LAYERS: dict[str, tuple[str, Array, tuple[int, ...], int, dict[str, Any]]] = {
    "convolution": ("Conv", weights(6, 4, 3, 3), (2, 4, 7, 8), 0, {}),
    "grouped convolution": ("Conv", weights(6, 2, 3, 3), (2, 4, 7, 8), 0, {"group": 2}),
    "depthwise convolution": ("Conv", weights(4, 1, 3, 3), (2, 4, 7, 8), 0, {"group": 4}),
    "convolution in one dimension": ("Conv", weights(6, 4, 3), (2, 4, 9), 0, {}),
    "convolution in three dimensions": ("Conv", weights(6, 4, 2, 2, 2), (1, 4, 4, 4, 4), 0, {}),
    "transposed": ("ConvTranspose", weights(6, 4, 2, 2).swapaxes(0, 1), (2, 4, 5, 6), 1, {"strides": [2, 2]}),
    "grouped transposed": ("ConvTranspose", weights(3, 4, 2, 2).swapaxes(0, 1), (2, 4, 5, 6), 1, {"group": 2}),
    "transposed in one dimension": ("ConvTranspose", weights(6, 4, 2).swapaxes(0, 1), (2, 4, 5), 1, {}),
    "transposed in three dimensions": ("ConvTranspose", weights(6, 4, 2, 1, 2).swapaxes(0, 1), (1, 4, 3, 3, 3), 1, {}),
    "Gemm of columns": ("Gemm", weights(6, 5), (3, 5), 0, {"transB": 1}),
    "Gemm of rows": ("Gemm", weights(6, 5).T, (3, 5), 1, {}),
    "MatMul": ("MatMul", weights(6, 5).T, (2, 3, 5), 1, {}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_kind_of_layer_has_a_scale_for_each_output_channel(name: str) -> None:
    operator, weight, shape, axis, attributes = LAYERS[name]
    weight = np.ascontiguousarray(weight)
    model = layer(operator, weight, shape, **attributes)
    done = narrow_weights(model)
    assert done.weighted == (f"net.layer/{operator}",)
    assert not done.kept

    (dequantize,) = qdq_nodes(done.model)
    stored, scale = (dequantize.inputs[index].const_value.numpy() for index in (0, 1))  # type: ignore[union-attr]  # weights are constants
    assert dequantize.attributes.get_int("axis", 1) == axis
    assert stored.dtype == np.int8
    assert scale.shape == (weight.shape[axis],)
    assert np.array_equal(scale, scale.astype(np.float16))  # a scale has the type of what is beside it
    along = scale.reshape([-1 if index == axis else 1 for index in range(weight.ndim)])
    back = stored * along
    # Half a step, but where the scale with the least error clips the largest weights: 0.8 of 127 steps, so 25.4 at most.
    error = np.abs(back - weight) / along
    inside = np.abs(weight) <= 127 * along
    assert error[inside].max() <= 0.5 + 1e-6
    assert error.max() <= 25.4 + 0.5
    assert done.bytes_before == 2 * weight.size
    assert done.bytes_after == weight.size + 3 * scale.size  # INT8, and a scale and a zero point a channel

    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    assert np.array_equal(run(done.model, x), run(layer(operator, back.astype(np.float32), shape, **attributes), x))
    wrong = layer(operator, np.ascontiguousarray(stored * scale.mean()).astype(np.float32), shape, **attributes)
    assert not np.allclose(run(done.model, x), run(wrong, x), rtol=1e-2)  # one scale for all would show


def test_fp16_beside_it_is_rounded_where_the_graph_says() -> None:
    """Weight, input and output each once to FP16, sums in FP32: by numpy, of a product without any order of sums."""
    weight = weights(6, 4)
    done = HalfPrecision()(narrow_weights(layer("Gemm", weight, (3, 4), transB=1)).model).model
    (dequantize,) = qdq_nodes(done)
    assert dequantize.outputs[0].dtype == ir.DataType.FLOAT16
    stored, scale = (dequantize.inputs[index].const_value.numpy() for index in (0, 1))  # type: ignore[union-attr]  # weights are constants
    x = np.eye(4, dtype=np.float32)[:3] * np.float32(1.2345678)
    narrow = (stored.astype(np.float32) * scale.astype(np.float32)[:, None]).astype(np.float16).astype(np.float32)
    expected = (x.astype(np.float16).astype(np.float32) @ narrow.T).astype(np.float16).astype(np.float32)
    assert np.array_equal(run(done, x), expected)


def test_layers_that_share_a_weight_share_its_integers() -> None:
    shared = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"], name="net.one/MatMul"),
            helper.make_node("MatMul", ["a", "w"], ["y"], name="net.two/MatMul"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 5])],
        [numpy_helper.from_array(weights(5, 5), "w")],
    )
    model = ir.from_proto(helper.make_model(shared, opset_imports=[helper.make_opsetid("", 19)], ir_version=9))
    done = narrow_weights(model)
    assert done.weighted == ("net.one/MatMul", "net.two/MatMul")
    assert [node.op_type for node in done.model.graph] == [DEQUANTIZE, "MatMul", "MatMul"]
    assert done.bytes_before == 2 * 25


def test_channels_of_zeros_stay_zeros() -> None:
    weight = weights(6, 4, 3, 3)
    weight[[1, 4]] = 0
    done = narrow_weights(layer("Conv", weight, (1, 4, 5, 5)))
    x = np.random.default_rng(1).standard_normal((1, 4, 5, 5)).astype(np.float32)
    y = run(done.model, x)
    assert not y[:, [1, 4]].any()
    assert y[:, [0, 2, 3, 5]].all()
    assert not done.raised


def test_channels_below_fp16s_steps_are_named_and_a_whole_weight_of_them_is_refused() -> None:
    weight = weights(6, 4, 3, 3)
    weight[2] *= np.float32(1e-9)
    model = layer("Conv", weight, (1, 4, 5, 5))
    assert narrow_weights(model).raised == {"net.layer/Conv": 1}
    assert narrow_weights(model, half=False).raised == {}
    assert narrow_weights(model, keep_fp32=["layer"]).raised == {}
    tiny = layer("Conv", np.full((6, 4, 3, 3), 1e-40, np.float32), (1, 4, 5, 5))
    with refused(CalibrationError, "too small for FP16", advice="--keep-fp32"):
        narrow_weights(tiny)
    single = narrow_weights(tiny, half=False)  # FP32's smallest step is larger than these
    assert single.weighted


def test_weights_that_fp16_does_not_hold_are_refused_or_stay_fp32() -> None:
    model = layer("Conv", weights(6, 4, 3, 3) * np.float32(1e5), (1, 4, 5, 5))
    with refused(PrecisionError, "FP16 ends at 65504", advice="--keep-fp32"):
        HalfPrecision()(narrow_weights(model).model)
    with refused(CalibrationError, "above FP16's largest number", advice="--int8-fallback fp32"):
        narrow_weights(layer("Conv", weights(6, 4, 3, 3) * np.float32(1e8), (1, 4, 5, 5)))
    single = narrow_weights(model, half=False).model
    (dequantize,) = qdq_nodes(single)
    assert dequantize.inputs[1].dtype == ir.DataType.FLOAT  # type: ignore[union-attr]  # weights are constants


def test_what_stays_has_its_reason() -> None:
    model = layer("Conv", weights(6, 4, 3, 3), (1, 4, 5, 5))
    with refused(UsageError, "no weight of this graph would be INT8: kept by 'layer'", advice="--weight-only"):
        narrow_weights(model, keep=["layer"])
    with refused(UsageError, "--int8-keep 'other' matches no module"):
        narrow_weights(model, keep=["other"])
    with refused(UsageError, "1 weight per output channel, so scales would outweigh them"):
        narrow_weights(layer("Conv", weights(4, 1, 1, 1), (1, 4, 5, 5), group=4))
    with refused(UsageError, "its weight is not a matrix"):
        narrow_weights(layer("MatMul", weights(2, 4, 5), (2, 3, 4)))
    relu = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], name="net/Relu")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 5])],
    )
    plain = ir.from_proto(helper.make_model(relu, opset_imports=[helper.make_opsetid("", 19)], ir_version=9))
    with refused(UsageError, "no convolution or matrix product with constant weights"):
        narrow_weights(plain)
    with refused(CalibrationError, "quantized already"):
        narrow_weights(narrow_weights(model).model)


@pytest.mark.parametrize("name", [*LAYERS, "too few"])
def test_what_would_be_saved_is_what_is(name: str) -> None:
    """``plan`` says before what ``export`` says afterwards."""
    operator, array, shape, _, attributes = LAYERS.get(
        name, ("Conv", weights(6, 1, 1, 3), (2, 6, 7, 8), 0, {"group": 6})
    )
    model = layer(operator, array, shape, **attributes)
    layers = {node.name or "" for node in model.graph}
    if name == "too few":
        assert saving(model, layers) == (0, 0)
        return
    done = narrow_weights(model)
    assert saving(model, layers) == (1, done.bytes_before - done.bytes_after)
    assert saving(model, ()) == (0, 0)
    assert growth_note(0, 0) == ()
