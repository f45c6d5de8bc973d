"""Q/DQ that a file carries: kept to the last bit in the form that TensorRT takes, or refused with the node and what to do."""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn
from torch.ao.quantization import (
    FakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    QConfig,
)
from torch.ao.quantization.backend_config.tensorrt import get_tensorrt_backend_config
from torch.ao.quantization.quantize_fx import prepare_qat_fx

from skdeploy.core.errors import CalibrationError, ExportError, PassError
from skdeploy.ir.qdq import int8_layers, layers
from skdeploy.passes.foreign import read_foreign
from skdeploy.passes.half import HalfPrecision
from skdeploy.passes.simplify import simplify
from skdeploy.passes.trained import IntegerWeights, WithoutQDQ, require_same_scales, scales_in
from skdeploy.quant.quantize import require_no_scales
from tests import threads
from tests.graphs.quantizable import Array, normal

op = helper.make_node
FEED = normal(3, 3, 10, 12, seed=3)
STEPS = {"image": 0.031, "hidden": 0.0173}
RNG = np.random.default_rng(0)
FLOAT_WEIGHT = normal(8, 3, 3, 3)
SCALES = (np.abs(FLOAT_WEIGHT).max(axis=(1, 2, 3)) / 127).astype(np.float32)
INTEGERS = np.rint(FLOAT_WEIGHT / SCALES[:, None, None, None]).astype(np.int8)
BIAS = RNG.integers(-2000, 2000, 8).astype(np.int32)


def file(
    folder: Path, kind: Any = np.int8, zero: int | None = 0, weights: str = "int8", bias: str = "float", **change: Any
) -> Path:
    """Image -> Q/DQ -> convolution -> ReLU -> Q/DQ -> mean -> dense layer, as its author's tool writes it."""
    constants: dict[str, Array] = {name: np.float32(step) for name, step in STEPS.items()}
    constants |= {
        "dense": normal(8, 5),
        "bias_float": BIAS.astype(np.float32) * np.float32(1e-4),
    }
    points = [] if zero is None else ["zero"]
    if zero is not None:
        constants["zero"] = np.array(zero, kind)
    nodes = [
        op("QuantizeLinear", ["pixels", "image", *points], ["a_q"], name="input_quantizer"),
        op("DequantizeLinear", ["a_q", "image", *points], ["a"], name="input_dequantizer"),
    ]
    constants |= {"w_scale": SCALES, "w_zero": np.zeros(8, np.int8)}
    if weights == "float":
        constants["w_float"] = FLOAT_WEIGHT
        nodes.append(op("QuantizeLinear", ["w_float", "w_scale", "w_zero"], ["w_q"], name="weight_quantizer", axis=0))
    elif weights == "uint8":
        constants |= {"w_q": (INTEGERS.astype(np.int16) + 128).astype(np.uint8), "w_zero": np.full(8, 128, np.uint8)}
    else:
        constants["w_q"] = INTEGERS
    nodes.append(op("DequantizeLinear", ["w_q", "w_scale", "w_zero"], ["w"], name="weight_dequantizer", axis=0))
    if bias != "float":
        step = SCALES * np.float32(STEPS["image"])
        integers = BIAS if bias == "int32" else np.clip(BIAS, -127, 127).astype(np.int8)
        constants |= {"b_q": integers, "b_scale": step, "b_zero": np.zeros(8, integers.dtype)}
        nodes.append(op("DequantizeLinear", ["b_q", "b_scale", "b_zero"], ["b"], name="bias_dequantizer", axis=0))
    nodes += [
        op("Conv", ["a", "w", "b" if bias != "float" else "bias_float"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        op("Relu", ["c"], ["r"], name="relu"),
        op("QuantizeLinear", ["r", "hidden", *points], ["r_q"], name="hidden_quantizer"),
        op("DequantizeLinear", ["r_q", "hidden", *points], ["d"], name="hidden_dequantizer"),
        op("GlobalAveragePool", ["d"], ["p"], name="mean"),
        op("Flatten", ["p"], ["m"], name="flatten"),
        op("MatMul", ["m", "dense"], ["scores"], name="head"),
    ]
    constants |= change.pop("constants", {})
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "trained",
        [helper.make_tensor_value_info("pixels", 1, ["n", 3, 10, 12])],
        [helper.make_tensor_value_info("scores", 1, ["n", 5])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items() if name in used],
    )
    path = folder / "trained.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", change.pop("opset", 19))], ir_version=9), path
    )
    assert not change
    return path


