"""Memory, a stream, events and graphs of the first GPU, through NVIDIA's ``cuda-bindings``: what running a plan takes of CUDA.

It is the driver API, so any driver serves that TensorRT itself takes, and the context is the device's primary one, which is
the one that TensorRT's CUDA runtime uses. Everything here is freed by ``close``, once; sizes are bytes.

Source: CUDA driver API reference, "Stream Management", "Memory Management", "Graph Management".
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final

import numpy as np

from skdeploy.backends.base import Array
from skdeploy.core.errors import DependencyError, EngineError
from skdeploy.core.packages import require
from skdeploy.devices import cuda

EXTRA: Final = "plans"
# What no other engine or smaller batch would change: the driver or the device itself does not serve this process (cuda.h).
_NOT_SERVED: Final = (
    "CUDA_ERROR_STUB_LIBRARY",
    "CUDA_ERROR_DEVICE_UNAVAILABLE",
    "CUDA_ERROR_NO_DEVICE",
    "CUDA_ERROR_OPERATING_SYSTEM",
    "CUDA_ERROR_SYSTEM_NOT_READY",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
    "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
    "CUDA_ERROR_NOT_PERMITTED",
)
_OUT_OF_MEMORY: Final = "CUDA_ERROR_OUT_OF_MEMORY"
_NON_BLOCKING: Final = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream, on which nothing of ours runs
_MEBIBYTE: Final = 1 << 20


def load_driver() -> Any:
    """``cuda.bindings.driver``, which imports without a GPU too. Raises DependencyError without the package."""
    return require("cuda.bindings.driver", extra=EXTRA)


class Gpu:
    """The first GPU's primary context and one stream. Each thread that calls must call ``use`` first."""

    def __init__(self, driver: Any) -> None:
        """Raises DependencyError, EngineError as ``call`` does."""
        self.driver = driver
        with ExitStack() as undo:
            self.call("take the GPU", driver.cuInit, 0)
            device = self.call("take the GPU", driver.cuDeviceGet, 0)
            self._context = self.call("take the GPU", driver.cuDevicePrimaryCtxRetain, device)
            undo.callback(driver.cuDevicePrimaryCtxRelease, device)
            self.use()
            self._stream = self.call("make a stream", driver.cuStreamCreate, _NON_BLOCKING)
            undo.callback(driver.cuStreamDestroy, self._stream)
            self._undo = undo.pop_all()

    @property
    def stream(self) -> int:
        """The stream's address, as TensorRT takes it."""
        return int(self._stream)

    def use(self) -> None:
        """Makes the context this thread's own."""
        self.call("take the GPU", self.driver.cuCtxSetCurrent, self._context)

    def call(self, purpose: str, function: Callable[..., tuple[Any, ...]], *arguments: object, size: int = 0) -> Any:
        """Call a driver function and return its values; ``size`` is the number of bytes requested.

        Raises DependencyError if the driver is not there, too old for the function, or does not serve this device; else
        EngineError, both with CUDA's name of the error.
        """
        try:
            result, *answer = function(*arguments)
        except RuntimeError as error:  # cuda-bindings: it found no driver, or none that has the function
            raise DependencyError(
                f"cannot {purpose}: {str(error).splitlines()[0]}",
                advice="install a newer NVIDIA driver, see `skdeploy doctor`",
            ) from error
        if int(result) != 0:
            raise self._failure(purpose, result, size)
        return answer[0] if len(answer) == 1 else tuple(answer)

    def _failure(self, purpose: str, result: Any, size: int) -> DependencyError | EngineError:
        unknown, words = self.driver.cuGetErrorString(result)
        meaning = f", {words.decode(errors='replace')}" if not int(unknown) and words else ""
        why = f"cannot {purpose}: {result.name}{meaning}"
        if result.name in _NOT_SERVED:
            return DependencyError(
                why,
                advice="the NVIDIA driver does not work in this process: see `nvidia-smi` and `skdeploy doctor`",
            )
        if result.name == _OUT_OF_MEMORY:
            return EngineError(
                f"{why}{self._shortage(size)}",
                advice="give a smaller batch, or stop other programs on the GPU (`nvidia-smi` lists them)",
            )
        return EngineError(why, advice="build the engine again here; if that does not help, see `skdeploy doctor`")

    def _shortage(self, size: int) -> str:
        asked = f"; {mebibytes(size)} were requested" if size else ""
        code, *found = self.driver.cuMemGetInfo()
        return asked + (f", {mebibytes(found[0])} of {mebibytes(found[1])} are free" if not int(code) else "")

    def synchronize(self) -> None:
        """Waits for everything that was put on the stream; an error of a kernel comes out here."""
        self.call("run the engine", self.driver.cuStreamSynchronize, self._stream)

    def record(self, work: Callable[[], None]) -> Graph:
        """Record what ``work`` puts on the stream, without running it. Raises its errors, and EngineError if CUDA cannot."""
        driver, stream = self.driver, self._stream
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self.call("record a CUDA graph", driver.cuStreamBeginCapture, stream, mode)
        try:
            work()
        except BaseException:
            result, unfinished = driver.cuStreamEndCapture(stream)  # whatever it says: the stream is usable again
            if int(result) == 0:
                driver.cuGraphDestroy(unfinished)
            raise
        recorded = self.call("record a CUDA graph", driver.cuStreamEndCapture, stream)
        try:
            return Graph(self, self.call("make a CUDA graph", driver.cuGraphInstantiate, recorded, 0))
        finally:
            driver.cuGraphDestroy(recorded)

    def close(self) -> None:
        """Gives the stream and the context back."""
        self._undo.close()


