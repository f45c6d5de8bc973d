"""Trained weights into a network, without running code from the file."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from skdeploy.checkpoints.check import check_state
from skdeploy.checkpoints.hub import is_hub_url, resolve_weights
from skdeploy.checkpoints.read import read_checkpoint
from skdeploy.checkpoints.weights_record import WeightsRecord
from skdeploy.core.errors import IntegrityError, WeightsError
from skdeploy.core.files import digest_file
from skdeploy.core.packages import EXTRAS, require
from skdeploy.core.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor, nn


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
            f"the card {card} names weights that cannot be looked for: {reason}",
            advice="correct weights.file in the card",
        ) from error
    if not inside:
        raise WeightsError(f"the card {card} names weights outside its folder: {spec.weights.file}")
    if not there:
        what = "not a file" if path.exists() else "not there"
        raise WeightsError(
            f"the card {card} names weights that are {what}: {path}", advice="give others with --weights"
        )
    digest = _digest(path)
    if digest != spec.weights.sha256:
        raise WeightsError(
            f"{path} is not the file that the card names: sha256 {digest}, card {spec.weights.sha256}",
            advice="restore the file, or give it with --weights to use it all the same",
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
