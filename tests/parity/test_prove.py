"""The proof of a whole bundle, on a bundle that the line itself has made from a tiny card."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from torch import nn

from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import Bundle, load_bundle
from skdeploy.bundle.station_facts import EngineFacts
from skdeploy.checkpoints.load import load_network
from skdeploy.core.errors import CardError, DependencyError, IntegrityError, ParityError
from skdeploy.core.progress import Silent
from skdeploy.core.spec import Precision, Target
from skdeploy.devices import cuda
from skdeploy.images.dataset import Dataset, open_dataset
from skdeploy.line.export import export
from skdeploy.line.options import ExportOptions
from skdeploy.parity.prove import TORCH_REFERENCE, prove
from skdeploy.parity.report import ParityReport
from skdeploy.parity.suites import SYNTHETIC
from skdeploy.passes.trace_options import TraceOptions
from tests.bundle.recorded import put_engine

CARD = """
schema = 1
name = "tiny"
summary = "for tests"

[network]
family = "sknet"
classes = 5
stem = { channels = 8, kernel = 3, stride = 2, max_pool = false }
stages = [
  { units = 1, middle_channels = 8, out_channels = 16, stride = 1 },
  { units = 2, middle_channels = 16, out_channels = 16, stride = 2 },
]

[network.selective_kernel]
reduction = 4
min_width = 4
fuse = "attention"
branches = [{ kernel = 3, dilation = 1, groups = 4 }, { kernel = 3, dilation = 2, groups = 4 }]

[input]
channels = 3
height = 20
width = 24

[preprocess]
resize = 24
mean = [0.3, 0.5, 0.6]
std = [0.2, 0.25, 0.3]

[source]
paper = "none"
url = "https://example.org"
licence = "MIT"

[reference]
parameters = 1

# float32's precision times a dozen layers
[tolerance.fp32]
max_rel_error = 1e-4
min_cosine = 0.99999
min_sqnr_db = 90.0

# FP16's 11 bits, rounded some forty times
[tolerance.fp16]
max_rel_error = 2e-2
min_cosine = 0.999
min_sqnr_db = 40.0
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prove")
    (folder / "tiny.toml").write_text(CARD, encoding="utf-8")
    pixels = np.random.default_rng(0).integers(0, 256, (11, 24, 28, 3), dtype=np.uint8)
    np.savez(folder / "images.npz", images=pixels)
    export(
        ExportOptions(
            model=str(folder / "tiny.toml"),
            precision=Precision.FP16,
            output=folder / "bundle",
            trace=TraceOptions(exporter="torchscript"),
            target=Target.ONNX,
            images=folder / "images.npz",
        )
    )
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
    single, half = report.of("model.onnx"), report.of("model.fp16.onnx")
    assert single is not None
    assert half is not None
    assert single.metrics is not None
    assert half.metrics is not None
    assert single.metrics.sqnr_db > 100
    assert half.metrics.sqnr_db < 75


def test_without_a_network_the_first_float32_graph_is_the_reference(bundle: Bundle, dataset: Dataset) -> None:
    report = proof(bundle, dataset, None)
    report.check()
    assert report.reference == "model.traced.onnx on onnxruntime, the bundle's own first FP32 graph, not torch"
    itself = report.of("model.traced.onnx")
    assert itself is not None
    assert itself.metrics is not None
    assert itself.metrics.max_abs_error == 0


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
    perturbed = altered(bundle, name, scale_weight(ending, factor))
    artifacts = tuple(perturbed if a.path == name else a for a in bundle.manifest.artifacts)
    report = prove(bundle, artifacts, dataset, network, Silent())
    assert [c.artifact for c in report.comparisons if c.verdict == "fail"] == [name]
    with pytest.raises(ParityError, match=rf"{name} on onnxruntime: max error .* of the largest logit") as failure:
        report.check()
    assert "no parity with torch" in failure.value.message


def test_not_a_number_in_a_graph_fails_before_anything_is_compared(
    bundle: Bundle, dataset: Dataset, network: nn.Module
) -> None:
    spoilt = altered(bundle, "model.fp16.onnx", scale_weight("stages.1.1.sk.gate.fc2.weight_fp16", float("nan")))
    artifacts = tuple(spoilt if a.path == spoilt.path else a for a in bundle.manifest.artifacts)
    report = prove(bundle, artifacts, dataset, network, Silent())
    found = report.of("model.fp16.onnx")
    assert found is not None
    assert found.problems == ("55 logits are NaN or infinite, first in image 0",)
    assert report.verdict == "fail"
    assert report.batch_invariance is None


def test_another_network_is_no_reference(bundle: Bundle, dataset: Dataset, network: nn.Module) -> None:
    network.get_parameter("classifier.bias").add_(1)
    report = proof(bundle, dataset, network)
    assert {c.verdict for c in report.comparisons} == {"fail"}


def test_a_reference_that_is_not_finite_is_refused(bundle: Bundle, dataset: Dataset, network: nn.Module) -> None:
    network.get_parameter("classifier.bias").fill_(float("nan"))
    with pytest.raises(
        ParityError, match="the reference, torch float32, training form, is not usable: 55 logits are NaN"
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
    found = report.of("engines/tensorrt_rtx-fp16.engine")
    assert found is not None
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


def test_a_card_without_a_tolerance_for_the_precision_is_told(
    bundle: Bundle, dataset: Dataset, network: nn.Module
) -> None:
    spec = bundle.manifest.model
    only = spec.model_copy(update={"tolerance": {Precision.FP32: spec.tolerance[Precision.FP32]}})
    bundle.manifest = bundle.manifest.model_copy(update={"model": only})
    with pytest.raises(CardError, match="the card tiny gives no tolerance for fp16"):
        proof(bundle, dataset, network)


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
        axes = [1, 2, 3]
        graph.initializer.append(numpy_helper.from_array(np.array(axes, np.int64), "axes"))
        graph.initializer.append(numpy_helper.from_array(np.array([-1, 1], np.int64), "column"))
        high = onnx.helper.make_node("ReduceMax", ["input", "axes"], ["high"])
        low = onnx.helper.make_node("ReduceMin", ["input", "axes"], ["low"])
        contrast = onnx.helper.make_node("Sub", ["high", "low"], ["contrast"])
        one = onnx.helper.make_node("Div", ["contrast", "contrast"], ["one"])
        flat = onnx.helper.make_node("Reshape", ["one", "column"], ["flat"])
        graph.node.extend([high, low, contrast, one, flat, onnx.helper.make_node("Mul", ["sound", "flat"], ["logits"])])

    grey = bundle.manifest.model.preprocess.model_copy(update={"mean": (0.5,) * 3, "std": (0.25,) * 3})
    bundle.manifest = bundle.manifest.model_copy(
        update={"model": bundle.manifest.model.model_copy(update={"preprocess": grey})}
    )  # with a mean a channel, black has the contrast of these
    spoilt = altered(bundle, name, divide)
    artifacts = tuple(spoilt if a.path == name else a for a in bundle.manifest.artifacts)
    report = prove(bundle, artifacts, dataset, network, Silent())
    found = report.of(name)
    assert found is not None
    assert found.verdict == "pass"
    broken = [suite.suite for suite in report.suites if suite.verdict == "fail"]
    assert broken == ["zeros"]
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
