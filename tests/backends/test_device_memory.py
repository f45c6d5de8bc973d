"""CUDA's errors and memory: the bindings as they are here, and what the driver answers on machines that have one."""

from __future__ import annotations

import inspect
from typing import cast

import numpy as np
import pytest
from cuda.bindings import driver as bindings

from skdeploy.backends import cuda
from skdeploy.backends.device_memory import Buffer, Driver, Event, Gpu, load_driver
from skdeploy.errors import DependencyError, EngineError
from tests.backends.fake_cuda import COPY_MS, ENGINE_MS, ILLEGAL_ADDRESS, INVALIDATED, Code, FakeDriver


def on(driver: FakeDriver) -> Gpu:
    return Gpu(cast(Driver, driver))


FUNCTIONS = {name: found for name, found in vars(Driver).items() if name.startswith("cu")}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_bindings_have_each_function_with_as_many_arguments(name: str) -> None:
    real = inspect.signature(getattr(bindings, name)).parameters
    assert len(real) == len(inspect.signature(FUNCTIONS[name]).parameters) - 1  # self
    assert len(real) == len(inspect.signature(getattr(FakeDriver, name)).parameters) - 1


def test_every_function_is_looked_at() -> None:
    assert FUNCTIONS.keys() >= {"cuMemAlloc", "cuMemcpyDtoHAsync", "cuGraphLaunch", "cuEventRecord"}


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
    assert refusal.value.advice == 'install it with: pip install "skdeploy[plans]"'


def test_driver_that_is_too_old_for_a_function_is_a_dependency_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(flags: int) -> None:
        raise RuntimeError('Function "cuStreamCreate" not found')  # as cuda-bindings says it

    driver = FakeDriver()
    monkeypatch.setattr(driver, "cuStreamCreate", absent)
    with pytest.raises(DependencyError, match="cannot make a stream") as refusal:
        on(driver)
    assert "newer NVIDIA driver" in refusal.value.advice
    assert driver.leaks == {}


@pytest.mark.parametrize("name", ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"])
def test_device_that_does_not_serve_this_process_is_a_dependency_error(name: str) -> None:
    driver = FakeDriver(failing={name: Code("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", 803)})
    with pytest.raises(DependencyError, match="cannot take the GPU: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH") as refusal:
        on(driver)
    assert "nvidia-smi" in refusal.value.advice


def test_any_other_error_is_an_engine_error_with_cudas_name_and_words() -> None:
    driver = FakeDriver()
    gpu = on(driver)
    driver.failing["cuStreamSynchronize"] = ILLEGAL_ADDRESS
    with pytest.raises(EngineError) as refusal:
        gpu.synchronize()
    assert refusal.value.message == (
        "cannot run the engine: CUDA_ERROR_ILLEGAL_ADDRESS, an illegal memory access was encountered"
    )


@pytest.mark.parametrize("kind", ["cuMemAlloc", "cuMemHostAlloc"])
def test_out_of_memory_says_how_much_was_asked_for_and_is_free(kind: str) -> None:
    driver = FakeDriver()
    gpu = on(driver)
    buffer = Buffer(gpu, "input images")
    driver.failing[kind] = Code("CUDA_ERROR_OUT_OF_MEMORY", 2)
    with pytest.raises(EngineError, match="cannot allocate input images") as refusal:
        buffer.reserve("float32", (3, 1 << 20))
    assert "CUDA_ERROR_OUT_OF_MEMORY" in refusal.value.message
    assert "12.0 MiB were asked for, 3.0 MiB of 8.0 MiB are free" in refusal.value.message
    assert "smaller batch" in refusal.value.advice
    buffer.reserve("float32", (3, 1 << 10))  # and it works again
    buffer.close()
    gpu.close()
    assert driver.leaks == {}


def test_array_goes_through_a_buffer_and_comes_back_a_copy() -> None:
    driver = FakeDriver()
    gpu = on(driver)
    buffer = Buffer(gpu, "input images")
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)[:, ::-1]  # negative strides: not contiguous
    buffer.reserve("float32", array.shape)
    buffer.write(array)
    buffer.to_device()
    gpu.synchronize()
    buffer.write(np.zeros_like(array))
    buffer.to_host()
    assert not buffer.read().any()  # nothing has happened yet: it was not waited for
    gpu.synchronize()
    found = buffer.read()
    np.testing.assert_array_equal(found, array)
    buffer.write(np.zeros_like(array))
    assert found.any()


def test_buffer_allocates_only_when_a_shape_does_not_fit() -> None:
    driver = FakeDriver()
    buffer = Buffer(on(driver), "input images")
    grown = [buffer.reserve("float16", (batch, 3, 8, 8)) for batch in (4, 1, 4, 2, 5, 3)]
    assert grown == [True, False, False, False, True, False]
    assert driver.calls.count("cuMemAlloc") == 2
    assert driver.leaks["device memory"] == driver.leaks["host memory"] == 1
    address = buffer.address
    assert not buffer.reserve("float32", (2, 3, 8, 8))  # as many bytes as of 4 in float16
    assert buffer.address == address


def test_events_measure_what_is_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver()
    monkeypatch.setattr(cuda, "event_elapsed_ms", driver.elapsed_ms)
    gpu = on(driver)
    start, end = Event(gpu), Event(gpu)
    driver.put(lambda: None, COPY_MS)
    start.record()
    driver.put(lambda: None, ENGINE_MS)
    end.record()
    driver.put(lambda: None, COPY_MS)
    gpu.synchronize()
    assert end.ms_since(start) == ENGINE_MS


def test_graph_does_nothing_while_recorded_and_its_work_at_each_launch() -> None:
    driver, done = FakeDriver(), list[int]()
    gpu = on(driver)
    graph = gpu.record(lambda: driver.put(lambda: done.append(1), ENGINE_MS))
    gpu.synchronize()
    assert done == []
    for _ in range(2):
        graph.launch()
    gpu.synchronize()
    assert done == [1, 1]
    graph.close()
    graph.close()
    gpu.close()
    assert driver.leaks == {}


def test_recording_that_cuda_invalidates_is_an_engine_error() -> None:
    driver = FakeDriver(failing={"cuStreamEndCapture": INVALIDATED})
    with pytest.raises(EngineError, match="cannot record a CUDA graph: CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"):
        on(driver).record(lambda: None)


def test_work_that_fails_while_recorded_leaves_the_stream_usable() -> None:
    driver = FakeDriver()
    gpu = on(driver)

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gpu.record(interrupted)
    assert driver.recording is None
    gpu.synchronize()
    gpu.close()
    assert driver.leaks == {}


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
    with pytest.raises(EngineError, match=r"CUDA_ERROR_OUT_OF_MEMORY.* MiB were asked for, .* are free"):
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
