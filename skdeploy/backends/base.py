"""The interface of every backend: a module with ``probe`` and ``open_session``, and a Session that runs checked feeds.

Feeds and outputs are numpy arrays by name. They are validated here, once, for all backends.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from skdeploy.backends import BACKENDS, backend
from skdeploy.core.errors import UsageError
from skdeploy.core.packages import Availability
from skdeploy.core.spec import TensorSpec

Array = NDArray[Any]
Format = Literal["module", "onnx", "engine"]  # of what a backend runs
Device = Literal["cpu", "gpu"]


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


class Deployed(NamedTuple):
    """A session as the backend's users open it. ``text`` says how; ``threads`` are those that the CPU computes with.

    ``emulated`` says why an INT8 graph is run without INT8 kernels, as its Q/DQ in floating point; empty if it is not.
    """

    session: Session
    text: str = "default options"
    threads: int | None = None
    emulated: str = ""


class Backend(Protocol):
    """The interface of a backend's module.

    ``DISTRIBUTIONS``: the packages whose versions a receipt records, the one that runs artifacts first. ``EXTRA`` installs
    them. ``OPTIONS``: the class of ``--backend-option``, with a reader of each option in its ``READERS``; None without
    options. ``HELP`` lists the options; empty without any.

    ``open_session`` takes a file of ``FORMAT``: ``onnx`` (artifact), with ``options`` if there are OPTIONS; ``engine``
    (artifact, its ``sha256``, ``built_for`` and ``weights``); ``module`` (network, spec). If users run artifacts in another
    way than proofs do, the backend also has ``open_deployed``: a context manager of a ``Deployed`` that takes the same, and
    ``precision`` and ``threads``.
    """

    NAME: str
    FORMAT: Format
    DEVICE: Device
    DISTRIBUTIONS: tuple[str, ...]
    EXTRA: str
    HELP: str
    OPTIONS: type[Any] | None

    def probe(self) -> Availability: ...

    @property
    def open_session(self) -> Callable[..., Session]: ...


def options_of(name: str, given: Sequence[str]) -> Any:
    """The OPTIONS of a backend from ``NAME=VALUE`` texts; None for a backend that has none. Raises UsageError."""
    made = backend(name).OPTIONS
    if made is None:
        if given:
            with_options = [other for other in BACKENDS if backend(other).OPTIONS is not None]
            raise UsageError(
                f"{name} takes no --backend-option, but {given[0]} is given",
                advice=f"{' and '.join(with_options)} have options",
            )
        return None
    fields: dict[str, Any] = {}
    for text in given:
        option, equals, value = text.partition("=")
        if not equals or option not in made.READERS:
            raise UsageError(
                f"--backend-option {text}: {name} does not have this option",
                advice=f"write NAME=VALUE with one of the names {', '.join(made.READERS)}",
            )
        field, read = made.READERS[option]
        if field in fields:
            raise UsageError(f"--backend-option {option} is given twice")
        try:
            fields[field] = read(value)
        except ValueError as error:
            raise UsageError(f"--backend-option {text}: {error}") from error
    return made(**fields)


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
