"""The options of ONNX Runtime's providers for NVIDIA GPUs; ``provider_problems.py`` tells whether these work here.

Precision is the graph's alone. ``use_tf32`` is off for CUDA, since FP32 means FP32. For TensorRT neither ``trt_fp16_enable``
nor ``trt_int8_enable`` is given: without them the provider makes a strongly typed network, in which the types are those of the
graph, Q/DQ included. It has no option for TF32, which TensorRT allows itself in FP32, so ``NVIDIA_TF32_OVERRIDE`` forbids it.

Options and their names: onnxruntime.ai, "CUDA Execution Provider" and "TensorRT Execution Provider".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Literal, get_args

from skdeploy import engines
from skdeploy.backends.engine_cache import default_root
from skdeploy.core.errors import UsageError
from skdeploy.core.files import digest_json
from skdeploy.core.spec import TensorSpec
from skdeploy.devices import cuda

CUDA: Final = "onnxruntime-cuda"
TENSORRT: Final = "onnxruntime-tensorrt"
TF32_OVERRIDE: Final = "NVIDIA_TF32_OVERRIDE"
MIB: Final = 1 << 20
Search = Literal["exhaustive", "heuristic", "default"]
Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
Readers = Mapping[
    str, tuple[str, Callable[[str], object]]
]  # by NAME of NAME=VALUE: the field, and how its value is read


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number") from None


def _mebibytes(text: str) -> int:
    return _number(text) * MIB


def _search(text: str) -> str:
    if text not in get_args(Search):
        raise ValueError(f"one of {', '.join(get_args(Search))}")
    return text


def _on_or_off(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError("on or off")
    return text == "on"


def _three(text: str) -> list[str]:
    parts = text.split("/")
    if len(parts) != 3:
        raise ValueError("give the smallest, the most frequent and the largest, such as 1/8/32")
    return parts


def _batch(text: str) -> tuple[int, ...]:
    return tuple(_number(part) for part in _three(text))


def _sizes(text: str) -> tuple[tuple[int, ...], ...]:
    sizes = tuple(tuple(_number(side) for side in part.split("x")) for part in _three(text))
    if any(len(size) != 2 for size in sizes):
        raise ValueError("give HEIGHTxWIDTH three times, such as 112x112/224x224/448x448")
    return sizes


def _cache(text: str) -> Path | None:
    if not text:
        raise ValueError("give a folder, or off")
    return None if text == "off" else Path(text).absolute()


@dataclass(frozen=True)
class CudaOptions:
    """``device`` is the GPU's number; ``memory_bytes`` limits ONNX Runtime's arena, None not at all.

    ``convolution_search``: cuDNN's algorithms are all tried, which makes the first run of each shape slow, or guessed. ``tf32``
    rounds FP32 to 10 bits of mantissa. Raises UsageError.
    """

    BACKEND: ClassVar[str] = CUDA
    PROVIDER: ClassVar[str] = "CUDAExecutionProvider"
    READERS: ClassVar[Readers] = {
        "device": ("device", _number),
        "memory-mib": ("memory_bytes", _mebibytes),
        "convolution-search": ("convolution_search", _search),
        "tf32": ("tf32", _on_or_off),
    }

    device: int = 0
    memory_bytes: int | None = None
    convolution_search: Search = "exhaustive"
    tf32: bool = False

    def __post_init__(self) -> None:
        _require_at_least("device", self.device, 0)
        _require_at_least("memory-mib", _in_mebibytes(self.memory_bytes), 1)

    def provider_options(self, inputs: Sequence[TensorSpec] = (), folder: Path | None = None) -> dict[str, str]:
        """The options under ONNX Runtime's names; ``inputs`` and ``folder`` are not used."""
        del inputs, folder
        found = {
            "device_id": str(self.device),
            "cudnn_conv_algo_search": self.convolution_search.upper(),
            "use_tf32": str(int(self.tf32)),
        }
        if self.memory_bytes is not None:
            found |= {"gpu_mem_limit": str(self.memory_bytes), "arena_extend_strategy": "kSameAsRequested"}
        return found


