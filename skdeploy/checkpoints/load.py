"""Trained weights into a network, without running code from the file."""

from __future__ import annotations

import re
import stat
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from skdeploy.backends.base import require
from skdeploy.bundle.artifact import digest_file
from skdeploy.bundle.manifest import WeightsRecord
from skdeploy.errors import IntegrityError, WeightsError
from skdeploy.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

SHOWN_KEYS: Final = 10
MAX_HEADER_BYTES: Final = 100 << 20  # safetensors' own limit
SKDEPLOY_LAYOUT: Final = "the keys are skdeploy's own: stem, stages.S.U, classifier (see models/README.md)"


def find_weights(spec: ModelSpec, card: Path, given: Path | None, seed: int) -> tuple[WeightsRecord, Path | None]:
    """Which weights an export uses: the given file, else the card's own, else random ones from ``seed``.

    Raises WeightsError if a file is missing or the card's own is not the one it names.
    """
    if given is not None:
        _check_is_file(given)
        return WeightsRecord(source="checkpoint", file=str(given), sha256=_digest(given)), given
    if spec.weights is None:
        return WeightsRecord(source="random", seed=seed), None
    path = card.parent / spec.weights.file
    if not path.resolve().is_relative_to(card.parent.resolve()):
        raise WeightsError(f"the card {card} names weights outside its folder: {spec.weights.file}")
    if not path.is_file():
        raise WeightsError(
            f"the card {card} names weights that are not there: {path}", advice="give others with --weights"
        )
    digest = _digest(path)
    if digest != spec.weights.sha256:
        raise WeightsError(
            f"{path} is not the file that the card names: sha256 {digest}, card {spec.weights.sha256}",
            advice="restore the file, or give it with --weights to use it all the same",
        )
    return WeightsRecord(source="checkpoint", file=str(path), sha256=digest), path


def recorded_weights(record: WeightsRecord, given: Path | None) -> Path | None:
    """The file that a manifest's record speaks of: ``given``, or where the export found it; None for random weights.

    Raises WeightsError if it is not there or is another file now.
    """
    if record.source == "random":
        return None
    path = given or Path(record.file or "")
    if not path.is_file():
        raise WeightsError(f"the weights {path} are not here", advice="give the file with --weights")
    digest = _digest(path)
    if digest != record.sha256:
        raise WeightsError(
            f"{path} is not the file that was exported: sha256 {digest}, recorded {record.sha256}",
            advice="export again",
        )
    return path


