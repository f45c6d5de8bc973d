"""INT8 of tensors whose negative values are small, as SiLU, GELU and hard-swish make them: on all of its levels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from skdeploy.core.spec import CalibrationMethod
from skdeploy.ir.qdq import INT8_MIN
from skdeploy.passes.half import HalfPrecision
from skdeploy.passes.shift import ShiftTensors
from skdeploy.quant import observe, round_weights
from skdeploy.quant.identity import range_names
from skdeploy.quant.moments import Moments
from skdeploy.quant.quantize import quantize
from skdeploy.quant.ranges import Ranges
from tests.graphs.networks import sqnr_db
from tests.graphs.quantizable import check, normal, small
from tests.passes.test_shift_padded import in_float64
from tests.quant.noise import calibrated, dataset, normalised, pixels
from tests.quant.test_unets import run, spec

op = onnx.helper.make_node
FRESH = normalised(pixels(16, seed=1))
ACTIVATIONS = {
    "silu": [op("Sigmoid", ["a"], ["g"]), op("Mul", ["a", "g"], ["s"], name="first/Mul")],
    "hard-swish": [op("HardSwish", ["a"], ["s"], name="first/HardSwish")],
    "gelu": [op("Gelu", ["a"], ["s"], name="first/Gelu")],
    "bias": [op("Add", ["a", "b"], ["s"], name="first/Add")],  # nearly all of it is positive
}
CONSTANTS = {"w": normal(16, 3, 1, 1), "v": normal(8, 16, 1, 1, seed=1), "b": np.full((16, 1, 1), 7, np.float32)}
every_activation = pytest.mark.parametrize("name", ACTIVATIONS)


def network(name: str) -> ir.Model:
    """A convolution, an activation, and a convolution that reads it."""
    nodes = [
        op("Conv", ["input", "w"], ["a"], name="first"),
        *ACTIVATIONS[name],
        op("Conv", ["s", "v"], ["y"], name="last"),
    ]
    used = {each for node in nodes for each in node.input}
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    weights = {key: array for key, array in CONSTANTS.items() if key in used}
    return small(copies, ("N", 3, 20, 24), weights, opset=20)


def ranges_of(model: ir.Model) -> Ranges:
    return calibrated(model, spec(), dataset(16), method=CalibrationMethod.MSE)


@every_activation
def test_the_shifted_graph_is_the_same_function(name: str) -> None:
    model = network(name)
    before = in_float64(model, FRESH)
    found = quantize(model, spec(), ranges_of(model), half=False)
    shifted = model.clone()
    ShiftTensors(found.placement, {"s": found.offsets["s"]})(shifted)
    check(shifted)
    # The offset is a float32, and so is what it adds to the bias: 2^-24 of numbers a few times larger than the outputs.
    assert np.abs(in_float64(shifted, FRESH) - before).max() < 1e-6 * np.abs(before).max()


@every_activation
def test_all_levels_are_used_and_zero_is_one(name: str) -> None:
    model = network(name)
    ranges = ranges_of(model)
    found = quantize(model, spec(), ranges, half=False)
    held = ranges.tensors[range_names(model)["s"]]
    step, offset = found.scales["s"], found.offsets["s"]
    zero = -offset / step
    assert zero == pytest.approx(round(zero), abs=1e-4)
    assert held.minimum < 0
    low = INT8_MIN * step + offset
    assert low < held.minimum * (1 - 2**-10)  # steps are FP16 numbers
    assert low == pytest.approx(held.minimum, abs=2 * step)
    assert held.shifted_threshold is not None
    assert 127 * step + offset == pytest.approx(held.shifted_threshold, rel=2**-10)


@every_activation
def test_half_the_step_is_less_noise(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """6 dB for this tensor, less what its few negative levels take; pixels are exact, and weights the same."""
    model = network(name)
    expected = in_float64(model, FRESH)
    found = quantize(model, spec(), ranges_of(model), half=False)
    with monkeypatch.context() as patch:
        patch.setattr(observe, "shifted_threshold", lambda *_: None)
        plain = quantize(model, spec(), ranges_of(model), half=False)
    assert plain.offsets == {}
    assert "s" in found.offsets
    noise = [10 ** (-sqnr_db(run(each.model, FRESH), expected) / 10) for each in (found, plain)]
    assert noise[0] < 0.6 * noise[1]


def test_what_a_convolution_makes_is_shifted_by_its_bias() -> None:
    """The bias makes nearly all of it positive; no operator is added, for its maker or for its reader."""
    nodes = [op("Conv", ["input", "w", "b"], ["s"], name="first"), op("Conv", ["s", "v"], ["y"], name="last")]
    constants = {"w": CONSTANTS["w"], "b": np.full(16, 7, np.float32), "v": CONSTANTS["v"]}
    model = small(nodes, ("N", 3, 20, 24), constants)
    before = in_float64(model, FRESH)
    found = quantize(model, spec(), ranges_of(model), half=False)
    assert found.offsets["s"] > 0
    shifted = model.clone()
    ShiftTensors(found.placement, found.offsets)(shifted)
    assert [node.op_type for node in shifted.graph] == ["Conv", "Conv"]
    assert np.abs(in_float64(shifted, FRESH) - before).max() < 1e-6 * np.abs(before).max()


@every_activation
def test_tensorrt_rtx_takes_the_graph(name: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs skdeploy[rtx]")
    from skdeploy.engines.parsing import parser_refusal

    model = network(name)
    found = quantize(model, spec(), ranges_of(model))
    ir.save(HalfPrecision()(found.model).model, tmp_path / "half.onnx")
    assert parser_refusal(tmp_path / "half.onnx") == ""


def test_weights_are_rounded_about_the_integer_that_stands_for_zero() -> None:
    """Where no bias is corrected, what differs from zero counts; in steps, as the layer reads it."""
    model = network("silu")
    found = quantize(model, spec(), ranges_of(model), half=False)
    last = next(node for node in model.graph if node.name == "last")
    nothing = Moments(1, np.zeros((1, 16)), np.zeros((1, 16, 16)))
    zero = round_weights._zero(last, found, nothing, spec())
    quantized = np.rint(-found.offsets["s"] / found.scales["s"])
    assert INT8_MIN < quantized < -90
    np.testing.assert_array_equal(zero, np.full((1, 16), quantized))