def run(proto: onnx.ModelProto) -> Array:
    """In ONNX Runtime, Q/DQ one by one."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: FEED})[0])


LEGAL: list[dict[str, Any]] = [
    {},
    {"weights": "float"},
    {"kind": np.uint8, "zero": 128},
    {"kind": np.uint8, "zero": 128, "weights": "uint8"},
    {"bias": "int32"},
    {"bias": "int8"},
    {"weights": "float", "bias": "int32", "opset": 13},
]


@pytest.mark.parametrize("how", LEGAL, ids=str)
def test_what_is_read_computes_the_file_to_the_last_bit_with_its_own_scales(
    how: dict[str, Any], tmp_path: Path
) -> None:
    path = file(tmp_path, **how)
    model = read_foreign(path)
    expected = run(onnx.load(path))
    np.testing.assert_array_equal(run(ir.to_proto(model)), expected)
    assert scales_in(model) == {
        tuple(SCALES.astype(np.float64)),
        *((float(np.float32(step)),) for step in STEPS.values()),
    }
    integers = {value.dtype for node in model.graph for value in node.outputs if node.op_type == "QuantizeLinear"}
    assert integers == {ir.DataType.INT8}
    whole = IntegerWeights()(simplify(model)).model
    np.testing.assert_array_equal(run(ir.to_proto(whole)), expected)
    assert scales_in(whole) == scales_in(model)
    (weight,) = (
        value
        for value in whole.graph.initializers.values()
        if value.dtype == ir.DataType.INT8 and len(value.shape) == 4
    )
    np.testing.assert_array_equal(weight.const_value.numpy(), INTEGERS)
    assert len(int8_layers(whole)) == 1
    assert len(layers(whole)) == 2


@pytest.mark.parametrize(
    ("how", "node", "why"),
    [
        ({"kind": np.int16, "opset": 21}, "input_quantizer", "has type INT16"),
        ({"constants": {"hidden": np.float32(0)}}, "hidden_quantizer", "has a scale of 0"),
        (
            {"constants": {"hidden": np.full(8, 0.1, np.float32), "zero": np.zeros(8, np.int8)}},
            "hidden_quantizer",
            "8 scales for",
        ),
        ({"constants": {"w_zero": np.full(8, 5, np.int8)}}, "weight_dequantizer", "zero point 5 of int8"),
    ],
    ids=str,
)
def test_what_tensorrt_does_not_take_is_refused_with_the_node(
    how: dict[str, Any], node: str, why: str, tmp_path: Path
) -> None:
    path = file(tmp_path, **how)
    with pytest.raises(ExportError, match=f"{re.escape(str(path))}: the node {node} .*{re.escape(why)}") as refusal:
        read_foreign(path)
    assert refusal.value.advice


def test_scales_of_input_channels_are_refused_with_the_layer_but_for_transposed_convolutions(tmp_path: Path) -> None:
    proto = onnx.load(
        file(tmp_path, constants={"w_scale": np.full(3, 0.01, np.float32), "w_zero": np.zeros(3, np.int8)})
    )
    dequantizer = next(node for node in proto.graph.node if node.name == "weight_dequantizer")
    dequantizer.attribute[0].i = 1
    onnx.save(proto, tmp_path / "columns.onnx")
    with pytest.raises(ExportError, match=r"weight_dequantizer .* along axis 1 of the weight of conv, .* along axis 0"):
        read_foreign(tmp_path / "columns.onnx")
    for axis, channels in ((0, 3), (1, 8)):
        up = op("ConvTranspose", ["a", "w", "bias_float"], ["c"], name="up", pads=[1, 1, 1, 1])
        scales = {"w_scale": np.full(channels, 0.01, np.float32), "w_zero": np.zeros(channels, np.int8)}
        proto = onnx.load(file(tmp_path, constants={**scales, "w_q": np.moveaxis(INTEGERS, 0, 1).copy()}))
        index = next(index for index, node in enumerate(proto.graph.node) if node.name == "conv")
        proto.graph.node[index].CopyFrom(up)
        next(node for node in proto.graph.node if node.name == "weight_dequantizer").attribute[0].i = axis
        onnx.save(proto, tmp_path / "up.onnx")
        assert len(int8_layers(read_foreign(tmp_path / "up.onnx"))) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pixels_QuantizeLinear", "ActivationSymmetric"),  # ONNX Runtime, and what is made of it
        ("QuantizeLinear_pixels_1", "nncf.quantize"),
        ("node_quantize_per_tensor", "torch.per_tensor_symmetric"),
        ("input_quantizer", "torch.per_tensor_symmetric"),
    ],
)
def test_the_advice_is_for_the_tool_that_wrote_the_file(name: str, words: str, tmp_path: Path) -> None:
    proto = onnx.load(file(tmp_path, kind=np.int16, opset=21))
    proto.graph.node[0].name = name
    onnx.save(proto, tmp_path / "named.onnx")
    with pytest.raises(ExportError, match=f"the node {name} .* has type INT16") as refusal:
        read_foreign(tmp_path / "named.onnx")
    assert words in (refusal.value.advice or "")
    assert "--int8 --calib" in (refusal.value.advice or "")


def test_q_and_dq_of_onnx_runtimes_own_domain_are_onnxs_own(tmp_path: Path) -> None:
    path = file(tmp_path)
    expected = run(onnx.load(path))
    proto = onnx.load(path)
    for node in proto.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.domain = "com.microsoft"
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(proto, tmp_path / "microsoft.onnx")
    np.testing.assert_array_equal(run(ir.to_proto(read_foreign(tmp_path / "microsoft.onnx"))), expected)


def test_other_forms_of_quantization_are_refused_by_operator(tmp_path: Path) -> None:
    proto = onnx.load(file(tmp_path))
    proto.graph.node[0].CopyFrom(op("DynamicQuantizeLinear", ["pixels"], ["a_q", "s", "z"], name="dynamic"))
    onnx.save(proto, tmp_path / "dynamic.onnx")
    with pytest.raises(ExportError, match="dynamic is DynamicQuantizeLinear") as refusal:
        read_foreign(tmp_path / "dynamic.onnx")
    assert "QuantFormat.QDQ" in refusal.value.advice


def test_a_float_weight_is_rounded_as_onnx_defines_it(tmp_path: Path) -> None:
    """Against ONNX's reference, with values in the middle of two steps, which go to the even one."""
    middle = (np.arange(-20, 20).reshape(8, 5)[:, :3, None, None] + 0.5) * SCALES[:, None, None, None]
    weight = np.broadcast_to(middle, (8, 3, 3, 3)).astype(np.float32)
    path = file(tmp_path, weights="float", constants={"w_float": weight})
    proto = onnx.load(path)
    proto.graph.output.append(helper.make_empty_tensor_value_info("w_q"))
    expected = ReferenceEvaluator(proto).run(["w_q"], {"pixels": FEED})[0]
    model = IntegerWeights()(read_foreign(path)).model
    (found,) = (v for v in model.graph.initializers.values() if v.dtype == ir.DataType.INT8 and len(v.shape) == 4)
    np.testing.assert_array_equal(found.const_value.numpy(), expected)


