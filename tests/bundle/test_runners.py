"""What of a bundle runs on which backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from skdeploy.backends import BACKENDS, onnxruntime, running
from skdeploy.backends.onnxruntime_gpu import CudaOptions
from skdeploy.backends.plans import PlanBackend
from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import Bundle, load_bundle
from skdeploy.bundle.runners import check_graph_backend, last_graph, open_artifact, runner_on
from skdeploy.bundle.station_facts import EngineFacts
from skdeploy.core.errors import DependencyError, IntegrityError, UsageError
from skdeploy.engines.compatibility import BuiltFor
from tests.cli.evaluation_data import with_engine
from tests.refused import refused


@pytest.fixture
def loaded(exported: Path) -> Bundle:
    return load_bundle(exported)


@pytest.fixture
def built(loaded: Bundle, tmp_path: Path) -> Bundle:
    return load_bundle(with_engine(loaded.folder, tmp_path / "engine"))


@pytest.mark.parametrize("name", running("onnx"))
def test_onnx_runtime_runs_the_last_graph(loaded: Bundle, name: str) -> None:
    runner = runner_on(loaded, name)
    assert runner.artifact == last_graph(loaded).artifact
    assert runner.backend == name
    assert runner.shown == f"model.fp16.onnx on {name}"


def test_torch_runs_the_weights(loaded: Bundle) -> None:
    runner = runner_on(loaded, "torch")
    assert runner.artifact.format == "safetensors"
    assert runner.shown == "torch"


def test_a_compiler_runs_its_engine(built: Bundle) -> None:
    assert runner_on(built, "tensorrt").artifact.path == "engines/tensorrt-fp16.engine"
    with refused(UsageError, "holds no engine for it", "--target tensorrt_rtx"):
        runner_on(built, "tensorrt_rtx")


def test_options_go_to_the_backend(loaded: Bundle) -> None:
    assert runner_on(loaded, "onnxruntime-cuda", ["tf32=on"]).options == CudaOptions(tf32=True)
    with pytest.raises(UsageError, match="onnxruntime takes no --backend-option"):
        runner_on(loaded, "onnxruntime", ["tf32=on"])


def test_an_unknown_backend_is_refused_with_the_known_ones(loaded: Bundle) -> None:
    with pytest.raises(UsageError, match="--backend openvino") as refusal:
        runner_on(loaded, "openvino")
    assert all(name in refusal.value.advice for name in BACKENDS)


@pytest.mark.parametrize("name", ["torch", "tensorrt", "cuda"])
def test_graphs_run_on_onnx_runtime_alone(name: str) -> None:
    with pytest.raises(UsageError, match="cannot run ONNX files"):
        check_graph_backend(name)


@pytest.mark.skipif("CUDAExecutionProvider" in __import__("onnxruntime").get_available_providers(), reason="it has it")
def test_a_runner_opens_on_its_backend_and_no_other(loaded: Bundle) -> None:
    with runner_on(loaded, "onnxruntime").open() as session:
        assert isinstance(session, onnxruntime.OnnxRuntimeSession)  # this is the claim: a session of that backend
    with pytest.raises(DependencyError, match="has no CUDAExecutionProvider"):
        runner_on(loaded, "onnxruntime-cuda").open()


# ----- an engine without its weights is given the graph that it was built from, and no other


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the backend is given, which would want a GPU."""
    found: dict[str, Any] = {}
    monkeypatch.setattr(PlanBackend, "open_session", lambda self, path, **options: found.update(options))
    return found


def engine_of(bundle: Bundle, parents: dict[str, str], *, stripped: bool) -> Artifact:
    engine = bundle.artifact("engines/tensorrt-fp16.engine")
    built_for = {"compiler": "tensorrt", "version": "10.13.0", "system": "Linux", "machine": "x86_64"}
    facts = EngineFacts(compiler="tensorrt", built_for=BuiltFor(**built_for, stripped=stripped))
    provenance = engine.provenance.model_copy(update={"parents": parents})
    return engine.model_copy(update={"facts": facts, "provenance": provenance})


def test_stripped_engine_gets_the_graph_it_was_built_from(built: Bundle, given: dict[str, Any]) -> None:
    graph = built.artifact("model.fp16.onnx")
    open_artifact(built, engine_of(built, {graph.path: graph.sha256}, stripped=True), "tensorrt")
    assert given["weights"] == built.folder / "model.fp16.onnx"
    assert given["built_for"].stripped


def test_whole_engine_gets_none(built: Bundle, given: dict[str, Any]) -> None:
    open_artifact(built, engine_of(built, {"model.fp16.onnx": "0" * 64}, stripped=False), "tensorrt")
    assert "weights" not in given
    assert not given["built_for"].stripped


def test_graph_that_has_changed_since_is_refused(built: Bundle, given: dict[str, Any]) -> None:
    """TensorRT: other weights than those that a plan was stripped of are undefined behaviour."""
    with refused(IntegrityError, "does not hold the graph", "build the engine again"):
        open_artifact(built, engine_of(built, {"model.fp16.onnx": "0" * 64}, stripped=True), "tensorrt")
    assert given == {}
