"""A fault planted in each stage of the line: blame must name the stage, the tensor and what the fault looks like."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from torch import nn

from skdeploy.blame.blame import EngineStage, Stage, blame
from skdeploy.blame.chain import DEPLOY, FLOAT32, FLOAT64
from skdeploy.blame.layers_torch import TorchStage
from skdeploy.bundle.evidence import read_evidence
from skdeploy.bundle.folder import load_bundle
from skdeploy.cli.blame import blame_bundle
from skdeploy.core.errors import IntegrityError, UsageError
from skdeploy.core.files import digest_file
from skdeploy.core.spec import Precision
from skdeploy.parity.blame_report import BlameReport
from skdeploy.report.blame import blame_findings
from skdeploy.report.blocks import Finding, Table
from skdeploy.zoo.fold import fold
from tests.blame.faulty import (
    blamed,
    bundle_of,
    bundle_of_graph,
    chain,
    changed,
    crops,
    edit_constant,
    edit_graph,
    spec_of,
    tensor_of,
)

FP32, FP16, INT8 = Precision.FP32, Precision.FP16, Precision.INT8
Bundles = Callable[..., Path]


def torch_stage(stages: list[Stage], name: str) -> TorchStage:
    (stage,) = [stage for stage in stages if stage.name == name]
    assert isinstance(stage, TorchStage)  # a chain has stages of graphs too
    return stage


def with_network(stages: list[Stage], name: str, network: nn.Module) -> list[Stage]:
    """The stages, where that of this name runs another network."""
    wrong = replace(torch_stage(stages, name), make=lambda: network)
    return [wrong if stage.name == name else stage for stage in stages]


# ----- no fault


@pytest.mark.parametrize(
    ("precision", "how"), [(FP32, {}), (FP16, {}), (INT8, {}), (INT8, {"half": True}), (FP16, {"embed": True})]
)
def test_without_a_fault_no_stage_is_to_blame(precision: Precision, how: dict[str, bool]) -> None:
    report = blamed(bundle_of(precision, **how))
    assert report.guilty is None
    assert report.tensor is None
    assert report.verdict == "no stage is to blame"
    assert [stage.verdict for stage in report.stages] == ["reference", *["pass"] * (len(report.stages) - 1)]
    last = {FP32: "model.onnx", FP16: "model.fp16.onnx", INT8: "model.int8.onnx"}[precision]
    names = [stage.stage for stage in report.stages]
    assert names[:5] == [FLOAT64, FLOAT32, DEPLOY, "model.traced.onnx", "model.onnx"]
    assert names[-1] == last


def test_the_figures_are_those_of_the_logits() -> None:
    bundle = bundle_of(FP16)
    spec, stages = spec_of(bundle), chain(bundle)
    report = blamed(bundle)
    logits = [stage.outputs(crops(spec))["logits"].astype(np.float64) for stage in stages]
    for row, before, found in zip(report.stages[1:], logits, logits[1:], strict=False):
        noise = 10 * np.log10(np.sum(before**2, 1) / np.maximum(np.sum((found - before) ** 2, 1), 1e-300))
        assert row.sqnr_before_db == pytest.approx(min(300.0, noise.min()))
        noise = 10 * np.log10(np.sum(logits[0] ** 2, 1) / np.sum((found - logits[0]) ** 2, 1))
        assert row.sqnr_first_db == pytest.approx(noise.min())


# ----- a fault in each stage


def test_a_damaged_weight_of_the_network_itself() -> None:
    bundle = bundle_of(FP32)
    stages = chain(bundle)

    def damage(network: nn.Module) -> None:
        network.get_submodule("stages.0.0.expand.conv").weight[3] *= 1.5

    report = blamed(bundle, with_network(stages, FLOAT32, changed(torch_stage(stages, FLOAT32).make(), damage)))
    tensor = tensor_of(report, FLOAT32)
    assert tensor.tensor == tensor.module == "stages.0.0.expand.conv"
    assert tensor.operator == "Conv2d"


@pytest.mark.parametrize(
    ("norm", "module"),
    [
        ("stages.0.0.sk.branches.1.bn", "stages.0.0.sk.branches.1.conv"),
        ("stages.1.0.sk.gate.bn", "stages.1.0.sk.gate.fc1"),
    ],
)
def test_a_wrong_epsilon_in_the_deploy_form(norm: str, module: str) -> None:
    bundle = bundle_of(FP32)
    stages = chain(bundle)

    def widen(network: nn.Module) -> None:
        network.get_submodule(norm).eps = 0.5

    report = blamed(bundle, with_network(stages, DEPLOY, fold(changed(torch_stage(stages, FLOAT32).make(), widen))))
    tensor = tensor_of(report, DEPLOY)
    assert (tensor.module, tensor.reference) == (module, norm)
    assert f"{DEPLOY} is to blame, and in it module {module}" in report.verdict
    if "gate" not in norm:  # a gate's maps have one pixel, and a factor and an offset for each explains anything
        assert tensor.cause == "channel factors"


def test_swapped_branches_in_the_traced_graph(copy_of: Bundles) -> None:
    bundle = copy_of(FP32)

    def swap(graph: onnx.GraphProto) -> None:
        (node,) = [node for node in graph.node if node.name == "stages.1.0.sk/Sub"]
        node.input[0], node.input[1] = node.input[1], node.input[0]

    edit_graph(bundle, "model.traced.onnx", swap)
    report = blamed(bundle)
    tensor = tensor_of(report, "model.traced.onnx")
    assert tensor.module == "stages.1.0.sk"
    assert tensor.tensor == "stages.1.0.sk/Add_2"
    # and what is made from it, as it should have been, is in parity with the network
    (simplified,) = [row for row in report.stages if row.stage == "model.onnx"]
    assert simplified.sqnr_first_db is not None
    assert simplified.sqnr_first_db > 100


def test_a_transposed_weight_in_the_simplified_graph(copy_of: Bundles) -> None:
    bundle = copy_of(FP32)
    edit_constant(bundle, "model.onnx", "stages.0.0.reduce.conv.weight", lambda weight: weight.transpose(1, 0, 2, 3))
    report = blamed(bundle)
    tensor = tensor_of(report, "model.onnx")
    assert tensor.node == "stages.0.0.reduce.conv/Conv"
    assert tensor.cause == "differs"
    assert tensor.inputs_db == 300  # what it reads is right
    assert tensor.own_db == tensor.run_db


def test_a_fault_is_blamed_where_it_is_and_not_where_it_arrives(copy_of: Bundles) -> None:
    bundle = copy_of(FP32)
    edit_constant(bundle, "model.onnx", "stages.0.0.reduce.conv.weight", lambda weight: weight.transpose(1, 0, 2, 3))
    report = blamed(bundle)
    after = [row for row in report.layers if row.tensor.startswith("stages.1.0")]
    assert len(after) > 10
    assert all(row.own_db is not None and row.own_db > 100 for row in after)  # right, of what they are given
    arrived = [row.run_db for row in report.layers if row.tensor == "logits"]
    assert arrived[0] is not None
    assert arrived[0] < 40


@pytest.mark.parametrize("precision", [FP32, INT8])
def test_in_a_graph_of_fixed_batch(precision: Precision, copy_of: Bundles) -> None:
    bundle = copy_of(precision, batch=3)
    assert blamed(bundle).guilty is None
    name = {FP32: "model.onnx", INT8: "model.int8.onnx"}[precision]
    kind = {FP32: "weight", INT8: "weight_rounded_scale"}[precision]
    edit_constant(bundle, name, f"stages.1.0.reduce.conv.{kind}", lambda array: array * 4)
    report = blamed(bundle)
    tensor = tensor_of(report, name)
    assert tensor.reference.startswith("stages.1.0.reduce.")


def test_of_a_bundle_without_a_network_the_first_graph_is_the_reference(tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(bundle_of_graph(), tmp_path / "bundle"))
    report = blamed(bundle)
    assert [row.stage for row in report.stages] == ["model.read.onnx", "model.traced.onnx", "model.onnx"]
    assert report.guilty is None
    edit_constant(bundle, "model.onnx", "stages.1.0.expand.conv.weight", lambda weight: weight[::-1])
    report = blamed(bundle)
    tensor = tensor_of(report, "model.onnx")
    assert tensor.module == "stages.1.0.expand.conv"


def test_an_overflow_in_fp16() -> None:
    report = blamed(bundle_of(FP16, scale=1e4))
    tensor = tensor_of(report, "model.fp16.onnx")
    assert tensor.module == "stages.1.0.expand.conv"
    assert tensor.cause == "overflow"
    assert "FP16 ends at 65504" in tensor.words
    assert tensor.own_db is None
    assert "it is not finite, and not finite with exact inputs" in report.verdict


EXPAND, REDUCE = "stages.1.0.expand.conv", "stages.1.0.reduce"
BRANCH = "stages.0.0.sk.branches.0.relu"  # shifted by 128


@pytest.mark.parametrize(
    ("precision", "how", "constants", "change", "found"),
    [
        (
            FP32,
            {},
            (f"{EXPAND}.weight", f"{EXPAND}.bias"),
            lambda array: array[[1, 0, *range(2, 16)]],
            {"module": EXPAND, "cause": "permuted channels"},
        ),
        (
            INT8,
            {},
            (f"{REDUCE}.relu/Relu_scale",),
            lambda scale: scale / 8,
            {"reference": f"{REDUCE}.relu/Relu", "cause": "saturation", "operator": "QuantizeLinear"},
        ),
        (INT8, {"half": True}, (f"{BRANCH}/Relu_scale_fp16",), lambda scale: scale / 8, {"module": BRANCH}),
        (
            INT8,
            {},
            (f"{REDUCE}.conv.weight_rounded_scale",),
            lambda scale: scale[::-1] * 2,
            {"reference": f"{REDUCE}.relu/Relu"},
        ),
    ],
    ids=["permuted channels", "scale", "scale of a shifted tensor", "weight"],
)
def test_a_wrong_constant(
    precision: Precision,
    how: dict[str, bool],
    constants: tuple[str, ...],
    change: Callable[[Any], Any],
    found: dict[str, str],
    copy_of: Bundles,
) -> None:
    bundle = copy_of(precision, **how)
    name = "model.onnx" if precision is FP32 else "model.int8.onnx"
    assert precision is FP32 or f"{BRANCH}/Relu" in chain(bundle)[-1].offsets()
    for constant in constants:
        edit_constant(bundle, name, constant, change)
    tensor = tensor_of(blamed(bundle), name)
    assert {key: getattr(tensor, key) for key in found} == found


# INT8 whose other numbers stay FP32 too: each is a bundle of its own, and the rewrites are the same.
@pytest.mark.parametrize(
    ("precision", "how"), [(FP16, {}), pytest.param(INT8, {}, marks=pytest.mark.slow), (INT8, {"half": True})]
)
def test_a_rewritten_graph_is_compared_with_the_one_it_was_made_from(
    precision: Precision, how: dict[str, bool]
) -> None:
    report = blamed(bundle_of(precision, rewritten=True, **how))
    assert report.guilty is None
    last = report.stages[-1]
    assert (last.stage, last.before) == (
        f"model.{precision}.regrouped.pooled.onnx",
        f"model.{precision}.regrouped.onnx",
    )


@pytest.mark.parametrize("how", [pytest.param({}, marks=pytest.mark.slow), {"half": True}])
def test_a_weight_that_regrouping_damaged_in_int8(how: dict[str, bool], copy_of: Bundles) -> None:
    bundle = copy_of(INT8, rewritten=True, **how)
    name = "stages.1.0.sk.branches.0.conv.weight_rounded_int8_regrouped"
    edit_constant(bundle, "model.int8.regrouped.pooled.onnx", name, lambda weight: weight[::-1])
    report = blamed(bundle)
    tensor = tensor_of(report, "model.int8.regrouped.pooled.onnx")
    assert tensor.tensor == "stages.1.0.sk.branches.0.conv/Conv"
    before = [row for row in report.layers if row.tensor != tensor.tensor]
    # Of inputs without error each other tensor is what it was but for the order of sums: no quantization noise is
    # taken for an error of the rewrite. 60 dB: FP16 rounds by 2^-11, 66 dB; INT8's own noise is some 40 dB.
    assert before
    assert all(row.own_db is not None and row.own_db > 60 for row in before)


def test_noise_that_no_tensor_alone_makes_blames_the_stage_only() -> None:
    bundle = bundle_of(FP16)
    spec = spec_of(bundle)
    strict = spec.tolerance[FP16].model_copy(update={"max_rel_error": 1e-6})  # less than one rounding to FP16
    report = blame(chain(bundle), crops(spec), spec.model_copy(update={"tolerance": spec.tolerance | {FP16: strict}}))
    assert report.guilty == "model.fp16.onnx"
    assert report.tensor is None
    assert len(report.layers) > 40
    assert report.verdict.startswith(f"model.fp16.onnx is to blame: no single tensor: of {len(report.layers)}, ")
    assert "Many small errors add up, or the network amplifies them" in report.verdict


# ----- what blame says and keeps


def test_the_report_is_kept_beside_the_bundle_and_is_about_it_only(copy_of: Bundles, tmp_path: Path) -> None:
    bundle = copy_of(FP32)
    np.save(tmp_path / "images.npy", crops(spec_of(bundle)))
    report = blame_bundle(bundle, tmp_path / "images.npy")
    assert read_evidence(load_bundle(bundle), "blame", BlameReport) == report
    edit_constant(bundle, "model.onnx", "stages.0.0.reduce.conv.weight", lambda weight: weight * 2)
    assert read_evidence(load_bundle(bundle), "blame", BlameReport) is None
    again = blame_bundle(bundle, tmp_path / "images.npy")
    assert again.guilty == "model.onnx"
    assert again.image == "images[0]"
    assert read_evidence(load_bundle(bundle), "blame", BlameReport) == again


def test_a_file_that_the_manifest_does_not_describe_is_refused(copy_of: Bundles) -> None:
    bundle = copy_of(FP32)
    (bundle / "model.onnx").write_bytes((bundle / "model.onnx").read_bytes() + b"\0")
    with pytest.raises(IntegrityError, match="not the file that the manifest describes"):
        blame_bundle(bundle)


def test_the_findings_have_every_stage_and_end_with_the_verdict(copy_of: Bundles) -> None:
    bundle = copy_of(FP32)
    edit_constant(bundle, "model.onnx", "classifier.bias", lambda bias: bias + 10)
    report = blamed(bundle)
    table, *_, last = blame_findings(report).blocks
    assert isinstance(table, Table)  # a block may be of another kind
    assert [row[0].text for row in table.rows] == [stage.stage for stage in report.stages]
    assert last == Finding("blame", "blame", "fail", report.verdict)
    assert "module classifier, tensor logits (Gemm classifier/Gemm)" in report.verdict
    assert "likely cause: offset; every value is off by 10" in report.verdict
    assert json.loads(report.model_dump_json())["guilty"] == "model.onnx"


def test_an_engine_that_cannot_run_here_is_unproven_and_said_so(tmp_path: Path) -> None:
    bundle = bundle_of(FP32)
    spec = spec_of(bundle)
    plan = tmp_path / "x.engine"
    plan.write_bytes(b"ftrt" + bytes(24) + b"a plan for another machine")  # a header that can be read
    engine = EngineStage("engines/x.engine", plan, "tensorrt", digest_file(plan), FP32, spec, "model.onnx")
    report = blamed(bundle, [*chain(bundle), engine])
    assert report.stages[-1].verdict == "unproven"
    assert report.stages[-1].reason
    assert report.verdict == "no stage is to blame; not run here: engines/x.engine"


def test_one_stage_alone_has_nothing_to_be_compared_with() -> None:
    bundle = bundle_of(FP32)
    with pytest.raises(UsageError, match="only one stage"):
        blamed(bundle, chain(bundle)[:1])
