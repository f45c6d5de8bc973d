"""What the driver says, with a driver made of Python; the real one is asked where there is a GPU."""

# ruff: noqa: N802  (the functions have libcuda's own names)

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import pytest

from skdeploy.devices import cuda


class Driver:
    """libcuda with two GPUs. ``fails`` maps a function to the error code that it gives."""

    def __init__(self, fails: dict[str, int] | None = None, count: int = 2) -> None:
        self.fails = fails or {}
        self.count = count

    def __getattr__(self, function: str) -> Any:
        if function == "cuGetErrorString":
            return self._error_string
        return lambda *arguments: self.fails.get(function) or getattr(self, f"_{function}")(*arguments)

    def _error_string(self, code: int, words: Any) -> int:
        words._obj.value = b"no CUDA-capable device is detected" if code == 100 else None
        return 0

    def _cuInit(self, flags: int) -> int:
        assert flags == 0
        return 0

    def _cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 13020
        return 0

    def _cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.count
        return 0

    def _cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = 40 + index
        return 0

    def _cuDeviceGetName(self, name: Any, size: int, device: ctypes.c_int) -> int:
        assert len(name) == size
        name.value = b"NVIDIA L4" if device.value == 40 else b"NVIDIA T4"
        return 0

    def _cuDeviceGetAttribute(self, value: Any, attribute: int, device: ctypes.c_int) -> int:
        value._obj.value = {75: {40: 8, 41: 7}, 76: {40: 9, 41: 5}}[attribute][device.value]
        return 0

    def _cuDeviceTotalMem_v2(self, memory: Any, _device: ctypes.c_int) -> int:
        memory._obj.value = 24 << 30
        return 0


@pytest.fixture(autouse=True)
def asked_again() -> Iterator[None]:
    cuda._ask.cache_clear()
    yield
    cuda._ask.cache_clear()


def test_devices_as_the_driver_tells_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    assert cuda.devices() == (
        cuda.CudaDevice(0, "NVIDIA L4", "8.9", 24 << 30),
        cuda.CudaDevice(1, "NVIDIA T4", "7.5", 24 << 30),
    )
    assert cuda.driver_problem() == ""
    assert cuda.driver_version() == "13.2"


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "DRIVER_LIBRARY", "libabsent.so.1")
    assert cuda.devices() == ()
    assert "no NVIDIA driver" in cuda.driver_problem()
    assert "libabsent.so.1" in cuda.driver_problem()
    assert cuda.driver_version() == ""


def test_driver_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(count=0))
    assert cuda.devices() == ()
    assert cuda.driver_problem() == "the NVIDIA driver sees no GPU"


@pytest.mark.parametrize(
    ("function", "code", "words"),
    [
        ("cuInit", 100, "cuInit failed with error 100: no CUDA-capable device is detected"),
        ("cuDeviceGetName", 77, "cuDeviceGetName failed with error 77: unknown error"),
    ],
)
def test_driver_that_refuses(function: str, code: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(fails={function: code}))
    assert cuda.devices() == ()
    assert words in cuda.driver_problem()


def test_library_that_is_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "DRIVER_LIBRARY", "libc.so.6")
    assert cuda.devices() == ()
    assert "has no function cuInit" in cuda.driver_problem()


@pytest.mark.gpu
def test_real_driver_agrees_with_torch() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("this torch cannot use the GPU")
    found = cuda.devices()
    assert len(found) == torch.cuda.device_count()
    for device in found:
        properties = torch.cuda.get_device_properties(device.index)
        assert device.compute_capability == f"{properties.major}.{properties.minor}"
        assert device.name == properties.name
