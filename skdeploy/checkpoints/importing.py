"""A checkpoint of any known layout as canonical weights, and the network that they are of. What was inferred is said."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from skdeploy.checkpoints.infer import differences, implied_by_card, infer, is_adaptable, with_layout, with_unseen
from skdeploy.checkpoints.load import check_state
from skdeploy.checkpoints.prefixes import without_prefix
from skdeploy.checkpoints.read import Checkpoint, read_checkpoint
from skdeploy.checkpoints.recognise import assemble, known, recognise
from skdeploy.checkpoints.rules import Implied
from skdeploy.checkpoints.unwrap import AVERAGED
from skdeploy.core.architecture import DescribedSpec, TrunkSpec
from skdeploy.core.errors import CardError, WeightsError
from skdeploy.core.listing import some
from skdeploy.core.spec import Assumed, AssumedArchitecture, ModelSpec
from skdeploy.zoo.assumed import architecture_of, preprocessing_of
from skdeploy.zoo.cardless import spec_without_card
from skdeploy.zoo.cards import list_cards

if TYPE_CHECKING:
    from torch import Tensor

OWN: Final = "skdeploy"


@dataclass(frozen=True)
class Imported:
    """Canonical weights, the spec that they fit exactly, the layout they came in, and what the user should know."""

    state: dict[str, Tensor]
    spec: ModelSpec
    layout: str
    notes: tuple[str, ...]


def import_checkpoint(path: Path, spec: ModelSpec) -> Imported:
    """Return the weights in ``path`` for the network of a card.

    Where a port differs from the card (biases of the gate, its width), the port wins, with a note. Any other difference in
    shapes is a WeightsError that names the right card; so is a file that is broken, unsafe, of no known layout or not finite.
    The card decides what shapes do not show, except Caffe's pool where the card does not set it.
    """
    checkpoint = without_prefix(read_checkpoint(path), known, path)
    if is_canonical(checkpoint, spec):
        from skdeploy.zoo.build import build_meta

        state = _without_counters(checkpoint.tensors)
        check_state(state, build_meta(spec).state_dict(), spec, path)
        return Imported(state, spec, OWN, _notes(checkpoint, OWN))
    read = _canonical(checkpoint, path, spec.architecture)
    adapted, other = _adapted(spec, read, path)
    changed = [
        f"{key} is {found}, not {card} as the card says"
        for key, card, found in differences(spec.architecture, adapted.architecture)
    ]
    _check_fits(read.state, adapted, path)
    notes = _notes(checkpoint, read.name, read.implied, changed)
    return Imported(read.state, adapted, read.name, (*notes, *other))


def random_weights(spec: ModelSpec, seed: int) -> Imported:
    """The initial weights of an untrained network, the same on every machine."""
    from skdeploy.zoo.build import build, initialise, require_size

    require_size(spec)
    network = build(spec)
    initialise(network, seed)
    return Imported(_without_counters(network.state_dict()), spec, OWN, ())


def import_without_card(path: Path) -> tuple[Imported, str]:
    """The weights in ``path``, for the card of the zoo that they fit, or else for one made from their shapes.

    Returns them and the name of the zoo's card, empty if there is none. Raises WeightsError.
    """
    checkpoint = without_prefix(read_checkpoint(path), known, path)
    read = _canonical(checkpoint, path)
    network, channels = read.network, read.channels
    fitting = [card for card in _fitting(network, channels) if card.network.classes == network.classes]
    fitting = fitting or _fitting(network, channels)
    base = fitting[0] if fitting else spec_without_card(path.name.split(".")[0], network, channels)
    assumed = Assumed(
        architecture=architecture_of(network, f"the layout {read.name}"),
        preprocessing=preprocessing_of(base, f"the card {base.name}" if fitting else "ImageNet's defaults"),
    )
    spec = base.of_network(network, assumed)
    _check_fits(read.state, spec, path)
    notes = _notes(checkpoint, read.name, read.implied)
    return Imported(read.state, spec, read.name, notes), fitting[0].name if fitting else ""


def save_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """Writes canonical weights as safetensors. Raises OSError, and gives the file the mode of any other new one.

    The library raises its own error for a full disk, and makes a file that only its owner may read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(_apart(state), path)
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise OSError(str(error)) from error
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
    path.chmod(mode)


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, each in memory of its own: safetensors refuses to save what shares some, or is a part of more."""
    taken: set[int] = set()
    apart: dict[str, Tensor] = {}
    for key, tensor in state.items():
        storage = tensor.untyped_storage()
        alone = storage.data_ptr() not in taken and storage.nbytes() == tensor.nbytes
        apart[key] = tensor if alone else tensor.clone()
        taken.add(storage.data_ptr())
    return apart


def is_canonical(checkpoint: Checkpoint, spec: ModelSpec) -> bool:
    """Whether more of the keys are skdeploy's own than not: then a misfit is reported in those keys."""
    from skdeploy.zoo.build import build_meta

    wanted = build_meta(spec).state_dict()
    own = sum(key in wanted or key.startswith(("stages.", "stem.")) for key in checkpoint.tensors)
    return 2 * own > len(checkpoint.tensors)