@dataclass(frozen=True)
class TensorRTOptions:
    """``batch`` and ``sizes`` are the min, opt and max of what the engine takes: images, and (height, width) in pixels of a
    graph that leaves them open. ``optimization_level`` 0 to 5 and ``workspace_bytes``: None is TensorRT's default.

    ``cache`` is the folder of folders of engines, see ``engine_cache.py``; None builds anew each time. Raises UsageError.
    """

    BACKEND: ClassVar[str] = TENSORRT
    PROVIDER: ClassVar[str] = "TensorrtExecutionProvider"
    READERS: ClassVar[Readers] = {
        "device": ("device", _number),
        "batch": ("batch", _batch),
        "sizes": ("sizes", _sizes),
        "opt-level": ("optimization_level", _number),
        "workspace-mib": ("workspace_bytes", _mebibytes),
        "cache": ("cache", _cache),
    }

    device: int = 0
    batch: tuple[int, int, int] = (1, 8, 32)  # what parity runs: parity/compare.py, BATCHES and RUN_BATCH
    sizes: tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None = None
    optimization_level: int | None = None
    workspace_bytes: int | None = None
    cache: Path | Literal["default"] | None = "default"

    def __post_init__(self) -> None:
        _require_at_least("device", self.device, 0)
        _require_at_least("workspace-mib", _in_mebibytes(self.workspace_bytes), 1)
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise UsageError(f"opt-level {self.optimization_level}: must be 0 to 5")
        rows = [("batch", self.batch)]
        rows += [("sizes", side) for side in zip(*self.sizes, strict=True)] if self.sizes else []
        for name, (low, best, high) in rows:
            if not 1 <= low <= best <= high:
                raise UsageError(f"{name} {low}/{best}/{high} is not 1 <= min <= opt <= max")

    @property
    def cache_root(self) -> Path | None:
        """Where engines are kept; None if they are not."""
        return default_root() if self.cache == "default" else self.cache

    def profile(self, inputs: Sequence[TensorSpec]) -> dict[str, Shapes]:
        """(min, opt, max) shapes of each input: fixed sizes as they are. Raises UsageError for open ones without ``sizes``."""
        return {spec.name: _shapes(spec, self.batch, self.sizes) for spec in inputs}

    def provider_options(self, inputs: Sequence[TensorSpec], folder: Path | None) -> dict[str, str]:
        """The options under ONNX Runtime's names; ``folder`` is where it keeps this graph's engine, None for nowhere.

        The TensorRT provider takes "True" and "False" alone for a switch, CUDA's takes "1" and "0" too.
        """
        found = {"device_id": str(self.device), "trt_engine_cache_enable": str(folder is not None)}
        if folder is not None:
            found["trt_engine_cache_path"] = str(folder)
        if self.optimization_level is not None:
            found["trt_builder_optimization_level"] = str(self.optimization_level)
        if self.workspace_bytes is not None:
            found["trt_max_workspace_size"] = str(self.workspace_bytes)
        if any(isinstance(size, str) for spec in inputs for size in spec.shape):
            profile = self.profile(inputs)
            for at, limit in enumerate(("min", "opt", "max")):
                found[f"trt_profile_{limit}_shapes"] = ",".join(
                    f"{name}:{'x'.join(map(str, shapes[at]))}" for name, shapes in profile.items()
                )
        return found

    def engine_key(self, sha256: str, inputs: Sequence[TensorSpec], ort_version: str) -> str:
        """Equal keys, equal engines. ONNX Runtime's own names of engines leave out the weights, hence the graph's digest."""
        gpu = cuda.devices()[self.device]
        return digest_json(
            [
                sha256,
                self.provider_options(inputs, None),
                [gpu.name, gpu.compute_capability, cuda.driver_version()],
                os.environ.get(TF32_OVERRIDE),
                [ort_version, engines.version("tensorrt") if engines.installed("tensorrt") else "of the system"],
            ]
        )


GpuOptions = CudaOptions | TensorRTOptions


def _require_at_least(name: str, number: int | None, least: int) -> None:
    if number is not None and number < least:
        raise UsageError(f"{name} {number}: must be at least {least}")


def _in_mebibytes(size_bytes: int | None) -> int | None:
    """Rounded up: an option in bytes may be less than one."""
    return None if size_bytes is None else -(-size_bytes // MIB)


def _shapes(spec: TensorSpec, batch: tuple[int, int, int], sizes: Sequence[tuple[int, int]] | None) -> Shapes:
    low, best, high = (
        tuple(_size(spec, axis, batch[at], sizes[at] if sizes else None) for axis in range(len(spec.shape)))
        for at in range(3)
    )
    return low, best, high


def _size(spec: TensorSpec, axis: int, batch: int, size: tuple[int, int] | None) -> int:
    found = spec.shape[axis]
    if isinstance(found, int):
        return found
    if axis == 0:
        return batch
    if size is None or found not in ("height", "width"):
        raise UsageError(
            f"input {spec} leaves {found} open, but TensorRT needs limits for it",
            advice="give --backend-option sizes=HxW/HxW/HxW for height and width; other dimensions must be fixed",
        )
    return size[("height", "width").index(found)]
