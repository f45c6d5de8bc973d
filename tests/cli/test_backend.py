"""--backend: what runs a bundle, and what is said where that cannot run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from skdeploy.backends import onnxruntime, onnxruntime_cuda
from skdeploy.backends.base import Session
from skdeploy.devices import cuda
from tests.cli.conftest import Run
from tests.cli.evaluation_data import with_engine
from tests.conftest import require_backend

PROVIDERS = {"onnxruntime-cuda": "CUDAExecutionProvider", "onnxruntime-tensorrt": "TensorrtExecutionProvider"}
CPU_BUILD = pytest.mark.skipif(
    "CUDAExecutionProvider" in ort.get_available_providers(), reason="this ONNX Runtime is one for GPUs"
)


@pytest.fixture
def image(images: Path) -> Path:
    return images / "0.png"


def best(result: Any) -> tuple[str, str, str]:
    (prediction,) = result.json["images"][0]["predictions"]
    return prediction["artifact"], prediction["backend"], prediction["top"][0]["label"]


def test_predict_runs_the_last_graph_on_the_backend(run: Run, exported: Path, image: Path) -> None:
    default = best(run("predict", exported, image, "--json"))
    assert default[:2] == ("model.fp16.onnx", "onnxruntime")
    assert best(run("predict", exported, image, "--json", "--backend", "onnxruntime")) == default
    assert best(run("predict", exported, image, "--json", "--backend", "torch")) == ("torch", "torch", default[2])


@CPU_BUILD
@pytest.mark.parametrize(("verb", "backend"), [("predict", "onnxruntime-cuda"), ("verify", "onnxruntime-tensorrt")])
def test_a_provider_that_this_build_lacks_ends_the_command(
    run: Run, exported: Path, image: Path, images: Path, verb: str, backend: str
) -> None:
    rest = (image,) if verb == "predict" else ("--images", images)
    result = run(verb, exported, *rest, "--backend", backend)
    assert result.code == 3
    assert f"this build of ONNX Runtime {ort.__version__} has no {PROVIDERS[backend]}" in result.err
    assert "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu" in result.err
    assert ("no GPU here: no NVIDIA driver" in result.err) == (not cuda.devices())
    assert result.out == ""  # nothing that could be taken for a result


@pytest.mark.skipif(bool(cuda.devices()), reason="an engine that is no plan fails otherwise where there is a GPU")
def test_an_engine_asked_for_by_its_backend_is_no_option(run: Run, exported: Path, image: Path, tmp_path: Path) -> None:
    """--all notes what does not run here; what is asked for by name must run."""
    result = run("predict", with_engine(exported, tmp_path / "engine"), image, "--backend", "tensorrt")
    assert result.code == 3
    assert "no GPU" in result.err


@pytest.fixture
def cuda_by_cpu(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """CUDA's backend, with the CPU in its place: what is tested is who is asked to run what. Gives the options asked with."""
    asked: list[object] = []

    def stand_in(artifact: Path, *, options: object = None) -> Session:
        asked.append(options)
        return onnxruntime.open_session(artifact)

    monkeypatch.setattr(onnxruntime_cuda, "open_session", stand_in)
    return asked


def test_verify_runs_every_graph_on_the_other_backend_too(
    run: Run, exported: Path, images: Path, cuda_by_cpu: list[object]
) -> None:
    result = run("verify", exported, "--images", images, "--backend", "onnxruntime-cuda", "--json")
    assert result.code == 0, result.err
    report = result.json["parity"]
    graphs = ["model.traced.onnx", "model.onnx", "model.fp16.onnx"]
    assert [(c["artifact"], c["backend"]) for c in report["comparisons"]] == [
        *((graph, "onnxruntime") for graph in graphs),
        *((graph, "onnxruntime-cuda") for graph in graphs),
    ]
    assert {c["verdict"] for c in report["comparisons"]} == {"pass"}
    assert [(r["artifact"], r["backend"]) for r in report["run_to_run"]] == [
        ("model.fp16.onnx", "onnxruntime"),
        ("model.fp16.onnx", "onnxruntime-cuda"),
    ]
    assert len(cuda_by_cpu) == len(graphs)


def test_options_reach_the_backend(run: Run, exported: Path, image: Path, cuda_by_cpu: list[object]) -> None:
    from skdeploy.backends.onnxruntime_gpu import CudaOptions

    options = ("--backend-option", "tf32=on", "--backend-option", "memory-mib=64")
    assert run("predict", exported, image, "--backend", "onnxruntime-cuda", *options).code == 0
    assert cuda_by_cpu == [CudaOptions(tf32=True, memory_bytes=64 << 20)]


def test_evaluate_measures_the_backend_against_the_graph_on_the_cpu(
    run: Run, bundle: Path, evaluation: Path, cuda_by_cpu: list[object]
) -> None:
    command = ("evaluate", bundle, "--data", evaluation, "--backend", "onnxruntime-cuda", "--json")
    found = run(*command).json
    assert [(row["artifact"], row["backend"]) for row in found["accuracies"]] == [
        ("model.onnx", "onnxruntime"),
        ("model.fp16.onnx", "onnxruntime-cuda"),
    ]
    assert found["accuracies"][0]["top1"]["correct"] == 36
    assert found["pairs"][0]["second"] == "model.fp16.onnx on onnxruntime-cuda"
    assert found["not_evaluated"] == []  # what was asked for runs, or nothing does
    assert run(*command).json["reused"] == 40
    # Other options may give other predictions: those of before are not taken for them.
    assert run(*command, "--backend-option", "tf32=on").json["reused"] == 0
    assert len(cuda_by_cpu) == 3


@pytest.mark.gpu
@pytest.mark.parametrize("backend", PROVIDERS)
def test_a_bundle_is_verified_on_the_gpu(run: Run, exported: Path, images: Path, backend: str) -> None:
    require_backend(backend)
    result = run("verify", exported, "--images", images, "--backend", backend, "--backend-option", "device=0", "--json")
    assert result.code == 0, result.err
    found = [c for c in result.json["parity"]["comparisons"] if c["backend"] == backend]
    assert [c["verdict"] for c in found] == ["pass"] * 3
