"""Runs a graph in ONNX Runtime's TensorRT provider, all of it, or says what it would leave to the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from skdeploy.backends import onnxruntime, onnxruntime_gpu, provider_problems
from skdeploy.backends.base import Session
from skdeploy.backends.onnxruntime_gpu import TensorRTOptions
from skdeploy.core.packages import Availability

NAME: Final = onnxruntime_gpu.TENSORRT
FORMAT: Final = "onnx"
DEVICE: Final = "gpu"
DISTRIBUTIONS: Final = ("onnxruntime-gpu", "onnxruntime", "tensorrt", "tensorrt_cu13", "tensorrt_cu12")
EXTRA: Final = "gpu"
HELP: Final = "device, batch=1/8/32, sizes, opt-level, workspace-mib, cache=FOLDER or off"
OPTIONS: Final = TensorRTOptions


def probe() -> Availability:
    """Whether this ONNX Runtime has the provider, and a GPU, driver and libraries for it. Never raises."""
    return provider_problems.probe(TensorRTOptions())


def open_session(artifact: Path, *, options: TensorRTOptions | None = None) -> Session:
    """An ONNX file on the GPU; see ``onnxruntime.open_session`` for what is checked and raised."""
    return onnxruntime.open_session(artifact, provider=options or TensorRTOptions())