def test_without_its_q_and_dq_the_float_network_is_left(tmp_path: Path) -> None:
    model = WithoutQDQ()(read_foreign(file(tmp_path, weights="float"))).model
    assert not any("Quantize" in node.op_type for node in model.graph)
    bias = BIAS.astype(np.float32) * np.float32(1e-4)
    tensors = map(torch.from_numpy, (FEED, FLOAT_WEIGHT, bias))
    layer = nn.functional.conv2d(*tensors, padding=1)
    expected = layer.relu().mean(dim=(2, 3)).numpy() @ normal(8, 5)
    np.testing.assert_allclose(
        run(ir.to_proto(model)), expected, rtol=1e-4, atol=1e-5
    )  # float32 sums of 27 and 120 terms


def test_a_scale_that_moved_by_a_bit_is_seen(tmp_path: Path) -> None:
    given = read_foreign(file(tmp_path))
    changed = given.clone()
    value = next(
        value
        for value in changed.graph.initializers.values()
        if value.dtype == ir.DataType.FLOAT and value.const_value.size == 1
    )
    value.const_value = ir.tensor(np.nextafter(value.const_value.numpy(), np.float32(1)), name=value.name)
    require_same_scales(given, given.clone())
    with pytest.raises(PassError, match="scales of the file are gone"):
        require_same_scales(given, changed)


