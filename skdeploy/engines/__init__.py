"""From an ONNX file to a plan. Which compilers there are, which work here, and which one a target means.

Nothing here imports a compiler to answer: what is installed is read from package metadata, the GPU from the driver.
"""

from __future__ import annotations

import importlib.util
import platform
from importlib import import_module, metadata
from types import ModuleType
from typing import Final, cast

from skdeploy.core.errors import DependencyError, UsageError
from skdeploy.core.packages import Availability, require
from skdeploy.core.spec import Target
from skdeploy.devices import cuda
from skdeploy.engines._api import Compiler

COMPILERS: Final = ("tensorrt", "tensorrt_rtx")
EXTRAS: Final = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}
LABELS: Final = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
_DISTRIBUTIONS: Final = {
    "tensorrt": ("tensorrt", "tensorrt_cu13", "tensorrt_cu12"),
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_cu13", "tensorrt_rtx_cu12"),
}
_OLDEST_TENSORRT: Final = 10  # 8.x and 9.x know strong typing in part only
_RTX_MACHINES: Final = ("x86_64", "AMD64")  # TensorRT-RTX has wheels for no other


def compiler(name: str) -> ModuleType:
    """The module ``skdeploy.engines.<name>``. Raises UsageError."""
    _check(name)
    return import_module(f"skdeploy.engines.{name}")


def choose(target: Target) -> tuple[str | None, str]:
    """The compiler that ``target`` means on this machine, or None for no engine, and the reason in words.

    ``auto`` is TensorRT where it is installed and a GPU is present, else TensorRT-RTX ahead of time where it is
    installed, else none. Raises DependencyError if the target is a compiler that cannot build here.
    """
    if target is Target.ONNX:
        return None, "the target is onnx: no engine is made"
    if target is not Target.AUTO:
        demand(target.value)
        return target.value, f"the target is {target.value}"
    reasons: list[str] = []
    for name in COMPILERS:
        reason, _ = obstacle(name)
        if not reason:
            where = f"for {cuda.devices()[0].name}" if name == "tensorrt" else "ahead of time, which needs no GPU"
            return name, "; ".join([f"{LABELS[name]} {version(name)} builds {where}", *reasons])
        reasons.append(f"not {LABELS[name]}: {reason}")
    return None, "no engine is made here; " + "; ".join(reasons)


def demand(name: str) -> None:
    """Raises DependencyError if the compiler cannot build here, with the reason and what to install."""
    reason, advice = obstacle(name)
    if reason:
        raise DependencyError(f"{LABELS[name]} cannot build here: {reason}", advice=advice)


def obstacle(name: str) -> tuple[str, str]:
    """Why the compiler cannot build here, and what to do; both empty if it can. Raises UsageError: no such name."""
    _check(name)
    if name == "tensorrt_rtx" and platform.machine() not in _RTX_MACHINES:
        return f"it builds on x86-64 only, this is {platform.machine()}", "build on an x86-64 machine, or use TensorRT"
    if not installed(name):
        return f"the package {name} is not installed", install_advice(name)
    if name == "tensorrt" and int(version(name).split(".")[0]) < _OLDEST_TENSORRT:
        return f"version {version(name)} is older than {_OLDEST_TENSORRT}", install_advice(name)
    if name == "tensorrt" and not cuda.devices():
        return (
            cuda.driver_problem(),
            "build on the machine with the GPU that will run the engine, or use --target tensorrt_rtx",
        )
    return "", ""


def installed(name: str) -> bool:
    """Whether there is a package to import. A folder of type stubs of the same name is not one."""
    _check(name)
    try:
        found = importlib.util.find_spec(name)
    except ValueError:  # something without a specification was put in sys.modules under this name
        return False
    return found is not None and found.origin is not None


def version(name: str) -> str:
    """The installed version, for keys of resume. Raises DependencyError if the compiler is not installed."""
    if installed(name):
        for distribution in _DISTRIBUTIONS[name]:
            try:
                return metadata.version(distribution)
            except metadata.PackageNotFoundError:
                continue
    return load(name).__version__  # a copy without metadata, put on the path by hand


def load(name: str) -> Compiler:
    """Imports the compiler's module. Raises DependencyError: absent, or its native libraries do not load."""
    _check(name)
    try:
        return cast(Compiler, require(name, extra=EXTRAS[name]))
    except OSError as error:  # the bindings look for their native libraries themselves
        raise DependencyError(
            f"{name} is installed, but its native libraries do not load: {error}",
            advice=install_advice(name),
        ) from error


def probe(name: str) -> Availability:
    """Whether the compiler builds here, imported to be sure. Never raises for a name in ``COMPILERS``."""
    reason, advice = obstacle(name)
    if not reason:
        try:
            trt = load(name)
        except DependencyError as error:
            reason, advice = error.message, error.advice
        except Exception as error:  # noqa: BLE001  (a broken native package can raise anything; the reason is told)
            reason, advice = f"{name} does not import: {error}", install_advice(name)
        else:
            device = ", ".join(gpu.name for gpu in cuda.devices()) or "no GPU: builds ahead of time"
            return Availability(name, True, version=trt.__version__, device=device)
    return Availability(name, False, reason=reason, install=advice)


def install_advice(name: str) -> str:
    """What to install for a compiler to work."""
    return f'install it with: pip install "skdeploy[{EXTRAS[name]}]"'


def _check(name: str) -> None:
    if name not in COMPILERS:
        raise UsageError(f"no compiler named {name!r}", advice=f"compilers: {', '.join(COMPILERS)}")
