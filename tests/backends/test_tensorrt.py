"""Running plans. What needs no GPU is the refusals; the runs themselves compare with ONNX Runtime on a GPU."""

from __future__ import annotations

import hashlib
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from onnx import TensorProto, helper

from skdeploy import engines
from skdeploy.backends import _plan_runner
from skdeploy.backends._plan_runner import PlanSession
from skdeploy.backends.plans import PlanBackend
from skdeploy.core.errors import DependencyError, EngineError, IntegrityError, UsageError
from skdeploy.core.packages import install_command
from skdeploy.core.spec import TensorSpec
from skdeploy.devices import cuda
from skdeploy.engines._api import Engine
from skdeploy.engines.options import BatchProfile, BuildOptions
from tests.backends.fake_tensorrt import FakeEngine
from tests.conftest import require_backend
from tests.graphs.small_files import save

L4 = cuda.CudaDevice(0, "NVIDIA L4", "8.9", 24 << 30)
H100 = cuda.CudaDevice(0, "NVIDIA H100", "9.0", 80 << 30)
Feeds = dict[str, np.ndarray]
BACKENDS = pytest.mark.parametrize(
    "backend", [PlanBackend(name) for name in engines.COMPILERS], ids=lambda made: made.NAME
)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def header_of(name: str) -> bytes:
    """As much of a plan as is looked at before it is loaded: its tag, length, version and what it is for."""
    tag, version = (b"ftrt", bytes((10, 13, 0, 35))) if name == "tensorrt" else (b"vtrt", bytes((1, 7, 1, 116)))
    return tag + struct.pack("<I8xQ4s4xQ24x", 0, 64, version, 0x08)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "some.engine"
    path.write_bytes(b"native code, perhaps")
    return path


