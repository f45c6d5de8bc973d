"""What of a bundle runs on which backend."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from skdeploy.backends import BACKENDS, onnxruntime, running
from skdeploy.backends.onnxruntime_gpu import CudaOptions
from skdeploy.bundle.folder import Bundle, load_bundle
from skdeploy.bundle.runners import check_graph_backend, last_graph, runner_on
from skdeploy.core.errors import DependencyError, UsageError
from tests.cli.conftest import asked, card, exported, images, weights  # noqa: F401 - one small bundle
from tests.cli.evaluation_data import with_engine
from tests.refused import refused


@pytest.fixture
def loaded(exported: Path) -> Bundle:  # noqa: F811
    return load_bundle(exported)


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


def test_a_compiler_runs_its_engine(loaded: Bundle, tmp_path: Path) -> None:
    bundle = load_bundle(with_engine(loaded.folder, tmp_path / "engine"))
    assert runner_on(bundle, "tensorrt").artifact.path == "engines/tensorrt-fp16.engine"
    with refused(UsageError, "holds no engine of it", "--target tensorrt_rtx"):
        runner_on(bundle, "tensorrt_rtx")


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
    with pytest.raises(UsageError, match="an ONNX file does not run on it"):
        check_graph_backend(name)


@pytest.mark.skipif("CUDAExecutionProvider" in __import__("onnxruntime").get_available_providers(), reason="it has it")
def test_a_runner_opens_on_its_backend_and_no_other(loaded: Bundle) -> None:
    with runner_on(loaded, "onnxruntime").open() as session:
        assert isinstance(session, onnxruntime.OnnxRuntimeSession)
    with pytest.raises(DependencyError, match="has no CUDAExecutionProvider"):
        runner_on(loaded, "onnxruntime-cuda").open()


def test_a_graph_is_run_without_torch(loaded: Bundle, tmp_path: Path) -> None:
    """As in an image that only runs bundles: importing torch is made to fail."""
    from PIL import Image

    Image.new("RGB", (40, 44), (200, 30, 90)).save(tmp_path / "image.png")
    program = (
        "import sys; sys.modules['torch'] = None; from pathlib import Path\n"
        "from skdeploy.accuracy.predict import predict\n"
        "found = predict(Path(sys.argv[1]), [Path(sys.argv[2])], backend='onnxruntime')\n"
        "print(found.model_dump_json())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(loaded.folder), str(tmp_path / "image.png")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["images"][0]["predictions"][0]["backend"] == "onnxruntime"
