"""A running Triton, asked over HTTP or gRPC; and a model of it as a session."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit
from weakref import ref

from skdeploy.backends.base import Array, Session
from skdeploy.bundle.artifact import Artifact
from skdeploy.core.errors import DependencyError, IntegrityError, SkdeployError, UsageError
from skdeploy.core.packages import require
from skdeploy.core.spec import TensorSpec
from skdeploy.serve.triton.answers import (
    About,
    Entry,
    Index,
    Kind,
    Loaded,
    ServedConfig,
    check_output,
    read_answer,
)
from skdeploy.serve.triton.config import TYPES

EXTRA: Final = "triton"
PORTS: Final = {"http": 8000, "https": 8000, "grpc": 8001, "grpcs": 8001}
ASK_S: Final = 10.0  # for what a server knows without a network: it answers in milliseconds
INFER_S: Final = 120.0  # for one batch of a large network on a CPU
MOST_BYTES: Final = 1 << 30  # of one answer: the outputs of one batch, or a list of models
# What tritonclient raises on answers that no Triton gives.
ODD: Final = (
    LookupError,
    TypeError,
    AttributeError,
    ValueError,
    ArithmeticError,
    RecursionError,
    MemoryError,
    struct.error,
)
ADVICE: Final = (
    "start it, or correct the address: by default, Triton takes http:// on port 8000 and grpc:// on port 8001, and "
    "`curl http://HOST:8000/v2/health/ready` answers"
)


@dataclass(frozen=True)
class Address:
    """Where a server is. ``scheme`` is http, https, grpc or grpcs."""

    scheme: str
    place: str

    @property
    def text(self) -> str:
        return f"{self.scheme}://{self.place}"


def read_address(url: str) -> Address:
    """An address as ``--server`` takes it. Raises UsageError."""
    advice = "such as http://127.0.0.1:8000 or grpc://127.0.0.1:8001"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"--server {url}: this is not an address: {error}", advice=f"give one {advice}") from error
    if parts.scheme not in PORTS or not parts.hostname:
        raise UsageError(f"--server {url}: this is not an address of a server", advice=f"give one {advice}")
    if (
        parts.username is not None
        or parts.query
        or parts.fragment
        or parts.path not in ("", "/")
        or not url.isprintable()
    ):
        raise UsageError(
            f"--server {url}: an address has a scheme, a host and a port, and nothing else", advice=f"give one {advice}"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return Address(parts.scheme, f"{host}:{port or PORTS[parts.scheme]}")


class TritonSession(Session):
    """The network on a server. Batches are within the server's. Raises DependencyError if it stops answering."""

    def __init__(
        self, client: Client, model: str, version: str, artifact: Artifact, names: Sequence[str], most: int
    ) -> None:
        self._client, self._model, self._version = client, model, version
        self.inputs = artifact.inputs
        self.outputs = tuple(each for each in artifact.outputs if each.name in names)
        # Of each input, the smallest, best and largest shape: what limits batches elsewhere, see ``logits.batch_limits``.
        self.profile = {each.name: ((1,), (most,), (most,)) for each in self.inputs} if most else None

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return self._client.infer(self._model, self._version, feeds, self.outputs)

    def close(self) -> None:
        super().close()
        self._client.close()


