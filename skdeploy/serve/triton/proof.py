"""A model of a running Triton, proven to be the bundle's before it is asked: its digest, tensors and labels."""

from __future__ import annotations

from collections.abc import Sequence

from skdeploy.bundle.artifact import Artifact, tool_versions
from skdeploy.bundle.folder import Bundle
from skdeploy.bundle.receipts import Device, RanOn
from skdeploy.bundle.served import Served
from skdeploy.core.errors import IntegrityError, UsageError
from skdeploy.parity.tasks import task_of
from skdeploy.serve.triton.answers import ServedConfig, read_labels
from skdeploy.serve.triton.client import Address, Client, TritonSession, read_address
from skdeploy.serve.triton.config import TYPES
from skdeploy.serve.triton.images import check_images
from skdeploy.serve.triton.repository import IMAGES_SUFFIX
from skdeploy.serve.triton.served import FILES

NAME = "triton"


def connect(bundle: Bundle, url: str, model: str | None) -> Served:
    """The artifact of the bundle that a server has loaded, to be run there. Where its ensemble for images is loaded too, that
    must give the same for encoded images.

    Raises UsageError for an address or a model that is not there, DependencyError if no server answers, IntegrityError if the
    model is not the bundle's: other digests, tensors or labels, or an ensemble that gives something else.
    """
    address = read_address(url)
    client = Client(address)
    try:
        about = client.about()
        name = model or bundle.manifest.model.name.replace("/", "-")
        _require_ready(client, name)
        version = client.version(name)
        config = client.config(name)
        artifact = _artifact(bundle, address, name, version, config)
        most = config.max_batch_size
        names = require_tensors(address, name, config, artifact)
        _require_labels(bundle, client, name, version, artifact)
        notes = _images(bundle, client, name, version, artifact, names)
    except BaseException:
        client.close()
        raise
    server = f"{about.name} {about.version}".strip()
    return Served(
        artifact,
        NAME,
        RanOn(
            Device(name=f"{server} at {address.text}", system=f"{name}, version {version}, {config.backend}"),
            {"server": server, **tool_versions(("tritonclient",))},
        ),
        lambda: TritonSession(client, name, version, artifact, names, most),
        notes,
    )


def _images(
    bundle: Bundle, client: Client, name: str, version: str, artifact: Artifact, names: Sequence[str]
) -> tuple[str, ...]:
    """Return in words how the ensemble answered; nothing if the server has none. Raises IntegrityError."""
    ensemble, spec = name + IMAGES_SUFFIX, bundle.manifest.model
    if ensemble not in {each.name for each in client.models()}:
        return ()
    if not spec.takes_images:
        raise IntegrityError(
            f"{client.address.text} has {ensemble}, but {spec.name} takes no images", advice="remove it from the server"
        )
    _require_ready(client, ensemble)
    outputs = [each for each in artifact.outputs if each.name in names]
    return (check_images(client, ensemble, (name, version), spec, artifact.inputs, outputs),)


def _require_ready(client: Client, name: str) -> None:
    index = client.models()
    found = [each for each in index if each.name == name]
    loaded = sorted({each.name for each in index if each.state == "READY"})
    others = (
        f"choose one that is loaded with --server-model: {', '.join(loaded)}" if loaded else "it has loaded no model"
    )
    if not found:
        raise UsageError(f"{client.address.text} has no model named {name!r}", advice=others)
    if not client.ready(name):
        why = next((each.reason for each in found if each.reason), "it is not loaded")
        raise UsageError(
            f"{client.address.text} has not loaded {name}: {' '.join(why.split())}", advice=f"load it, or {others}"
        )


def _artifact(bundle: Bundle, address: Address, name: str, version: str, config: ServedConfig) -> Artifact:
    """The bundle's artifact whose digest the model has. Raises IntegrityError if there is none."""
    keys = (f"sha256.{version}.{file}" for file in sorted(set(FILES.values())))
    digests = [config.parameters[key].string_value for key in keys if key in config.parameters]
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


def require_tensors(address: Address, name: str, config: ServedConfig, artifact: Artifact) -> tuple[str, ...]:
    """The outputs that are served. Raises IntegrityError where the server's tensors are not the artifact's."""
    where = f"{name} on {address.text}"
    sides = (("input", config.input, artifact.inputs), ("output", config.output, artifact.outputs))
    for which, tensors, recorded in sides:
        served = {each.name: each for each in tensors}
        known = {each.name: each for each in recorded}
        unknown = sorted(served.keys() - known.keys())
        absent = sorted(known.keys() - served.keys()) if which == "input" else []
        if unknown or absent:
            raise IntegrityError(
                f"{where} has the {which}s {', '.join(served)}, but {artifact.path} has {', '.join(known)}",
                advice="write the model anew with `skdeploy triton`, and do not edit its config.pbtxt",
            )
        for key, each in served.items():
            shape = known[key].shape[1:] if config.max_batch_size else known[key].shape
            wanted = [-1 if isinstance(size, str) else size for size in shape] or [1]
            if each.data_type != TYPES.get(known[key].dtype) or list(each.dims) != wanted:
                raise IntegrityError(
                    f"{where}: {key} is {each.data_type} {list(each.dims)}, but in {artifact.path} it is {known[key]}",
                    advice="write the model anew with `skdeploy triton`, and do not edit its config.pbtxt",
                )
    return tuple(each.name for each in config.output)


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
    labels = read_labels(list(answer.reshape(-1)[: len(spec.labels)]), client.address.text)
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
