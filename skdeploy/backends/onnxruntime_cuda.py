"""Runs a graph in ONNX Runtime's CUDA provider, all of it, or says what it would leave to the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from skdeploy.backends import onnxruntime, onnxruntime_gpu, provider_problems
from skdeploy.backends.base import Session
from skdeploy.backends.onnxruntime_gpu import CudaOptions
from skdeploy.core.packages import Availability

NAME: Final = onnxruntime_gpu.CUDA
FORMAT: Final = "onnx"


def probe() -> Availability:
    """Whether this ONNX Runtime has the provider, and a GPU, driver and libraries for it. Never raises."""
    return provider_problems.probe(CudaOptions())


def open_session(artifact: Path, *, options: CudaOptions | None = None) -> Session:
    """An ONNX file on the GPU; see ``onnxruntime.open_session`` for what is checked and raised."""
    return onnxruntime.open_session(artifact, provider=options or CudaOptions())
