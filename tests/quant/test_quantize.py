"""FP32 graph and ranges to INT8 graph, against the network itself in float64, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.fashion_data import rescale_channels
from skdeploy.core.errors import CalibrationError, UsageError
from skdeploy.core.packaged import packaged
from skdeploy.core.spec import CalibrationMethod, ModelSpec
from skdeploy.images.dataset import normalise, open_dataset
from skdeploy.line.export import export
from skdeploy.line.options import ExportOptions
from skdeploy.passes.exact_input import PIXELS
from skdeploy.passes.trace_options import TraceOptions
from skdeploy.quant.identity import range_names
from skdeploy.quant.quantize import quantize
from skdeploy.quant.ranges import Ranges
from skdeploy.zoo.cards import load_card
from tests.conftest import FAST, TinySpec
from tests.graphs.networks import (
    Array,
    card,
    live,
    relative_error,
    sqnr_db,
    torch_logits,
    traced,
)
from tests.quant.noise import calibrated, dataset, normalised, pixels
from tests.refused import refused

# INT8's 127 or 255 steps to a range that is 3 to 5 standard deviations leave 35 to 40 dB a tensor, and the noise of some
# 20 tensors adds up: 13 dB less. A wrong scale, offset or bias anywhere costs far more than that.
LEAST_SQNR_DB = 22.0
FRESH = normalised(pixels(64, seed=1))
SWITCHES = ("equalize", "bias_correction", "shift", "exact_input")


_made: dict[str, Any] = {}


def once(key: str, make: Callable[[], Any]) -> Any:
    if key not in _made:
        _made[key] = make()
    return _made[key]


@pytest.fixture
def ranges(spec: ModelSpec, graph: ir.Model) -> Ranges:
    """With the default choices."""
    return once("ranges", lambda: calibrated(graph, spec, dataset(64)))


@pytest.fixture
def expected(spec: ModelSpec) -> Array:
    """What the network computes for ``FRESH``, in float64."""
    return once("expected", lambda: torch_logits(live(spec), FRESH))


def logits(model: ir.Model, feed: Array) -> Array:
    """In ONNX Runtime as the graph says: QuantizeLinear and DequantizeLinear one by one, no fused kernels."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], {"input": feed})[0])


def edited(ranges: Ranges, change: dict[str, Any]) -> Ranges:
    """A ranges file that somebody edited."""
    return Ranges.model_validate_json(ranges.model_copy(update=change).text())


@pytest.mark.parametrize("method", list(CalibrationMethod))
def test_int8_logits_are_those_of_the_network_but_for_the_noise_of_its_tensors(
    method: CalibrationMethod, spec: ModelSpec, graph: ir.Model, expected: Array
) -> None:
    percentile = 99.99 if method is CalibrationMethod.PERCENTILE else None
    ranges = calibrated(graph, spec, dataset(64), method=method, percentile=percentile)
    found = quantize(graph, spec, ranges)
    assert sqnr_db(logits(found.model, FRESH), expected) > LEAST_SQNR_DB
    operators = [node.op_type for node in found.model.graph]
    assert operators.count("QuantizeLinear") == len(found.placement.tensors)
    assert operators.count("DequantizeLinear") == len(found.placement.tensors) + len(found.placement.weighted)


@pytest.mark.parametrize(("branches", "fuse"), [(1, "sum"), (3, "sum"), (3, "attention")])
def test_other_kinds_of_blocks_are_quantized_as_well(branches: int, fuse: str, tiny_spec: TinySpec) -> None:
    spec = card(tiny_spec(branches, fuse=fuse))
    graph = traced(spec, FAST)
    fresh = normalised(pixels(32, seed=1))
    found = quantize(graph, spec, calibrated(graph, spec, dataset(64)))
    assert sqnr_db(logits(found.model, fresh), torch_logits(live(spec), fresh)) > LEAST_SQNR_DB


@pytest.mark.parametrize("off", [{switch: False} for switch in SWITCHES] + [{"weight_scales": "max"}], ids=str)
def test_without_any_one_switch_it_still_runs(
    off: dict[str, Any], spec: ModelSpec, graph: ir.Model, expected: Array
) -> None:
    ranges = calibrated(graph, spec, dataset(64), **off)
    found = quantize(graph, spec, ranges)
    assert sqnr_db(logits(found.model, FRESH), expected) > LEAST_SQNR_DB - 3
    assert bool(ranges.channel_maxima) == ("equalize" not in off)
    assert bool(ranges.channel_means) == ("bias_correction" not in off)
    assert bool(found.offsets) == ("shift" not in off)
    assert any(node.name == PIXELS for node in found.model.graph) == ("exact_input" not in off)


