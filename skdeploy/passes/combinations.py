"""Weighted sums of maps, read as selects: which map goes with which weight, in each channel."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Final

import numpy as np

from skdeploy.passes.gates import Gate
from skdeploy.passes.labels import Form, Labels, Leaves, Shape, Unknown

SIGMOIDS: Final = "its weights are sigmoids, which do not sum to one"
UNWEIGHED: Final = -1  # the place of a map that no weight multiplies


@dataclass(frozen=True)
class Combination:
    """``factor * sum_m a_m U_m + sum_k f_k X_k`` for each channel, read from labels.

    ``maps`` and ``logits`` are the labels of the M maps and of the logits that weigh them, both (M, C). ``added`` are the maps
    X_k that no weight multiplies, each f_k with labels (C).
    """

    maps: Labels
    logits: Labels
    factor: float
    added: tuple[tuple[float, Labels], ...]


@dataclass(frozen=True)
class _Channel:
    """A combination's maps in one channel."""

    maps: tuple[int, ...]
    factor: float
    added: dict[int, float]


def combination(form: Form, gates: list[Gate], leaves: Leaves) -> Combination:
    """Reads a weighted sum (N, C, ...) as a select. Raises Unknown where it is none."""
    gate = gates[0]
    sizes = leaves.sizes(form.shape)
    shape = sizes[0], sizes[leaves.axis]
    maps = [_channels(term.map, sizes, shape) for term in form.terms]
    weights = {k: _channels(t.weight, sizes, shape) for k, t in enumerate(form.terms) if t.weight is not None}
    groups = {k: gate.groups(labels) for k, labels in weights.items()}
    several = len({int(labels[0, 0]) for labels in maps}) > 1
    if gate.kind == "sigmoid" and several and len({int(own[0, 0]) for own in groups.values()}) > 1:
        raise Unknown(SIGMOIDS)
    if len(gates) > 1:
        names = ", ".join(gate.node.name or "" for gate in gates)
        raise Unknown(f"its weights come from {len(gates)} nodes: {names}")
    used = [leaves.first_image(labels) for labels in maps]
    positions = {k: gate.positions(labels) for k, labels in weights.items()}
    for k, own in groups.items():
        leaves.first_image(gate.members[own, 0 if gate.kind == "sigmoid" else positions[k]])
    channels: list[_Channel] = []
    logits = np.empty((gate.branches, shape[1]), dtype=np.int64)
    for channel in range(shape[1]):
        shared = {int(own[0, channel]) for own in groups.values()}
        if len(shared) != 1:
            raise Unknown("one channel is weighed by numbers that no softmax made sum to one")
        sums: dict[tuple[int, int], float] = defaultdict(float)
        for k, term in enumerate(form.terms):
            position = int(positions[k][0, channel]) if k in positions else UNWEIGHED
            sums[position, int(used[k][channel])] += term.factor
        channels.append(_products(sums, gate.branches) or _differences(sums, gate.branches))
        logits[:, channel] = gate.members[shared.pop()]
    factors = {(c.factor, *c.added.values()) for c in channels}
    if len(factors) > 1:
        raise Unknown("its channels have different factors")
    factor, *others = factors.pop()
    added = np.array([list(c.added) for c in channels], dtype=np.int64).reshape(len(channels), len(others))
    return Combination(np.array([c.maps for c in channels]).T, logits, factor, tuple(zip(others, added.T, strict=True)))


def _channels(labels: Labels | None, sizes: Shape, shape: Shape) -> Labels:
    """Labels of one term, that broadcast to ``sizes``, for each image and channel (N, C)."""
    if labels is None:
        raise Unknown("it adds a weight to maps")
    return np.broadcast_to(labels, sizes).reshape(shape)


def _products(sums: dict[tuple[int, int], float], branches: int) -> _Channel | None:
    """``f (a_1 U_1 + ... + a_M U_M)`` and maps without a weight, from the factors of products (branch of the weight, map)."""
    weighed = {key: factor for key, factor in sums.items() if factor and key[0] != UNWEIGHED}
    if len(weighed) != branches or len(set(weighed.values())) > 1 or len({label for _, label in weighed}) != branches:
        return None
    by_branch = dict(weighed.keys())
    if len(by_branch) != branches:
        return None
    added = {label: factor for (position, label), factor in sums.items() if position == UNWEIGHED and factor}
    return _Channel(tuple(by_branch[m] for m in range(branches)), next(iter(weighed.values())), added)


def _differences(sums: dict[tuple[int, int], float], branches: int) -> _Channel:
    """The same written otherwise, as with ``1 - a`` for a weight, and maps without a weight.

    ``a_last = 1 - sum of the others`` takes every way to write it to ``f (U_last + sum_m a_m (U_m - U_last))``.
    """
    last = branches - 1
    left: dict[tuple[int, int], float] = defaultdict(float)
    for (position, label), factor in sums.items():
        left[UNWEIGHED if position == last else position, label] += factor
        if position == last:
            for other in range(last):
                left[other, label] -= factor
    left = {key: factor for key, factor in left.items() if factor}
    for rest, factor in ((label, f) for (position, label), f in left.items() if position == UNWEIGHED):
        by_branch = [{label: f for (position, label), f in left.items() if position == m} for m in range(last)]
        chosen = [next((label for label in own if label != rest), rest) for own in by_branch]
        if rest not in chosen and all(
            own == {label: factor, rest: -factor} for own, label in zip(by_branch, chosen, strict=True)
        ):
            added = {label: f for (position, label), f in left.items() if position == UNWEIGHED and label != rest}
            return _Channel((*chosen, rest), factor, added)
    raise Unknown(f"it is not the sum of {branches} maps, each by its own weight")
