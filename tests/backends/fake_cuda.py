"""A driver and an engine in host memory, to run everything around the GPU calls where there is no GPU.

The stream is as lazy as a real one may be: nothing that was put on it happens before it is waited for.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

COPY_MS, ENGINE_MS = 5.0, 1.0
FREE, TOTAL = 3 << 20, 8 << 20
CLASSES = 4


@dataclass(frozen=True)
class Code:
    name: str
    number: int

    def __int__(self) -> int:
        return self.number


OK = Code("CUDA_SUCCESS", 0)
OUT_OF_MEMORY = Code("CUDA_ERROR_OUT_OF_MEMORY", 2)
ILLEGAL_ADDRESS = Code("CUDA_ERROR_ILLEGAL_ADDRESS", 700)
INVALIDATED = Code("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", 901)
WORDS = {OUT_OF_MEMORY: b"out of memory", ILLEGAL_ADDRESS: b"an illegal memory access was encountered"}
Work = Callable[[], None]


@dataclass
class FakeDriver:
    """``alive`` is what is not freed, by kind; ``calls`` is the order of functions; ``failing`` the next error of each."""

    CUstreamCaptureMode: Any = field(
        default_factory=lambda: SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread local")
    )
    failing: dict[str, Code] = field(default_factory=dict)
    largest: int = 1 << 30  # bytes that one allocation may have
    calls: list[str] = field(default_factory=list)
    alive: dict[str, dict[int, Any]] = field(default_factory=dict)
    queue: list[tuple[float, Work]] = field(default_factory=list)
    recording: list[tuple[float, Work]] | None = None
    clock_ms: float = 0.0
    current: int = 0
    _next: int = 100

    def _code(self, name: str) -> Code:
        self.calls.append(name)
        return self.failing.pop(name, OK)

    def _made(self, kind: str, thing: Any) -> int:
        self._next += 1
        self.alive.setdefault(kind, {})[self._next] = thing
        return self._next

    def _gone(self, kind: str, handle: int) -> tuple[Code]:
        del self.alive[kind][int(handle)]  # a KeyError is a double free
        return (OK,)

    @property
    def leaks(self) -> dict[str, int]:
        return {kind: len(things) for kind, things in self.alive.items() if things}

    def put(self, work: Work, cost_ms: float) -> None:
        assert "stream" in self.alive
        (self.queue if self.recording is None else self.recording).append((cost_ms, work))

    def cuInit(self, flags: int) -> tuple[Code]:
        return (self._code("cuInit"),)

    def cuDeviceGet(self, ordinal: int) -> tuple[Code, int]:
        assert ordinal == 0
        return self._code("cuDeviceGet"), 7

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[Code, int]:
        return self._code("cuDevicePrimaryCtxRetain"), self._made("context", device)

    def cuDevicePrimaryCtxRelease(self, device: int) -> tuple[Code]:
        (handle,) = self.alive["context"]
        return self._gone("context", handle)

    def cuCtxSetCurrent(self, context: int) -> tuple[Code]:
        assert context in self.alive["context"]
        self.current = context
        return (self._code("cuCtxSetCurrent"),)

    def cuGetErrorString(self, code: Code) -> tuple[Code, bytes | None]:
        return OK, WORDS.get(code)

    def cuMemGetInfo(self) -> tuple[Code, int, int]:
        return OK, FREE, TOTAL

    def _allocated(self, name: str, kind: str, size: int) -> tuple[Code, int]:
        code = self._code(name)
        if int(code) or size > self.largest:
            return (code if int(code) else OUT_OF_MEMORY), 0
        memory = ctypes.create_string_buffer(b"\xff" * size, size)  # what memory holds that nobody has written to
        address = ctypes.addressof(memory)
        self.alive.setdefault(kind, {})[address] = memory
        return OK, address

    def cuMemAlloc(self, size: int) -> tuple[Code, int]:
        return self._allocated("cuMemAlloc", "device memory", size)

    def cuMemFree(self, address: int) -> tuple[Code]:
        return self._gone("device memory", address)

    def cuMemHostAlloc(self, size: int, flags: int) -> tuple[Code, int]:
        return self._allocated("cuMemHostAlloc", "host memory", size)

    def cuMemFreeHost(self, address: int) -> tuple[Code]:
        return self._gone("host memory", address)

    def cuMemcpyHtoDAsync(self, target: int, source: int, size: int, stream: int) -> tuple[Code]:
        assert target in self.alive["device memory"]
        assert source in self.alive["host memory"]
        self.put(lambda: void(ctypes.memmove(target, source, size)), COPY_MS)
        return (self._code("cuMemcpyHtoDAsync"),)

    def cuMemcpyDtoHAsync(self, target: int, source: int, size: int, stream: int) -> tuple[Code]:
        assert target in self.alive["host memory"]
        assert source in self.alive["device memory"]
        self.put(lambda: void(ctypes.memmove(target, source, size)), COPY_MS)
        return (self._code("cuMemcpyDtoHAsync"),)

    def cuStreamCreate(self, flags: int) -> tuple[Code, int]:
        code = self._code("cuStreamCreate")
        return code, 0 if int(code) else self._made("stream", None)

    def cuStreamDestroy(self, stream: int) -> tuple[Code]:
        return self._gone("stream", stream)

    def cuStreamSynchronize(self, stream: int) -> tuple[Code]:
        assert self.recording is None
        work, self.queue = self.queue, []
        for cost_ms, step in work:
            self.clock_ms += cost_ms
            step()
        return (self._code("cuStreamSynchronize"),)

    def cuStreamBeginCapture(self, stream: int, mode: object) -> tuple[Code]:
        assert mode == "thread local"
        self.recording = []
        return (self._code("cuStreamBeginCapture"),)

    def cuStreamEndCapture(self, stream: int) -> tuple[Code, int]:
        recorded, self.recording = self.recording, None
        code = self._code("cuStreamEndCapture")
        return code, 0 if int(code) else self._made("graph", recorded)

    def cuGraphInstantiate(self, graph: int, flags: int) -> tuple[Code, int]:
        code = self._code("cuGraphInstantiate")
        return code, 0 if int(code) else self._made("executable graph", self.alive["graph"][graph])

    def cuGraphDestroy(self, graph: int) -> tuple[Code]:
        return self._gone("graph", graph)

    def cuGraphExecDestroy(self, graph: int) -> tuple[Code]:
        return self._gone("executable graph", graph)

    def cuGraphLaunch(self, graph: int, stream: int) -> tuple[Code]:
        self.queue += self.alive["executable graph"][graph]
        return (self._code("cuGraphLaunch"),)

    def cuEventCreate(self, flags: int) -> tuple[Code, int]:
        code = self._code("cuEventCreate")
        return code, 0 if int(code) else self._made("event", [None])

    def cuEventDestroy(self, event: int) -> tuple[Code]:
        return self._gone("event", event)

    def cuEventRecord(self, event: int, stream: int) -> tuple[Code]:
        moment = self.alive["event"][event]
        self.put(lambda: moment.__setitem__(0, self.clock_ms), 0.0)
        return (self._code("cuEventRecord"),)

    def CUresult(self, code: int) -> Code:
        return Code("CUDA_SUCCESS" if code == 0 else "another", code)

    def elapsed_ms(self, start: int, end: int) -> tuple[int, float]:
        """In place of ``cuda.event_elapsed_ms``."""
        events = self.alive["event"]
        return 0, events[end][0] - events[start][0]


def void(_: object) -> None:
    """For a lambda that is wanted for its effect."""


def expected(images: Any) -> Any:
    """What the engine computes: the mean of each image, times 1 to 4."""
    means = images.astype(np.float32).mean(axis=(1, 2, 3))
    return (means[:, None] * np.arange(1, CLASSES + 1, dtype=np.float32)).astype(np.float32)


@dataclass
class FakeContext:
    driver: FakeDriver
    profile: int = 0
    capturable: bool = True
    asked: list[Any] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    addresses: dict[str, int] = field(default_factory=dict)
    warm: bool = False

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.asked.append(("profile", profile))
        self.shape, self.addresses = (), {}
        return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        self.asked.append((name, tuple(shape)))
        self.warm = self.warm and self.shape == tuple(shape)
        self.shape = tuple(shape)
        return True

    def infer_shapes(self) -> Sequence[str]:
        return [] if self.shape else ["images"]

    def get_tensor_shape(self, name: str) -> Sequence[int]:
        assert name == "logits"
        return (self.shape[0], CLASSES)

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address in self.driver.alive["device memory"]
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream in self.driver.alive["stream"]
        self.driver.calls.append("execute")
        if self.driver.recording is not None and not (self.capturable and self.warm):
            return False
        self.warm = True
        addresses, shape = dict(self.addresses), self.shape

        def compute() -> None:
            images = view(addresses["images"], np.float16, shape)
            view(addresses["logits"], np.float32, (shape[0], CLASSES))[...] = expected(images)

        self.driver.put(compute, ENGINE_MS)
        return True


def view(address: int, dtype: type, shape: tuple[int, ...]) -> Any:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype).reshape(shape)


class FakeEngine:
    """images (N, 3, H, W) in FP16 -> logits (N, 4) in FP32."""

    def __init__(self, driver: FakeDriver, profiles: Sequence[Sequence[tuple[int, ...]]], dtype: str = "HALF") -> None:
        self.driver, self.profiles = driver, profiles
        self.contexts: list[FakeContext] = []
        self.roomy = True
        self._tensors = {"images": ("INPUT", dtype, (-1, 3, -1, -1)), "logits": ("OUTPUT", "FLOAT", (-1, CLASSES))}
        self.num_io_tensors = len(self._tensors)
        self.num_optimization_profiles = len(profiles)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name=self._tensors[name][0])

    def get_tensor_dtype(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name=self._tensors[name][1])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name][2]

    def get_tensor_profile_shape(self, name: str, profile: int) -> Sequence[Sequence[int]]:
        assert name == "images"
        return [list(shape) for shape in self.profiles[profile]]

    def create_execution_context(self) -> FakeContext | None:
        if not self.roomy:
            return None
        self.contexts.append(FakeContext(self.driver))
        return self.contexts[-1]


class FakeTensorRT:
    """The module: its runtime gives the one engine, or none."""

    __name__, __version__ = "tensorrt", "10.13.0"

    class ILogger:
        def __init__(self) -> None:
            pass

    class IErrorRecorder(ILogger):
        pass

    def __init__(self, engine: FakeEngine | None) -> None:
        self.engine = engine

    def Runtime(self, logger: object) -> SimpleNamespace:
        def deserialize(plan: bytes) -> FakeEngine | None:
            if self.engine is None:
                logger.log(SimpleNamespace(name="ERROR"), "magicTagRead == magicTag")  # type: ignore[attr-defined]  # a logger is any object here
            return self.engine

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


def feeds(batch: int, size: int = 8, seed: int = 0) -> Mapping[str, Any]:
    images = np.random.default_rng(seed).standard_normal((batch, 3, size, size))
    return {"images": images.astype(np.float16)}
