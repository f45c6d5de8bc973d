"""From an ONNX file to a plan. Which compilers there are, which work here, and which one a target means.

Nothing here imports a compiler to answer: what is installed is read from package metadata, the GPU from the driver.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, cast

from skdeploy.core.errors import DependencyError, UsageError
from skdeploy.core.packages import Availability, install_command, require
from skdeploy.core.precision import PRECISIONS
from skdeploy.devices import cuda
from skdeploy.engines._api import Compiler

if TYPE_CHECKING:
    from skdeploy.engines._build import BuildOptions, EngineReport

AUTO: Final = "auto"
ONNX: Final = "onnx"  # the target that makes no engine
# A new compiler is one module, see ``CompilerFacts``, and a line here; ``backends/plans.py`` runs its plans.
COMPILERS: Final[dict[str, str]] = {
    "tensorrt": "skdeploy.engines.tensorrt",
    "tensorrt_rtx": "skdeploy.engines.tensorrt_rtx",
}


class CompilerFacts(Protocol):
    """The interface of a compiler's module, which imports nothing heavy.

    ``NAME`` is also the package with the Python API, ``_api.Compiler``; ``DISTRIBUTIONS`` are the packages that it comes in.
    ``AHEAD_OF_TIME``: it builds without the GPU, and not for the one in this machine. ``TAKES``: the first version that takes
    each option of a build (``options.OPTIONS``); ``LACKS``: why others are not taken. ``NOTES``: what a person must know of
    its engines, by precision. ``TAG``, ``HEADER_BYTES``, ``read_header``: see ``compatibility.py``. ``SERVES``: the compute
    capabilities that it has code for; empty for all.
    """

    NAME: str
    LABEL: str
    EXTRA: str
    DISTRIBUTIONS: tuple[str, ...]
    AHEAD_OF_TIME: bool
    TAKES: Mapping[str, tuple[int, ...]]
    LACKS: Mapping[str, str]
    NOTES: Mapping[str, str]
    TAG: bytes
    HEADER_BYTES: int
    SERVES: tuple[str, ...]

    def read_header(self, plan: bytes) -> tuple[str, tuple[str, ...]]: ...

    def obstacle(self) -> tuple[str, str]: ...


def targets() -> tuple[str, ...]:
    """The possible targets: a compiler, the one that suits this machine, or none."""
    return (AUTO, *COMPILERS, ONNX)


def compiler(name: str) -> CompilerFacts:
    """The module of one compiler. Raises UsageError."""
    if name not in COMPILERS:
        raise UsageError(f"there is no compiler {name!r}", advice=f"choose one of {', '.join(COMPILERS)}")
    return cast(CompilerFacts, import_module(COMPILERS[name]))


def label(name: str) -> str:
    """The compiler's name for people."""
    return compiler(name).LABEL


def choose(target: str) -> tuple[str | None, str]:
    """The compiler that ``target`` means on this machine, or None for no engine, and the reason in words.

    ``auto`` is TensorRT where it is installed and a GPU is present, else TensorRT-RTX ahead of time where it is
    installed, else none. Raises DependencyError if the target is a compiler that cannot build here.
    """
    if target == ONNX:
        return None, "the target is onnx, so no engine is built"
    if target != AUTO:
        demand(target)
        return target, f"the target is {target}"
    reasons: list[str] = []
    for name in COMPILERS:
        reason, _ = obstacle(name)
        if not reason:
            ahead = compiler(name).AHEAD_OF_TIME
            where = "ahead of time, without a GPU" if ahead else f"for {cuda.devices()[0].name}"
            return name, "; ".join([f"{label(name)} {version(name)} builds {where}", *reasons])
        reasons.append(f"not {label(name)}: {reason}")
    return None, "no engine can be built here; " + "; ".join(reasons)


def demand(name: str) -> None:
    """Raises DependencyError if the compiler cannot build here, with the reason and what to install."""
    reason, advice = obstacle(name)
    if reason:
        raise DependencyError(f"{label(name)} cannot build here: {reason}", advice=advice)


def obstacle(name: str) -> tuple[str, str]:
    """Why the compiler cannot build here, and what to do; both empty if it can. Raises UsageError: no such name."""
    return compiler(name).obstacle()


def absent(name: str) -> tuple[str, str]:
    """The obstacle that the compiler's package is not installed."""
    return f"the package {name} is not installed", install_advice(name)


def build(
    name: str, onnx_path: Path, plan_path: Path, options: BuildOptions, on_progress: Callable[[str, float], None]
) -> EngineReport:
    """See ``_build.build``. Raises DependencyError besides if the compiler cannot build here."""
    demand(name)
    from skdeploy.engines import _build

    return _build.build(load(name), onnx_path, plan_path, options, on_progress)


def installed(name: str) -> bool:
    """Whether there is a package to import. A folder of type stubs of the same name is not one."""
    compiler(name)
    try:
        found = importlib.util.find_spec(name)
    except ValueError:  # something without a specification was put in sys.modules under this name
        return False
    return found is not None and found.origin is not None


def version(name: str) -> str:
    """The installed version, for keys of resume. Raises DependencyError if the compiler is not installed."""
    if installed(name):
        for distribution in compiler(name).DISTRIBUTIONS:
            try:
                return metadata.version(distribution)
            except metadata.PackageNotFoundError:
                continue
    return load(name).__version__  # a copy without metadata, put on the path by hand


def load(name: str) -> Compiler:
    """Imports the compiler's module. Raises DependencyError: absent, or its native libraries do not load."""
    try:
        return cast(Compiler, require(name, extra=compiler(name).EXTRA))
    except OSError as error:  # the bindings look for their native libraries themselves
        raise DependencyError(
            f"{name} is installed, but its native libraries do not load: {error}", advice=install_advice(name)
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
            reason, advice = f"cannot import {name}: {error}", install_advice(name)
        else:
            device = ", ".join(map(_in_words, cuda.devices())) or "no GPU: builds ahead of time"
            return Availability(name, True, version=trt.__version__, device=device)
    return Availability(name, False, reason=reason, install=advice)


def _in_words(gpu: cuda.CudaDevice) -> str:
    """A GPU's name, and the precisions that it does not have."""
    absent = [each.words for each in PRECISIONS.values() if not each.runs_on(gpu.compute_capability)]
    return f"{gpu.name} (no {' or '.join(absent)})" if absent else gpu.name


def install_advice(name: str) -> str:
    """Advice on what to install for a compiler."""
    return f"install it with: {install_command(compiler(name).EXTRA)}"
