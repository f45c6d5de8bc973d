"""Whether ONNX Runtime's providers for NVIDIA GPUs work here and, if not, what is missing and how to get it."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from skdeploy import engines
from skdeploy.backends.onnxruntime_gpu import TF32_OVERRIDE, CudaOptions, GpuOptions, TensorRTOptions
from skdeploy.core.errors import DependencyError, EngineError, SkdeployError, UsageError
from skdeploy.core.packages import Availability, require
from skdeploy.devices import cuda

INSTALL: Final = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"  # one of them, not both
LIBRARIES: Final = (
    'install CUDA and cuDNN of the versions that ONNX Runtime asks for: pip install "onnxruntime-gpu[cuda,cudnn]"'
)
_TENSORRT_LIBRARY: Final = re.compile(r"libnv(?:infer|onnxparser)\w*\.so\.(\d+)")
_LIBRARIES: Final = {
    "CUDAExecutionProvider": "libonnxruntime_providers_cuda.so",
    "TensorrtExecutionProvider": "libonnxruntime_providers_tensorrt.so",
}


def problem(ort: Any, options: GpuOptions) -> SkdeployError | None:
    """Why a provider cannot work here, if that can be seen without opening a graph; None if it may. Loads its libraries."""
    provider, devices = options.PROVIDER, cuda.devices()
    if provider not in ort.get_available_providers():
        here = "" if devices else f"; and there is no GPU here: {cuda.driver_problem()}"
        return DependencyError(
            f"this build of ONNX Runtime {ort.__version__} has no {provider}{here}",
            advice=f"{INSTALL} (on Jetson NVIDIA's own package)",
        )
    if not devices:
        return DependencyError(
            f"no GPU for {provider}: {cuda.driver_problem()}",
            advice="run on a machine with an NVIDIA GPU and driver, or with --backend onnxruntime",
        )
    if options.device >= len(devices):
        found = ", ".join(f"{gpu.index} {gpu.name}" for gpu in devices)
        return UsageError(f"there is no GPU number {options.device}", advice=f"the GPUs are {found}")
    driver = old_driver(built_for_cuda(), cuda.driver_version(), provider)
    if driver is not None:
        return driver
    _load_libraries(ort, options)
    folder = Path(str(ort.__file__)).parent / "capi"
    missing = missing_library(folder, provider)
    if missing is None and provider == TensorRTOptions.PROVIDER:
        missing = missing_library(
            folder, CudaOptions.PROVIDER
        )  # it opens no graph without the other: "CUDA Provider not available"
    return missing


def old_driver(built_for: str, serves: str, provider: str) -> DependencyError | None:
    """Whether a driver is too old. Within a major version of CUDA any of its drivers will do (minor version compatibility)."""
    if not built_for or not serves or int(built_for.partition(".")[0]) <= int(serves.partition(".")[0]):
        return None
    return DependencyError(
        f"the NVIDIA driver is too old for {provider}: it supports CUDA {serves}, but this ONNX Runtime is "
        f"built for {built_for}",
        advice="install a newer driver, or an onnxruntime-gpu built for an older CUDA",
    )


def built_for_cuda() -> str:
    """The CUDA version that the installed ONNX Runtime is built for, like "12.8"; empty for a build that does not tell."""
    return str(getattr(importlib.import_module("onnxruntime.capi.build_and_package_info"), "cuda_version", "") or "")


def _load_libraries(ort: Any, options: GpuOptions) -> None:
    """Loads CUDA, cuDNN and TensorRT from their Python packages, if they are installed so: the provider does not find them."""
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(
            io.StringIO()
        ):  # it prints what it does not find, which is told by missing_library
            ort.preload_dlls()
    if options.PROVIDER == TensorRTOptions.PROVIDER:
        # Its TF32 cannot be forbidden otherwise, and TensorRT reads this when it builds. Who has set it is not overruled.
        os.environ.setdefault(TF32_OVERRIDE, "0")
    if options.PROVIDER == TensorRTOptions.PROVIDER and engines.installed("tensorrt"):
        engines.load("tensorrt")


def missing_library(folder: Path, provider: str) -> DependencyError | None:
    """The error of a provider whose library in ``folder`` does not load, in the loader's words; None if it does.

    ONNX Runtime itself drops such a provider with a warning. A build that has its provider in another library passes.
    """
    library = folder / _LIBRARIES.get(provider, "in none of its own libraries")
    if not library.exists():
        return None
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return DependencyError(
            f"cannot load {provider}: {error}{_other_tensorrt(str(error))}", advice=_cure(str(error))
        )
    return None


def _other_tensorrt(words: str) -> str:
    """That a TensorRT is installed, and not the one that is wanted: ``pip install tensorrt`` gives 11 or later."""
    wanted = _TENSORRT_LIBRARY.search(words)
    if wanted is None or not engines.installed("tensorrt"):
        return ""
    return f"; it needs TensorRT {wanted[1]}, but {engines.version('tensorrt')} is installed"


def _cure(words: str) -> str:
    """Find what to install, from the loader's message, which names the missing library and its version."""
    tensorrt = _TENSORRT_LIBRARY.search(words)
    if tensorrt is not None:
        return f'this ONNX Runtime is built for TensorRT {tensorrt[1]}: pip install "tensorrt=={tensorrt[1]}.*"'
    if "libcuda.so" in words:
        return "install the NVIDIA driver; in a container, run it with --gpus all"
    return LIBRARIES


