"""skdeploy: trained Selective Kernel Networks to verified inference engines.

``import skdeploy`` is cheap: the names below load what they need when they are first used.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from skdeploy.core import cpu
from skdeploy.core import errors as errors
from skdeploy.core.version import __version__

if TYPE_CHECKING:
    from skdeploy.api.bundle import Bundle as Bundle
    from skdeploy.api.bundle import load_bundle as load_bundle
    from skdeploy.api.exporting import export as export
    from skdeploy.zoo.attach import attach_selective_kernels as attach_selective_kernels

__all__ = ["Bundle", "__version__", "attach_selective_kernels", "errors", "export", "load_bundle"]

# Both are read when a package below is imported, here or in a program that we start; what the user has set holds.
# ONNX Runtime's wheels send figures on their use to Microsoft, and keep an identity of the machine in ~/.cache.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
if (limit := cpu.thread_limit()) is not None:  # torch and numpy see no CPU quota
    os.environ.setdefault("OMP_NUM_THREADS", str(limit))

_HOMES = {
    "attach_selective_kernels": "skdeploy.zoo.attach",
    "Bundle": "skdeploy.api.bundle",
    "export": "skdeploy.api.exporting",
    "load_bundle": "skdeploy.api.bundle",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'skdeploy' has no attribute {name!r}")
    if name == "attach_selective_kernels":
        from skdeploy.core.packages import require_export

        require_export("torch")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