@dataclass(frozen=True)
class _Read:
    """A foreign checkpoint under canonical keys, and the network of its shapes; ``implied`` is what they do not show."""

    state: dict[str, Tensor]
    network: DescribedSpec
    channels: int
    name: str
    implied: Implied


def _canonical(checkpoint: Checkpoint, path: Path, card: DescribedSpec | None = None) -> _Read:
    """``card`` decides what a layout would imply otherwise, where that decides how shapes are read."""
    keys = list(checkpoint.tensors)
    recognised = recognise(keys, path)
    layout = recognised.layout.implied
    implied = layout if card is None else implied_by_card(card, layout)
    state = assemble(checkpoint.tensors, recognised.canonical, path)
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    network, channels = infer(shapes, implied, path, checkpoint.dropped)
    return _Read(state, network, channels, recognised.layout.name, layout)


def _check_fits(state: Mapping[str, Tensor], inferred: ModelSpec, path: Path) -> None:
    from skdeploy.zoo.build import build_meta

    try:
        wanted = build_meta(inferred).state_dict()
    except CardError as error:
        raise WeightsError(
            f"the shapes in {path} do not make a network: {error.message}",
            advice="the file is damaged, or its keys belong to another network",
        ) from error
    check_state(state, wanted, inferred, path)


def _adapted(spec: ModelSpec, read: _Read, path: Path) -> tuple[ModelSpec, tuple[str, ...]]:
    """The card's spec with the network found, if that is the card's but for a port's own ways, and what is to be said of it.

    Only what tensors show is compared: of the rest the card's word holds, whatever the layout's own networks have.
    """
    card, network = spec.architecture, with_unseen(read.network, spec.architecture)
    wrong = [row for row in differences(card, network) if not is_adaptable(row[0])]
    if read.channels != spec.input.channels:
        wrong.append(("input.channels", spec.input.channels, read.channels))
    if wrong:
        shown = "\n".join(f"  {key}: the card says {card}, the weights {found}" for key, card, found in wrong[:10])
        right = [card.name for card in _fitting(read.network, read.channels)]
        raise WeightsError(
            f"{path} ({read.name} layout) does not fit {spec.name}: the shapes of its weights are those of "
            f"another network:\n{shown}",
            advice=f"it fits {' or '.join(right)}: export that card"
            if right
            else "no card of the zoo fits it: write one",
        )
    taken = differences(network, with_layout(network, read.implied))
    other = f"the card differs from what the {read.name} layout usually has, and is followed: "
    said = "; ".join(f"{key} is {card}, usually {layout}" for key, card, layout in taken)
    adapted = spec.of_network(network, _assumed(spec, network, read.name))
    return adapted, (f"{other}{said}",) if said else ()


def _assumed(spec: ModelSpec, network: DescribedSpec, layout: str) -> Assumed:
    """The card's assumptions, and the pool's rounding if only the layout decides it."""
    card = spec.architecture
    said = isinstance(card, TrunkSpec) and card.stem.ceil_mode
    if not isinstance(network, TrunkSpec) or network.stem.ceil_mode == said:
        return spec.assumed
    before = spec.assumed.architecture or AssumedArchitecture(source=f"the layout {layout}")
    return spec.assumed.model_copy(update={"architecture": before.model_copy(update={"ceil_mode": True})})


def _fitting(network: DescribedSpec, channels: int) -> list[ModelSpec]:
    """The zoo's cards whose network this is, whatever the number of classes and a port's own ways."""
    cards = [spec for spec, _ in list_cards() if spec.image is not None and spec.image.channels == channels]
    return [spec for spec in cards if all(is_adaptable(key) for key, _, _ in differences(spec.architecture, network))]


def _notes(
    checkpoint: Checkpoint, layout: str, implied: Implied | None = None, changed: Sequence[str] = ()
) -> tuple[str, ...]:
    notes = [f"weights in the layout of {layout}"] if layout != OWN else []
    if checkpoint.peeled:
        notes.append(f"the weights were under {', '.join(checkpoint.peeled)}")
    notes += [f"uses the averaged weights, {name}" for name in checkpoint.peeled if name in AVERAGED]
    if checkpoint.dropped:
        notes.append(f"not the network's weights, left out: {some(checkpoint.dropped, 10)}")
    if changed:
        notes.append("inferred from the weights: " + "; ".join(changed))
    if implied is not None and implied.note:
        notes.append(implied.note)
    if implied is not None and implied.softmax:
        notes.append("the original network ends in a softmax; it is left out, so the outputs are logits")
    return tuple(notes)


def _without_counters(tensors: dict[str, Any]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in tensors.items() if not key.endswith("num_batches_tracked")}
