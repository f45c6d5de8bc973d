"""NVIDIA TensorRT 10.x and 11.x: builds on the GPU that will run the engine, and for it alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from skdeploy import engines
from skdeploy.core.packages import Availability
from skdeploy.engines import _build
from skdeploy.engines._build import BuildOptions, EngineReport

NAME = "tensorrt"


def probe() -> Availability:
    """Whether TensorRT imports and has a GPU. Never raises."""
    return engines.probe(NAME)


def build(
    onnx_path: Path, plan_path: Path, options: BuildOptions, on_progress: Callable[[str, float], None]
) -> EngineReport:
    """See ``_build.build``. Raises DependencyError besides, without TensorRT or without a GPU."""
    engines.demand(NAME)
    return _build.build(engines.load(NAME), onnx_path, plan_path, options, on_progress)