class Client:
    """Questions to a server. ``http`` and ``grpc`` differ in their arguments, and in how they fail."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._grpc = address.scheme.startswith("grpc")
        self._module = require(f"tritonclient.{'grpc' if self._grpc else 'http'}", extra=EXTRA)
        self._error = require("tritonclient.utils", extra=EXTRA).InferenceServerException
        secure = address.scheme.endswith("s")
        kind = self._module.InferenceServerClient
        if self._grpc:  # a time limit is an argument of each call
            self._client = self._runner = kind(address.place, ssl=secure)
        else:
            self._client, self._runner = (
                kind(address.place, ssl=secure, connection_timeout=ASK_S, network_timeout=limit)
                for limit in (ASK_S, INFER_S)
            )
            for each in (self._client, self._runner):
                _bound(each._client_stub, address.text)

    def about(self) -> About:
        """Its name and version. Raises DependencyError where no Triton answers."""
        found = self._asked("get_server_metadata")
        if not isinstance(found, dict) or "extensions" not in found:
            raise DependencyError(f"{self.address.text} answers, and is not a Triton server", advice=ADVICE)
        return self._read(About, found)

    def models(self) -> tuple[Entry, ...]:
        """The models of its repository."""
        found = self._asked("get_model_repository_index")
        return self._read(Index, {"models": found} if isinstance(found, list) else found).models  # gRPC wraps them

    def ready(self, model: str) -> bool:
        return bool(self._asked("is_model_ready", model))

    def version(self, model: str) -> str:
        """The latest that is loaded."""
        return max(self._read(Loaded, self._asked("get_model_metadata", model)).versions, key=int)

    def config(self, model: str) -> ServedConfig:
        found = self._asked("get_model_config", model)
        return self._read(
            ServedConfig, found.get("config", found) if isinstance(found, dict) else found
        )  # gRPC wraps it

    def infer(
        self, model: str, version: str, feeds: Mapping[str, Array], outputs: Sequence[TensorSpec], classes: int = 0
    ) -> dict[str, Array]:
        """The outputs by name; ``classes`` asks for that many of the classification extension, as ``value:number:label``."""
        given = []
        for name, array in feeds.items():
            tensor = self._module.InferInput(name, list(array.shape), _type(str(array.dtype)))
            tensor.set_data_from_numpy(array)
            given.append(tensor)
        wanted = [self._module.InferRequestedOutput(each.name, class_count=classes) for each in outputs]
        limit = {"client_timeout": INFER_S} if self._grpc else {}
        answer = self._called(
            lambda: self._runner.infer(model, given, model_version=version, outputs=wanted, **limit),
            f"{model} cannot be run",
            INFER_S,
        )
        try:
            found = {each.name: answer.as_numpy(each.name) for each in outputs}
        except ODD as error:  # bytes that are not as many as the shape says
            raise IntegrityError(
                f"{self.address.text} answers with an output of another size than it says: {error}",
                advice="look into the server's log; its Python backend may need another numpy",
            ) from error
        rows = len(next(iter(feeds.values())))
        for each in outputs:
            check_output(found[each.name], each, rows, self.address.text, classes=classes)
        return found

    def close(self) -> None:
        for each in {id(one): one for one in (self._client, self._runner)}.values():
            with suppress(Exception):  # the connection is gone already
                each.close()

    def _read(self, kind: type[Kind], found: Any) -> Kind:
        return read_answer(kind, found, self.address.text)

    def _asked(self, what: str, *arguments: str) -> Any:
        extra: dict[str, Any] = {"client_timeout": ASK_S} if self._grpc else {}
        if self._grpc and what.startswith("get_"):
            extra["as_json"] = True
        return self._called(lambda: getattr(self._client, what)(*arguments, **extra), "it cannot be asked", ASK_S)

    def _called(self, call: Callable[[], Any], what: str, limit_s: float) -> Any:
        """Raises DependencyError if no server answers, IntegrityError with the server's own words if it refuses."""
        try:
            with self._ended_after(2 * limit_s):
                return call()
        except SkdeployError:
            raise
        except self._error as error:
            said = " ".join(str(error.message()).split())
            if error.status() in (
                "StatusCode.UNAVAILABLE",
                "StatusCode.DEADLINE_EXCEEDED",
                "StatusCode.UNIMPLEMENTED",
                "499",
            ):
                raise DependencyError(
                    f"no Triton server answers at {self.address.text}: {said}", advice=ADVICE
                ) from error
            if error.status() in ("400", "404", "StatusCode.UNKNOWN") and not said:
                raise DependencyError(
                    f"{self.address.text} answers, and is not a Triton server", advice=ADVICE
                ) from error
            raise IntegrityError(
                f"{self.address.text}: {what}: {said}", advice="look into the server's log, and at `config.pbtxt`"
            ) from error
        except (
            OSError,
            ValueError,
        ) as error:  # refused, timed out, no such host; an answer that is not HTTP, or not JSON
            said = str(error) or type(error).__name__
            raise DependencyError(f"no Triton server answers at {self.address.text}: {said}", advice=ADVICE) from error
        except Exception as error:  # of tritonclient, or of geventhttpclient, whose errors have no public base
            raise IntegrityError(
                f"{self.address.text} gives an answer that is not of a Triton server: {type(error).__name__}: {error}",
                advice=ADVICE,
            ) from error

    @contextmanager
    def _ended_after(self, seconds: float) -> Iterator[None]:
        """Ends a question over HTTP: its own limits are for each piece of an answer, which may come byte by byte."""
        if self._grpc:
            yield
            return
        late = DependencyError(
            f"no Triton server answers at {self.address.text}: its answer takes over {seconds:g} s", advice=ADVICE
        )
        with require("gevent", extra=EXTRA).Timeout(seconds, late):
            yield


def _bound(stub: Any, shown: str) -> None:
    """Let geventhttpclient's client refuse answers that are too large, or unpack to more than they are."""
    request = stub.request

    def bounded(*arguments: Any, **options: Any) -> Any:
        response = request(*arguments, **options)
        if packed := response.get("Content-Encoding"):
            raise IntegrityError(f"{shown} packs its answer as {packed!r}, which nobody has asked for", advice=ADVICE)
        itself: Callable[[], Any] = ref(response)  # it gives its connection back when the last reference to it goes
        read = 0

        def counted(data: bytes) -> None:
            nonlocal read
            read += len(data)
            if read > MOST_BYTES:
                raise IntegrityError(f"{shown} answers with more than {MOST_BYTES:,} bytes", advice=ADVICE)
            answer = itself()
            type(answer).feed(answer, data)

        response.feed = counted
        return response

    stub.request = bounded


def _type(dtype: str) -> str:
    return "BYTES" if dtype == "object" else TYPES[dtype].removeprefix("TYPE_")
