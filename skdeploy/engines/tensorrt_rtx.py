"""NVIDIA TensorRT-RTX: builds on any x86-64 machine, GPU or not, for RTX GPUs from Ampere on or those named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from skdeploy import engines
from skdeploy.core.packages import Availability
from skdeploy.engines import _build
from skdeploy.engines._build import BuildOptions, EngineReport

NAME = "tensorrt_rtx"


def probe() -> Availability:
    """Whether TensorRT-RTX imports on this machine; it needs no GPU to build. Never raises."""
    return engines.probe(NAME)


def build(
    onnx_path: Path, plan_path: Path, options: BuildOptions, on_progress: Callable[[str, float], None]
) -> EngineReport:
    """See ``_build.build``. Raises DependencyError besides, without TensorRT-RTX or on a machine that is not x86-64."""
    engines.demand(NAME)
    return _build.build(engines.load(NAME), onnx_path, plan_path, options, on_progress)
