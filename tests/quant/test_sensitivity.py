"""Sensitivity per unit: what is INT8 in each run, and the figures against ONNX Runtime and numpy alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from skdeploy.core.errors import CalibrationError, UsageError
from skdeploy.core.spec import ModelSpec
from skdeploy.ir.placement import place
from skdeploy.ir.qdq import DEQUANTIZE
from skdeploy.quant.effect import Samples
from skdeploy.quant.macs import macs_of
from skdeploy.quant.quantize import quantize
from skdeploy.quant.ranges import Ranges
from skdeploy.quant.sensitivity import SensitivityReport, UnitSensitivity, measure_sensitivity
from skdeploy.quant.truth import ClassLabels
from skdeploy.quant.units import all_but, units_of
from tests.conftest import TinySpec
from tests.graphs.networks import (
    card,
    run,
    sqnr_db,
    traced,
)
from tests.quant.noise import calibrated, dataset, normalised, pixels

UNITS = ("stem.conv", "stages.0.0", "stages.1.0", "stages.1.1", "classifier")
IMAGES = pixels(60, seed=5)

# Sums in another order in float32: a value beside the middle between two steps may go the other way, so noise differs in the
# third digit at most. A run of other units differs by more than 1 dB here.
FLOAT32_DB = 0.02


@pytest.fixture
def spec(tiny_spec: TinySpec) -> ModelSpec:
    return card(tiny_spec())


@pytest.fixture
def ranges(spec: ModelSpec) -> Ranges:
    return calibrated(traced(spec), spec, dataset(24))


def spoiled(ranges: Ranges, unit: str, factor: float = 300.0) -> Ranges:
    """Thresholds inside the unit so wide that all its tensors round to zero; not that of its output, which others read."""
    content = ranges.model_dump(by_alias=True)
    inside = [name for name in content["tensors"] if name.startswith(f"{unit}.") and name != f"{unit}.relu/Relu"]
    assert inside
    for name in inside:
        tensor = content["tensors"][name]
        tensor["threshold"] *= factor
        if tensor["shifted_threshold"] is not None:
            tensor["shifted_threshold"] *= factor
    return Ranges.model_validate(content)


def row_of(report: SensitivityReport, unit: str) -> UnitSensitivity:
    return next(row for row in report.units if row.unit == unit)


def as_written(model: ir.Model, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits from ONNX Runtime with all optimisations off: Q and DQ are arithmetic of their own, no INT8 kernels."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    logits: NDArray[np.float32] = session.run(["logits"], {"input": inputs})[0]
    return logits


def int8_layers(model: ir.Model) -> set[str]:
    """The layers whose weight is dequantized, read from the graph itself."""
    return {
        node.name or ""
        for node in model.graph
        if node.op_type in ("Conv", "Gemm")
        and (weight := node.inputs[1]) is not None
        and (producer := weight.producer()) is not None
        and producer.op_type == DEQUANTIZE
    }


def quantized_tensors(model: ir.Model) -> set[str]:
    return {node.inputs[0].name or "" for node in model.graph if node.op_type == "QuantizeLinear" and node.inputs[0]}


@pytest.mark.parametrize("unit", ["stages.0.0", "stages.1.1"])
def test_a_unit_that_int8_destroys_ranks_first_and_its_absence_mends_the_rest(
    spec: ModelSpec, ranges: Ranges, unit: str
) -> None:
    model = traced(spec)
    report = measure_sensitivity(model, spec, spoiled(ranges, unit), IMAGES)
    healthy = measure_sensitivity(model, spec, ranges, IMAGES)
    assert {row.unit for row in report.units} == set(UNITS)
    assert report.units[0].unit == unit
    assert report.units[0].only_on.sqnr_db < report.units[1].only_on.sqnr_db - 5
    assert report.units[0].only_off.sqnr_db == max(row.only_off.sqnr_db for row in report.units)
    # What the spoiled thresholds are those of is out of every other run: the figures are as if nothing were wrong.
    assert report.units[0].only_off == row_of(healthy, unit).only_off
    for other in set(UNITS) - {unit}:
        assert row_of(report, other).only_on == row_of(healthy, other).only_on


def test_the_figures_are_those_of_their_definitions(spec: ModelSpec, ranges: Ranges) -> None:
    model = traced(spec)
    inputs = normalised(IMAGES)
    expected = run(model, inputs)["logits"]
    labels = np.random.default_rng(0).integers(0, 5, len(IMAGES))
    report = measure_sensitivity(model, spec, ranges, IMAGES, ClassLabels(labels))
    assert report.images == 60
    assert report.fp32.top1 == np.mean(expected.argmax(1) == labels)
    assert report.fp32.agreement == 1
    patterns = {"only_on": r"^(?!stages\.1\.0(\.|$))", "only_off": r"^stages\.1\.0(\.|$)"}
    for run_of, pattern in patterns.items():
        found = as_written(quantize(model, spec, ranges, (pattern,)).model, inputs)
        effect = getattr(row_of(report, "stages.1.0"), run_of)
        assert effect.sqnr_db == pytest.approx(sqnr_db(found, expected), abs=FLOAT32_DB)
        assert effect.agreement == pytest.approx(np.mean(found.argmax(1) == expected.argmax(1)), abs=1.1 / 60)
        assert effect.top1 == pytest.approx(np.mean(found.argmax(1) == labels), abs=1.1 / 60)
    everything = as_written(quantize(model, spec, ranges).model, inputs)
    assert report.all_int8.sqnr_db == pytest.approx(sqnr_db(everything, expected), abs=FLOAT32_DB)
    assert report.all_int8.sqnr_db < min(row.only_on.sqnr_db for row in report.units)


@pytest.mark.parametrize("branches", [2, 3])
def test_each_unit_is_int8_alone_or_not_at_all(tiny_spec: TinySpec, branches: int) -> None:
    spec = card(tiny_spec(branches))
    model = traced(spec)
    ranges = calibrated(model, spec, dataset(8))
    everything = set(place(model).weighted)
    units = units_of(model, spec)
    assert tuple(unit.name for unit in units) == UNITS
    assert sorted(layer for unit in units for layer in unit.layers) == sorted(everything)
    for unit in units:
        only = quantize(model, spec, ranges, all_but(model, unit)).model
        rest = quantize(model, spec, ranges, (unit.pattern,)).model
        assert int8_layers(only) == set(unit.layers)
        assert int8_layers(rest) == everything - set(unit.layers)
        # Alone, a unit's tensors are those of its own layers' inputs and its own additions.
        assert not {name for name in quantized_tensors(only) if name.startswith(others_of(unit.name))}


def others_of(unit: str) -> tuple[str, ...]:
    """Prefixes of tensors inside other units; what such a unit gives out, another may read as INT8."""
    inside = ("reduce", "sk", "shortcut", "expand")
    return tuple(f"{other}.{part}" for other in UNITS if other != unit and "stages" in other for part in inside)


def test_multiply_accumulates_and_parameters_are_those_of_the_layers(spec: ModelSpec, ranges: Ranges) -> None:
    model = traced(spec)
    report = measure_sensitivity(model, spec, ranges, IMAGES[:4])
    macs = macs_of(model)
    assert report.macs == sum(macs.values())
    row = row_of(report, "stages.1.1")
    assert row.layers == 4
    # 16 to 16 channels at 5 x 6: reduce, two branches of 3 x 3 in 4 groups, expand; each has a bias
    assert row.parameters == (16 * 16 + 16) * 2 + (16 * 4 * 9 + 16) * 2
    assert row.macs == 5 * 6 * (row.parameters - 4 * 16)
    assert row.mac_share == row.macs / sum(macs.values())
    assert sum(unit.macs for unit in report.units) == sum(macs[name] for name in place(model).weighted)


def test_what_is_kept_is_kept_in_every_run_and_a_unit_kept_whole_is_not_measured(
    spec: ModelSpec, ranges: Ranges
) -> None:
    model = traced(spec)
    report = measure_sensitivity(model, spec, spoiled(ranges, "stages.1.0"), IMAGES, keep=(r"^stages\.1\.0",))
    healthy = measure_sensitivity(model, spec, ranges, IMAGES, keep=(r"^stages\.1\.0",))
    assert {row.unit for row in report.units} == set(UNITS) - {"stages.1.0"}
    assert report == healthy
    grouped = measure_sensitivity(model, spec, ranges, IMAGES[:4], keep_grouped=True)
    assert row_of(grouped, "stages.1.1").layers == 2


def test_out_of_int8_the_only_unit_leaves_fp32(spec: ModelSpec, ranges: Ranges) -> None:
    report = measure_sensitivity(traced(spec), spec, ranges, IMAGES, keep=("^stem", "^stages"))
    (row,) = report.units
    assert row.unit == "classifier"
    assert row.only_off == report.fp32
    assert row.only_off.sqnr_db == 300
    assert row.only_on == report.all_int8


def test_without_labels_there_is_no_top1_and_json_keeps_all(spec: ModelSpec, ranges: Ranges) -> None:
    report = measure_sensitivity(traced(spec), spec, ranges, IMAGES[:8], dataset="noise")
    assert report.fp32.top1 is None
    assert all(row.only_on.top1 is None and row.only_off.top1 is None for row in report.units)
    assert SensitivityReport.model_validate_json(report.model_dump_json()) == report
    assert report.dataset == "noise"


class Counted(list[NDArray[np.uint8]]):
    """Images that count how often they are gone through."""

    runs = 0

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        self.runs += 1
        return super().__iter__()


def test_fp32_runs_once_and_each_unit_twice(spec: ModelSpec, ranges: Ranges) -> None:
    images = Counted(IMAGES[:4])
    measure_sensitivity(traced(spec), spec, ranges, images)
    assert images.runs == 2 + 2 * len(UNITS)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (np.zeros(59, np.int64), r"shape \(59,\), but there are 60 images"),
        (np.zeros((60, 1), np.int64), r"shape \(60, 1\)"),
        (np.zeros(60, np.float32), "labels are float32"),
        (np.arange(60) % 6, "image 5 has label 5, but tiny has 5 classes"),
        (-(np.arange(60) == 7).astype(np.int64), "image 7 has label -1"),
    ],
)
def test_labels_that_do_not_fit_are_refused(spec: ModelSpec, ranges: Ranges, labels: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        measure_sensitivity(traced(spec), spec, ranges, IMAGES, ClassLabels(labels))


def test_no_images_are_refused(spec: ModelSpec, ranges: Ranges) -> None:
    with pytest.raises(UsageError, match="no images"):
        measure_sensitivity(traced(spec), spec, ranges, IMAGES[:0])


def test_ranges_of_another_network_are_refused(spec: ModelSpec, tiny_spec: TinySpec, ranges: Ranges) -> None:
    with pytest.raises(CalibrationError, match="other weights"):
        measure_sensitivity(traced(card(tiny_spec(3))), spec, ranges, IMAGES[:2])


def test_logits_that_are_not_finite_are_no_measurement(spec: ModelSpec) -> None:
    model = traced(spec)
    bias = model.graph.initializers["network.classifier.bias"]
    bias.const_value = ir.tensor(np.array([0, 0, np.nan, 0, 0], np.float32), name=bias.name)
    with pytest.raises(
        CalibrationError, match="tiny with nothing in INT8 gives no logits to measure: 60 logits are NaN"
    ):
        Samples.of(model, spec, IMAGES, None)


def test_a_part_of_the_images_is_spread_over_all(spec: ModelSpec) -> None:
    """Class folders come sorted: the first few would be of one class."""
    model = traced(spec)
    labels = np.arange(60) // 12
    whole = Samples.of(model, spec, IMAGES, ClassLabels(labels))
    part = whole.part(10)
    assert np.bincount(labels[part.places]).tolist() == [2] * 5
    again = part.run(model, "FP32")
    assert again.noise < 1e-10  # sums in batches of another size: float32's rounding
    assert part.rows is not None
    np.testing.assert_array_equal(again.rows, part.rows)
    (row, *_) = part.places
    np.testing.assert_array_equal(part.reference["logits"][row], whole.reference["logits"][row])


# A skip inside "body.unit", and a convolution of "body" itself, beside it.
NESTED = """
<ir_version: 10, opset_import: ["" : 19]>
nested (float[batch,3,20,24] input) => (float[batch,5] logits)
<int64[2] space = {2,3}>
{
  first = Conv<pads=[1,1,1,1]>(input, w)
  inner = Conv<pads=[1,1,1,1]>(first, v)
  sum = Add(inner, first)
  mean = ReduceMean<keepdims=0>(sum, space)
  logits = Gemm<transB=1>(mean, m)
}
"""
NESTED_NAMES = {"first": "body/Conv", "inner": "body.unit.conv/Conv", "sum": "body.unit/Add", "mean": "/ReduceMean"}


def nested() -> ir.Model:
    proto = onnx.parser.parse_model(NESTED)
    rng = np.random.default_rng(0)
    for name, shape in (("w", (8, 3, 3, 3)), ("v", (8, 8, 3, 3)), ("m", (5, 8))):
        array = rng.normal(0, 0.2, shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True))
    for node in model.graph:
        value = node.outputs[0]
        node.name = NESTED_NAMES.get(value.name or "", "classifier/Gemm")
        if value.name != "logits":
            value.name = node.name
    return model


def test_a_unit_around_another_one_does_not_take_it_along(spec: ModelSpec) -> None:
    model = nested()
    body, unit, classifier = units_of(model, spec)
    assert (body.name, unit.name, classifier.name) == ("body", "body.unit", "classifier")
    assert place(model, (body.pattern,)).weighted == ("body.unit.conv/Conv", "classifier/Gemm")
    assert place(model, all_but(model, body)).weighted == ("body/Conv",)
    assert place(model, (unit.pattern,)).weighted == ("body/Conv", "classifier/Gemm")
    assert place(model, all_but(model, unit)).weighted == ("body.unit.conv/Conv",)
