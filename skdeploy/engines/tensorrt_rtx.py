"""NVIDIA TensorRT-RTX: builds on any x86-64 machine, GPU or not, for RTX GPUs from Ampere on or those named."""

from __future__ import annotations

import platform
from typing import Final

from skdeploy import engines

NAME: Final = "tensorrt_rtx"
LABEL: Final = "TensorRT-RTX"
EXTRA: Final = "rtx"
DISTRIBUTIONS: Final = ("tensorrt_rtx", "tensorrt_rtx_cu13", "tensorrt_rtx_cu12")
AHEAD_OF_TIME: Final = True
_MACHINES: Final = ("x86_64", "AMD64")  # it has wheels for no other


def obstacle() -> tuple[str, str]:
    """Why it cannot build here, and what to do; both empty if it can."""
    if platform.machine() not in _MACHINES:
        return f"it builds on x86-64 only, this is {platform.machine()}", "build on an x86-64 machine, or use TensorRT"
    return ("", "") if engines.installed(NAME) else engines.absent(NAME)
