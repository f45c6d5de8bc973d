"""CUDA's errors and memory: the bindings as they are here, and what the driver answers on machines that have one."""

from __future__ import annotations

import numpy as np
import pytest
from cuda.bindings import driver as bindings

from skdeploy.backends.device_memory import Buffer, Event, Gpu, load_driver
from skdeploy.core.errors import DependencyError, EngineError
from skdeploy.core.packages import install_advice
from skdeploy.devices import cuda


def test_the_bindings_have_the_names_of_errors_and_modes() -> None:
    from skdeploy.backends import device_memory

    names = {device_memory._OUT_OF_MEMORY, *device_memory._NOT_SERVED}
    assert names <= set(bindings.CUresult.__members__)
    assert {name for name in names if bindings.CUresult.__members__[name].name != name} == set()
    assert int(bindings.CUresult.CUDA_SUCCESS) == 0
    assert int(bindings.CUstream_flags.CU_STREAM_NON_BLOCKING) == device_memory._NON_BLOCKING
    assert bindings.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL is not None


@pytest.mark.skipif(bool(cuda.devices()), reason="there is a GPU here")
def test_no_driver_is_a_dependency_error_with_what_the_bindings_say() -> None:
    with pytest.raises(DependencyError, match="cannot take the GPU: ") as refusal:
        Gpu(load_driver())
    assert "driver" in refusal.value.advice


def test_missing_bindings_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(DependencyError) as refusal:
        load_driver()
    assert refusal.value.advice == install_advice("plans")


# On a GPU


@pytest.mark.gpu
def test_array_goes_to_the_gpu_and_back() -> None:
    gpu = Gpu(load_driver())
    buffer = Buffer(gpu, "input images")
    array = np.random.default_rng(0).standard_normal((5, 3, 7, 7)).astype(np.float32)
    buffer.reserve("float32", array.shape)
    assert buffer.address
    buffer.write(array)
    buffer.to_device()
    gpu.synchronize()
    buffer.write(np.zeros_like(array))
    buffer.to_host()
    gpu.synchronize()
    np.testing.assert_array_equal(buffer.read(), array)
    buffer.close()
    gpu.close()


@pytest.mark.gpu
def test_more_memory_than_the_gpu_has_is_told() -> None:
    gpu = Gpu(load_driver())
    buffer = Buffer(gpu, "input images")
    elements = cuda.devices()[0].memory_bytes  # 4 times as many bytes
    with pytest.raises(EngineError, match=r"CUDA_ERROR_OUT_OF_MEMORY.* MiB were requested, .* are free"):
        buffer.reserve("float32", (elements,))
    assert buffer.reserve("float32", (16,))
    buffer.close()
    gpu.close()


@pytest.mark.gpu
def test_recorded_copies_run_at_each_launch_and_events_time_them() -> None:
    gpu = Gpu(load_driver())
    buffer, start, end = Buffer(gpu, "input images"), Event(gpu), Event(gpu)
    array = np.arange(1 << 20, dtype=np.float32)
    buffer.reserve("float32", array.shape)
    buffer.write(array)
    graph = gpu.record(buffer.to_device)
    start.record()
    graph.launch()
    end.record()
    buffer.to_host()
    gpu.synchronize()
    np.testing.assert_array_equal(buffer.read(), array)
    assert 0 < end.ms_since(start) < 1000  # 4 MiB: a PCIe 1.0 lane would take 17 ms
    for part in (graph, start, end, buffer, gpu):
        part.close()
