"""NVIDIA TensorRT 10.x and 11.x: builds on the GPU that will run the engine, and for it alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from skdeploy import engines
from skdeploy.devices import cuda

NAME: Final = "tensorrt"
LABEL: Final = "TensorRT"
EXTRA: Final = "tensorrt"
DISTRIBUTIONS: Final = ("tensorrt", "tensorrt_cu13", "tensorrt_cu12")
AHEAD_OF_TIME: Final = False
TAG: Final = b"ftrt"
HEADER_BYTES: Final = 28
SERVES: Final = ()
NOTES: Final[Mapping[str, str]] = {}
# Where a fact is not in the API's own reference (IBuilderConfig, BuilderFlag, HardwareCompatibilityLevel), it is said here:
# - same-cc came with TensorRT 10.9, and 10.8 lacks it, say users of trtexec; no release note of NVIDIA's was found that does.
# - DLA: NVIDIA, "Working with DLA" of TensorRT 11.4.1: AGX Orin with JetPack 7.2.2 and 11.4.1; none on Jetson from 11.0 to
#   11.4.0. That 10.x takes no strongly typed network on a DLA, and skdeploy builds no other, is users' word too.
TAKES: Final = {
    "tactic_bytes": (10, 0),
    "optimization_level": (10, 0),
    "timing_cache": (10, 0),
    "version_compatible": (10, 0),
    "ampere+": (10, 0),
    "same-cc": (10, 9),
    "strip": (10, 0),
    "dla_core": (11, 4, 1),
}
LACKS: Final = {
    "compute_capabilities": "TensorRT builds for the GPU that it runs on",
    "dla_core": "DLA takes strongly typed networks, the only ones that skdeploy builds, from TensorRT 11.4.1 on",
}
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


def read_header(plan: bytes) -> tuple[str, tuple[str, ...]]:
    """Return a plan's problem and its compute capabilities; TensorRT's header has neither."""
    del plan
    return "", ()
