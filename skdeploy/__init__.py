"""skdeploy: trained Selective Kernel Networks to verified inference engines.

``import skdeploy`` is cheap: the names below load what they need when they are first used.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from skdeploy.core import cpu
from skdeploy.core.version import __version__

if TYPE_CHECKING:
    from skdeploy.bundle.folder import load_bundle as load_bundle
    from skdeploy.line.export import export as export
    from skdeploy.line.export import verify as verify
    from skdeploy.line.options import ExportOptions as ExportOptions
    from skdeploy.zoo.attach import attach_selective_kernels as attach_selective_kernels

__all__ = ["ExportOptions", "__version__", "attach_selective_kernels", "export", "load_bundle", "verify"]

# Both are read when a package below is imported, here or in a program that we start; what the user has set holds.
# ONNX Runtime's wheels send figures on their use to Microsoft, and keep an identity of the machine in ~/.cache.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
if (limit := cpu.thread_limit()) is not None:  # torch and numpy see no CPU quota
    os.environ.setdefault("OMP_NUM_THREADS", str(limit))

_HOMES = {
    "attach_selective_kernels": "skdeploy.zoo.attach",
    "ExportOptions": "skdeploy.line.options",
    "export": "skdeploy.line.export",
    "load_bundle": "skdeploy.bundle.folder",
    "verify": "skdeploy.line.export",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'skdeploy' has no attribute {name!r}")
    if name == "attach_selective_kernels":
        from skdeploy.core.packages import require_export

        require_export("torch")
    return getattr(import_module(_HOMES[name]), name)
