"""Memory, events and graphs behind the real ``cuda-bindings``, with a driver in host memory: see test_stand_in.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import metadata

import numpy as np
import pytest
from cuda.bindings import driver as bindings

from skdeploy.backends.device_memory import Buffer, Event, Gpu, load_driver
from skdeploy.core.errors import DependencyError, EngineError
from skdeploy.devices import cuda
from tests.backends.fake_tensorrt import ENGINE_MS
from tests.backends.stand_in import (
    CAPTURE_INVALIDATED,
    COPY_MS,
    ILLEGAL_ADDRESS,
    OUT_OF_MEMORY,
    SYSTEM_DRIVER_MISMATCH,
    VERSION,
    StandIn,
)


@pytest.fixture
def driver() -> Iterator[StandIn]:
    found = StandIn()
    yield found
    assert found.faults == []


def test_the_driver_tells_its_device_and_version() -> None:
    (device,) = cuda.devices()
    assert (device.name, device.compute_capability, device.memory_bytes) == ("Stand-in", "8.9", 8 << 20)
    version = int(os.environ[VERSION])
    assert cuda.driver_version() == f"{version // 1000}.{version % 1000 // 10}"


def test_cuda_bindings_13_reads_no_event_of_a_driver_before_cuda_12_8(driver: StandIn) -> None:
    """Why ``cuda.event_elapsed_ms`` does not go through them."""
    gpu = Gpu(load_driver())
    event = Event(gpu)
    if int(os.environ[VERSION]) < 12080 and int(metadata.version("cuda-bindings").partition(".")[0]) >= 13:
        with pytest.raises(RuntimeError, match="cuEventElapsedTime"):
            bindings.cuEventElapsedTime(event._event, event._event)
    else:
        assert int(bindings.cuEventElapsedTime(event._event, event._event)[0]) == 0


def test_a_fault_is_found_and_a_leak_counted() -> None:
    """Of the stand-in itself: what the tests below believe."""
    driver = StandIn()
    gpu = Gpu(load_driver())
    buffer = Buffer(gpu, "input images")
    buffer.reserve("float32", (4,))
    assert driver.alive == {"context": 1, "stream": 1, "device memory": 1, "host memory": 1}
    gpu.driver.cuMemFree(buffer.address)
    buffer.close()
    assert driver.faults == ["device memory freed that is not allocated"]


def test_driver_that_is_too_old_for_a_function_is_a_dependency_error(
    driver: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(flags: int) -> None:
        raise RuntimeError('Function "cuStreamCreate" not found')  # as cuda-bindings says it

    monkeypatch.setattr(bindings, "cuStreamCreate", absent)
    with pytest.raises(DependencyError, match="cannot make a stream") as refusal:
        Gpu(load_driver())
    assert "newer NVIDIA driver" in refusal.value.advice
    assert driver.alive == {}


@pytest.mark.parametrize("name", ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"])
def test_device_that_does_not_serve_this_process_is_a_dependency_error(driver: StandIn, name: str) -> None:
    driver.fail(name, SYSTEM_DRIVER_MISMATCH)
    with pytest.raises(DependencyError, match="cannot take the GPU: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH") as refusal:
        Gpu(load_driver())
    assert "nvidia-smi" in refusal.value.advice


def test_any_other_error_is_an_engine_error_with_cudas_name_and_words(driver: StandIn) -> None:
    gpu = Gpu(load_driver())
    driver.fail("cuStreamSynchronize", ILLEGAL_ADDRESS)
    with pytest.raises(EngineError) as refusal:
        gpu.synchronize()
    assert refusal.value.message == (
        "cannot run the engine: CUDA_ERROR_ILLEGAL_ADDRESS, an illegal memory access was encountered"
    )


@pytest.mark.parametrize("kind", ["cuMemAlloc_v2", "cuMemHostAlloc"])
def test_out_of_memory_says_how_much_was_asked_for_and_is_free(driver: StandIn, kind: str) -> None:
    gpu = Gpu(load_driver())
    buffer = Buffer(gpu, "input images")
    driver.fail(kind, OUT_OF_MEMORY)
    with pytest.raises(EngineError, match="cannot allocate input images") as refusal:
        buffer.reserve("float32", (3, 1 << 20))
    assert "CUDA_ERROR_OUT_OF_MEMORY" in refusal.value.message
    assert "12.0 MiB were requested, 3.0 MiB of 8.0 MiB are free" in refusal.value.message
    assert "smaller batch" in refusal.value.advice
    buffer.reserve("float32", (3, 1 << 10))  # and it works again
    buffer.close()
    gpu.close()
    assert driver.alive == {}


def test_array_goes_through_a_buffer_and_comes_back_a_copy(driver: StandIn) -> None:
    gpu = Gpu(load_driver())
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
    buffer.write(np.zeros_like(array))
    np.testing.assert_array_equal(found, array)


def test_buffer_allocates_only_when_a_shape_does_not_fit(driver: StandIn) -> None:
    buffer = Buffer(Gpu(load_driver()), "input images")
    grown = [buffer.reserve("float16", (batch, 3, 8, 8)) for batch in (4, 1, 4, 2, 5, 3)]
    assert grown == [True, False, False, False, True, False]
    assert driver.calls.count("cuMemAlloc") == 2
    assert driver.alive["device memory"] == driver.alive["host memory"] == 1
    address = buffer.address
    assert not buffer.reserve("float32", (2, 3, 8, 8))  # as many bytes as of 4 in float16
    assert buffer.address == address


def test_events_measure_what_is_between_them(driver: StandIn) -> None:
    gpu = Gpu(load_driver())
    start, end = Event(gpu), Event(gpu)
    driver.put(gpu.stream, lambda: None, COPY_MS)
    start.record()
    driver.put(gpu.stream, lambda: None, ENGINE_MS)
    end.record()
    driver.put(gpu.stream, lambda: None, COPY_MS)
    gpu.synchronize()
    assert end.ms_since(start) == ENGINE_MS


def test_graph_does_nothing_while_recorded_and_its_work_at_each_launch(driver: StandIn) -> None:
    done = list[int]()
    gpu = Gpu(load_driver())
    graph = gpu.record(lambda: driver.put(gpu.stream, lambda: done.append(1), ENGINE_MS))
    gpu.synchronize()
    assert done == []
    for _ in range(2):
        graph.launch()
    gpu.synchronize()
    assert done == [1, 1]
    graph.close()
    graph.close()
    gpu.close()
    assert driver.alive == {}


def test_recording_that_cuda_invalidates_is_an_engine_error(driver: StandIn) -> None:
    driver.fail("cuStreamEndCapture", CAPTURE_INVALIDATED)
    with pytest.raises(EngineError, match="cannot record a CUDA graph: CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"):
        Gpu(load_driver()).record(lambda: None)


def test_work_that_fails_while_recorded_leaves_the_stream_usable(driver: StandIn) -> None:
    gpu = Gpu(load_driver())

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gpu.record(interrupted)
    assert not driver.recording
    gpu.synchronize()
    gpu.close()
    assert driver.alive == {}
