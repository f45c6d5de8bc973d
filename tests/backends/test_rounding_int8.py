"""INT8 graphs in ONNX Runtime on a CPU: an exact session does what the graph says, and what ONNX Runtime does by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto

from skdeploy.backends import onnxruntime as backend
from skdeploy.core.architecture import NetworkSpec
from tests.backends.rounding_graphs import HALF, TO_FLOAT, TO_HALF, execute, graph, node, rounded
from tests.graphs.int8_networks import THREE, TWO, feeds_for, int8, pixels, spec_of
from tests.graphs.networks import Array, relative_error, sqnr_db
from tests.graphs.numpy_int8 import evaluate


def convolution_between_integers(bias: int, *, relu: bool = False) -> tuple[ir.Model, Array]:
    """Q-DQ-Conv-Q-DQ in FP16, and its input. The bias is in steps of INT32: the product of activation and weight scale."""
    scale = 2.0**-6
    generator = np.random.default_rng(0)
    last = "a" if relu else "c"
    nodes = [
        TO_HALF,
        node("QuantizeLinear", "h s zero", "q"),
        node("DequantizeLinear", "q s zero", "d"),
        node("DequantizeLinear", "w s_w zeros", "dw", axis=0),
        node("Conv", "d dw b", last),
        *([node("Relu", "a", "c")] if relu else []),
        node("QuantizeLinear", "c s_y zero", "qy"),
        node("DequantizeLinear", "qy s_y zero", "r"),
        TO_FLOAT,
    ]
    constants = {
        "s": np.float16(scale),
        "s_w": np.full(4, scale, np.float16),
        "s_y": np.float16(scale * scale * 1000),
        "zero": np.int8(0),
        "zeros": np.zeros(4, np.int8),
        "w": generator.integers(-127, 128, (4, 3, 1, 1)).astype(np.int8),
        "b": np.full(4, scale * scale * bias, np.float16),
    }
    x = generator.uniform(-100 * scale, 100 * scale, (1, 3, 5, 5)).astype(np.float32)
    return graph(nodes, [1, 3, 5, 5], **constants), x


@pytest.mark.parametrize("relu", [False, True], ids=["conv", "conv-relu"])
def test_integers_and_roundings_are_those_of_numpy(relu: bool) -> None:
    model, x = convolution_between_integers(1000, relu=relu)
    expected = evaluate(ir.to_proto(model), {"x": x})
    assert len(np.unique(expected["qy"])) > 15
    model.graph.outputs.extend(v for n in model.graph for v in n.outputs if v.name in ("q", "qy"))
    found = execute(rounded(model), x)
    for array, name in zip(found, ("y", "q", "qy"), strict=True):
        np.testing.assert_array_equal(array, expected[name])


def test_onnxruntime_divides_half_by_half_in_float32() -> None:
    """By itself, in an FP16 graph: the integers are those of FP32 arithmetic, not of FP16's own division."""
    nodes = [node("QuantizeLinear", "x s zero", "y")]
    model = graph(nodes, [10_000], kind=HALF, result=TensorProto.INT8, s=np.float16(0.0301), zero=np.int8(0))
    x = np.linspace(-4, 4, 10_000).astype(np.float16)
    (found,) = execute(model, x)
    np.testing.assert_array_equal(found, np.clip(np.rint(np.float32(x) / np.float32(np.float16(0.0301))), -128, 127))
    assert np.count_nonzero(found != np.clip(np.rint(x / np.float16(0.0301)), -128, 127)) > 100


def test_integers_are_rounded_half_to_even_and_saturate() -> None:
    nodes = [TO_HALF, node("QuantizeLinear", "h s zero", "q"), node("DequantizeLinear", "q s zero", "r"), TO_FLOAT]
    model = graph(nodes, [7], s=np.float16(2), zero=np.int8(0))
    (found,) = execute(rounded(model), np.array([1, 3, 5, -1, -3, 1e3, -1e3], np.float32))
    np.testing.assert_array_equal(found, [0, 4, 4, 0, -4, 254, -256])


@pytest.mark.parametrize("structure", [TWO, THREE], ids=["two", "three"])
def test_a_whole_int8_network_is_that_of_numpy(structure: NetworkSpec, tmp_path: Path) -> None:
    """Bit for bit up to sums in another order, which now and then round to another level: a level is 2^-8 of the range."""
    model = int8(structure, half=True)
    given = feeds_for(model, spec_of(structure), pixels(6))
    expected = evaluate(ir.to_proto(model), given)
    integers = [n.outputs[0].name or "" for n in model.graph if n.op_type == "QuantizeLinear"]
    ir.save(model, tmp_path / "model.onnx")
    with backend.open_session(tmp_path / "model.onnx", also=integers) as session:
        found = session.run(given)
    for name in integers:
        apart = np.abs(found[name].astype(np.int16) - expected[name])
        assert apart.max() <= 1
        assert np.count_nonzero(apart) / apart.size < 2e-3
    assert relative_error(found["logits"], expected["logits"]) < 0.005  # about a level
    # And that is not what FP32 in place of FP16 gives: there, many more values fall on the other side of a middle.
    with backend.open_model(int8(structure), also=integers) as session:
        single = session.run(given)
    differing = [np.mean(single[name] != expected[name]) for name in integers if not name.startswith("pixels")]
    assert np.mean(differing) > 2e-3


def test_onnxruntime_alone_breaks_the_biases_of_int8_with_half() -> None:
    """The other fact that exact sessions exist for; it is a trap for users, who must be told (backends/onnxruntime.py).

    It turns biases into INT32 in the type of the scales, and in FP16 integers end at 65504. If this fails, that is mended.
    """
    model, x = convolution_between_integers(100_000)
    expected = evaluate(ir.to_proto(model), {"x": x})["y"]
    (alone,) = execute(model, x)
    assert sqnr_db(alone, expected) < 10
    exact, _ = convolution_between_integers(100_000)
    with backend.open_model(exact) as session:
        np.testing.assert_array_equal(session.run({"x": x})["y"], expected)


def test_the_optimiser_that_breaks_them_has_the_name_that_the_backend_switches_off() -> None:
    model, x = convolution_between_integers(100_000)
    expected = evaluate(ir.to_proto(model), {"x": x})["y"]
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(),
        providers=["CPUExecutionProvider"],
        disabled_optimizers=[backend.BIAS_QUANTIZER],
    )
    (found,) = session.run(None, {"x": x})
    np.testing.assert_array_equal(found, expected)


def test_exact_sessions_dequantize_weights_once(tmp_path: Path) -> None:
    """The option that keeps Q/DQ apart must not leave the weights to be dequantized at each run."""
    model = int8(TWO)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    for key, value in backend.EXACT.items():
        options.add_session_config_entry(key, value)
    ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = [n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node]
    activations = sum(n.op_type == "QuantizeLinear" for n in model.graph)
    assert kinds.count("DequantizeLinear") == kinds.count("QuantizeLinear") == activations
    assert "QLinearConv" not in kinds


def test_an_optimised_session_is_a_users_own(tmp_path: Path) -> None:
    model = int8(TWO)
    ir.save(model, tmp_path / "model.onnx")
    given = feeds_for(model, spec_of(TWO), pixels(4))
    with backend.open_session(tmp_path / "model.onnx", optimised=True) as session:
        found = session.run(given)["logits"]
    options = ort.SessionOptions()
    options.log_severity_level = 3
    users = ort.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(found, users.run(["logits"], given)[0])
    with backend.open_session(tmp_path / "model.onnx") as session:
        assert not np.array_equal(found, session.run(given)["logits"])
