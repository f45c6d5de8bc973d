"""INT8 graphs of every family in TensorRT-RTX: what skdeploy makes is accepted, and built with the types that it says."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import onnx_ir as ir
import pytest

from skdeploy import engines
from skdeploy.backends.onnxruntime import open_session
from skdeploy.backends.plans import PlanBackend
from skdeploy.core.architecture import NetworkSpec
from skdeploy.engines._build import BatchProfile, BuildOptions, EngineReport
from skdeploy.engines._log import changes_types
from skdeploy.passes.trace_options import TraceOptions
from tests.graphs.int8_networks import THREE, TWO, feeds_for, int8, pixels, spec_of
from tests.graphs.networks import sqnr_db
from tests.zoo.tiny_networks import VARIANTS

pytest.importorskip("tensorrt_rtx", reason="needs skdeploy[rtx]")

DYNAMIC, FIXED = BatchProfile(1, 2, 4), BatchProfile(2, 2, 2)
EMBEDDED = TraceOptions(exporter="torchscript", opset=20, batch=2, embed_preprocess=True, attention=True)
FAMILIES = {
    "two": TWO,
    "three": THREE,
    **{
        name: VARIANTS[name]
        for name in (
            "sknet as a plain sum",
            "sknet with a split input",
            "sknet of three branches with select biases",
            "resnet of bottlenecks",
            "resnet of basic blocks",
            "resnet with a deep stem and average pools",
            "linear_sknet",
            "shufflenet_v2",
        )
    },
}
# Built of what the ResNet with a deep stem, or "two", has too.
ALIKE = {"resnet of bottlenecks", "resnet of basic blocks", "sknet as a plain sum"}
WIDENED = {f"(foreignNode) Converting conv {what} scales to fp32." for what in ("activation", "weight")}

# The engine against ONNX Runtime's exact run. Both round to the same INT8 levels, but for values beside the middle of two: one
# level in a few percent of the values is some 50 dB below a tensor of full range, and later layers add to it. The same graphs
# with FP32 in place of FP16 are 37 dB apart on the CPU, for that reason alone; a wrong scale, type or padding leaves under 20.
ENGINE_DB = 30.0


def build(model: ir.Model, folder: Path, profile: BatchProfile = DYNAMIC) -> EngineReport:
    ir.save(model, folder / "model.onnx")
    options = BuildOptions(profile)
    return engines.build(
        "tensorrt_rtx", folder / "model.onnx", folder / "model.plan", options, lambda _phase, _fraction: None
    )


def check_built(model: ir.Model, report: EngineReport, *, half: bool) -> None:
    assert report.plan_bytes > 0
    assert {warning.strip() for warning in report.log_warnings} <= (WIDENED if half else set())
    integers = Counter(node.op_type for node in model.graph)
    assert report.layer_types["int8"] >= integers["QuantizeLinear"]
    assert ("float16" in report.layer_types) == half
    assert report.layer_types["float32"] > 0  # the means over space, and the pixels


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name for name in FAMILIES]
)
def test_every_family_is_built_with_float16_left(name: str, tmp_path: Path) -> None:
    model = int8(FAMILIES[name], half=True)
    check_built(model, build(model, tmp_path), half=True)


# TensorRT-RTX takes seconds for FP32, most of all while other work is going on.
@pytest.mark.parametrize("name", ["two", *(pytest.param(name, marks=pytest.mark.slow) for name in list(FAMILIES)[1:])])
def test_every_family_is_built_with_float32_left(name: str, tmp_path: Path) -> None:
    model = int8(FAMILIES[name])
    check_built(model, build(model, tmp_path), half=False)


@pytest.mark.parametrize("half", [pytest.param(False, marks=pytest.mark.slow), True], ids=["fp32", "fp16"])
@pytest.mark.parametrize("name", ["two", pytest.param("three", marks=pytest.mark.slow)])
def test_pixels_attention_a_fixed_batch_and_opset_20_are_built(name: str, half: bool, tmp_path: Path) -> None:
    model = int8(FAMILIES[name], EMBEDDED, half=half)
    assert model.opset_imports[""] == 20
    report = build(model, tmp_path, FIXED)
    check_built(model, report, half=half)
    assert all(shapes[0][0] == shapes[2][0] == 2 for shapes in report.profile.values())


def test_widened_scales_are_recorded(tmp_path: Path) -> None:
    """FP16 scales become FP32 in the kernels, which loses nothing; it is in the report all the same."""
    warnings = build(int8(TWO, half=True), tmp_path).log_warnings
    assert {warning.strip() for warning in warnings} == WIDENED
    assert not any(map(changes_types, warnings))


def test_the_types_of_layers_do_not_depend_on_the_fallback(tmp_path: Path) -> None:
    """The evidence that the scales' conversion changes no tensor: as many INT8 tensors as with FP32 scales."""
    single, half = (build(int8(TWO, half=half), tmp_path).layer_types for half in (False, True))
    assert single["int8"] == half["int8"]
    assert half["float16"] > half["float32"]


@pytest.mark.gpu("tensorrt_rtx")
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize("name", ["two", "three", "resnet of bottlenecks", "linear_sknet", "shufflenet_v2"])
def test_the_engine_computes_what_the_graph_says(name: str, half: bool, tmp_path: Path) -> None:
    structure: NetworkSpec = FAMILIES[name]
    model = int8(structure, half=half)
    build(model, tmp_path)
    given = feeds_for(model, spec_of(structure), pixels(4))
    with open_session(tmp_path / "model.onnx") as session:
        expected = session.run(given)["logits"]
    digest = hashlib.sha256((tmp_path / "model.plan").read_bytes()).hexdigest()
    with PlanBackend("tensorrt_rtx").open_session(tmp_path / "model.plan", sha256=digest) as session:
        found = session.run(given)["logits"]
    assert sqnr_db(found, expected) >= ENGINE_DB