def _check_is_file(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise WeightsError(
            f"no weights at {path}: {error.strerror}", advice="give a .safetensors or PyTorch checkpoint file"
        ) from error
    if not stat.S_ISREG(mode):
        raise WeightsError(
            f"the weights {path} are a {'folder' if stat.S_ISDIR(mode) else 'device'}, not a file",
            advice="give a .safetensors or PyTorch checkpoint file",
        )


def _digest(path: Path) -> str:
    try:
        return digest_file(path)
    except IntegrityError as error:
        raise WeightsError(
            f"the weights are not readable: {error.message}", advice="give others with --weights"
        ) from error


def load_network(spec: ModelSpec, record: WeightsRecord, path: Path | None) -> nn.Module:
    """The network in its training form, in eval mode, float32, with the weights of ``record``. Raises WeightsError."""
    require("torch")
    from skdeploy.zoo.sknet import SKNet, initialise, meta_network

    if path is None:
        network = SKNet(spec.network, spec.input.channels)
        initialise(network, record.seed or 0)
        return network.eval().requires_grad_(False)
    network = meta_network(spec)
    state = read_checkpoint(path)
    check_state(state, network.state_dict(), spec, path)
    network.load_state_dict(_complete(state, network.state_dict()), assign=True)
    return network.eval().requires_grad_(False)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state_dict in a safetensors or PyTorch file, by content, in float32 where it is floating point.

    PyTorch files are read with ``weights_only=True``. Raises WeightsError for a missing, truncated, foreign or unsafe file.
    """
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise WeightsError(f"cannot read the weights {path}: {error.strerror}") from error
    if head[:2] == b"PK" or head[:1] == b"\x80":
        state = _read_torch(path)
    elif head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER_BYTES:
        state = _read_safetensors(path)
    else:
        raise WeightsError(
            f"{path} is {'neither a safetensors file nor a PyTorch checkpoint' if head else 'empty'}",
            advice="save the weights with safetensors.torch.save_file(model.state_dict(), path)",
        )
    return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in state.items()}


def check_state(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], spec: ModelSpec, path: Path) -> None:
    """Raises WeightsError unless keys and shapes are the network's and every value is finite."""
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in wanted]
    if missing or unexpected:
        raise WeightsError(
            f"{path} does not fit {spec.name}:\n{_listed('missing', missing)}\n{_listed('unexpected', unexpected)}",
            advice=SKDEPLOY_LAYOUT,
        )
    classifier = state["classifier.weight"].shape
    classes = classifier[0] if len(classifier) == 2 else spec.network.classes  # else it is listed below
    if classes != spec.network.classes:
        raise WeightsError(
            f"{path} was trained for {classes} classes, the card {spec.name} says {spec.network.classes}",
            advice=f"copy the card and set network.classes = {classes}",
        )
    wrong = [
        f"{key}: {tuple(state[key].shape)} in the file, {tuple(tensor.shape)} in the network"
        for key, tensor in wanted.items()
        if key in state and state[key].shape != tensor.shape
    ]
    if wrong:
        raise WeightsError(
            f"{path} does not fit {spec.name}:\n{_listed('other shapes', wrong)}", advice=SKDEPLOY_LAYOUT
        )
    integers = [
        f"{key}: {state[key].dtype}"
        for key, tensor in wanted.items()
        if tensor.is_floating_point() and not state[key].is_floating_point()
    ]
    if integers:
        raise WeightsError(
            f"{path} holds weights that are not floating point:\n{_listed('tensors', integers)}",
            advice="give the weights of the training, before any quantization",
        )
    broken = [key for key, tensor in state.items() if tensor.is_floating_point() and not bool(tensor.isfinite().all())]
    if broken:
        raise WeightsError(
            f"{path} has NaN or infinite values:\n{_listed('tensors', broken)}",
            advice="the training diverged, or the file is damaged",
        )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{path} is not a whole safetensors file: {error}", advice="copy or download it again"
        ) from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    import pickle

    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # about pickle protocols and TorchScript: what fails raises, and is told below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged bytes the unpickler raises anything, IndexError and struct.error included
        unsafe = re.search(r"GLOBAL \S+", str(error))
        if unsafe:
            raise WeightsError(
                f"{path} is refused: it holds more than tensors, and reading it could run code: {unsafe[0]}",
                advice="load it where you trust it and save model.state_dict() with safetensors",
            ) from error
        if isinstance(error, pickle.UnpicklingError):
            raise WeightsError(
                f"{path} is refused: it holds something else than tensors, or is damaged: {_reason(error)}",
                advice="save model.state_dict() with safetensors where it loads",
            ) from error
        raise WeightsError(
            f"{path} is not a whole PyTorch checkpoint of tensors: {_reason(error)}",
            advice="copy it again; if that does not help, save model.state_dict() with safetensors where it loads",
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content:
        raise WeightsError(
            f"{path} holds no state_dict but a {type(content).__name__}", advice="save model.state_dict()"
        )
    others = [
        f"{key}: {type(value).__name__}"
        for key, value in content.items()
        if not (isinstance(key, str) and isinstance(value, torch.Tensor))
    ]
    if others:
        raise WeightsError(
            f"{path} holds no state_dict, in which every name has a tensor:\n{_listed('other entries', others)}",
            advice="save model.state_dict(), alone or under the key 'state_dict' or 'model'",
        )
    return {key.removeprefix("module."): tensor for key, tensor in content.items()}


def _complete(state: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adds the step counters of batch normalisation, which inference does not read and many files leave out."""
    import torch

    counters = {key: torch.zeros((), dtype=torch.long) for key in wanted if key not in state}
    return state | counters


def _listed(title: str, keys: list[str]) -> str:
    shown = "".join(f"\n    {key}" for key in keys[:SHOWN_KEYS])
    more = f"\n    ... and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
    return f"  {title} ({len(keys)}):{shown}{more}"


def _reason(error: Exception) -> str:
    """One line of what torch.load says, without its advice to load the file unsafely."""
    text = str(error)
    if "TorchScript" in text:
        return "it is a TorchScript archive, which is a program"
    lines = [line.strip() for line in text.rpartition("WeightsUnpickler error:")[2].splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