def dropped(provider: str, left: Sequence[str]) -> DependencyError:
    """The error of a session that was opened with ``provider`` and came without it; ``left`` are those that it has."""
    return DependencyError(
        f"ONNX Runtime dropped {provider} without an error: {', '.join(left)} would run the graph", advice=LIBRARIES
    )


def opening_error(words: str, provider: str, shown: str) -> SkdeployError:
    """Explain ONNX Runtime's exception on opening a graph, from its text, ``words``."""
    cuda_failure = re.search(r"CUDA failure \d+: [^;\n]*[^;\s]", words)  # after it come files and lines of its source
    first = cuda_failure[0] if cuda_failure is not None else words.partition("\n")[0]
    if "fallback to CPU EP has been explicitly disabled" in words:
        return EngineError(
            f"{provider} does not run all of {shown}: part of it would run on the CPU",
            advice="ONNX Runtime 1.24 and later can show which nodes: update it, or use --backend onnxruntime",
        )
    if "CUDA Provider not available" in words:  # TensorRT's provider runs beside it
        return DependencyError(
            f"{provider} needs ONNX Runtime's CUDA provider, which cannot be loaded", advice=LIBRARIES
        )
    if "driver version is insufficient" in words:
        return DependencyError(
            f"the NVIDIA driver is too old for {provider}: {first}",
            advice="install a newer driver, or an onnxruntime-gpu built for an older CUDA",
        )
    if "out of memory" in words or "Failed to allocate memory" in words:
        return EngineError(
            f"{provider} has too little GPU memory for {shown}: {first}",
            advice="free GPU memory, or set --backend-option memory-mib=N or workspace-mib=N to another value",
        )
    return EngineError(f"{provider} cannot open {shown}: {first}", advice="`skdeploy doctor` shows what works here")


def probe(options: GpuOptions) -> Availability:
    """Whether a provider works here: in this build, with a GPU, a driver for it and its libraries. Never raises."""
    name = options.BACKEND
    try:
        ort: ModuleType = require("onnxruntime", extra="gpu")
        version = str(ort.__version__)
        found = problem(ort, options)
        if found is not None:
            return Availability(name, False, version, reason=found.message, install=found.advice)
    except SkdeployError as error:
        return Availability(name, False, reason=error.message, install=error.advice)
    except Exception as error:  # noqa: BLE001  (a broken native package can raise anything; the reason is told)
        return Availability(name, False, reason=f"onnxruntime does not work: {error}", install=INSTALL)
    gpu = cuda.devices()[options.device]
    return Availability(name, True, version, f"{gpu.name}, compute capability {gpu.compute_capability}")
