"""NVIDIA TensorRT 10.x and 11.x: builds on the GPU that will run the engine, and for it alone."""

from __future__ import annotations

from typing import Final

from skdeploy import engines
from skdeploy.devices import cuda

NAME: Final = "tensorrt"
LABEL: Final = "TensorRT"
EXTRA: Final = "tensorrt"
DISTRIBUTIONS: Final = ("tensorrt", "tensorrt_cu13", "tensorrt_cu12")
AHEAD_OF_TIME: Final = False
_OLDEST: Final = 10  # 8.x and 9.x know strong typing in part only


def obstacle() -> tuple[str, str]:
    """Why it cannot build here, and what to do; both empty if it can."""
    if not engines.installed(NAME):
        return engines.absent(NAME)
    version = engines.version(NAME)
    if int(version.split(".")[0]) < _OLDEST:
        return f"version {version} is older than {_OLDEST}", engines.install_advice(NAME)
    if not cuda.devices():
        advice = "build on the machine with the GPU that will run the engine, or use --target tensorrt_rtx"
        return cuda.driver_problem(), advice
    return "", ""
