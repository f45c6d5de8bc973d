"""ONNX Runtime on a GPU. What needs none: options, refusals, and the whole path of opening with a provider that takes nothing.

``AzureExecutionProvider``, in every CPU build, stands in for CUDA's: ONNX Runtime lists it, opens sessions with it, and gives
it no operator of ONNX. So the path from options to the placement check runs here on the real library, and ends as it must.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime as ort
import pytest

from skdeploy import engines
from skdeploy.backends import backend, onnxruntime, onnxruntime_gpu, provider_problems
from skdeploy.backends.onnxruntime_gpu import CUDA, TENSORRT, CudaOptions, TensorRTOptions
from skdeploy.core.errors import DependencyError, EngineError, SkdeployError, UsageError
from skdeploy.core.spec import TensorSpec
from skdeploy.devices import cuda
from tests.backends.reshaped import AZURE, network, written

L4 = cuda.CudaDevice(0, "NVIDIA L4", "8.9", 24 << 30)
IMAGES = TensorSpec(name="images", dtype="float32", shape=("batch", 3, 224, 224))
BOTH = pytest.mark.parametrize("options", [CudaOptions(), TensorRTOptions()], ids=[CUDA, TENSORRT])


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with one L4."""
    monkeypatch.setattr(cuda, "devices", lambda: (L4,))
    monkeypatch.setattr(cuda, "driver_version", lambda: "13.0")


class AzureAsCuda(CudaOptions):
    PROVIDER: ClassVar[str] = AZURE

    def provider_options(self, *_: object) -> dict[str, str]:
        return {}


class AzureAsTensorRT(TensorRTOptions):
    PROVIDER: ClassVar[str] = AZURE


# Options


