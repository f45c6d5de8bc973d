"""The things that decide the bits of a result, beside the files: the packages that compute, and the kind of machine."""

from __future__ import annotations

import platform
from typing import Final

from skdeploy.bundle.artifact import tool_versions
from skdeploy.bundle.receipts import cpu_name
from skdeploy.devices import cuda

TOOLS: Final = ("skdeploy", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "pillow", "torch")


def versions() -> dict[str, str]:
    """The packages that compute, with their versions."""
    return tool_versions(TOOLS)


def machine_kind() -> str:
    """The processor, and the GPUs if there are any."""
    gpus = [f"{device.name} {device.compute_capability}" for device in cuda.devices()]
    return "; ".join([f"{platform.machine()} {cpu_name()}", *gpus])
