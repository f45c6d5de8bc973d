"""The part of a checkpoint that is the network, where a training module holds it beside losses, metrics or other networks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Final

from skdeploy.checkpoints.read import Checkpoint

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
    return sorted(found, key=lambda prefix: (not any(word in prefix.lower() for word in AVERAGED), len(prefix)))


def under(checkpoint: Checkpoint, prefix: str) -> Checkpoint:
    """What lies under a prefix; the rest is among what was dropped."""
    tensors = checkpoint.tensors
    return replace(
        checkpoint,
        tensors={key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)},
        peeled=(*checkpoint.peeled, prefix),
        dropped=(*checkpoint.dropped, *(key for key in tensors if not key.startswith(prefix))),
    )


def without_prefix(checkpoint: Checkpoint, known: Callable[[Collection[str]], int]) -> Checkpoint:
    """The checkpoint, or the part of it under one attribute of which all keys are known; else what is known best.

    ``known`` counts the keys that have a meaning together.
    """
    keys = checkpoint.tensors
    if known(keys) == len(keys) or len(keys) > MAX_KEYS:
        return checkpoint
    parts = [under(checkpoint, prefix) for prefix in attributes(keys)]
    whole = next((part for part in parts if known(part.tensors) == len(part.tensors)), None)
    return whole or max((checkpoint, *parts), key=lambda part: known(part.tensors))
