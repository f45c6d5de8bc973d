"""The part of a checkpoint that is the network, where a training module holds it beside losses, metrics or other networks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Final

from skdeploy.checkpoints.read import Checkpoint
from skdeploy.checkpoints.unwrap import WRAPPERS
from skdeploy.core.errors import WeightsError
from skdeploy.core.listing import some

MAX_DEPTH: Final = 3  # attributes inside attributes: `module.model.net.`
MIN_SHARE: Final = 0.25  # of the keys: two networks and their losses in one module
MAX_KEYS: Final = 10_000  # several times the largest network and its losses
AVERAGED: Final = ("ema", "averaged", "swa")  # in an attribute's name


def attributes(keys: Collection[str]) -> list[str]:
    """Prefixes, with their dot, that many keys have: averaged weights first, then the shortest."""
    counted: Counter[str] = Counter()
    for key in keys:
        parts = key.split(".")
        counted.update(".".join(parts[:depth]) + "." for depth in range(1, min(MAX_DEPTH + 1, len(parts))))
    found = [prefix for prefix, count in counted.items() if count >= MIN_SHARE * len(keys)]
    return sorted(found, key=lambda prefix: (not _is_averaged(prefix), len(prefix)))


def under(checkpoint: Checkpoint, prefix: str) -> Checkpoint:
    """Keep the tensors under a prefix; the others are listed as dropped."""
    tensors = checkpoint.tensors
    return replace(
        checkpoint,
        tensors={key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)},
        peeled=(*checkpoint.peeled, prefix),
        dropped=(*checkpoint.dropped, *(key for key in tensors if not key.startswith(prefix))),
    )


def without_prefix(checkpoint: Checkpoint, known: Callable[[Collection[str]], int], path: Path) -> Checkpoint:
    """The checkpoint, or the part of it under one attribute of which all keys are known; else what is known best.

    ``known`` counts the keys that have a meaning together. Raises WeightsError if several attributes are whole networks with
    other weights, and no name tells which is meant: a teacher and its student.
    """
    keys = checkpoint.tensors
    if known(keys) == len(keys) or len(keys) > MAX_KEYS:
        return checkpoint
    parts = {prefix: under(checkpoint, prefix) for prefix in attributes(keys)}
    whole = [prefix for prefix, part in parts.items() if known(part.tensors) == len(part.tensors)]
    if not whole:
        return max((checkpoint, *parts.values()), key=lambda part: known(part.tensors))
    chosen = next(filter(_is_averaged, whole), None) or next(filter(_is_usual, whole), whole[0])
    beside = [prefix for prefix in whole if not (prefix.startswith(chosen) or chosen.startswith(prefix))]
    others = [prefix for prefix in beside if _differ(parts[chosen], parts[prefix])]
    if others and not (_is_averaged(chosen) or _is_usual(chosen)):
        names = some([prefix.rstrip(".") for prefix in (chosen, *others)])
        raise WeightsError(
            f"{path} holds several networks, and their names do not show which one to use: {names}",
            advice="save only the tensors of that network, without its name in front of the keys",
        )
    return parts[chosen]


def _is_averaged(prefix: str) -> bool:
    return any(word in prefix.lower() for word in AVERAGED)


def _is_usual(prefix: str) -> bool:
    """Whether an attribute has a name that training scripts give to the network itself."""
    return prefix.rstrip(".").rpartition(".")[2] in WRAPPERS


def _differ(one: Checkpoint, other: Checkpoint) -> bool:
    """Whether two parts are networks of other weights, and not one network under two names."""
    a, b = one.tensors, other.tensors
    return a.keys() != b.keys() or any(a[key].shape != b[key].shape or not a[key].equal(b[key]) for key in a)
