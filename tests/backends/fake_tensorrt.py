"""An engine in host memory, as the Protocols of ``engines/_api.py`` have it, on the stream of the driver's stand-in."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.backends.stand_in import StandIn

ENGINE_MS = 1.0
CLASSES = 4


def expected(images: Any) -> Any:
    """What the engine computes: the mean of each image, times 1 to 4."""
    means = images.astype(np.float32).mean(axis=(1, 2, 3))
    return (means[:, None] * np.arange(1, CLASSES + 1, dtype=np.float32)).astype(np.float32)


@dataclass
class FakeContext:
    driver: StandIn
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
        assert self.driver.has("device memory", address)
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert self.driver.has("stream", stream)
        self.driver.note("execute")
        if self.driver.recording and not (self.capturable and self.warm):
            return False
        self.warm = True
        addresses, shape = dict(self.addresses), self.shape

        def compute() -> None:
            images = view(addresses["images"], np.float16, shape)
            view(addresses["logits"], np.float32, (shape[0], CLASSES))[...] = expected(images)

        self.driver.put(stream, compute, ENGINE_MS)
        return True


def view(address: int, dtype: type, shape: tuple[int, ...]) -> Any:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype).reshape(shape)


class FakeEngine:
    """images (N, 3, H, W) in FP16 -> logits (N, 4) in FP32."""

    def __init__(
        self, driver: StandIn | None, profiles: Sequence[Sequence[tuple[int, ...]]], dtype: str = "HALF"
    ) -> None:
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
        assert self.driver is not None
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
