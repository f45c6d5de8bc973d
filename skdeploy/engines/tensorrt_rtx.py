"""NVIDIA TensorRT-RTX: builds on any x86-64 machine, GPU or not, for RTX GPUs from Ampere on or those named."""

from __future__ import annotations

import platform
import struct
from typing import Final

from skdeploy import engines

NAME: Final = "tensorrt_rtx"
LABEL: Final = "TensorRT-RTX"
EXTRA: Final = "rtx"
DISTRIBUTIONS: Final = ("tensorrt_rtx", "tensorrt_rtx_cu13", "tensorrt_rtx_cu12")
AHEAD_OF_TIME: Final = True
# Tried without a GPU, 1.7.1: levels 0 to 5 and any tactic memory give the same bytes, but for 32 that differ between builds of
# one level too; it ignores a hardware level with a warning, and a DLA without a word; VERSION_COMPATIBLE asks for
# libnvinfer_lean, which it does not ship; STRIP_PLAN and REFIT fail in Myelin, CHECK(status == CUDA_SUCCESS).
_NO_TACTICS: Final = "TensorRT-RTX tries no kernels when it builds: it chooses them on the GPU that runs the engine"
_SEVERAL: Final = "TensorRT-RTX's engines run on several GPUs as they are: name them with --compute-capability"
TAKES: Final = {"compute_capabilities": (1, 0)}
LACKS: Final = {
    "tactic_bytes": _NO_TACTICS,
    "optimization_level": _NO_TACTICS,
    "timing_cache": "TensorRT-RTX has no timing cache",
    "version_compatible": "TensorRT-RTX does not ship the lean runtime that such a plan needs",
    "ampere+": _SEVERAL,
    "same-cc": _SEVERAL,
    "strip": "TensorRT-RTX cannot build a stripped plan ahead of time",
    "dla_core": "TensorRT-RTX is for RTX GPUs, and a DLA is part of a Jetson AGX Orin",
}
NOTES: Final = {
    "int8": "NVIDIA documents INT8 on TensorRT-RTX only for weights. No document says whether its GPUs run these "
    "convolutions in INT8, so measure before you rely on it"
}
TAG: Final = b"vtrt"
HEADER_BYTES: Final = 64  # ``Runtime.engine_header_size``
_BITS: Final = {0x01: "7.5", 0x02: "8.0", 0x04: "8.6", 0x08: "8.9", 0x10: "12.0", 0x20: "12.1"}
SERVES: Final = tuple(_BITS.values())
_MACHINES: Final = ("x86_64", "AMD64")  # it has wheels for no other


def obstacle() -> tuple[str, str]:
    """Why it cannot build here, and what to do; both empty if it can."""
    if platform.machine() not in _MACHINES:
        return (
            f"it builds on x86-64 only, but this is {platform.machine()}",
            "build on an x86-64 machine, or use TensorRT",
        )
    return ("", "") if engines.installed(NAME) else engines.absent(NAME)


def read_header(plan: bytes) -> tuple[str, tuple[str, ...]]:
    """Return a plan's problem, if its header shows one, and the compute capabilities that it is for.

    From plans built here for each compute capability: bytes 16 to 23 are the file's length, and bytes 32 to 39 have a bit for
    each compute capability; one of unknown meaning (0x40) is ignored.
    """
    (size,) = struct.unpack_from("<Q", plan, 16)
    if size != len(plan):
        what = "is cut off" if len(plan) < size else "has extra bytes at its end"
        return f"{what}: {len(plan)} bytes, but its header says {size}", ()
    (bits,) = struct.unpack_from("<Q", plan, 32)
    return "", tuple(name for bit, name in _BITS.items() if bits & bit)
