"""Backends, which run artifacts: one module each, found by name and imported when needed."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final, cast

from skdeploy.core.errors import UsageError
from skdeploy.engines import COMPILERS

if TYPE_CHECKING:
    from skdeploy.backends.base import Backend, Device, Format

DEFAULT: Final = "onnxruntime"  # runs every graph, on any machine
PLANS: Final = "skdeploy.backends.plans"  # for each compiler of engines
# A new backend is one module, see ``base.Backend``, and a line here.
BACKENDS: Final[dict[str, str]] = {
    "torch": "skdeploy.backends.torch",
    DEFAULT: "skdeploy.backends.onnxruntime",
    "onnxruntime-cuda": "skdeploy.backends.onnxruntime_cuda",
    "onnxruntime-tensorrt": "skdeploy.backends.onnxruntime_tensorrt",
    **dict.fromkeys(COMPILERS, PLANS),
}


def backend(name: str) -> Backend:
    """One backend. Raises UsageError."""
    if name not in BACKENDS:
        raise UsageError(f"no backend named {name!r}", advice=f"backends: {', '.join(BACKENDS)}")
    module = import_module(BACKENDS[name])
    return cast("Backend", module.PlanBackend(name) if BACKENDS[name] == PLANS else module)


def running(*formats: Format, on: Device | None = None) -> tuple[str, ...]:
    """The names of the backends that run artifacts of these formats, on this kind of device."""
    modules = {name: backend(name) for name in BACKENDS}
    return tuple(name for name, module in modules.items() if module.FORMAT in formats and on in (None, module.DEVICE))
