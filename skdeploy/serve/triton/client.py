"""A running Triton as a session: the network of a bundle, asked over HTTP or gRPC, once it is proven to be the bundle's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from skdeploy.backends.base import Array, Session
from skdeploy.bundle.artifact import Artifact, tool_versions
from skdeploy.bundle.folder import Bundle
from skdeploy.bundle.receipts import Device, RanOn
from skdeploy.bundle.served import Served
from skdeploy.core.errors import DependencyError, IntegrityError, UsageError
from skdeploy.core.packages import require
from skdeploy.core.spec import TensorSpec
from skdeploy.parity.tasks import task_of
from skdeploy.serve.triton.config import TYPES
from skdeploy.serve.triton.served import FILES

NAME: Final = "triton"
EXTRA: Final = "triton"
PORTS: Final = {"http": 8000, "https": 8000, "grpc": 8001, "grpcs": 8001}
ASK_S: Final = 10.0  # for what a server knows without a network: it answers in milliseconds
INFER_S: Final = 120.0  # for one batch of a large network on a CPU
ADVICE: Final = "start it, or correct the address: `curl URL/v2/health/ready` answers on the HTTP port, 8000 by default"


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

    def about(self) -> dict[str, Any]:
        """Its name and version. Raises DependencyError where no Triton answers."""
        found = self._asked("get_server_metadata")
        if not isinstance(found, dict) or "extensions" not in found:
            raise DependencyError(f"{self.address.text} answers, and is not a Triton server", advice=ADVICE)
        return found

    def models(self) -> list[dict[str, Any]]:
        """The models of its repository: name, and state and reason where it has tried to load them."""
        found: Any = self._asked("get_model_repository_index")
        return list(found.get("models", ())) if isinstance(found, dict) else list(found)

    def ready(self, model: str) -> bool:
        return bool(self._asked("is_model_ready", model))

    def versions(self, model: str) -> list[str]:
        return list(self._asked("get_model_metadata", model)["versions"])

    def config(self, model: str) -> dict[str, Any]:
        """Its config.pbtxt, as JSON."""
        found: dict[str, Any] = self._asked("get_model_config", model)
        inner: dict[str, Any] = found.get("config", found)  # gRPC wraps it
        return inner

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
        )
        try:
            return {each.name: answer.as_numpy(each.name) for each in outputs}
        except ValueError as error:  # bytes that are not as many as the shape says
            raise IntegrityError(
                f"{self.address.text} answers with an output of another size than it says: {error}",
                advice="look into the server's log; its Python backend may need another numpy",
            ) from error

    def close(self) -> None:
        for each in {id(one): one for one in (self._client, self._runner)}.values():
            with suppress(Exception):  # the connection is gone already
                each.close()

    def _asked(self, what: str, *arguments: str) -> Any:
        extra: dict[str, Any] = {"client_timeout": ASK_S} if self._grpc else {}
        if self._grpc and what.startswith("get_"):
            extra["as_json"] = True
        return self._called(lambda: getattr(self._client, what)(*arguments, **extra), "it cannot be asked")

    def _called(self, call: Callable[[], Any], what: str) -> Any:
        """Raises DependencyError if no server answers, IntegrityError with the server's own words if it refuses."""
        try:
            return call()
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


def connect(bundle: Bundle, url: str, model: str | None) -> Served:
    """The artifact of the bundle that a server has loaded, to be run there.

    Raises UsageError for an address or a model that is not there, DependencyError if no server answers, IntegrityError if the
    model is not the bundle's: other digests, tensors or labels.
    """
    address = read_address(url)
    client = Client(address)
    try:
        about = client.about()
        name = model or bundle.manifest.model.name.replace("/", "-")
        _require_ready(client, name)
        version = max(client.versions(name), key=int)
        config = client.config(name)
        artifact = _artifact(bundle, address, name, version, config)
        most = int(config.get("max_batch_size", 0))
        names = _require_tensors(address, name, config, artifact, most)
        _require_labels(bundle, client, name, version, artifact)
    except BaseException:
        client.close()
        raise
    server = f"{about.get('name', NAME)} {about.get('version', '')}".strip()
    return Served(
        artifact,
        NAME,
        RanOn(
            Device(name=f"{server} at {address.text}", system=f"{name}, version {version}, {config.get('backend')}"),
            {"server": server, **tool_versions(("tritonclient",))},
        ),
        lambda: TritonSession(client, name, version, artifact, names, most),
    )


