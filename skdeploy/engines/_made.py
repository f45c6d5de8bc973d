"""Objects that TensorRT makes, or cannot: a constructor then raises pybind11's TypeError, a method answers None."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from skdeploy.core.errors import DependencyError, EngineError
from skdeploy.engines._api import Builder, Compiler, Network, Runtime
from skdeploy.engines._log import Log

Made = TypeVar("Made")
DRIVER: Final = "check the NVIDIA driver with nvidia-smi: it may be too old for this TensorRT"
MEMORY: Final = "free GPU memory, or build an engine with a smaller largest batch"


def made(
    trt: Compiler,
    log: Log,
    what: str,
    make: Callable[[], Made | None],
    *,
    advice: str = DRIVER,
    error: type[EngineError | DependencyError] = EngineError,
) -> Made:
    """Return what ``make`` makes. Raises ``error`` with the compiler's reasons, of ``log``, if that is null."""
    try:
        found = make()
    except TypeError as refusal:
        if "nullptr" not in str(refusal):  # pybind11: "factory function returned nullptr"
            raise
        found = None
    if found is None:
        raise error(f"{trt.__name__} {trt.__version__} cannot make {what}: {log.reasons()}", advice=advice)
    return found


def builder(trt: Compiler, logger: object, log: Log) -> Builder:
    """Return a builder. Raises EngineError."""
    return made(trt, log, "a builder on this machine", lambda: trt.Builder(logger))


def network(trt: Compiler, log: Log, by: Builder) -> Network:
    """Return an empty network whose types are those of the graph. Raises EngineError."""
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.__members__["STRONGLY_TYPED"])
    return made(trt, log, "a network", lambda: by.create_network(strongly_typed))


def runtime(trt: Compiler, logger: object, log: Log) -> Runtime:
    """Return a runtime. Raises DependencyError: without one, no engine runs on this machine."""
    return made(trt, log, "a runtime on this machine", lambda: trt.Runtime(logger), error=DependencyError)