@BACKENDS
def test_other_digest_is_refused_before_anything_is_imported(
    backend: PlanBackend, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the module made unimportable and no GPU, only a check that comes first can give this error."""
    monkeypatch.setitem(sys.modules, backend.NAME, None)
    monkeypatch.setattr(cuda, "devices", lambda: pytest.fail("asked for a GPU before the digest was checked"))
    with pytest.raises(IntegrityError, match="not the engine that was built, so it is not loaded") as refusal:
        backend.open_session(plan, sha256="0" * 64)
    assert digest(plan) in refusal.value.message


@BACKENDS
def test_one_changed_byte_is_another_digest_and_no_more_is_looked_at(
    backend: PlanBackend, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_plan_runner, "require_compatible", lambda *_: pytest.fail("looked into another plan"))
    expected = digest(plan)
    plan.write_bytes(plan.read_bytes().replace(b"n", b"m", 1))
    with pytest.raises(IntegrityError):
        backend.open_session(plan, sha256=expected)


@BACKENDS
def test_plan_built_for_another_machine_is_refused_before_the_compiler_is_imported(
    backend: PlanBackend, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, path: Path, content: bytes, built_for: object) -> None:
        assert (name, path, content, built_for) == (backend.NAME, plan, plan.read_bytes(), None)
        raise EngineError("built for another machine")

    monkeypatch.setattr(_plan_runner, "require_compatible", refuse)
    monkeypatch.setitem(sys.modules, backend.NAME, None)
    monkeypatch.setattr(cuda, "devices", lambda: pytest.fail("asked for a GPU before it was known what it is for"))
    with pytest.raises(EngineError, match="built for another machine"):
        backend.open_session(plan, sha256=digest(plan))


@BACKENDS
def test_stripped_plan_without_its_onnx_file_is_refused(
    backend: PlanBackend, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_plan_runner, "require_compatible", lambda *_: None)
    with pytest.raises(EngineError, match="was built without weights, and its ONNX file") as refusal:
        backend.open_session(plan, sha256=digest(plan), built_for=SimpleNamespace(stripped=True))
    assert "its bundle" in refusal.value.advice


@BACKENDS
def test_file_that_cannot_be_read_is_an_integrity_error(backend: PlanBackend, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"cannot read .*absent.engine"):
        backend.open_session(tmp_path / "absent.engine", sha256="0" * 64)


@BACKENDS
def test_no_gpu_is_a_dependency_error(backend: PlanBackend, plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "devices", lambda: ())
    monkeypatch.setattr(cuda, "driver_problem", lambda: "no NVIDIA driver: not found")
    plan.write_bytes(header_of(backend.NAME))
    with pytest.raises(DependencyError, match="no GPU to run an engine on: no NVIDIA driver") as refusal:
        backend.open_session(plan, sha256=digest(plan))
    assert "ONNX Runtime" in refusal.value.advice
    answer = backend.probe()
    assert not answer.available
    assert "no GPU" in answer.reason


@BACKENDS
@pytest.mark.parametrize("fault", ["missing", "broken"])
def test_a_module_that_does_not_import_is_told_by_probe(
    backend: PlanBackend, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> None:
        raise RuntimeError(f"{name} is broken")

    if fault == "missing":
        monkeypatch.setitem(sys.modules, backend.NAME, None)
    else:
        monkeypatch.setattr(engines, "load", broken)
    monkeypatch.setattr(cuda, "devices", lambda: (L4,))
    answer = backend.probe()
    assert not answer.available
    assert f"{backend.NAME} {'cannot be imported' if fault == 'missing' else 'is broken'}" in answer.reason
    assert install_command(backend.EXTRA) in answer.install


def test_gpu_that_rtx_does_not_serve_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs skdeploy[rtx]")
    monkeypatch.setattr(cuda, "devices", lambda: (H100,))
    answer = PlanBackend("tensorrt_rtx").probe()
    assert not answer.available
    assert "does not run on NVIDIA H100 (9.0)" in answer.reason
    assert "--target tensorrt" in answer.install


def test_missing_cuda_bindings_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs skdeploy[rtx]")
    monkeypatch.setattr(cuda, "devices", lambda: (L4,))
    assert PlanBackend("tensorrt_rtx").probe().available
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    answer = PlanBackend("tensorrt_rtx").probe()
    assert not answer.available
    assert "cuda.bindings.driver cannot be imported" in answer.reason
    assert install_command("plans") in answer.install


def test_tensors_of_an_engine_have_numpys_dtypes_and_named_dimensions() -> None:
    half, brain = (cast(Engine, FakeEngine(None, [], dtype)) for dtype in ("HALF", "BF16"))
    inputs, outputs = _plan_runner._tensors(half, Path("some.engine"))
    assert inputs == (TensorSpec(name="images", dtype="float16", shape=("batch", 3, "height", "width")),)
    assert outputs == (TensorSpec(name="logits", dtype="float32", shape=("batch", 4)),)
    with pytest.raises(UsageError, match="'images' in bfloat16"):
        _plan_runner._tensors(brain, Path("some.engine"))


def test_plan_that_is_none_is_refused_by_rtx(plan: Path) -> None:
    """Its runtime reads the header, with or without a GPU."""
    trt = engines.load("tensorrt_rtx") if engines.installed("tensorrt_rtx") else pytest.skip("needs skdeploy[rtx]")
    from skdeploy.engines._log import capture

    with capture(trt) as (logger, _), pytest.raises(EngineError, match="does not run here"):
        _plan_runner._require_valid(trt, trt.Runtime(logger), plan, plan.read_bytes())


# On a GPU


def small_network(path: Path, half: bool) -> Path:
    """Convolution, ReLU, mean and a matrix product, with a dynamic batch: images (N, 3, 16, 16) -> logits (N, 4)."""
    random = np.random.default_rng(0)
    dtype, numpy_type = (TensorProto.FLOAT16, np.float16) if half else (TensorProto.FLOAT, np.float32)
    weights = {"kernel": random.standard_normal((8, 3, 3, 3)) / 5, "matrix": random.standard_normal((8, 4)) / 3}
    nodes = [
        helper.make_node("Conv", ["images", "kernel"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("MatMul", ["d", "matrix"], ["logits"]),
    ]
    arrays = {name: array.astype(numpy_type) for name, array in weights.items()}
    inputs, outputs = {"images": ("batch", 3, 16, 16)}, {"logits": ("batch", 4)}
    return save(path, nodes, inputs, outputs, arrays, dtype=dtype)


@pytest.fixture(params=[False, True], ids=["fp32", "fp16"])
def half(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(params=["tensorrt", "tensorrt_rtx"])
def name(request: pytest.FixtureRequest) -> str:
    """A compiler whose plans run here."""
    require_backend(str(request.param))
    return str(request.param)


@pytest.fixture
def opened(name: str, half: bool, tmp_path: Path) -> Iterator[tuple[Path, PlanSession]]:
    graph, plan = small_network(tmp_path / "small.onnx", half), tmp_path / "small.engine"
    options = BuildOptions(BatchProfile(1, 4, 8))
    engines.build(name, graph, plan, options, lambda phase, fraction: None)
    with _plan_runner.open_plan(name, plan, sha256=digest(plan)) as session:
        yield graph, session


def noise(half: bool, batch: int) -> Feeds:
    images = np.random.default_rng(batch).standard_normal((batch, 3, 16, 16))
    return {"images": images.astype(np.float16 if half else np.float32)}


def compare(graph: Path, session: PlanSession, half: bool, batches: Sequence[int]) -> None:
    """Both FP16 and the TF32 that TensorRT may use for FP32 round to 11 bits, 5e-4 relative; sums of 27 products and the
    rounding between four layers leave a few times that.
    """
    import onnxruntime

    reference = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    for batch in batches:
        (expected,) = reference.run(["logits"], noise(half, batch))
        got = session.run(noise(half, batch))["logits"]
        assert got.dtype == expected.dtype
        assert got.shape == (batch, 4)
        assert np.abs(got - expected).max() <= 5e-3 * np.abs(expected).max()


@pytest.mark.gpu
def test_engine_computes_what_onnx_runtime_computes(opened: tuple[Path, PlanSession], half: bool) -> None:
    graph, session = opened
    assert [spec.name for spec in session.inputs + session.outputs] == ["images", "logits"]
    compare(graph, session, half, (1, 3, 8))
    with pytest.raises(UsageError, match="batch 9") as refusal:
        session.run(noise(half, 9))
    assert "batch 1 to 8, best at 4" in refusal.value.advice
    with pytest.raises(UsageError, match="dtype"):
        session.run({"images": np.zeros((1, 3, 16, 16), np.float64)})


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_bound_plan_computes_what_the_session_does_and_is_timed(
    cuda_graph: bool, opened: tuple[Path, PlanSession], half: bool
) -> None:
    _, session = opened
    images = np.random.default_rng(0).standard_normal((8, 2, 3, 16, 16)).astype(np.float16 if half else np.float32)
    one, other = {"images": images[0]}, {"images": images[:, 0]}
    expected = session.run(one)["logits"]
    with session.bind(one, cuda_graph=cuda_graph) as bound:
        for _ in range(3):
            session.run(other)  # another batch in between must not touch it
            times = bound.run()
            assert 0 < times.device_ms <= times.host_ms  # the events lie between the copies
            np.testing.assert_array_equal(bound.outputs()["logits"], expected)  # same context settings, same kernels
    np.testing.assert_array_equal(session.run(one)["logits"], expected)


@pytest.mark.gpu
def test_engine_of_two_profiles_runs_batches_of_both(name: str, half: bool, tmp_path: Path) -> None:
    graph, plan = small_network(tmp_path / "small.onnx", half), tmp_path / "small.engine"
    options = BuildOptions(BatchProfile(1, 1, 1), more_profiles=(BatchProfile(4, 8, 8),))
    engines.build(name, graph, plan, options, lambda phase, fraction: None)
    with _plan_runner.open_plan(name, plan, sha256=digest(plan)) as session:
        compare(graph, session, half, (1, 8, 4, 1))
        with pytest.raises(UsageError, match="batch 2 is outside the engine's 2 profiles"):
            session.run(noise(half, 2))


@pytest.mark.gpu("tensorrt")
def test_stripped_plan_gets_its_weights_back(half: bool, tmp_path: Path) -> None:
    from skdeploy.engines.compatibility import BuiltFor

    graph = small_network(tmp_path / "small.onnx", half)
    whole, stripped = tmp_path / "whole.engine", tmp_path / "stripped.engine"
    profile = BatchProfile(1, 4, 8)
    engines.build("tensorrt", graph, whole, BuildOptions(profile), lambda phase, fraction: None)
    report = engines.build("tensorrt", graph, stripped, BuildOptions(profile, strip=True), lambda phase, fraction: None)
    built_for = BuiltFor.model_validate(report.model_dump()["built_for"])
    assert built_for.stripped
    feeds = {"images": np.ones((2, 3, 16, 16), np.float16 if half else np.float32)}
    with PlanBackend("tensorrt").open_session(whole, sha256=digest(whole)) as session:
        expected = session.run(feeds)["logits"]
    with PlanBackend("tensorrt").open_session(
        stripped, sha256=digest(stripped), built_for=built_for, weights=graph
    ) as session:
        got = session.run(feeds)["logits"]
    assert np.abs(got - expected).max() <= 5e-3 * np.abs(expected).max()  # other kernels may be chosen


@pytest.mark.gpu
def test_closed_session_does_not_run(opened: tuple[Path, PlanSession], half: bool) -> None:
    _, session = opened
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.run({"images": np.zeros((1, 3, 16, 16), np.float16 if half else np.float32)})


@pytest.mark.gpu
@BACKENDS
def test_plan_that_tensorrt_cannot_load_is_an_engine_error(backend: PlanBackend, plan: Path) -> None:
    require_backend(backend.NAME)
    with pytest.raises(EngineError, match=r"some.engine"):
        backend.open_session(plan, sha256=digest(plan))