def test_a_graph_with_scales_is_not_calibrated_again(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="quantized already"):
        require_no_scales(read_foreign(file(tmp_path)))


# ------------------------------------------------------------------------------------------------------ torch's training


class Skip(nn.Module):
    """A skip and a classifier: enough for torch to quantize activations, weights and the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.relu, self.head = nn.ReLU(), nn.Linear(8, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.relu(self.first(images))
        maps = self.relu(self.second(maps) + maps)
        return self.head(maps.mean((2, 3)))


def trained(folder: Path) -> tuple[Path, Array]:
    """Fake quantization of torch.ao, symmetric int8, by TorchScript: the file, and what torch computes for ``FEED``."""
    symmetric = {"quant_min": -128, "quant_max": 127, "dtype": torch.qint8}
    activation = FakeQuantize.with_args(
        observer=MovingAverageMinMaxObserver, qscheme=torch.per_tensor_symmetric, **symmetric
    )
    weight = FakeQuantize.with_args(
        observer=MovingAveragePerChannelMinMaxObserver, qscheme=torch.per_channel_symmetric, **symmetric
    )
    from torch.ao.quantization import QConfigMapping, disable_observer

    torch.manual_seed(0)
    example = torch.from_numpy(FEED)
    with warnings.catch_warnings(), threads.single():
        warnings.simplefilter("ignore")  # torch.ao's own deprecation
        network = prepare_qat_fx(
            Skip().train(),
            QConfigMapping().set_global(QConfig(activation, weight)),
            (example,),
            backend_config=get_tensorrt_backend_config(),
        )
        network(example)
        network.eval().apply(disable_observer)
        made = io.BytesIO()
        torch.onnx.export(
            network, (example,), made, dynamo=False, opset_version=17, input_names=["x"], output_names=["y"],
            dynamic_axes={"x": {0: "n"}, "y": {0: "n"}},
        )  # fmt: skip
        expected = network(example).detach().numpy()
    path = folder / "torch.onnx"
    path.write_bytes(made.getvalue())
    return path, expected


def test_a_network_of_torchs_own_training_is_computed_as_torch_does(tmp_path: Path) -> None:
    path, expected = trained(tmp_path)
    model = IntegerWeights()(simplify(read_foreign(path))).model
    found = run(ir.to_proto(model))
    # The result is quantized too, and torch sums in another order: a few values lie a step further, 1/128 of the range.
    step = np.abs(expected).max() / 100
    assert np.abs(found - expected).max() <= step
    assert np.abs(found - expected).mean() < step / 10
    assert len(int8_layers(model)) == 3
    single = WithoutQDQ()(read_foreign(path)).model
    assert np.abs(run(ir.to_proto(single)) - expected).max() > 0


def test_tensorrt_rtx_builds_a_trained_graph_with_fp16_beside_it_and_every_layer_in_int8(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs skdeploy[rtx]")
    from skdeploy.engines.parsing import parser_refusal
    from skdeploy.engines.proof import graph_layers

    model = IntegerWeights()(simplify(read_foreign(trained(tmp_path)[0]))).model
    before = scales_in(model)
    half = HalfPrecision()(model).model
    assert scales_in(half) == before
    assert {layer.precision for layer in graph_layers(half)} == {"int8"}
    ir.save(half, tmp_path / "half.onnx")
    assert parser_refusal(tmp_path / "half.onnx") == ""
