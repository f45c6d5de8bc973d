"""A checkpoint of any known layout to two files that need no importer: canonical weights, and the card that they fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from skdeploy.checkpoints.hub import endpoint_warnings, is_hub_url, resolve_weights
from skdeploy.checkpoints.importing import Imported, import_checkpoint, import_without_card, save_weights
from skdeploy.checkpoints.prefixes import without_prefix
from skdeploy.checkpoints.read import read_checkpoint
from skdeploy.checkpoints.recognise import OWN_KEYS, known
from skdeploy.core.errors import UsageError, WeightsError
from skdeploy.core.files import digest_file, write_text, written_whole
from skdeploy.core.packages import require_export
from skdeploy.core.spec import Assumption, ModelSpec, Reference, WeightsSpec
from skdeploy.zoo.assumed import assumptions_of
from skdeploy.zoo.cards import load_card
from skdeploy.zoo.write_card import card_text

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX: Final = ".safetensors"


@dataclass(frozen=True)
class Converted:
    """The files that were written. ``card`` is None if the given card fits the weights.

    ``base``: the card given, or the zoo's whose network this is but for a port's own ways; empty if none is.
    """

    weights: Path
    sha256: str
    card: Path | None
    spec: ModelSpec
    layout: str
    base: str
    tensors: int
    notes: tuple[str, ...]

    @property
    def assumptions(self) -> tuple[Assumption, ...]:
        """The card's values that skdeploy filled in, which it lists under ``[assumed]``."""
        return assumptions_of(self.spec)


def convert(weights: str, output: Path, card: str | None = None, *, force: bool = False) -> Converted:
    """Write the weights of a file or an ``hf://`` URL to ``output``, and their card beside it if it is inferred.

    With ``card`` (a name or a path), the weights must be those of its network; a card is then written only if the checkpoint
    differs from it, as ports do. Raises WeightsError as ``import_checkpoint`` and ``resolve_weights`` do, and for weights in
    our own names without a card: they do not show strides and dilations. CardError for the card. UsageError for an output
    that exists and may not be replaced, has another ending, or is in a folder that takes no files. IntegrityError for a full
    disk. DependencyError without the extra ``export``.
    """
    require_export("torch", "safetensors", "tomli_w")
    _check_name(output)
    _check_free(output, force)
    beside = output.with_suffix(".toml")
    if card is None:
        _check_free(beside, force)
    given, given_path = load_card(card) if card is not None else (None, None)
    path, fetched = _fetched(weights)
    imported, base = inferred(path) if given is None else (import_checkpoint(path, given), given.name)
    notes = (*fetched, *imported.notes)
    tensors = len(imported.state)
    if imported.spec == given:
        return Converted(output, _write(imported.state, output), None, given, imported.layout, base, tensors, notes)
    if given_path is not None and beside.resolve() == given_path.resolve():
        raise UsageError(
            f"the weights in {path} differ from the card {card}, so a new card is needed, which would "
            f"overwrite it: {'; '.join(imported.notes)}",
            advice="choose another file name with --output",
        )
    _check_free(beside, force)
    digest = _write(imported.state, output)
    named = WeightsSpec(file=output.name, sha256=digest)
    spec = card_of(imported, base, weights, output.stem).model_copy(update={"weights": named})
    write_text(beside, card_text(spec))
    return Converted(output, digest, beside, spec, imported.layout, base, tensors, notes)


def _check_name(output: Path) -> None:
    if output.suffix != SUFFIX:
        raise UsageError(f"the output {output} does not end in {SUFFIX}", advice=f"write NAME{SUFFIX}")
    if "\\" in output.name or not output.name.isprintable():
        raise UsageError(
            f"the output name {output.name!a} cannot be written in a card", advice="use letters and digits"
        )


def _check_free(path: Path, force: bool) -> None:
    if path.is_dir():
        raise UsageError(f"cannot write {path}: it is a folder", advice="choose another name with --output")
    if path.exists() and not force:
        raise UsageError(f"{path} already exists", advice="overwrite it with --force, or choose another --output")


def _fetched(weights: str) -> tuple[Path, tuple[str, ...]]:
    """The file, and where it came from if it was downloaded."""
    if not is_hub_url(weights):
        return Path(weights), ()
    found = resolve_weights(weights)
    said = f"downloaded {found.file} of {found.repo} at commit {found.commit}"
    return found.path, (said, *endpoint_warnings(weights))


def inferred(path: Path) -> tuple[Imported, str]:
    """The weights in a checkpoint and the network that they are of, and the zoo's card that it is made from, if any."""
    keys = without_prefix(read_checkpoint(path), known, path).tensors  # of most formats the values stay in the file
    if all(key.startswith(OWN_KEYS) for key in keys):
        raise WeightsError(
            f"{path} is in skdeploy's own layout, whose keys do not show strides, dilations and the pool",
            advice="give its card with --card",
        )
    return import_without_card(path)


def _write(state: Mapping[str, Tensor], output: Path) -> str:
    """Writes the file and returns its SHA-256."""
    with written_whole(output) as partial:
        save_weights(state, partial)
    return digest_file(output)


def card_of(imported: Imported, base: str, weights: str, name: str) -> ModelSpec:
    """The card of inferred weights: figures and licence of the one that it is made from are not theirs.

    ``weights`` is where they came from, a file or an ``hf://`` URL; ``name`` becomes the card's.
    """
    from skdeploy.zoo.build import build_meta
    from skdeploy.zoo.fold import count_macs, count_parameters

    spec = imported.spec
    network = build_meta(spec)
    # Tensors show every parameter; how often each is used is a matter of strides, which may be assumed.
    macs = None if spec.assumed.architecture else count_macs(network, spec.input.shape)
    file = weights if is_hub_url(weights) else Path(weights).name
    origin = f"from {file if file.isprintable() else ascii(file)}, {imported.layout} layout"
    stem = re.sub(r"[^a-z0-9_.-]+", "-", name.lower()).strip("-._") or "model"
    changed = {
        "name": stem,
        "summary": f"{base or 'a network of no card'}, with the weights {origin}",
        "source": spec.source.model_copy(update={"licence": "as of the weights"}),
        "reference": Reference(parameters=count_parameters(network), macs=macs),
        "weights": None,
        "training": {},
    }
    return ModelSpec.model_validate(spec.model_copy(update=changed).model_dump())
