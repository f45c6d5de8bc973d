"""Runs a graph in ONNX Runtime's CUDA provider, all of it, or says what it would leave to the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from skdeploy.backends import onnxruntime, onnxruntime_gpu, provider_problems
from skdeploy.backends.base import Deployed, Session
from skdeploy.backends.onnxruntime_gpu import CudaOptions
from skdeploy.core.packages import Availability
from skdeploy.core.spec import Precision

NAME: Final = onnxruntime_gpu.CUDA
FORMAT: Final = "onnx"
DEVICE: Final = "gpu"
DISTRIBUTIONS: Final = ("onnxruntime-gpu", "onnxruntime")
EXTRA: Final = "gpu"
HELP: Final = "device, memory-mib, convolution-search, tf32"
OPTIONS: Final = CudaOptions


def probe() -> Availability:
    """Whether this ONNX Runtime has the provider, and a GPU, driver and libraries for it. Never raises."""
    return provider_problems.probe(CudaOptions())


def open_session(artifact: Path, *, options: CudaOptions | None = None) -> Session:
    """An ONNX file on the GPU; see ``onnxruntime.open_session`` for what is checked and raised."""
    return onnxruntime.open_session(artifact, provider=options or CudaOptions())


@contextmanager
def open_deployed(
    artifact: Path, *, precision: Precision, threads: int, options: CudaOptions | None = None
) -> Iterator[Deployed]:
    """The same session: it knows the quantized operators QuantizeLinear, DequantizeLinear and MatMulInteger, and no other.

    Source: github.com/microsoft/onnxruntime, docs/FAQ.md.
    """
    del threads
    why = "its CUDA provider has none for convolutions; use onnxruntime-tensorrt or an engine"
    with open_session(artifact, options=options) as session:
        yield Deployed(session, emulated=why if precision.integer else "")
