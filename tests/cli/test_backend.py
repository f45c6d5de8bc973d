"""--backend: what runs a bundle, and what is said where that cannot run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from skdeploy.backends import onnxruntime, onnxruntime_cuda
from skdeploy.backends.base import Session
from skdeploy.devices import cuda
from tests.cli.evaluation_data import labelled, with_engine
from tests.conftest import require_backend

Run = Callable[..., Any]
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
@pytest.mark.parametrize("backend", PROVIDERS)
@pytest.mark.parametrize("verb", ["predict", "verify"])
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


@CPU_BUILD
@pytest.mark.skipif(bool(cuda.devices()), reason="there is a GPU")
@pytest.mark.parametrize("verb", ["predict", "verify"])
def test_no_driver_is_told_where_the_provider_is_there(
    run: Run, exported: Path, image: Path, images: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [*PROVIDERS.values(), "CPUExecutionProvider"])
    rest = (image,) if verb == "predict" else ("--images", images)
    result = run(verb, exported, *rest, "--backend", "onnxruntime-cuda")
    assert result.code == 3
    assert "no GPU for CUDAExecutionProvider: no NVIDIA driver: libcuda.so.1" in result.err
    assert "--backend onnxruntime" in result.err


@pytest.mark.parametrize("verb", ["predict", "verify", "evaluate"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--backend", "openvino"), "--backend openvino"),
        (("--backend", "onnxruntime", "--backend-option", "device=0"), "onnxruntime takes no --backend-option"),
        (("--backend", "onnxruntime-cuda", "--backend-option", "memory-mib=0"), "memory-mib 0: at least 1"),
        (("--backend", "onnxruntime-cuda", "--backend-option", "memory-mib=-1"), "memory-mib -"),
        (("--backend", "onnxruntime-tensorrt", "--backend-option", "batch=8/4/1"), "batch 8/4/1 is not"),
        (("--backend-option", "device=0"), "--backend-option is of a --backend, and none is given"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(
    run: Run, exported: Path, image: Path, images: Path, verb: str, options: tuple[str, ...], words: str
) -> None:
    rest = {"predict": (image,), "verify": ("--images", images), "evaluate": ("--data", images)}[verb]
    result = run(verb, exported, *rest, *options)
    assert result.code == 2
    assert words in result.err


def test_two_choices_of_what_runs_are_refused(run: Run, exported: Path, image: Path, images: Path) -> None:
    both = run("predict", exported, image, "--all", "--backend", "onnxruntime")
    assert (both.code, "give one of the two" in both.err) == (2, True)
    both = run("evaluate", exported, "--data", images, "--artifact", "torch", "--backend", "onnxruntime")
    assert (both.code, "give one of the two" in both.err) == (2, True)


def test_an_engine_that_the_bundle_lacks_is_a_usage_error(run: Run, exported: Path, image: Path) -> None:
    result = run("predict", exported, image, "--backend", "tensorrt")
    assert result.code == 2
    assert "holds no engine of it" in result.err
    assert "skdeploy build" in result.err


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
    text = run("verify", exported, "--images", images, "--backend", "onnxruntime-cuda").out
    assert (
        "model.fp16.onnx, model.traced.onnx on onnxruntime-cuda, model.onnx on onnxruntime-cuda, model.fp16.onnx on"
        in text
    )


def test_options_reach_the_backend(run: Run, exported: Path, image: Path, cuda_by_cpu: list[object]) -> None:
    from skdeploy.backends.onnxruntime_gpu import CudaOptions

    options = ("--backend-option", "tf32=on", "--backend-option", "memory-mib=64")
    assert run("predict", exported, image, "--backend", "onnxruntime-cuda", *options).code == 0
    assert cuda_by_cpu == [CudaOptions(tf32=True, memory_bytes=64 << 20)]


def test_evaluate_measures_the_backend_against_the_graph_on_the_cpu(
    run: Run,
    exported: Path,
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cuda_by_cpu: list[object],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = labelled(exported, tmp_path / "evaluation.npz")
    command = ("evaluate", bundle, "--data", data, "--backend", "onnxruntime-cuda", "--json")
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
