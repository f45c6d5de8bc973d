"""Trained weights into a network, without running code from the file: which, whether they fit, and the network with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from skdeploy.checkpoints.hub import is_hub_url, resolve_weights
from skdeploy.checkpoints.read import read_checkpoint
from skdeploy.checkpoints.weights_record import WeightsRecord
from skdeploy.core.errors import IntegrityError, WeightsError
from skdeploy.core.files import digest_file, what_instead
from skdeploy.core.packages import EXTRAS, require
from skdeploy.core.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

SHOWN_KEYS: Final = 10
SKDEPLOY_LAYOUT: Final = "the keys must be skdeploy's own: stem, stages.S.U, classifier (see models/README.md)"


@dataclass(frozen=True)
class Network:
    """A spec with its canonical weights; the module is built when a stage first asks for it: a resumed export builds none."""

    spec: ModelSpec
    weights: Path

    @cached_property
    def module(self) -> nn.Module:
        return load_network(self.spec, self.weights)

    def forget(self) -> None:
        """Free the module's memory; it is built again when it is asked for."""
        self.__dict__.pop("module", None)


@dataclass(frozen=True)
class OwnNetwork:
    """A module that a function of the user's own built."""

    spec: ModelSpec
    module: nn.Module


def find_weights(spec: ModelSpec, card: Path, given: str | None, seed: int) -> tuple[WeightsRecord, Path | None]:
    """Which weights an export uses: the given file or ``hf://`` URL, else the card's own, else random ones from ``seed``.

    Raises WeightsError if a file is missing or the card's own is not the one it names.
    """
    if given is not None:
        return given_weights(given)
    if spec.weights is None:
        return WeightsRecord(source="random", seed=seed), None
    path = card.parent / spec.weights.file
    try:
        inside, there = path.resolve().is_relative_to(card.parent.resolve()), path.is_file()
    except (OSError, RuntimeError) as error:  # a name that is too long, links in a circle
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise WeightsError(
            f"cannot look for the weights that the card {card} names: {reason}",
            advice="correct weights.file in the card",
        ) from error
    if not inside:
        raise WeightsError(f"the card {card} names weights outside its folder: {spec.weights.file}")
    if not there:
        what = "not a file" if path.exists() else "not there"
        raise WeightsError(
            f"the card {card} names weights that are {what}: {path}", advice="give weights with --weights"
        )
    digest = _digest(path)
    if digest != spec.weights.sha256:
        raise WeightsError(
            f"{path} is not the file that the card names: its sha256 is {digest}, in the card {spec.weights.sha256}",
            advice="restore the file, or give it with --weights to use it anyway",
        )
    return WeightsRecord(source="checkpoint", file=str(path), sha256=digest), path


def given_weights(given: str) -> tuple[WeightsRecord, Path]:
    """The weights at a path or ``hf://`` URL. Raises WeightsError, and DependencyError for a URL without huggingface_hub."""
    if not is_hub_url(given):
        path = Path(given)
        _check_is_file(path)
        return WeightsRecord(source="checkpoint", file=given, sha256=_digest(path)), path
    found = resolve_weights(given)
    record = WeightsRecord(
        source="checkpoint",
        file=found.file,
        sha256=found.sha256,
        repo=found.repo,
        revision=found.revision,
        commit=found.commit,
    )
    return record, found.path


def _check_is_file(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise WeightsError(
            f"no weights at {path}: {error.strerror}", advice="give a .safetensors or PyTorch checkpoint file"
        ) from error
    if kind := what_instead(mode):
        raise WeightsError(
            f"the weights {path} are {kind}",
            advice="give a .safetensors or PyTorch checkpoint file",
        )


def _digest(path: Path) -> str:
    try:
        return digest_file(path)
    except IntegrityError as error:
        advice = "make it readable, or give another checkpoint"
        raise WeightsError(f"the weights: {error.message}", advice=advice) from error


def load_network(spec: ModelSpec, weights: Path) -> nn.Module:
    """The network in its training form, in eval mode, float32, with canonical weights from a bundle.

    Raises WeightsError if they are not the network's.
    """
    require("torch", extra=EXTRAS)
    from skdeploy.zoo.build import build_meta

    network = build_meta(spec)
    state = read_checkpoint(weights).tensors
    wanted = network.state_dict()
    check_state(state, wanted, spec, weights)
    network.load_state_dict(state | _counters(wanted, state), assign=True)
    return network.eval().requires_grad_(False)


def _counters(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The step counters of batch normalisation, which inference does not read and canonical weights do not have."""
    import torch

    return {key: torch.zeros((), dtype=torch.long) for key in wanted if key not in state}


def check_state(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], spec: ModelSpec, path: Path) -> None:
    """Raises WeightsError unless keys and shapes are the network's and every value is finite."""
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in wanted]
    if missing or unexpected:
        kinds = {"missing": missing, "unexpected": unexpected}
        shown = "\n".join(_listed(title, keys) for title, keys in kinds.items() if keys)
        raise WeightsError(f"{path} does not fit {spec.name}:\n{shown}", advice=SKDEPLOY_LAYOUT)
    classifier = state["classifier.weight"].shape
    classes = classifier[0] if len(classifier) == 2 else spec.network.classes  # else it is listed below
    if classes != spec.network.classes:
        raise WeightsError(
            f"{path} was trained for {classes} classes, but the card {spec.name} says {spec.network.classes}",
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
            advice="give the weights from training, before any quantization",
        )
    broken = [key for key, tensor in state.items() if tensor.is_floating_point() and not bool(tensor.isfinite().all())]
    if broken:
        raise WeightsError(
            f"{path} has NaN or infinite values:\n{_listed('tensors', broken)}",
            advice="the training diverged, or the file is damaged",
        )


def _listed(title: str, keys: list[str]) -> str:
    shown = "".join(f"\n    {key}" for key in keys[:SHOWN_KEYS])
    more = f"\n    ... and {len(keys) - SHOWN_KEYS} more" if len(keys) > SHOWN_KEYS else ""
    return f"  {title} ({len(keys)}):{shown}{more}"
