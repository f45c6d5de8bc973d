"""The proof of a whole bundle, on a bundle that the line itself has made from a tiny card."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from torch import nn

from skdeploy.backends.metrics import EXACT_DB
from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import Bundle, load_bundle
from skdeploy.bundle.station_facts import EngineFacts
from skdeploy.checkpoints.load import load_network
from skdeploy.core.errors import DependencyError, IntegrityError, ParityError
from skdeploy.core.progress import Silent
from skdeploy.core.spec import Precision, Tolerance
from skdeploy.devices import cuda
from skdeploy.images.dataset import Dataset, open_dataset
from skdeploy.line.export import export
from skdeploy.line.options import ExportOptions
from skdeploy.parity.prove import TORCH_REFERENCE, prove
from skdeploy.parity.report import Comparison, ParityReport
from skdeploy.parity.suites import SYNTHETIC
from skdeploy.parity.tasks import tolerance_of
from tests import tiny
from tests.bundle.recorded import put_engine
from tests.conftest import FAST


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prove")
    np.savez(folder / "images.npz", images=tiny.noise(11, 40, 44, 3))
    where: Any = {"output": folder / "bundle", "images": folder / "images.npz"}
    export(ExportOptions(str(tiny.CARD), Precision.FP16, trace=FAST, target="onnx", **where))
    return folder


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Bundle:
    """A copy of the bundle, to be altered."""
    shutil.copytree(made / "bundle", tmp_path / "bundle")
    return load_bundle(tmp_path / "bundle")


@pytest.fixture
def dataset(made: Path) -> Dataset:
    return open_dataset(made / "images.npz")


@pytest.fixture
def network(bundle: Bundle) -> nn.Module:
    return load_network(bundle.manifest.model, bundle.folder / "weights.safetensors")


def proof(bundle: Bundle, dataset: Dataset, network: nn.Module | None) -> ParityReport:
    return prove(bundle, bundle.manifest.artifacts, dataset, network, Silent())


def found_in(report: ParityReport, artifact: str) -> Comparison:
    found = report.of(artifact)
    assert found is not None
    return found


def sqnr_of(report: ParityReport, artifact: str) -> float:
    metrics = found_in(report, artifact).metrics
    assert metrics is not None
    return metrics.sqnr_db


def with_altered(bundle: Bundle, name: str, change: Callable[[onnx.ModelProto], None]) -> tuple[Artifact, ...]:
    """All artifacts, one of them altered."""
    spoilt = altered(bundle, name, change)
    return tuple(spoilt if artifact.path == name else artifact for artifact in bundle.manifest.artifacts)


def test_every_graph_is_proven_against_torch(bundle: Bundle, dataset: Dataset, network: nn.Module) -> None:
    report = proof(bundle, dataset, network)
    report.check()
    assert report.reference == TORCH_REFERENCE
    assert (report.dataset, report.images) == ("images.npz", 11)
    assert [(c.artifact, c.precision, c.backend, c.verdict) for c in report.comparisons] == [
        ("model.traced.onnx", Precision.FP32, "onnxruntime", "pass"),
        ("model.onnx", Precision.FP32, "onnxruntime", "pass"),
        ("model.fp16.onnx", Precision.FP16, "onnxruntime", "pass"),
    ]
    assert report.batch_invariance is not None
    assert (report.batch_invariance.artifact, report.batch_invariance.verdict) == ("model.fp16.onnx", "pass")
    assert ParityReport.model_validate_json(report.model_dump_json()) == report


def test_half_is_measured_with_its_rounding(bundle: Bundle, dataset: Dataset, network: nn.Module) -> None:
    """FP32 agrees to 100 dB and more; FP16 that did would not have been rounded."""
    report = proof(bundle, dataset, network)
    assert sqnr_of(report, "model.onnx") > 100
    assert sqnr_of(report, "model.fp16.onnx") < 75


def test_without_a_network_the_first_float32_graph_is_the_reference(bundle: Bundle, dataset: Dataset) -> None:
    report = proof(bundle, dataset, None)
    report.check()
    assert report.reference == "model.traced.onnx on onnxruntime, the bundle's own first FP32 graph, not torch"
    assert sqnr_of(report, "model.traced.onnx") == EXACT_DB


def test_without_network_and_float32_graph_there_is_no_reference(bundle: Bundle, dataset: Dataset) -> None:
    half = tuple(a for a in bundle.manifest.artifacts if a.precision is Precision.FP16)
    with pytest.raises(IntegrityError, match="holds no FP32 graph to compare with"):
        prove(bundle, half, dataset, None, Silent())


def altered(bundle: Bundle, name: str, change: Callable[[onnx.ModelProto], None]) -> Artifact:
    """The artifact after a change to its graph, with the digest that fits: as if a stage had made it so."""
    artifact = bundle.artifact(name)
    assert artifact is not None
    model = onnx.load(bundle.folder / name)
    change(model)
    onnx.save(model, bundle.folder / name)
    return artifact.model_copy(update={"sha256": hashlib.sha256((bundle.folder / name).read_bytes()).hexdigest()})


def scale_weight(ending: str, factor: float) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        weight = next(t for t in model.graph.initializer if t.name.endswith(ending))
        array = numpy_helper.to_array(weight)
        weight.CopyFrom(numpy_helper.from_array((array * factor).astype(array.dtype), weight.name))

    return change


@pytest.mark.parametrize(
    ("name", "ending", "factor"),
    [
        ("model.onnx", "stages.1.0.sk.branches.0.conv.weight", 1.01),
        ("model.fp16.onnx", "classifier.weight_fp16", 1.05),
    ],
)
def test_a_perturbed_weight_is_caught(
    bundle: Bundle, dataset: Dataset, network: nn.Module, name: str, ending: str, factor: float
) -> None:
    report = prove(bundle, with_altered(bundle, name, scale_weight(ending, factor)), dataset, network, Silent())
    assert [c.artifact for c in report.comparisons if c.verdict == "fail"] == [name]
    with pytest.raises(ParityError, match=rf"{name} on onnxruntime: max error .* of the largest logit") as failure:
        report.check()
    assert "no parity with torch" in failure.value.message


def test_not_a_number_in_a_graph_fails_before_anything_is_compared(
    bundle: Bundle, dataset: Dataset, network: nn.Module
) -> None:
    nan = scale_weight("stages.1.0.sk.gate.fc2.weight_fp16", float("nan"))
    report = prove(bundle, with_altered(bundle, "model.fp16.onnx", nan), dataset, network, Silent())
    assert found_in(report, "model.fp16.onnx").problems == ("55 logits are NaN or infinite, first in image 0",)
    assert report.verdict == "fail"
    assert report.batch_invariance is None


def test_another_network_is_no_reference(bundle: Bundle, dataset: Dataset, network: nn.Module) -> None:
    network.get_parameter("classifier.bias").add_(1)
    report = proof(bundle, dataset, network)
    assert {c.verdict for c in report.comparisons} == {"fail"}


def test_a_reference_that_is_not_finite_is_refused(bundle: Bundle, dataset: Dataset, network: nn.Module) -> None:
    network.get_parameter("classifier.bias").fill_(float("nan"))
    with pytest.raises(
        ParityError, match="the reference, torch float32, training form, cannot be used: 55 logits are NaN"
    ):
        proof(bundle, dataset, network)


def test_a_file_that_was_altered_is_not_run(bundle: Bundle, dataset: Dataset, network: nn.Module) -> None:
    altered(bundle, "model.onnx", scale_weight("classifier.weight", 1.0001))
    with pytest.raises(IntegrityError, match=r"model.onnx is not the file that the manifest describes"):
        proof(bundle, dataset, network)


def test_an_engine_that_cannot_run_here_is_recorded_as_unproven(
    bundle: Bundle, dataset: Dataset, network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "devices", lambda: ())

    plan = b"vtrt" + b"\xff" * 60  # the tag of a plan, with a header of a version that nobody knows
    put_engine(bundle, "engines/tensorrt_rtx-fp16.engine", plan, EngineFacts(compiler="tensorrt_rtx"))
    report = proof(bundle, dataset, network)
    found = found_in(report, "engines/tensorrt_rtx-fp16.engine")
    assert (found.verdict, found.backend, found.metrics) == ("unproven", "tensorrt_rtx", None)
    assert "no GPU to run an engine on" in found.reason
    assert report.verdict == "pass"
    report.check()
    assert report.batch_invariance is not None  # of the last graph, which is not the last artifact


def test_an_engine_that_was_altered_is_refused_even_where_it_cannot_run(
    bundle: Bundle, dataset: Dataset, network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "devices", lambda: ())

    engine = put_engine(bundle, "engines/x.engine", b"native code, perhaps", EngineFacts(compiler="tensorrt"))
    (bundle.folder / engine.path).write_bytes(b"native code, certainly")
    with pytest.raises(IntegrityError, match=r"x.engine"):
        proof(load_bundle(bundle.folder), dataset, network)


def test_without_onnxruntime_nothing_is_proven(
    bundle: Bundle, dataset: Dataset, network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # what makes `import` raise ImportError
    with pytest.raises(DependencyError, match="onnxruntime cannot be imported here"):
        proof(bundle, dataset, network)


def test_without_a_tolerance_in_the_card_the_precisions_own_holds() -> None:
    strict = Tolerance(max_rel_error=1e-9, min_cosine=0.5, min_sqnr_db=150.0)
    spec = tiny.spec().model_copy(update={"tolerance": {Precision.FP32: strict}})
    assert tolerance_of(spec, Precision.FP32) == strict
    assert tolerance_of(spec, Precision.FP16) == Precision.FP16.tolerance


def test_an_export_runs_one_image_of_each_synthetic_suite_on_what_is_deployed(
    bundle: Bundle, dataset: Dataset, network: nn.Module
) -> None:
    report = proof(bundle, dataset, network)
    assert [(s.artifact, s.suite, s.images, s.verdict) for s in report.suites] == [
        ("model.fp16.onnx", name, 1, "recorded") for name in SYNTHETIC
    ]
    assert [(r.artifact, r.differing, r.verdict) for r in report.run_to_run] == [("model.fp16.onnx", 0, "pass")]


def test_suites_that_are_asked_for_are_run_in_full_on_every_artifact(
    bundle: Bundle, dataset: Dataset, network: nn.Module
) -> None:
    report = prove(
        bundle, bundle.manifest.artifacts, dataset, network, Silent(), suites=("extremes", "memory", "sizes")
    )
    graphs = ("model.traced.onnx", "model.onnx", "model.fp16.onnx")
    assert [(s.artifact, s.suite, s.images) for s in report.suites] == [  # no sizes: the graph has one
        (graph, name, count) for graph in graphs for name, count in (("extremes", 4), ("memory", 8))
    ]
    assert report.verdict == "pass"
    assert ParityReport.model_validate_json(report.model_dump_json()) == report


def test_a_graph_that_breaks_on_a_black_image_alone_is_caught(
    bundle: Bundle, dataset: Dataset, network: nn.Module
) -> None:
    """In parity on every image: logits are divided by the image's contrast over itself, 1, or 0 / 0 where there is none."""
    name = "model.fp16.onnx"

    def divide(model: onnx.ModelProto) -> None:
        graph = model.graph
        last = next(node for node in graph.node if "logits" in node.output)
        last.output[list(last.output).index("logits")] = "sound"
        for constant, values in (("axes", [1, 2, 3]), ("column", [-1, 1])):
            graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), constant))
        for operator, inputs, output in (
            ("ReduceMax", ["input", "axes"], "high"),
            ("ReduceMin", ["input", "axes"], "low"),
            ("Sub", ["high", "low"], "contrast"),
            ("Div", ["contrast", "contrast"], "one"),
            ("Reshape", ["one", "column"], "flat"),
            ("Mul", ["sound", "flat"], "logits"),
        ):
            graph.node.append(onnx.helper.make_node(operator, inputs, [output]))

    grey = bundle.manifest.model.preprocess.model_copy(update={"mean": (0.5,) * 3, "std": (0.25,) * 3})
    bundle.manifest = bundle.manifest.model_copy(
        update={"model": bundle.manifest.model.model_copy(update={"preprocess": grey})}
    )  # with a mean a channel, black has the contrast of these
    report = prove(bundle, with_altered(bundle, name, divide), dataset, network, Silent())
    assert found_in(report, name).verdict == "pass"
    assert [suite.suite for suite in report.suites if suite.verdict == "fail"] == ["zeros"]
    with pytest.raises(ParityError, match=r"model.fp16.onnx on onnxruntime, zeros: 5 logits are NaN"):
        report.check()


def test_a_report_from_before_there_were_suites_still_loads(
    bundle: Bundle, dataset: Dataset, network: nn.Module
) -> None:
    content = json.loads(proof(bundle, dataset, network).model_dump_json())
    for later in ("suites", "run_to_run", "rebuilds"):
        del content[later]
    for comparison in content["comparisons"]:
        del comparison["receipts"]
    old = ParityReport.model_validate_json(json.dumps(content))
    assert old.verdict == "pass"
    assert old.suites == ()
