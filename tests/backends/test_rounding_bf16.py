"""BF16 on the CPU: bit by bit what torch.bfloat16 is, and that ONNX Runtime alone would not load it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from skdeploy.backends.admission import admit_file
from skdeploy.backends.onnxruntime import open_deployed, open_model
from skdeploy.backends.rounding import cpu_lacks
from skdeploy.core.errors import ExportError
from skdeploy.core.precision import PRECISIONS, Precision
from skdeploy.passes.half import HalfPrecision
from skdeploy.passes.raise_opset import RaiseOpset

BF16 = PRECISIONS["bf16"]
Floats = NDArray[np.float32]


def convolution(weight: Floats, bias: Floats, shape: tuple[int, ...]) -> ir.Model:
    """Relu(Conv(x)) in FP32."""
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["sum"], name="conv/Conv"),
            helper.make_node("Relu", ["sum"], ["y"], name="act/Relu"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return ir.from_proto(onnx.shape_inference.infer_shapes(made))


def lowered(model: ir.Model, precision: Precision = BF16) -> ir.Model:
    narrow = ir.DataType[precision.onnx_type]
    return HalfPrecision(precision=precision)(RaiseOpset(narrow)(model).model).model


def every_float() -> Floats:
    """Of each sign and exponent: mantissas at, beside and between BF16's numbers, ties to even and odd; the special ones."""
    low = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    high = np.array([0, 1, 2, 0x7E, 0x7F], np.uint32)
    exponents = np.arange(256, dtype=np.uint32)
    bits = (exponents[:, None, None] << 23) | (high[None, :, None] << 16) | low[None, None, :]
    return np.concatenate([bits.reshape(-1), bits.reshape(-1) | 0x80000000]).astype(np.uint32).view(np.float32)


def test_each_number_is_rounded_as_torch_rounds_it() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], "narrow", to=TensorProto.BFLOAT16),
        helper.make_node("Cast", ["narrow"], ["y"], "y", to=TensorProto.FLOAT),
    ]
    x = every_float()
    interface = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [x.size]) for name in "xy"]
    made = helper.make_model(
        helper.make_graph(nodes, "g", interface[:1], interface[1:]),
        opset_imports=[helper.make_opsetid("", 19)],
        ir_version=9,
    )
    with open_model(ir.from_proto(onnx.shape_inference.infer_shapes(made))) as session:
        found = session.run({"x": x})["y"]
    expected = torch.from_numpy(x.copy()).to(torch.bfloat16).to(torch.float32).numpy()
    is_nan = np.isnan(expected)
    assert np.array_equal(np.isnan(found), is_nan)
    assert np.array_equal(found[~is_nan].view(np.uint32), expected[~is_nan].view(np.uint32))
    assert np.isinf(found[np.isfinite(x)]).any()  # what is above BF16's largest number
    assert (found != x)[~is_nan].mean() > 0.5  # it rounds


def test_a_graph_is_rounded_where_torch_rounds() -> None:
    """Weights, input and output each once, sums in FP32: of a 1x1 convolution whose sums have one term, so no order matters."""
    rng = np.random.default_rng(0)
    scale = rng.standard_normal(8).astype(np.float32) * np.float32(1e6)  # FP16 would overflow
    weight = np.diag(scale).reshape(8, 8, 1, 1).astype(np.float32)
    bias = rng.standard_normal(8).astype(np.float32)
    x = rng.standard_normal((2, 8, 5, 5)).astype(np.float32)
    with open_model(lowered(convolution(weight, bias, x.shape))) as session:
        (found,) = session.run({"x": x}).values()

    def narrow(array: Floats) -> torch.Tensor:
        return torch.from_numpy(array).to(torch.bfloat16)

    exact = narrow(x).float() * narrow(scale).float().reshape(8, 1, 1) + narrow(bias).float().reshape(8, 1, 1)
    expected = torch.relu(exact.to(torch.bfloat16)).float().numpy()
    assert np.array_equal(found, expected)
    assert np.abs(found).max() > 65504


def test_onnx_runtime_loads_fp16_and_not_bf16(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Why ``cpu_lacks`` asks for any type but FP16. If this fails, ONNX Runtime has learnt it."""
    weight, bias = np.ones((4, 4, 1, 1), np.float32), np.zeros(4, np.float32)
    half = lowered(convolution(weight, bias, (1, 4, 3, 3)), Precision.FP16)
    brain = lowered(convolution(weight, bias, (1, 4, 3, 3)))
    assert cpu_lacks(half) is None
    assert cpu_lacks(brain) is BF16
    with open_model(half.clone(), optimised=True):
        pass
    with pytest.raises(ExportError, match="NOT_IMPLEMENTED"), open_model(brain.clone(), optimised=True):
        pass
    path = tmp_path_factory.mktemp("bf16") / "model.onnx"
    ir.save(brain, path)
    admit_file(path)
    with open_deployed(path, precision=BF16, threads=1) as deployed:
        assert "no BF16 on the CPU" in deployed.emulated
        (found,) = deployed.session.run({"x": np.ones((1, 4, 3, 3), np.float32)}).values()
    assert np.array_equal(found, np.full((1, 4, 3, 3), 4, np.float32))
