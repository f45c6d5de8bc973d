"""What every backend is: a module with ``probe`` and ``open_session``, and a Session that runs checked feeds.

Feeds and outputs are numpy arrays by name. They are validated here, once, for all backends.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from skdeploy.core.errors import UsageError
from skdeploy.core.packages import Availability
from skdeploy.core.spec import TensorSpec

Array = NDArray[Any]


class Session(AbstractContextManager["Session"], abc.ABC):
    """An artifact ready to run. Close it, or use it as a context manager; a closed session does not run."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    _closed = False

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name. Raises UsageError if a feed is missing, unknown or not as ``inputs`` says, or after ``close``."""
        if self._closed:
            raise UsageError("this session is closed", advice="open the artifact again")
        validate_feeds(self.inputs, feeds)
        return self._run(feeds)

    @abc.abstractmethod
    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]: ...

    def close(self) -> None:
        """Frees what the session holds."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Backend(Protocol):
    """The module interface. ``artifact`` is a file of ``format``; ``options`` are the backend's own, documented there."""

    NAME: str
    FORMAT: str

    def probe(self) -> Availability: ...

    def open_session(self, artifact: Path) -> Session: ...


BACKENDS: Final = ("torch", "onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt", "tensorrt_rtx")


def backend(name: str) -> ModuleType:
    """The module of one backend by name. Raises UsageError."""
    if name not in BACKENDS:
        raise UsageError(f"no backend named {name!r}", advice=f"backends: {', '.join(BACKENDS)}")
    return import_module(f"skdeploy.backends.{name.replace('-', '_')}")


def validate_feeds(inputs: Sequence[TensorSpec], feeds: Mapping[str, Array]) -> None:
    """Checks names, dtypes and shapes; equal names of dynamic dimensions must have equal sizes. Raises UsageError."""
    expected = {spec.name: spec for spec in inputs}
    missing, unknown = expected.keys() - feeds.keys(), feeds.keys() - expected.keys()
    if missing or unknown:
        raise UsageError(
            f"feeds do not match the inputs: missing {sorted(missing)}, unknown {sorted(unknown)}",
            advice=f"inputs: {'; '.join(map(str, inputs))}",
        )
    sizes: dict[str, int] = {}
    for name, spec in expected.items():
        array = feeds[name]
        if array.dtype != np.dtype(spec.dtype):
            raise UsageError(f"input {name!r} has dtype {array.dtype}, expected {spec.dtype}")
        if array.ndim != len(spec.shape):
            raise UsageError(f"input {name!r} has shape {array.shape}, expected {spec}")
        for size, dimension in zip(array.shape, spec.shape, strict=True):
            wanted = sizes.setdefault(dimension, size) if isinstance(dimension, str) else dimension
            if size != wanted or size < 1:
                raise UsageError(f"input {name!r} has shape {array.shape}, expected {spec}")
