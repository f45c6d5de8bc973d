"""This machine's GPUs, from the NVIDIA driver through libcuda alone: no torch or TensorRT, in milliseconds.

Functions and attribute numbers: the CUDA driver API, cuda.h (CUdevice_attribute, stable since CUDA 4).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache

DRIVER_LIBRARY = "libcuda.so.1"
_COMPUTE_CAPABILITY_MAJOR = 75  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
_COMPUTE_CAPABILITY_MINOR = 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
_NAME_BYTES = 256  # room for a device's name, NUL included


@dataclass(frozen=True)
class CudaDevice:
    """One GPU as the driver numbers it (CUDA_VISIBLE_DEVICES applies). ``compute_capability`` is like "8.9"."""

    index: int
    name: str
    compute_capability: str
    memory_bytes: int


class _DriverError(Exception):
    """A driver function answered with an error code: told in ``driver_problem``, never seen outside this file."""


def devices() -> tuple[CudaDevice, ...]:
    """The GPUs that this process may use, asked once. Empty where there is none; ``driver_problem`` then says why."""
    return _ask()[0]


def driver_problem() -> str:
    """Why ``devices`` is empty, in words; empty when there is a GPU."""
    return _ask()[2]


def driver_version() -> str:
    """The newest CUDA version that the driver serves, like "13.0"; empty without a driver."""
    return _ask()[1]


@cache
def _ask() -> tuple[tuple[CudaDevice, ...], str, str]:
    try:
        driver = ctypes.CDLL(DRIVER_LIBRARY)
    except OSError as error:
        absent = "No such file" in str(error)  # the loader's words; anything else is a driver that is there and broken
        return (), "", f"no NVIDIA driver{f' ({DRIVER_LIBRARY} not found)' if absent else f': {error}'}"
    version = ""
    try:
        _call(driver, "cuInit", 0)
        number = ctypes.c_int()
        _call(driver, "cuDriverGetVersion", ctypes.byref(number))
        version = f"{number.value // 1000}.{number.value % 1000 // 10}"  # 13020 is CUDA 13.2
        count = ctypes.c_int()
        _call(driver, "cuDeviceGetCount", ctypes.byref(count))
        found = tuple(_device(driver, index) for index in range(count.value))
    except _DriverError as refusal:
        return (), version, str(refusal)
    return found, version, "" if found else "the NVIDIA driver sees no GPU"


def event_elapsed_ms(start: int, end: int) -> tuple[int, float]:
    """The driver's error code, and the milliseconds between two of its events.

    Not through ``cuda-bindings``, which from version 13 on has only the function's second form, of CUDA 12.8's drivers:
    JetPack 6 has 12.6. The first form has the same arguments and is in every driver.
    """
    elapsed = ctypes.c_float()
    function = ctypes.CDLL(DRIVER_LIBRARY).cuEventElapsedTime
    return function(ctypes.byref(elapsed), ctypes.c_void_p(start), ctypes.c_void_p(end)), elapsed.value


def _device(driver: ctypes.CDLL, index: int) -> CudaDevice:
    handle, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, memory = ctypes.create_string_buffer(_NAME_BYTES), ctypes.c_size_t()
    _call(driver, "cuDeviceGet", ctypes.byref(handle), index)
    _call(driver, "cuDeviceGetName", name, _NAME_BYTES, handle)
    _call(driver, "cuDeviceGetAttribute", ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, handle)
    _call(driver, "cuDeviceGetAttribute", ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, handle)
    _call(driver, "cuDeviceTotalMem_v2", ctypes.byref(memory), handle)
    return CudaDevice(index, name.value.decode(errors="replace"), f"{major.value}.{minor.value}", memory.value)


def _call(driver: ctypes.CDLL, function: str, *arguments: object) -> None:
    try:
        code = getattr(driver, function)(*arguments)
    except AttributeError as error:
        raise _DriverError(f"{DRIVER_LIBRARY} has no function {function}") from error
    if code != 0:
        words = ctypes.c_char_p()
        driver.cuGetErrorString(code, ctypes.byref(words))  # leaves NULL for a code that it does not know
        meaning = words.value.decode(errors="replace") if words.value else "unknown error"
        raise _DriverError(f"the NVIDIA driver's {function} failed with error {code}: {meaning}")
