"""The same function at another scale is the same INT8 network: a layer's weights times s, the next one's divided by it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from skdeploy.backends.onnxruntime import OnnxRuntimeSession
from skdeploy.core.architecture import GraphSpec
from skdeploy.core.errors import CalibrationError
from skdeploy.core.spec import CalibrationMethod, ModelSpec, TensorSpec
from skdeploy.images.dataset import Dataset, normalise
from skdeploy.passes.equalize import FARTHEST
from skdeploy.quant.calibrate import CalibrationSettings, calibrate
from skdeploy.quant.quantize import equalized, quantize
from skdeploy.quant.ranges import ALGORITHM_VERSION, Algorithm, Ranges
from skdeploy.quant.steps import SILENT
from skdeploy.zoo.cardless import spec_without_card

PIXELS = np.random.default_rng(1).integers(0, 256, (32, 5, 5, 3), dtype=np.uint8).repeat(4, axis=1).repeat(4, axis=2)
ALGORITHM = Algorithm(method=CalibrationMethod.MSE, version=ALGORITHM_VERSION)


def graph(scale: float) -> ir.Model:
    """Three convolutions and a classifier, in which the second map and the third are ``scale`` times as large."""
    random = np.random.default_rng(0)

    def weight(*shape: int) -> Any:
        return random.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5

    arrays = {
        "w1": weight(16, 3, 3, 3), "b1": random.normal(0, 0.1, 16),
        "w2": scale * weight(16, 16, 3, 3), "b2": scale * random.normal(0, 0.1, 16),
        "w3": weight(16, 16, 1, 1), "b3": scale * random.normal(0, 0.1, 16),
        "w4": weight(10, 16) / scale, "b4": random.normal(0, 0.1, 10),
    }  # fmt: skip
    nodes = []
    last = "input"
    for number, pads in ((1, 1), (2, 1), (3, 0)):
        names = [last, f"w{number}", f"b{number}"]
        nodes.append(helper.make_node("Conv", names, [f"c{number}"], name=f"c{number}/Conv", pads=[pads] * 4))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"], name=f"r{number}/Relu"))
        last = f"r{number}"
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["mean"], name="mean/GlobalAveragePool"))
    nodes.append(helper.make_node("Flatten", ["mean"], ["flat"], name="flat/Flatten"))
    nodes.append(helper.make_node("Gemm", ["flat", "w4", "b4"], ["logits"], name="fc/Gemm", transB=1))
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 20, 20])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def spec() -> ModelSpec:
    return spec_without_card("plain", GraphSpec(classes=10), 3, (20, 20))


def ranges_of(model: ir.Model) -> Ranges:
    fed = (TensorSpec(name="input", dtype="float32", shape=("N", 3, 20, 20)),)
    card = spec().model_copy(update={"preprocess": spec().preprocess.model_copy(update={"resize": 20})})
    return calibrate(model, fed, card, Dataset("noise", pixels=PIXELS), CalibrationSettings(ALGORITHM, len(PIXELS)))


def run(model: ir.Model) -> Any:
    inputs = normalise(PIXELS, spec().preprocess)
    with OnnxRuntimeSession(ir.to_proto(model).SerializeToString(), "cpu", 1) as session:
        return session.run({session.inputs[0].name: inputs})["logits"].astype(np.float64)


def sqnr_db(scale: float, *, half: bool) -> float:
    model = graph(scale)
    ranges = ranges_of(model)
    card = spec().model_copy(update={"preprocess": ranges.preprocess})
    expected, found = run(model), run(quantize(model, card, ranges, half=half).model)
    return float(10 * np.log10((expected**2).sum() / ((expected - found) ** 2).sum()))


@pytest.fixture(scope="module")
def usual() -> float:
    found = sqnr_db(1.0, half=False)
    assert found > 25  # four layers of INT8: 35 dB each, less 6 for their sum
    return found


@pytest.mark.parametrize(("scale", "within"), [(2.0**-30, 0.5), (2.0**30, 0.5), (1e-6, 1), (1e-3, 1), (1e3, 1)])
def test_beside_fp32_the_scale_of_a_tensor_changes_nothing(scale: float, within: float, usual: float) -> None:
    # A power of two moves nothing but the logarithms in equalization, in their last bits. One threshold of mse may then lie a
    # step of its grid farther, for 0.3 dB: it is the farthest within 3 % of the least error. Any other number rounds weights
    # and steps anew, and 0.7 and 1.3, where no limit is near, differ by 0.6 dB for that.
    assert sqnr_db(scale, half=False) == pytest.approx(usual, abs=within)


@pytest.mark.parametrize("scale", [2.0**-6, 2.0**6])
def test_beside_fp16_neither_where_fp16_holds_the_steps(scale: float, usual: float) -> None:
    assert sqnr_db(scale, half=True) == pytest.approx(usual, abs=0.3)


@pytest.mark.parametrize("scale", [2.0**-30, 1e-5, 2.0**30])
def test_beside_fp16_a_step_that_it_does_not_hold_is_refused_by_its_tensor(scale: float) -> None:
    with pytest.raises(
        CalibrationError, match=r"r2 has values up to|the weights of c2/Conv|fc/Gemm has a weight"
    ) as error:
        sqnr_db(scale, half=True)
    assert "--int8-fallback fp32" in error.value.advice
    advised = re.search(r"--keep-fp32 '(.*)'$", error.value.advice)
    assert advised is not None
    model = graph(scale)
    ranges = ranges_of(model)
    card = spec().model_copy(update={"preprocess": ranges.preprocess})
    # What is kept there stays out of INT8: one pattern is enough for all that FP16 does not hold.
    assert quantize(model, card, ranges, (advised[1],), half=True).placement.weighted


def test_where_fp16_holds_no_step_at_all_fp32_beside_int8_is_the_only_way() -> None:
    model = graph(1.0)
    ranges = ranges_of(model)
    quiet = {
        name: found.model_copy(update={"minimum": -1e-6, "maximum": 1e-6, "threshold": 1e-6, "shifted_threshold": None})
        for name, found in ranges.tensors.items()
    }
    card = spec().model_copy(update={"preprocess": ranges.preprocess})
    with pytest.raises(CalibrationError, match="more are beyond it") as error:
        quantize(
            model,
            card,
            ranges.model_copy(
                update={"tensors": quiet, "algorithm": ranges.algorithm.model_copy(update={"exact_input": False})}
            ),
        )
    assert error.value.advice == "export with --int8-fallback fp32"


def test_single_channels_that_fp16_does_not_hold_are_counted() -> None:
    model = graph(1.0)
    weight = model.graph.initializers["w3"]
    array = weight.const_value.numpy().copy()
    array[:2] *= 1e-7
    array[3] = 0  # silent: nothing to lose
    weight.const_value = ir.tensor(array, name="w3")
    ranges = calibrate_without_equalizing(model)
    card = spec().model_copy(update={"preprocess": ranges.preprocess})
    assert quantize(model, card, ranges).raised == {"c3/Conv": 2}
    assert quantize(model, card, ranges, half=False).raised == {}


def calibrate_without_equalizing(model: ir.Model) -> Ranges:
    card = spec().model_copy(update={"preprocess": spec().preprocess.model_copy(update={"resize": 20})})
    fed = (TensorSpec(name="input", dtype="float32", shape=("N", 3, 20, 20)),)
    algorithm = ALGORITHM.model_copy(update={"equalize": False})
    return calibrate(model, fed, card, Dataset("noise", pixels=PIXELS), CalibrationSettings(algorithm, len(PIXELS)))


def test_a_range_that_an_older_skdeploy_raised_is_refused() -> None:
    model = graph(1e-5)
    ranges = ranges_of(model)
    card = spec().model_copy(update={"preprocess": ranges.preprocess})
    name, held = next((name, held) for name, held in ranges.tensors.items() if held.threshold < 127 * SILENT)
    old = held.model_copy(update={"threshold": float(f"{127 * SILENT:.9g}")})
    edited = ranges.model_copy(update={"tensors": {**ranges.tensors, name: old}})
    with pytest.raises(CalibrationError, match=f"an older skdeploy measured the range of {name}"):
        quantize(model, card, edited, half=False)


def test_a_nearly_silent_channel_is_raised_only_as_far_as_fp16_reaches_before_its_relu() -> None:
    """Of two channels one is large and negative before its ReLU: raised a thousandfold, it would leave FP16."""
    model = graph(1.0)
    bias, weight = model.graph.initializers["b3"], model.graph.initializers["w3"]
    rows, biases = weight.const_value.numpy().copy(), bias.const_value.numpy().copy()
    rows[5] *= 400
    weight.const_value = ir.tensor(rows, name="w3")
    before = values(model, "c3")[:, 5]
    biases[5] -= before.max() - 0.001  # all but silent after it
    bias.const_value = ir.tensor(biases, name="b3")
    reached = np.abs(values(model, "c3")).max()
    assert reached < 65504 / 8
    ranges = ranges_of(model)
    card = spec().model_copy(update={"preprocess": ranges.preprocess})
    assert list(ranges.channel_reach) == ["c3"]
    bounded = equalized(model, card, ranges)
    assert np.abs(values(bounded, "c3")).max() <= FARTHEST * (1 + 1e-6)  # float32 rounds the factor
    unbounded = equalized(model, card, ranges.model_copy(update={"channel_reach": {}}))
    assert np.abs(values(unbounded, "c3")).max() > 65504
    for wrong in ({"gone": ranges.channel_reach["c3"]}, {"c3": ranges.channel_reach["c3"][:-1]}):
        with pytest.raises(CalibrationError, match="channels that reach far"):
            equalized(model, card, ranges.model_copy(update={"channel_reach": wrong}))
    np.testing.assert_allclose(run(bounded), run(model), rtol=1e-4, atol=1e-4 * np.abs(run(model)).max())


def values(model: ir.Model, name: str) -> Any:
    copy = model.clone()
    copy.graph.outputs.append(next(value for node in copy.graph for value in node.outputs if value.name == name))
    inputs = normalise(PIXELS, spec().preprocess)
    with OnnxRuntimeSession(ir.to_proto(copy).SerializeToString(), "cpu", 1) as session:
        return session.run({session.inputs[0].name: inputs})[name]