def test_with_all_switches_off_it_is_plain_int8_and_no_better(
    spec: ModelSpec, graph: ir.Model, ranges: Ranges, expected: Array
) -> None:
    off: dict[str, Any] = {**dict.fromkeys(SWITCHES, False), "weight_scales": "max", "method": CalibrationMethod.MINMAX}
    plain = logits(quantize(graph, spec, calibrated(graph, spec, dataset(64), **off)).model, FRESH)
    full = logits(quantize(graph, spec, ranges).model, FRESH)
    assert sqnr_db(plain, expected) > 10
    assert sqnr_db(full, expected) > sqnr_db(plain, expected)


def test_scales_are_the_thresholds_as_fp16_numbers(spec: ModelSpec, graph: ir.Model, ranges: Ranges) -> None:
    found = quantize(graph, spec, ranges)
    assert found.offsets
    names = range_names(graph)
    for name, scale in found.scales.items():
        assert scale == float(np.float16(scale)) > 0
        if name == "pixels/centred":
            assert scale == 1 / 128
            continue
        held = ranges.tensors[names[name]]
        limit = held.shifted_threshold if name in found.offsets else held.threshold
        assert limit is not None
        # Of 255 steps, those below zero reach the least value.
        below = int(np.ceil(255 * max(-held.minimum, 0) / (limit - min(held.minimum, 0))))
        steps = 255 - below if name in found.offsets else 127
        assert scale == pytest.approx(limit / steps, rel=2**-11)
        assert found.offsets.get(name, (128 - below) * scale) == (128 - below) * scale


def test_bias_correction_removes_a_mean_shift_that_rounding_makes(spec: ModelSpec, graph: ir.Model) -> None:
    """All weights of the classifier but one a row lie between two levels: each is rounded the same way."""
    head = next(node for node in graph.graph if node.op_type == "Gemm")
    weight = head.inputs[1]
    array = np.full(weight.const_value.shape.numpy(), 0.45, np.float32)  # in steps of a largest weight of 127
    (array if head.attributes.get_int("transB", 0) else array.T)[:, 0] = 127.0
    weight.const_value = ir.tensor(array / 127, name=weight.name)
    exact = logits(graph, FRESH)
    errors = {}
    for corrected in (False, True):
        ranges = calibrated(graph, spec, dataset(64), bias_correction=corrected, equalize=False, weight_scales="max")
        found = logits(quantize(graph, spec, ranges).model, FRESH)
        errors[corrected] = float(np.abs((found - exact).mean(axis=0)).max())
    assert errors[True] < errors[False] / 3  # activations are rounded too, and their errors have a mean on 64 images


def test_the_graph_given_is_left_as_it_is(spec: ModelSpec, graph: ir.Model, ranges: Ranges) -> None:
    before = ir.to_proto(graph).SerializeToString(deterministic=True)
    calibrated(graph, spec, dataset(8))
    quantize(graph, spec, ranges)
    assert ir.to_proto(graph).SerializeToString(deterministic=True) == before


def test_the_same_ranges_give_the_same_graph_byte_by_byte(spec: ModelSpec, ranges: Ranges) -> None:
    again = Ranges.model_validate_json(ranges.text())
    one, other = (quantize(traced(spec, FAST), spec, each).model for each in (ranges, again))
    assert ir.to_proto(one).SerializeToString(deterministic=True) == ir.to_proto(other).SerializeToString(
        deterministic=True
    )