def _require_ready(client: Client, name: str) -> None:
    index = client.models()
    found = [each for each in index if each["name"] == name]
    loaded = sorted({each["name"] for each in index if each.get("state") == "READY"})
    others = (
        f"choose one that is loaded with --server-model: {', '.join(loaded)}" if loaded else "it has loaded no model"
    )
    if not found:
        raise UsageError(f"{client.address.text} has no model named {name!r}", advice=others)
    if not client.ready(name):
        why = next((each["reason"] for each in found if each.get("reason")), "it is not loaded")
        raise UsageError(
            f"{client.address.text} has not loaded {name}: {' '.join(why.split())}", advice=f"load it, or {others}"
        )


def _artifact(bundle: Bundle, address: Address, name: str, version: str, config: Mapping[str, Any]) -> Artifact:
    """The bundle's artifact whose digest the model has. Raises IntegrityError if there is none."""
    parameters = {key: value.get("string_value", "") for key, value in config.get("parameters", {}).items()}
    digests = [parameters[key] for file in set(FILES.values()) if (key := f"sha256.{version}.{file}") in parameters]
    if not digests:
        raise IntegrityError(
            f"{name} on {address.text} has no digest of its version {version}: `skdeploy triton` did not write it",
            advice=f"write it with `skdeploy triton {bundle.folder} -o REPOSITORY`, or name another with --server-model",
        )
    for artifact in bundle.manifest.artifacts:
        if artifact.sha256 == digests[0]:
            return artifact
    raise IntegrityError(
        f"{name} on {address.text} serves another network: its version {version} has sha256 {digests[0]}, which no artifact of "
        f"{bundle.folder} has",
        advice="name the bundle that it was written from, or write this one with `skdeploy triton --version next`",
    )


def _require_tensors(
    address: Address, name: str, config: Mapping[str, Any], artifact: Artifact, most: int
) -> tuple[str, ...]:
    """The outputs that are served. Raises IntegrityError where the server's tensors are not the artifact's."""
    where = f"{name} on {address.text}"
    for which, recorded in (("input", artifact.inputs), ("output", artifact.outputs)):
        served = {each["name"]: each for each in config.get(which, ())}
        known = {each.name: each for each in recorded}
        unknown = sorted(served.keys() - known.keys())
        absent = sorted(known.keys() - served.keys()) if which == "input" else []
        if unknown or absent:
            raise IntegrityError(
                f"{where} has the {which}s {', '.join(served)}, but {artifact.path} has {', '.join(known)}",
                advice="write the model anew with `skdeploy triton`, and do not edit its config.pbtxt",
            )
        for key, each in served.items():
            shape = known[key].shape[1:] if most else known[key].shape
            wanted = [-1 if isinstance(size, str) else size for size in shape] or [1]
            dims = [int(size) for size in each.get("dims", ())]
            if each["data_type"] != TYPES.get(known[key].dtype) or dims != wanted:
                raise IntegrityError(
                    f"{where}: {key} is {each['data_type']} {dims}, but in {artifact.path} it is {known[key]}",
                    advice="write the model anew with `skdeploy triton`, and do not edit its config.pbtxt",
                )
    return tuple(each["name"] for each in config["output"])


def _require_labels(bundle: Bundle, client: Client, name: str, version: str, artifact: Artifact) -> None:
    """Raises IntegrityError unless the classification extension answers with the card's labels."""
    import numpy as np

    spec = bundle.manifest.model
    if not spec.labels or not task_of(spec).has_classes or spec.gives_numbers:
        return
    batch = artifact.inputs[0].shape[0]
    sizes = {**({"height": spec.image.height, "width": spec.image.width} if spec.image else {}), **spec.usual_sizes}
    feeds = {
        each.name: np.zeros(
            [
                batch if isinstance(batch, int) else 1,
                *(sizes.get(s, 1) if isinstance(s, str) else s for s in each.shape[1:]),
            ],
            each.dtype,
        )
        for each in artifact.inputs
    }
    scores = spec.class_tensor.name
    logits = [each for each in artifact.outputs if each.name == scores]
    answer = client.infer(name, version, feeds, logits, classes=len(spec.labels))[scores]
    found = [re.split(rb":", bytes(each), maxsplit=2) for each in answer.reshape(-1)[: len(spec.labels)]]
    labels = {int(parts[1]): parts[2].decode() if len(parts) > 2 else None for parts in found}
    if None in labels.values():
        raise IntegrityError(
            f"{name} on {client.address.text} has no labels, but the card has {len(spec.labels)}: its labels.txt is missing",
            advice="write the model anew with `skdeploy triton`",
        )
    wrong = [number for number, label in enumerate(spec.labels) if labels.get(number) != label]
    if wrong:
        raise IntegrityError(
            f"{name} on {client.address.text} has other labels than the card: class {wrong[0]} is {labels.get(wrong[0])!r}, "
            f"and {spec.labels[wrong[0]]!r} in the card",
            advice="write the model anew with `skdeploy triton`",
        )


def _type(dtype: str) -> str:
    return TYPES[dtype].removeprefix("TYPE_")
