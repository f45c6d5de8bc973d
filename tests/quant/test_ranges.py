"""Ranges files: what they hold, that they are refused where they do not belong, and what makes the identity of a graph."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from pydantic import ValidationError

from skdeploy.core.errors import CalibrationError, UsageError
from skdeploy.core.files import digest_json
from skdeploy.core.spec import CalibrationMethod, ModelSpec
from skdeploy.quant.identity import graph_identity
from skdeploy.quant.ranges import Algorithm, CalibrationData, Ranges, TensorRange, load_ranges
from tests.conftest import TinySpec
from tests.graphs.networks import (
    card,
    traced,
)

DATA = CalibrationData(name="some images", sha256="a" * 64, images=12)
MSE = Algorithm(method=CalibrationMethod.MSE, version=1)
MEASURED = {"stem.relu/Relu": (0.0, 3.5, 3.25, 3.4), "input": (-2.5, 2.0, 2.5, None)}
MAXIMA = {"stem.relu/Relu": np.linspace(1, 3.5, 8, dtype=np.float32), "input": [2.5, 2.0, 1.0]}
MEANS = {"stem.relu/Relu": np.linspace(0, 1, 8, dtype=np.float32), "input": [0.1, -0.2, 0.3]}


@pytest.fixture
def spec(tiny_spec: TinySpec) -> ModelSpec:
    return card(tiny_spec())


@pytest.fixture
def graph(spec: ModelSpec) -> ir.Model:
    return traced(spec)


@pytest.fixture
def ranges(graph: ir.Model, spec: ModelSpec) -> Ranges:
    return Ranges.of(graph, spec, DATA, MSE, MEASURED, MAXIMA, MEANS, {"passed": True, "shift": 0.25})


def test_what_is_written_is_read_again(ranges: Ranges, tmp_path: Path) -> None:
    ranges.write(tmp_path / "r.json")
    assert load_ranges(tmp_path / "r.json") == ranges
    assert [file.name for file in tmp_path.iterdir()] == ["r.json"]  # no partial file is left


def test_the_file_is_plain_json_with_what_a_reviewer_needs(ranges: Ranges, spec: ModelSpec) -> None:
    content = json.loads(ranges.text())
    assert content["schema"] == 1
    assert content["model"] == "tiny"
    assert content["data"] == {"name": "some images", "sha256": "a" * 64, "images": 12, "random": False}
    assert content["preprocess"]["mean"] == list(spec.preprocess.mean)
    assert content["input"] == {"channels": 3, "height": 20, "width": 24}
    assert content["tensors"]["input"] == {
        "minimum": -2.5,
        "maximum": 2.0,
        "threshold": 2.5,
        "shifted_threshold": None,
    }
    assert content["tensors"]["stem.relu/Relu"]["shifted_threshold"] == 3.4
    assert content["channel_maxima"]["input"] == [2.5, 2.0, 1.0]
    assert content["audit"] == {"passed": True, "shift": 0.25}
    assert content["tools"]["numpy"] == np.__version__


def test_a_tensor_has_a_line_of_its_own_in_the_order_of_the_graph(ranges: Ranges) -> None:
    lines = ranges.text().splitlines()
    of_input = '    "input": {"minimum": -2.5, "maximum": 2.0, "threshold": 2.5, "shifted_threshold": null},'
    of_relu = '    "stem.relu/Relu": {"minimum": 0.0, "maximum": 3.5, "threshold": 3.25, "shifted_threshold": 3.4}'
    assert lines.index(of_input) == lines.index(of_relu) - 1
    assert list(ranges.channel_means) == list(ranges.channel_maxima) == ["input", "stem.relu/Relu"]


def test_the_same_calibration_gives_the_same_bytes(graph: ir.Model, spec: ModelSpec, ranges: Ranges) -> None:
    turned = {name: MEASURED[name] for name in reversed(MEASURED)}
    maxima, means = dict(reversed(MAXIMA.items())), dict(reversed(MEANS.items()))
    again = Ranges.of(graph, spec, DATA, MSE, turned, maxima, means, ranges.audit)
    assert again.text() == ranges.text()
    negative_zero = {**MEASURED, "stem.relu/Relu": (-0.0, 3.5, 3.25, 3.4)}
    assert Ranges.of(graph, spec, DATA, MSE, negative_zero, MAXIMA, MEANS, ranges.audit).text() == ranges.text()


def test_nine_digits_keep_a_float32_and_means_have_six(graph: ir.Model, spec: ModelSpec, tmp_path: Path) -> None:
    values = np.random.default_rng(0).lognormal(sigma=10, size=300).astype(np.float32)
    for value in values:
        held = TensorRange(minimum=-float(value), maximum=0.0, threshold=float(value))
        assert np.float32(held.threshold) == value
        assert np.float32(held.minimum) == -value
    thirds = {"input": (-1 / 3, 2 / 3, 2 / 3, None)}
    made = Ranges.of(graph, spec, DATA, MSE, thirds, {"input": [1 / 3]}, {"input": [1 / 3, 1e-9 / 3, 2e6 / 3]})
    made.write(tmp_path / "r.json")
    assert made.tensors["input"].threshold == 0.666666667
    assert made.channel_maxima["input"] == (0.333333,)
    assert made.channel_means["input"] == (0.333333, 3.33333e-10, 666667.0)
    assert load_ranges(tmp_path / "r.json") == made  # rounded once, when made: not again by writing


def test_a_scale_maps_the_threshold_to_127(ranges: Ranges) -> None:
    assert ranges.scales == {"input": 2.5 / 127, "stem.relu/Relu": 3.25 / 127}


def test_both_ends_of_float32_can_be_a_threshold() -> None:
    limits = np.finfo(np.float32)
    for threshold in (float(limits.max), 127 * float(limits.tiny)):
        held = TensorRange(minimum=0.0, maximum=threshold, threshold=threshold)
        assert np.float32(held.threshold) == np.float32(threshold)
        assert TensorRange.model_validate_json(held.model_dump_json()) == held


@pytest.mark.parametrize(
    ("measured", "field"),
    [
        ((math.nan, 1.0, 1.0), "minimum"),
        ((0.0, math.inf, 1.0), "maximum"),
        ((0.0, 1.0, math.nan), "threshold"),
        ((0.0, 1.0, -math.inf), "threshold"),
        ((0.0, 1.0, 0.0), "threshold"),
        ((0.0, 1.0, -1.0), "threshold"),
        ((0.0, 1.0, 1e-37), "threshold"),  # its scale is no normal float32
        ((0.0, 1e39, 1.0), "maximum"),
        ((2.0, 1.0, 1.0), "minimum 2.0 is above maximum 1.0"),
    ],
)
def test_numbers_that_are_no_range_are_refused_when_made(
    measured: tuple[float, float, float], field: str, graph: ir.Model, spec: ModelSpec
) -> None:
    with pytest.raises(CalibrationError, match=rf"tensors\.input.*{field}"):
        Ranges.of(graph, spec, DATA, MSE, {**MEASURED, "input": (*measured, None)}, MAXIMA, MEANS)


@pytest.mark.parametrize("threshold", [math.nan, math.inf, 0.0, -1.0])
def test_a_shifted_threshold_must_give_a_scale_too(threshold: float, graph: ir.Model, spec: ModelSpec) -> None:
    with pytest.raises(CalibrationError, match=r"tensors\.input\.shifted_threshold"):
        Ranges.of(graph, spec, DATA, MSE, {"input": (0.0, 1.0, 1.0, threshold)}, MAXIMA, MEANS)


def test_means_and_audits_that_are_no_numbers_are_refused_when_made(graph: ir.Model, spec: ModelSpec) -> None:
    with pytest.raises(CalibrationError, match=r"channel_means\.input\.1"):
        Ranges.of(graph, spec, DATA, MSE, MEASURED, MAXIMA, {"input": [0.0, math.nan]})
    with pytest.raises(CalibrationError, match=r"channel_maxima\.input\.1"):
        Ranges.of(graph, spec, DATA, MSE, MEASURED, {"input": [0.0, -1.0]}, MEANS)
    with pytest.raises(CalibrationError, match=r"audit: .*not JSON compliant"):
        Ranges.of(graph, spec, DATA, MSE, MEASURED, MAXIMA, MEANS, {"shift": math.nan})
    with pytest.raises(CalibrationError, match="tensors: "):
        Ranges.of(graph, spec, DATA, MSE, {}, MAXIMA, MEANS)
    with pytest.raises(CalibrationError, match=r"'gone/Relu', which is not a tensor of tiny's graph"):
        Ranges.of(graph, spec, DATA, MSE, {"gone/Relu": (0.0, 1.0, 1.0, None)}, MAXIMA, MEANS)


def test_a_switch_that_is_on_needs_its_numbers(graph: ir.Model, spec: ModelSpec) -> None:
    with pytest.raises(CalibrationError, match="channel_means to correct with"):
        Ranges.of(graph, spec, DATA, MSE, MEASURED, MAXIMA)
    with pytest.raises(CalibrationError, match="channel_maxima to equalize by"):
        Ranges.of(graph, spec, DATA, MSE, MEASURED, {}, MEANS)
    plain = MSE.model_copy(update={"equalize": False, "bias_correction": False})
    assert Ranges.of(graph, spec, DATA, plain, MEASURED).channel_means == {}


def test_a_percentile_goes_with_its_method_only_and_choices_have_digests() -> None:
    with pytest.raises(ValidationError, match="mse takes no percentile"):
        Algorithm(method=CalibrationMethod.MSE, percentile=99.9, version=1)
    with pytest.raises(ValidationError, match="percentile needs a percentile"):
        Algorithm(method=CalibrationMethod.PERCENTILE, version=1)
    choices = [
        MSE,
        Algorithm(method=CalibrationMethod.MINMAX, version=1),
        Algorithm(method=CalibrationMethod.PERCENTILE, percentile=99.9, version=1),
        Algorithm(method=CalibrationMethod.PERCENTILE, percentile=99.99, version=1),
        *(MSE.model_copy(update={switch: False}) for switch in ("equalize", "bias_correction", "shift", "exact_input")),
        MSE.model_copy(update={"weight_scales": "max"}),
        MSE.model_copy(update={"weight_rounding": "gptq"}),
        MSE.model_copy(update={"shift_padded": True}),
        MSE.model_copy(update={"float_skips": True}),
        MSE.model_copy(update={"method": CalibrationMethod.AUTO}),
        MSE.model_copy(update={"version": 2}),
    ]
    assert len({choice.digest for choice in choices}) == len(choices)
    assert Algorithm(method=CalibrationMethod.MSE, version=1).digest == MSE.digest


def test_the_digest_is_that_of_files_from_before_weights_were_rounded_otherwise() -> None:
    """Ranges and keys of calibrations that are there stay good."""
    before = {
        "method": "mse", "percentile": None, "equalize": True, "bias_correction": True, "shift": True, "exact_input": True,
        "weight_scales": "mse", "version": 1,
    }  # fmt: skip
    assert MSE.digest == digest_json(before)
    assert MSE.weight_rounding == "nearest"
    assert not MSE.shift_padded
    assert not MSE.float_skips


def edited(ranges: Ranges, path: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    content = json.loads(ranges.text())
    edit(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c["tensors"]["input"].update(threshold=math.nan), r"tensors\.input\.threshold: .*finite"),
        (lambda c: c["tensors"]["input"].update(threshold=0), r"tensors\.input\.threshold: must be positive"),
        (lambda c: c["tensors"]["input"].update(threshold=-1.5), r"tensors\.input\.threshold: .*\(given -1\.5\)"),
        (lambda c: c["tensors"]["input"].update(threshold="2.5"), r"tensors\.input\.threshold: .*valid number"),
        (lambda c: c["tensors"]["input"].pop("maximum"), r"tensors\.input\.maximum: missing"),
        (lambda c: c["tensors"]["input"].update(minimum=9), "minimum 9.0 is above maximum 2.0"),
        (lambda c: c["tensors"].clear(), "tensors: "),
        (lambda c: c.pop("tensors"), "tensors: missing"),
        (lambda c: c.pop("schema"), "schema: missing"),
        (lambda c: c.update(tensor={}), "tensor: unknown key, did you mean 'tensors'?"),
        (lambda c: c.update(model_sha256="abc"), "model_sha256: "),
        (lambda c: c["algorithm"].update(method="median"), r"algorithm\.method: "),
        (lambda c: c["algorithm"].update(method="minmax"), "algorithm_sha256 is not the digest of algorithm"),
        (lambda c: c["preprocess"].update(mean=[0.5] * 3), "preprocess_sha256 is not the digest"),
        (lambda c: c["input"].update(height=32), "preprocess_sha256 is not the digest"),
        (lambda c: c["data"].update(images=0), r"data\.images: "),
        (lambda c: c["channel_means"].update(input=[]), r"channel_means\.input: "),
        (lambda c: c["channel_maxima"].clear(), "no channel_maxima to equalize by"),
    ],
)
def test_a_file_with_a_bad_field_is_refused_by_its_name(
    edit: Callable[[dict[str, Any]], object], message: str, ranges: Ranges, tmp_path: Path
) -> None:
    path = edited(ranges, tmp_path / "r.json", edit)
    with pytest.raises(CalibrationError, match=message) as error:
        load_ranges(path)
    assert str(path) in error.value.message


def test_many_problems_are_counted_not_listed(ranges: Ranges, tmp_path: Path) -> None:
    path = edited(ranges, tmp_path / "r.json", lambda c: c.update({f"unknown{i}": 1 for i in range(8)}))
    with pytest.raises(CalibrationError, match="and 3 more"):
        load_ranges(path)


def test_another_schema_is_refused_as_such(ranges: Ranges, tmp_path: Path) -> None:
    path = edited(ranges, tmp_path / "r.json", lambda c: c.update(schema=2, tensors={"new": "form"}))
    with pytest.raises(CalibrationError, match=r"have schema 2, but this skdeploy .* reads schema 1"):
        load_ranges(path)


def test_a_file_that_is_cut_anywhere_is_refused(ranges: Ranges, tmp_path: Path) -> None:
    whole = ranges.text().rstrip()
    for end in (0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        (tmp_path / "r.json").write_text(whole[:end])
        with pytest.raises(CalibrationError, match="file: Invalid JSON"):
            load_ranges(tmp_path / "r.json")


def test_a_file_that_is_absent_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"cannot read the ranges .*gone\.json: No such file"):
        load_ranges(tmp_path / "gone.json")
    with pytest.raises(CalibrationError, match="cannot read the ranges"):
        load_ranges(tmp_path)
    (tmp_path / "r.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CalibrationError, match="Invalid JSON"):
        load_ranges(tmp_path / "r.json")


def test_a_failed_write_leaves_the_old_file(ranges: Ranges, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(UsageError, match="cannot write"):
        ranges.write(tmp_path / "file/r.json")
    assert (tmp_path / "file").read_text() == "old"


def test_ranges_belong_to_the_graph_that_they_were_made_from(ranges: Ranges, graph: ir.Model, spec: ModelSpec) -> None:
    ranges.check_belongs(graph, spec, ["input", "stem.relu/Relu"])
    renamed = spec.model_copy(update={"name": "renamed", "summary": "a card's texts change nothing"})
    ranges.check_belongs(graph, renamed, ["input"])


def test_ranges_of_other_weights_are_refused_with_both_identities(
    ranges: Ranges, graph: ir.Model, spec: ModelSpec
) -> None:
    weight = next(value for value in graph.graph.initializers.values() if len(value.shape or ()) == 4)
    array = weight.const_value.numpy().copy()  # type: ignore[union-attr]  # it is an initializer
    array.flat[0] = np.nextafter(array.flat[0], np.float32(9))  # the least change there is
    weight.const_value = ir.tensor(array, name=weight.name)
    with pytest.raises(CalibrationError, match="other weights") as error:
        ranges.check_belongs(graph, spec, ["input"])
    assert ranges.model_sha256 in error.value.message
    assert graph_identity(graph) in error.value.message


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        (
            "preprocess",
            {"mean": (0.3, 0.5, 0.5)},
            r"preprocess.mean: calibrated with [0.3, 0.5, 0.6], now [0.3, 0.5, 0.5]",
        ),
        (
            "preprocess",
            {"std": (1.0, 1.0, 1.0)},
            r"preprocess.std: calibrated with [0.2, 0.25, 0.3], now [1.0, 1.0, 1.0]",
        ),
        ("preprocess", {"interpolation": "bicubic"}, "preprocess.interpolation: calibrated with bilinear, now bicubic"),
        ("preprocess", {"exif": "apply"}, "preprocess.exif: calibrated with the default, now apply"),
        ("preprocess", {"resize": 30}, "preprocess.resize: calibrated with 24, now 30"),
        ("input", {"width": 22}, "input.width: calibrated with 24, now 22"),
    ],
)
def test_ranges_of_another_preprocessing_are_refused_with_the_difference(
    table: str, change: dict[str, Any], message: str, ranges: Ranges, graph: ir.Model, spec: ModelSpec
) -> None:
    other = spec.model_copy(update={table: getattr(spec, table).model_copy(update=change)})
    with pytest.raises(CalibrationError, match="another preprocessing or image size") as error:
        ranges.check_belongs(graph, other, ["input"])
    assert f"\n  {message}" in error.value.message
    assert error.value.message.count("\n") == 1  # only what differs
    digests = re.findall("[0-9a-f]{64}", error.value.message)
    assert digests[0] == ranges.preprocess_sha256
    assert digests[1] != digests[0]


def test_a_tensor_without_a_range_is_named(ranges: Ranges, graph: ir.Model, spec: ModelSpec) -> None:
    with pytest.raises(CalibrationError, match=r"no entry for the tensor 'a/Relu' and 1 more: .* for other modules"):
        ranges.check_belongs(graph, spec, ["input", "a/Relu", "b/Relu"])