def test_a_weight_that_two_layers_share_is_rounded_for_each(spec: ModelSpec) -> None:
    """Equalization makes two weights of one, and without it they are one: each layer must keep its own."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(3, 3, 1, 1)).astype(np.float32)
    model = ir.from_proto(two_convolutions(shared))
    for off in ({"equalize": False, "exact_input": False}, {}):
        found = quantize(model, spec, calibrated(model, spec, dataset(16), **off))
        assert len(found.placement.weighted) == 2
        constants = [v for node in found.model.graph for v in node.inputs if v is not None and v.producer() is None]
        known = [*found.model.graph.inputs, *found.model.graph.initializers.values()]
        assert all(any(value is other for other in known) for value in constants)  # none has lost its place
        kernel = shared[:, :, 0, 0].astype(np.float64)
        hidden = np.maximum(np.einsum("oi,nihw->nohw", kernel, FRESH.astype(np.float64)), 0)
        exact = np.einsum("oi,nihw->nohw", kernel, hidden)
        assert sqnr_db(logits(found.model, FRESH), exact) > 30  # two tensors and their weights


def two_convolutions(weight: Array) -> onnx.ModelProto:
    shape = ["n", 3, 20, 24]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("a/Conv", "a/Relu")]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["input", "w"], ["a/Conv"], name="a/Conv"),
            helper.make_node("Relu", ["a/Conv"], ["a/Relu"], name="a/Relu"),
            helper.make_node("Conv", ["a/Relu", "w"], ["logits"], name="b/Conv"),
        ],
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "w")],
        value_info=values,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def digests(message: str) -> list[str]:
    return re.findall("[0-9a-f]{64}", message)


def test_ranges_of_another_network_are_refused_with_both_digests(
    spec: ModelSpec, graph: ir.Model, ranges: Ranges
) -> None:
    weight = next(node for node in graph.graph if node.op_type == "Conv").inputs[1]
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1.5), name=weight.name)
    with pytest.raises(CalibrationError, match="other weights") as error:
        quantize(graph, spec, ranges)
    first, second = digests(error.value.message)
    assert first == ranges.model_sha256 != second


@pytest.mark.parametrize(
    ("table", "change"),
    [("preprocess", {"mean": (0.5, 0.5, 0.5)}), ("input", {"width": 20}), ("input", {"height": 24})],
)
def test_ranges_of_another_preprocessing_or_image_size_are_refused_with_both_digests(
    table: str, change: dict[str, Any], spec: ModelSpec, graph: ir.Model, ranges: Ranges
) -> None:
    other = spec.model_copy(update={table: getattr(spec, table).model_copy(update=change)})
    with pytest.raises(CalibrationError, match="another preprocessing or image size") as error:
        quantize(graph, other, ranges)
    first, second = digests(error.value.message)
    assert first == ranges.preprocess_sha256 != second


def test_a_file_that_lacks_anything_is_refused_and_says_what(spec: ModelSpec, graph: ir.Model, ranges: Ranges) -> None:
    for table, lacking in (
        ("tensors", "have no entry for the tensor"),
        ("channel_maxima", "0 channel maxima for"),
        ("channel_means", "0 channel means for"),
    ):
        entries = dict(getattr(ranges, table))
        gone, _ = entries.popitem()
        with pytest.raises(CalibrationError, match=rf"{lacking} '{gone}'"):
            quantize(graph, spec, edited(ranges, {table: entries}))


@pytest.mark.parametrize("table", ["channel_maxima", "channel_means"])
def test_channels_that_are_not_the_tensors_are_refused(
    table: str, spec: ModelSpec, graph: ir.Model, ranges: Ranges
) -> None:
    entries = dict(getattr(ranges, table))
    name = next(iter(entries))
    entries[name] = entries[name][:-1]
    with pytest.raises(CalibrationError, match=rf"{len(entries[name])} channel \w+ for '{name}'"):
        quantize(graph, spec, edited(ranges, {table: entries}))


def test_a_range_whose_scale_is_beyond_fp16_is_refused_by_its_tensor(spec: ModelSpec, graph: ir.Model) -> None:
    ranges = calibrated(graph, spec, dataset(8), shift=False)
    name, held = next((name, held) for name, held in ranges.tensors.items() if name != "input")
    wide = held.model_copy(update={"maximum": 1e8, "threshold": 1e8})
    with refused(CalibrationError, f"{name} has values up to 1e\\+08", "--keep-fp32"):
        quantize(graph, spec, edited(ranges, {"tensors": {**ranges.tensors, name: wide}}))


@pytest.mark.parametrize("keep", [r"^stem\.", r"\.reduce", "^classifier", r"stages\.1"])
def test_kept_modules_stay_as_they_were(
    keep: str, spec: ModelSpec, graph: ir.Model, ranges: Ranges, expected: Array
) -> None:
    modules = [
        node.name for node in graph.graph if re.search(keep, node.name or "") and node.op_type in ("Conv", "Gemm")
    ]
    assert modules
    found = quantize(graph, spec, ranges, (keep,))
    assert not set(found.placement.weighted) & set(modules)
    readers = {node.name: node for node in found.model.graph}
    for name in modules:
        weight = readers[name].inputs[1]
        assert weight is not None
        assert weight.is_initializer()
    assert sqnr_db(logits(found.model, FRESH), expected) > LEAST_SQNR_DB


def test_a_kept_stem_reads_the_image_as_it_was_without_the_pixels_machinery(
    spec: ModelSpec, graph: ir.Model, ranges: Ranges
) -> None:
    assert any("pixels" in (node.name or "") for node in quantize(graph, spec, ranges).model.graph)
    kept = quantize(graph, spec, ranges, ("^stem",))
    assert not [node.name for node in kept.model.graph if "pixels" in (node.name or "")]


def test_when_everything_is_kept_nothing_is_left_to_be_int8(spec: ModelSpec, graph: ir.Model, ranges: Ranges) -> None:
    with refused(CalibrationError, "nothing is left to be INT8", "--fp16"):
        quantize(graph, spec, ranges, (".",))
    with pytest.raises(UsageError, match="matches no module"):
        quantize(graph, spec, ranges, ("nowhere",))


@pytest.mark.parametrize(
    "options",
    [
        TraceOptions(exporter="torchscript"),
        TraceOptions(exporter="torchscript", dynamic_size=True),
        TraceOptions(exporter="torchscript", embed_preprocess=True),
        pytest.param(TraceOptions(batch=4), marks=pytest.mark.slow),
        pytest.param(TraceOptions(opset=20, attention=True), marks=pytest.mark.slow),
        TraceOptions(opset=20, batch=4, attention=True, embed_preprocess=True),  # both, by the default exporter
    ],
    ids=lambda options: "-".join(
        str(value) for value in (options.exporter, options.opset, options.batch, options.embed_preprocess)
    ),
)
def test_ranges_of_the_default_graph_quantize_every_other_export_of_the_network(
    options: TraceOptions, spec: ModelSpec
) -> None:
    """Same integers, same scales: logits are equal, or differ by a rounding at the edge of a level, 1/127 of one tensor."""
    default = traced(spec, TraceOptions())
    ranges = once("default ranges", lambda: calibrated(default, spec, dataset(16)))
    images = pixels(4, seed=1)
    one, other = quantize(default, spec, ranges), quantize(traced(spec, options), spec, ranges)
    feed = images if options.embed_preprocess else normalised(images)
    assert relative_error(logits(other.model, feed), logits(one.model, normalised(images))) < 1e-2
    assert list(other.scales.values()) == list(one.scales.values())


def test_ranges_of_another_export_are_the_same_ranges(spec: ModelSpec, graph: ir.Model) -> None:
    """Its float32 sums may be in another order: relative differences of 1e-6, which a bin of a histogram hides or not."""
    plain = calibrated(graph, spec, dataset(13), method=CalibrationMethod.MINMAX)
    for options in (TraceOptions(batch=4), TraceOptions(exporter="torchscript", embed_preprocess=True)):
        other = calibrated(traced(spec, options), spec, dataset(13), method=CalibrationMethod.MINMAX)
        assert other.model_sha256 == plain.model_sha256
        assert other.data == plain.data
        assert list(other.tensors) == list(plain.tensors)
        for name, held in plain.tensors.items():
            assert other.tensors[name].threshold == pytest.approx(held.threshold, rel=1e-5)
        for name, means in plain.channel_means.items():
            assert other.channel_means[name] == pytest.approx(means, rel=1e-4, abs=1e-5)


@pytest.fixture(scope="module")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> tuple[onnx.ModelProto, ModelSpec]:
    """The trained reference's FP32 graph."""
    folder = tmp_path_factory.mktemp("fashion") / "bundle"
    fast = TraceOptions(exporter="torchscript")
    export(ExportOptions("sknet-fashion", output=folder, target="onnx", trace=fast, num_images=2))
    return onnx.load(folder / "model.onnx"), load_card("sknet-fashion")[0]


def test_a_copy_with_other_channel_scales_is_as_good_within_1_db(fashion: tuple[onnx.ModelProto, ModelSpec]) -> None:
    """sknet-fashion with channels scaled by 1/16 to 16, the same function: one scale a tensor would lose up to 8 bits."""
    original, spec = fashion
    rescaled = rescale_channels(original, 0)
    folder = packaged("calibration") / "fashion"
    calibration = open_dataset(folder / "calibration.npz", 64)
    images = normalise(open_dataset(folder / "evaluation.npz", 200).load(spec), spec.preprocess)
    expected = logits(ir.from_proto(original), images)
    assert sqnr_db(logits(ir.from_proto(rescaled), images), expected) > 90  # it is the same function

    def quality(proto: onnx.ModelProto, **algorithm: Any) -> float:
        model = ir.from_proto(proto)
        found = quantize(model, spec, calibrated(model, spec, calibration, **algorithm))
        return sqnr_db(logits(found.model, images), expected)

    assert quality(rescaled) > quality(original) - 1.0
    assert quality(rescaled, equalize=False) < quality(original) - 10  # what it would be without
