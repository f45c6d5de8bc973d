"""What only TensorRT does, on its own GPU: timing caches, stripped plans, portable plans. The rest is as test_build.py says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skdeploy import engines
from skdeploy.core.errors import EngineError, UsageError
from skdeploy.core.files import digest_file
from skdeploy.devices import cuda
from skdeploy.devices.jetson import is_jetson
from skdeploy.engines._log import capture
from skdeploy.engines.options import BatchProfile, BuildOptions, require_supported
from skdeploy.engines.refit import refit
from skdeploy.engines.timing_cache import TimingDevice, read_timing_cache, write_timing_cache

pytestmark = pytest.mark.gpu("tensorrt")

PROFILE = BatchProfile(1, 4, 8)


def build(graph: Path, plan: Path, **options: Any) -> Any:
    given, gpu = BuildOptions(PROFILE, **options), cuda.devices()[0].compute_capability
    try:
        require_supported("tensorrt", engines.version("tensorrt"), given, on_jetson=is_jetson(), gpu=gpu)
    except UsageError as refusal:  # an older TensorRT, or a Jetson
        pytest.skip(str(refusal))
    return engines.build("tensorrt", graph, plan, given, lambda *_: None)


def deserialized(plan: Path) -> Any:
    trt: Any = pytest.importorskip("tensorrt", reason="needs skdeploy[tensorrt]")
    with capture(trt) as (logger, log):
        runtime = trt.Runtime(logger)
        engine = runtime.deserialize_cuda_engine(plan.read_bytes())
    assert engine is not None, log.reasons()
    return engine


def here() -> TimingDevice:
    trt: Any = pytest.importorskip("tensorrt", reason="needs skdeploy[tensorrt]")
    gpu = cuda.devices()[0]
    return TimingDevice(
        gpu=gpu.name, compute_capability=gpu.compute_capability, tensorrt=trt.__version__, cuda=cuda.driver_version()
    )


def logits(plan: Path, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    from skdeploy.backends.plans import PlanBackend

    with PlanBackend("tensorrt").open_session(plan, sha256=digest_file(plan)) as session:
        return np.asarray(session.run({session.inputs[0].name: images})["logits"])


def test_a_timing_cache_is_made_and_taken_again(fp16: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache.bin"
    build(fp16, tmp_path / "first.engine", timing_cache=cache)
    first = read_timing_cache(cache, here())
    assert first
    build(fp16, tmp_path / "second.engine", timing_cache=cache)
    assert len(read_timing_cache(cache, here())) == len(first)  # the same network: nothing new was timed


def test_a_timing_cache_of_another_device_is_refused_before_the_build(fp16: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache.bin"
    write_timing_cache(cache, here().model_copy(update={"gpu": "Another GPU"}), b"")
    with pytest.raises(EngineError, match="belongs to another device: GPU Another GPU, not "):
        build(fp16, tmp_path / "plan.engine", timing_cache=cache)
    assert not (tmp_path / "plan.engine").exists()


def test_a_timing_cache_that_tensorrt_refuses_is_an_error(fp16: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache.bin"
    write_timing_cache(cache, here(), b"not what TensorRT wrote")
    with pytest.raises(EngineError, match="refuses the timing cache"):
        build(fp16, tmp_path / "plan.engine", timing_cache=cache)


@pytest.mark.parametrize("level", range(6))
def test_every_level_builds(level: int, fp16: Path, tmp_path: Path) -> None:
    assert build(fp16, tmp_path / "plan.engine", optimization_level=level).plan_bytes > 0


def test_memory_limits_are_in_the_report(fp16: Path, tmp_path: Path) -> None:
    report = build(fp16, tmp_path / "plan.engine", workspace_bytes=64 << 20, tactic_bytes=3 << 28)
    assert (report.workspace_bytes, report.tactic_bytes) == (64 << 20, 1 << 29)


def test_a_stripped_plan_is_smaller_and_gets_its_weights_back(fp16: Path, tmp_path: Path) -> None:
    whole, stripped = tmp_path / "whole.engine", tmp_path / "stripped.engine"
    trt: Any = pytest.importorskip("tensorrt", reason="needs skdeploy[tensorrt]")
    build(fp16, whole)
    build(fp16, stripped, strip=True)
    assert stripped.stat().st_size < whole.stat().st_size
    refitted = deserialized(stripped)
    refit(trt, refitted, fp16)
    again = tmp_path / "again.engine"
    configuration = refitted.create_serialization_config()
    configuration.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
    again.write_bytes(bytes(memoryview(refitted.serialize_with_config(configuration))))
    images = np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float16)
    expected, found = logits(whole, images).astype(np.float64), logits(again, images).astype(np.float64)
    # Two builds may choose other kernels: FP16 rounds by 2**-11, and some tens of sums lie between.
    assert np.max(np.abs(found - expected)) <= 0.02 * np.max(np.abs(expected))


def test_a_stripped_plan_takes_no_other_graph(fp16: Path, fp32: Path, tmp_path: Path) -> None:
    trt: Any = pytest.importorskip("tensorrt", reason="needs skdeploy[tensorrt]")
    build(fp16, tmp_path / "plan.engine", strip=True)
    with pytest.raises(EngineError, match=r"the weights of .* do not fit the plan|lacks weights"):
        refit(trt, deserialized(tmp_path / "plan.engine"), fp32)


@pytest.mark.parametrize(("level", "member"), [("ampere+", "AMPERE_PLUS"), ("same-cc", "SAME_COMPUTE_CAPABILITY")])
def test_a_plan_says_what_hardware_it_is_for(level: Any, member: str, fp16: Path, tmp_path: Path) -> None:
    build(fp16, tmp_path / "plan.engine", hardware_compatible=level)
    assert deserialized(tmp_path / "plan.engine").hardware_compatibility_level.name == member


def test_a_version_compatible_plan_carries_no_code(fp16: Path, tmp_path: Path) -> None:
    """The lean runtime has tens of megabytes."""
    build(fp16, tmp_path / "plain.engine")
    build(fp16, tmp_path / "plan.engine", version_compatible=True)
    assert (tmp_path / "plan.engine").stat().st_size < (tmp_path / "plain.engine").stat().st_size + (10 << 20)