def test_an_engines_key_tells_apart_what_makes_another_engine(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def key(options: TensorRTOptions, sha256: str = "a" * 64, version: str = "1.32.0") -> str:
        return options.engine_key(sha256, [IMAGES], version)

    default = TensorRTOptions(cache=None)
    keys = [
        key(default),
        key(default, sha256="b" * 64),  # the same network with other weights
        key(default, version="1.33.0"),
        key(TensorRTOptions(cache=None, batch=(1, 8, 16))),
        key(TensorRTOptions(cache=None, optimization_level=5)),
        key(TensorRTOptions(cache=None, workspace_bytes=1 << 20)),
    ]
    assert key(TensorRTOptions(cache=Path("elsewhere"))) == keys[0]  # where it is kept makes no other engine
    for change in (
        lambda: monkeypatch.setattr(cuda, "driver_version", lambda: "13.1"),
        lambda: monkeypatch.setattr(cuda, "devices", lambda: (cuda.CudaDevice(0, "NVIDIA T4", "7.5", 16 << 30),)),
    ):
        change()
        keys.append(key(default))
    assert len(set(keys)) == len(keys)


# What is missing


@BOTH
@pytest.mark.parametrize("on_machine", ["without a GPU", "with a GPU"])
def test_a_build_without_the_provider_is_told_with_the_cure(
    options: onnxruntime_gpu.GpuOptions, on_machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "devices", lambda: (L4,) if on_machine == "with a GPU" else ())
    monkeypatch.setattr(cuda, "driver_problem", lambda: "no NVIDIA driver: not found")
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(DependencyError) as refusal:
        backend(options.BACKEND).open_session(network(tmp_path / "m.onnx"), options=options)
    assert f"this build of ONNX Runtime {ort.__version__} has no {options.PROVIDER}" in refusal.value.message
    assert "pip install onnxruntime-gpu" in refusal.value.advice
    assert ("no NVIDIA driver" in refusal.value.message) == (on_machine == "without a GPU")
    answer = provider_problems.probe(options)
    assert (answer.name, answer.available, answer.version) == (options.BACKEND, False, ort.__version__)
    assert options.PROVIDER in answer.reason


@pytest.mark.parametrize(
    ("devices", "serves", "built_for", "device", "error", "words"),
    [
        ((), "", "12.8", 0, DependencyError, "no GPU for AzureExecutionProvider: the driver says no"),
        ((L4,), "11.4", "12.8", 0, DependencyError, "it supports CUDA 11.4, but this ONNX Runtime is built for 12.8"),
        ((L4,), "12.8", "13.0", 0, DependencyError, "the NVIDIA driver is too old"),
        ((L4,), "13.0", "13.0", 1, UsageError, "there is no GPU number 1"),
    ],
    ids=["no GPU", "CUDA 11 driver", "CUDA 12 driver", "no second GPU"],
)
def test_what_the_machine_lacks_is_told_before_a_session_is_opened(
    devices: tuple[cuda.CudaDevice, ...],
    serves: str,
    built_for: str,
    device: int,
    error: type[SkdeployError],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cuda, "devices", lambda: devices)
    monkeypatch.setattr(cuda, "driver_problem", lambda: "the driver says no")
    monkeypatch.setattr(cuda, "driver_version", lambda: serves)
    monkeypatch.setattr(provider_problems, "built_for_cuda", lambda: built_for)
    monkeypatch.setattr(ort, "InferenceSession", lambda *_, **__: pytest.fail("a session was opened"))
    with pytest.raises(error) as refusal:
        onnxruntime.open_session(network(tmp_path / "m.onnx"), provider=AzureAsCuda(device=device))
    assert words in refusal.value.message
    assert refusal.value.advice


def test_drivers_of_the_same_or_a_newer_cuda_will_do() -> None:
    for serves in ("12.0", "12.8", "12.9", "13.2"):
        assert provider_problems.old_driver("12.8", serves, "CUDAExecutionProvider") is None
    assert provider_problems.old_driver("", "11.4", "CUDAExecutionProvider") is None  # a build that does not tell
    found = provider_problems.built_for_cuda()  # of the CPU build nothing; of one for GPUs two numbers
    assert found == "" or [part.isdigit() for part in found.split(".")[:2]] == [True, True]


def test_a_provider_library_that_does_not_load_is_told_in_the_loaders_words(tmp_path: Path) -> None:
    assert provider_problems.missing_library(tmp_path, "CUDAExecutionProvider") is None  # it is elsewhere
    (tmp_path / "libonnxruntime_providers_cuda.so").write_bytes(b"no library")
    found = provider_problems.missing_library(tmp_path, "CUDAExecutionProvider")
    assert found is not None
    assert "cannot load CUDAExecutionProvider:" in found.message
    assert "libonnxruntime_providers_cuda.so" in found.message
    assert "onnxruntime-gpu[cuda,cudnn]" in found.advice
    assert provider_problems.missing_library(tmp_path, "TensorrtExecutionProvider") is None


def test_a_missing_library_is_told_by_the_probe_and_before_opening(
    gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "capi").mkdir()
    (tmp_path / "capi/libonnxruntime_providers_azure.so").write_bytes(b"no library")
    monkeypatch.setattr(ort, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setitem(provider_problems._LIBRARIES, AZURE, "libonnxruntime_providers_azure.so")
    answer = provider_problems.probe(AzureAsCuda())
    assert not answer.available
    assert "cannot load AzureExecutionProvider" in answer.reason
    with pytest.raises(DependencyError, match="cannot load AzureExecutionProvider"):
        onnxruntime.open_session(network(tmp_path / "m.onnx"), provider=AzureAsCuda())


def test_a_provider_that_is_dropped_in_opening_is_refused(
    gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ONNX Runtime does where libcudnn is missing: the session is one of the CPU, and only get_providers tells."""
    real = ort.InferenceSession

    def dropping(*arguments: Any, providers: Any, **rest: Any) -> Any:
        return real(*arguments, providers=["CPUExecutionProvider"], **rest)

    dropping.get_provider_graph_assignment_info = True  # type: ignore[attr-defined]  # on a function that stands in
    monkeypatch.setattr(ort, "InferenceSession", dropping)
    with pytest.raises(DependencyError, match="dropped AzureExecutionProvider without an error") as refusal:
        onnxruntime.open_session(network(tmp_path / "m.onnx"), provider=AzureAsCuda())
    assert "CPUExecutionProvider would run the graph" in refusal.value.message


# What onnxruntime-gpu 1.31.1 said to a stub libcuda that answers that it serves CUDA 12.4.
TOO_OLD_DRIVER = """\
/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider_info.cc:63 static \
onnxruntime::CUDAExecutionProviderInfo onnxruntime::CUDAExecutionProviderInfo::FromProviderOptions(const \
onnxruntime::ProviderOptions&) [ONNXRuntimeError] : 1 : FAIL : provider_options_utils.h:187 Parse Failed to parse provider \
option "device_id": CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version ; GPU=-1 ; hostname=vm ; \
file=/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider_info.cc ; line=70 ; \
expr=cudaGetDeviceCount(&num_devices); """


@pytest.mark.parametrize(
    ("library", "cure"),
    [
        ("libcublasLt.so.13", "onnxruntime-gpu[cuda,cudnn]"),
        ("libcudnn.so.9", "onnxruntime-gpu[cuda,cudnn]"),
        ("libnvinfer.so.10", 'built for TensorRT 10: pip install "tensorrt==10.*"'),
        ("libnvonnxparser.so.11", 'built for TensorRT 11: pip install "tensorrt==11.*"'),
        ("libcuda.so.1", "the NVIDIA driver; in a container, run it with --gpus all"),
    ],
)
def test_each_missing_library_has_its_cure(library: str, cure: str) -> None:
    """The words are those of the loader with onnxruntime-gpu 1.31.1, which missed these one after the other."""
    assert cure in provider_problems._cure(f"{library}: cannot open shared object file: No such file or directory")


def test_a_tensorrt_that_no_onnx_runtime_serves_is_told_by_the_probe(
    gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``pip install tensorrt`` gives 11.4, and every onnxruntime-gpu needs libnvinfer.so.10."""
    words = "libnvinfer.so.10: cannot open shared object file: No such file or directory"

    def absent(name: str) -> None:
        raise OSError(words)

    (tmp_path / "libonnxruntime_providers_tensorrt.so").touch()
    monkeypatch.setattr(provider_problems.ctypes, "CDLL", absent)
    monkeypatch.setattr(engines, "installed", lambda name: True)
    monkeypatch.setattr(engines, "version", lambda name: "11.4.0.106")
    found = provider_problems.missing_library(tmp_path, TensorRTOptions.PROVIDER)
    assert found is not None
    assert found.message.endswith(f"{words}; it needs TensorRT 10, but 11.4.0.106 is installed")
    assert 'pip install "tensorrt==10.*"' in found.advice


def test_tensorrts_provider_is_told_to_need_cudas(gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "capi").mkdir()
    (tmp_path / "capi/libonnxruntime_providers_cuda.so").write_bytes(b"no library")
    monkeypatch.setattr(ort, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(ort, "get_available_providers", lambda: [TensorRTOptions.PROVIDER])
    monkeypatch.setenv(provider_problems.TF32_OVERRIDE, "0")
    answer = provider_problems.probe(TensorRTOptions())
    assert "cannot load CUDAExecutionProvider" in answer.reason
    assert "onnxruntime-gpu[cuda,cudnn]" in answer.install


@pytest.mark.parametrize(
    ("words", "error", "told"),
    [
        (
            "session contains graph nodes that are assigned to the CPU, but fallback to CPU EP has been explicitly disabled",
            EngineError,
            "part of it would run on the CPU",
        ),
        (
            TOO_OLD_DRIVER,
            DependencyError,
            "too old for CUDAExecutionProvider: CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version",
        ),
        ("CUDA failure 2: out of memory ; GPU=0 ; hostname=x\nmore", EngineError, "too little GPU memory"),
        (
            "onnxruntime::GetProviderInfo_CUDA() CUDA Provider not available, can't get interface for it",
            DependencyError,
            "needs ONNX Runtime's CUDA provider",
        ),
        ("TensorRT EP failed to create engine from network\nmore", EngineError, "failed to create engine from network"),
    ],
    ids=["CPU refused", "driver", "memory", "no CUDA provider", "other"],
)
def test_what_fails_in_opening_is_told_apart(words: str, error: type[SkdeployError], told: str) -> None:
    found = provider_problems.opening_error(words, "CUDAExecutionProvider", "model.onnx")
    assert type(found) is error
    assert told in found.message
    assert "\n" not in found.message
    assert found.advice


@pytest.mark.parametrize(("given", "then"), [(None, "0"), ("1", "1")], ids=["unset", "set by the user"])
def test_tensorrt_may_not_round_fp32_to_tf32(given: str | None, then: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = onnxruntime_gpu.TF32_OVERRIDE
    monkeypatch.setenv(name, given or "")  # so that it is as it was when the test is over
    if given is None:
        monkeypatch.delenv(name)
    provider_problems._load_libraries(ort, CudaOptions())
    assert os.environ.get(name) == given  # CUDA's provider has an option for it
    provider_problems._load_libraries(ort, TensorRTOptions())
    assert os.environ[name] == then


# The whole path, with a provider that takes no node


def test_a_provider_that_leaves_the_graph_to_the_cpu_is_refused(gpu: None, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"3 of \d+ nodes, 1 of 1 convolutions") as refusal:
        onnxruntime.open_session(network(tmp_path / "m.onnx"), provider=AzureAsCuda())
    assert "conv (Conv)" in refusal.value.message
    assert str(tmp_path / "m.onnx") in refusal.value.message


def test_an_older_onnx_runtime_refuses_too_and_cannot_name_the_nodes(
    gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    method = next(c for c in ort.InferenceSession.__mro__ if "get_provider_graph_assignment_info" in vars(c))
    monkeypatch.delattr(method, "get_provider_graph_assignment_info")
    with pytest.raises(EngineError, match="part of it would run on the CPU") as refusal:
        onnxruntime.open_session(network(tmp_path / "m.onnx"), provider=AzureAsCuda())
    assert "1.24 and later can" in refusal.value.advice
    capfd.readouterr()


def shapes_only(folder: Path) -> Path:
    """x (batch, 3) -> its shape times two: nothing but shapes, which may be computed on the CPU."""
    nodes = "[shape] s = Shape(x) [twice] y = Mul(s, two)"
    return written(
        folder / "s.onnx", f"shapes (float[batch, 3] x) => (int64[2] y) <int64[1] two = {{2}}> {{ {nodes} }}"
    )


def test_a_graph_of_shapes_alone_is_opened_and_runs(gpu: None, tmp_path: Path) -> None:
    with onnxruntime.open_session(shapes_only(tmp_path), provider=AzureAsCuda()) as session:
        assert session.profile is None
        assert session.run({"x": np.zeros((5, 3), np.float32)})["y"].tolist() == [10, 6]


def test_batches_outside_the_profile_are_refused_with_its_limits(gpu: None, tmp_path: Path) -> None:
    options = AzureAsTensorRT(batch=(2, 2, 4), cache=tmp_path / "engines")
    with onnxruntime.open_session(shapes_only(tmp_path), provider=options) as session:
        assert session.profile == {"x": ((2, 3), (2, 3), (4, 3))}
        assert session.run({"x": np.zeros((4, 3), np.float32)})["y"].tolist() == [8, 6]
        for batch in (1, 5):
            with pytest.raises(UsageError, match=f"batch {batch} is outside") as refusal:
                session.run({"x": np.zeros((batch, 3), np.float32)})
            assert "2 to 4, best at 2" in refusal.value.advice


def test_each_graph_has_its_folder_of_engines(gpu: None, tmp_path: Path) -> None:
    root = tmp_path / "engines"
    options = AzureAsTensorRT(cache=root)
    path = shapes_only(tmp_path)
    onnxruntime.open_session(path, provider=options).close()
    onnxruntime.open_session(path, provider=options).close()
    key = options.engine_key(
        hashlib.sha256(path.read_bytes()).hexdigest(),
        [TensorSpec(name="x", dtype="float32", shape=("batch", 3))],
        ort.__version__,
    )
    assert [folder.name for folder in root.iterdir()] == [key]
    path.write_bytes(path.read_bytes().replace(b"twice", b"TWICE"))
    onnxruntime.open_session(path, provider=options).close()
    assert len(list(root.iterdir())) == 2
    root.chmod(0o777)
    with pytest.raises(UsageError, match="other users can write to"):
        onnxruntime.open_session(path, provider=options)


def test_a_failing_provider_is_not_retried_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's Python opens the graph again on the CPU, with a line on stdout, unless it is told not to."""
    found: list[object] = []
    real: Callable[..., Any] = ort.InferenceSession

    def spied(*arguments: Any, **rest: Any) -> Any:
        found.append(rest["enable_fallback"])
        return real(*arguments, **rest)

    monkeypatch.setattr(ort, "InferenceSession", spied)
    onnxruntime.open_session(network(tmp_path / "m.onnx")).close()
    assert found == [0]


# On a GPU
