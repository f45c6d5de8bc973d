"""Every backend against one contract, and what is particular to those that run on any machine."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from skdeploy import engines
from skdeploy.backends import (
    BACKENDS,
    backend,
    onnxruntime,
    onnxruntime_cuda,
    onnxruntime_tensorrt,
)
from skdeploy.backends import torch as torch_backend
from skdeploy.backends.base import Array, Session, validate_feeds
from skdeploy.backends.onnxruntime_gpu import TensorRTOptions
from skdeploy.core.errors import DependencyError, ExportError, IntegrityError, UsageError
from skdeploy.core.packages import Availability, install_command, require
from skdeploy.core.spec import ModelSpec, TensorSpec
from skdeploy.engines._build import BatchProfile, BuildOptions
from tests.backends.contract import BackendContract
from tests.conftest import TinySpec
from tests.graphs.networks import card, live
from tests.graphs.small_files import save


class TestTorch(BackendContract):
    def probe(self) -> Availability:
        return torch_backend.probe()

    def open(self, spec: ModelSpec, folder: Path) -> Session:  # noqa: ARG002 - a module needs no file
        return torch_backend.open_session(live(spec), spec)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this torch cannot use the GPU")
class TestTorchCuda(TestTorch):
    # Convolutions in TF32 have 11 bits, as FP16 has: see tests/passes/test_half.py.
    tolerance = 2e-2

    def open(self, spec: ModelSpec, folder: Path) -> Session:  # noqa: ARG002 - a module needs no file
        return torch_backend.open_session(live(spec), spec, device="cuda")


class TestOnnxRuntimeCpu(BackendContract):
    def probe(self) -> Availability:
        return onnxruntime.probe()

    def open(self, spec: ModelSpec, folder: Path) -> Session:
        return onnxruntime.open_session(self.graph(spec, folder))


@pytest.mark.gpu
class TestOnnxRuntimeCuda(BackendContract):
    tolerance = 1e-4  # FP32, not TF32 (2e-2): cuDNN may take Winograd's algorithm, whose transforms lose a few bits

    def probe(self) -> Availability:
        return onnxruntime_cuda.probe()

    def open(self, spec: ModelSpec, folder: Path) -> Session:
        return onnxruntime_cuda.open_session(self.graph(spec, folder))


@pytest.mark.gpu
class TestOnnxRuntimeTensorRT(BackendContract):
    tolerance = 1e-4  # as CUDA

    def probe(self) -> Availability:
        return onnxruntime_tensorrt.probe()

    def open(self, spec: ModelSpec, folder: Path) -> Session:
        options = TensorRTOptions(batch=(1, 2, 4), cache=None)
        return onnxruntime_tensorrt.open_session(self.graph(spec, folder), options=options)


class EngineContract(BackendContract):
    """An engine is built from the graph first, for batches from 1 to 4."""

    tolerance = 2e-2  # TF32
    name: str

    def probe(self) -> Availability:
        answer = backend(self.name).probe()
        assert isinstance(answer, Availability)  # this is the contract, for backends of others too
        return answer

    def open(self, spec: ModelSpec, folder: Path) -> Session:
        plan = folder / "model.engine"
        options = BuildOptions(profile=BatchProfile(1, 2, 4))
        engines.build(self.name, self.graph(spec, folder), plan, options, lambda phase, fraction: None)
        session = backend(self.name).open_session(plan, sha256=hashlib.sha256(plan.read_bytes()).hexdigest())
        assert isinstance(session, Session)  # this is the contract, for backends of others too
        return session


@pytest.mark.gpu
class TestTensorRT(EngineContract):
    name = "tensorrt"


@pytest.mark.gpu
class TestTensorRTRTX(EngineContract):
    name = "tensorrt_rtx"


@pytest.mark.parametrize("name", BACKENDS)
def test_a_probe_gives_a_version_or_a_reason_and_never_raises(name: str) -> None:
    answer = backend(name).probe()
    assert answer.name
    if answer.available:
        assert answer.version
        assert answer.device
    else:
        assert answer.reason


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("torch", "torch"),
        ("onnxruntime", "onnxruntime"),
        ("onnxruntime-cuda", "onnxruntime"),
        ("onnxruntime-tensorrt", "onnxruntime"),
    ],
)
def test_a_probe_without_the_package_says_what_to_install(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # what makes `import` raise ImportError
    answer = backend(name).probe()
    assert not answer.available
    assert module in answer.reason
    assert "pip install" in answer.install


def test_every_backend_is_found_by_name_and_has_the_interface() -> None:
    for name in BACKENDS:
        module = backend(name)
        assert name == module.NAME
        assert module.FORMAT in ("module", "onnx", "engine")
        assert callable(module.probe)
        assert callable(module.open_session)


def test_an_unknown_backend_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no backend named 'openvino'") as refusal:
        backend("openvino")
    assert "onnxruntime" in refusal.value.advice


def test_a_missing_package_is_a_dependency_error_that_names_the_extra() -> None:
    with pytest.raises(DependencyError, match="no_such_package cannot be imported here") as refusal:
        require("no_such_package", extra="gpu")
    assert install_command("gpu") in refusal.value.advice


TWO = (
    TensorSpec(name="a", dtype="float32", shape=("batch", 3)),
    TensorSpec(name="b", dtype="uint8", shape=("batch", "width")),
)


def two(rows_a: int, rows_b: int) -> dict[str, Array]:
    return {"a": np.zeros((rows_a, 3), np.float32), "b": np.zeros((rows_b, 7), np.uint8)}


def test_dynamic_dimensions_of_one_name_have_one_size() -> None:
    validate_feeds(TWO, two(2, 2))
    with pytest.raises(UsageError, match=r"'b' has shape \(3, 7\), expected b: uint8\[batch, width\]"):
        validate_feeds(TWO, two(2, 3))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_here_is_a_dependency_error(tiny_spec: TinySpec) -> None:
    spec = card(tiny_spec(2))
    with pytest.raises(DependencyError, match="no CUDA device here"):
        torch_backend.open_session(live(spec), spec, device="cuda")


def relu(
    folder: Path, kind: int = TensorProto.FLOAT, operator: str = "Relu", shape: tuple[object, ...] = (None, 3)
) -> Path:
    nodes = [helper.make_node(operator, ["x"], ["h"]), helper.make_node(operator, ["h"], ["y"])]
    return save(folder / "relu.onnx", nodes, {"x": shape}, {"y": shape}, dtype=kind)


def test_a_dynamic_dimension_without_a_name_may_have_any_size(tmp_path: Path) -> None:
    with onnxruntime.open_session(relu(tmp_path)) as session:
        assert session.inputs == (TensorSpec(name="x", dtype="float32", shape=("x.0", 3)),)
        for rows in (1, 4):
            x = np.arange(-3, 3 * rows - 3, dtype=np.float32).reshape(rows, 3)
            np.testing.assert_array_equal(session.run({"x": x})["y"], np.maximum(x, 0))


def test_inner_tensors_are_returned_on_request(tmp_path: Path) -> None:
    with onnxruntime.open_session(relu(tmp_path), also=["h", "y"]) as session:
        x = np.array([[-1, 0, 2]], np.float32)
        outputs = session.run({"x": x})
    assert list(outputs) == ["y", "h"]
    np.testing.assert_array_equal(outputs["h"], np.maximum(x, 0))


def test_an_inner_tensor_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no tensor named 'nowhere'"):
        onnxruntime.open_session(relu(tmp_path), also=["h", "nowhere"])


@pytest.mark.parametrize("content", [b"", b"\x00\x01garbage", b"{}" * 100, "cut", None])
def test_a_file_that_is_no_graph_is_an_integrity_error(tmp_path: Path, content: bytes | str | None) -> None:
    if content is not None:
        whole = relu(tmp_path).read_bytes()
        (tmp_path / "broken.onnx").write_bytes(content if isinstance(content, bytes) else whole[:-20])
    with pytest.raises(IntegrityError, match=r"broken\.onnx"):
        onnxruntime.open_session(tmp_path / "broken.onnx")


def test_a_graph_that_onnxruntime_refuses_is_an_export_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"relu\.onnx: the node h is .*NoSuchOperator") as refusal:
        onnxruntime.open_session(relu(tmp_path, operator="NoSuchOperator"))
    assert "\n" not in refusal.value.message


def test_a_type_that_numpy_does_not_have_is_an_export_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"has type tensor\(string\)"):
        onnxruntime.open_session(relu(tmp_path, kind=TensorProto.STRING, operator="Identity"))