class Buffer:
    """Device memory, and page-locked host memory of the same size, that an array goes through. Grows, never shrinks."""

    def __init__(self, gpu: Gpu, what: str) -> None:
        """``what`` is what errors call it, as "input images"."""
        self._gpu = gpu
        self._what = what
        self._device: Any = None
        self._host: Any = None
        self._capacity = 0
        self._view = np.empty(0, np.uint8)

    @property
    def address(self) -> int:
        """On the device. It changes when ``reserve`` says so."""
        return 0 if self._device is None else int(self._device)

    def reserve(self, dtype: str, shape: tuple[int, ...]) -> bool:
        """Holds an array of this type and shape; True if memory was allocated for it. Raises EngineError: out of memory."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        grown = size > self._capacity
        if grown:
            self.close()
            driver, purpose = self._gpu.driver, f"allocate {self._what}"
            self._device = self._gpu.call(purpose, driver.cuMemAlloc, size, size=size)
            self._host = self._gpu.call(f"{purpose} on the host", driver.cuMemHostAlloc, size, 0, size=size)
            self._capacity = size
        memory = (ctypes.c_uint8 * size).from_address(int(self._host))
        self._view = np.frombuffer(memoryview(memory), np.dtype(dtype)).reshape(shape)
        return grown

    def write(self, array: Array) -> None:
        """The array, of the reserved type and shape, to the host half."""
        self._view[...] = array

    def read(self) -> Array:
        """A copy of the host half."""
        return self._view.copy()

    def to_device(self) -> None:
        """Puts the copy to the device on the stream."""
        gpu, size = self._gpu, self._view.nbytes
        gpu.call(
            f"copy {self._what} to the GPU", gpu.driver.cuMemcpyHtoDAsync, self._device, self._host, size, gpu._stream
        )

    def to_host(self) -> None:
        """Puts the copy to the host on the stream."""
        gpu, size = self._gpu, self._view.nbytes
        gpu.call(
            f"copy {self._what} from the GPU", gpu.driver.cuMemcpyDtoHAsync, self._host, self._device, size, gpu._stream
        )

    def close(self) -> None:
        """Frees both halves; nothing on the stream may use them any more."""
        self._view, self._capacity = np.empty(0, np.uint8), 0
        if self._device is not None:
            self._gpu.driver.cuMemFree(self._device)
        if self._host is not None:
            self._gpu.driver.cuMemFreeHost(self._host)
        self._device = self._host = None


class Event:
    """A moment on the stream."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._event: Any = gpu.call("make an event", gpu.driver.cuEventCreate, 0)

    def record(self) -> None:
        self._gpu.call("record an event", self._gpu.driver.cuEventRecord, self._event, self._gpu._stream)

    def ms_since(self, earlier: Event) -> float:
        """Milliseconds of the device between two moments that have both passed; CUDA resolves about 0.5 µs."""
        return float(self._gpu.call("read a time", self._elapsed_ms, earlier._event, self._event))

    def _elapsed_ms(self, start: Any, end: Any) -> tuple[Any, float]:
        code, elapsed_ms = cuda.event_elapsed_ms(int(start), int(end))
        return self._gpu.driver.CUresult(code), elapsed_ms

    def close(self) -> None:
        if self._event is not None:
            self._gpu.driver.cuEventDestroy(self._event)
        self._event = None


class Graph:
    """Recorded work, launched as one."""

    def __init__(self, gpu: Gpu, executable: object) -> None:
        self._gpu = gpu
        self._executable: object | None = executable

    def launch(self) -> None:
        self._gpu.call("launch the CUDA graph", self._gpu.driver.cuGraphLaunch, self._executable, self._gpu._stream)

    def close(self) -> None:
        if self._executable is not None:
            self._gpu.driver.cuGraphExecDestroy(self._executable)
        self._executable = None


def mebibytes(size: int) -> str:
    return f"{size / _MEBIBYTE:,.1f} MiB"
