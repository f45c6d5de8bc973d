"""How far the integers that a network gives are from being others: the margins in the reference graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from skdeploy.backends import onnxruntime
from skdeploy.backends.base import Array
from skdeploy.backends.metrics import SMALLEST
from skdeploy.core.spec import ModelSpec
from skdeploy.images.dataset import Inputs, Pixels
from skdeploy.images.feeds import RUN_BATCH, batches_of

if TYPE_CHECKING:
    from skdeploy.ir.deciding import Decision


@dataclass(frozen=True)
class Margins:
    """``known``: of an output, in its shape: relative to the largest value of what decides. ``unknown``: why there are none."""

    known: Mapping[str, Array] = field(default_factory=dict)
    unknown: Mapping[str, str] = field(default_factory=dict)


NONE: Final = Margins()


def margins_of(graph: Path, pixels: Pixels | Inputs, spec: ModelSpec) -> Margins:
    """The margins of the integer and boolean outputs for which ``ir/deciding.py`` knows what decides."""
    from skdeploy.ir.deciding import (
        Decision,
        decision_of,
        integer_outputs,
    )  # takes onnx-ir, and a line that is up to date needs none

    model = onnxruntime.load_graph(graph)
    inputs = {value.name for value in model.graph.inputs}
    decisions: dict[str, Decision] = {}
    unknown: dict[str, str] = {}
    for made in integer_outputs(model):
        name, found = made.name or "", decision_of(made)
        if not isinstance(found, Decision):
            unknown[name] = found.why
        elif not inputs.isdisjoint(found.tensors):
            unknown[name] = "it compares an input, which no rounding changes"
        else:
            decisions[name] = found
    if not decisions:
        return Margins({}, unknown)
    tensors = {name for decision in decisions.values() for name in (*decision.tensors, decision.made)}
    parts: dict[str, list[Array]] = {name: [] for name in decisions}
    largest = dict.fromkeys(decisions, SMALLEST)
    with onnxruntime.open_model(model, str(graph), also=sorted(tensors)) as session:
        for feeds, count in batches_of(pixels, spec, session.inputs, RUN_BATCH):
            outputs = session.run(feeds)
            for name, decision in decisions.items():
                found_margin = margin(decision, outputs, outputs[name])
                if found_margin is None:
                    unknown[name] = f"{decision.made} does not lie as the graph says"
                    continue
                parts[name].append(found_margin[:count])
                largest[name] = max(largest[name], *(float(np.max(np.abs(outputs[t]))) for t in decision.tensors))
    known = {name: np.concatenate(of) / largest[name] for name, of in parts.items() if name not in unknown}
    return Margins(known, unknown)


def margin(decision: Decision, tensors: Mapping[str, Array], made: Array) -> Array | None:
    """How much the tensors must change for each value of ``made``, of one batch, to change, twice: the difference of two.

    None where the values do not lie as the graph says.
    """
    values = tensors[decision.tensors[0]].astype(np.float32)
    own = tensors.get(decision.made, made)
    found: Array
    if decision.operator in ("ArgMax", "ArgMin"):
        found = _first_two(values if decision.operator == "ArgMax" else -values, decision.axis)
    elif decision.operator == "TopK":
        found = _places(-values if decision.smallest else values, decision.axis, own.shape[decision.axis])
    elif decision.value is not None:
        found = 2 * np.abs(values - decision.value)
    else:
        found = np.abs(values - tensors[decision.tensors[1]].astype(np.float32))
    if found.size != own.size:
        return None
    found = found.reshape(own.shape)
    for move in decision.moves:
        found = move(found)
    return np.asarray(found.reshape(made.shape)) if found.size == made.size else None


def _first_two(values: Array, axis: int) -> Array:
    """How far the largest is above the next one."""
    count = values.shape[axis]
    if count == 1:
        return np.full(np.take(values, 0, axis).shape, np.inf, np.float32)
    two = np.partition(values, count - 2, axis=axis)
    return np.asarray(np.take(two, count - 1, axis) - np.take(two, count - 2, axis))


def _places(values: Array, axis: int, count: int) -> Array:
    """How far each of the first ``count`` is from the ones before and after it in order."""
    axis %= values.ndim
    ordered = -np.sort(-values, axis=axis)
    steps = np.moveaxis(-np.diff(ordered, axis=axis), axis, -1)
    wide = np.full((*steps.shape[:-1], 1), np.inf, np.float32)
    steps = np.concatenate([wide, steps, wide], axis=-1)
    return np.asarray(np.moveaxis(np.minimum(steps[..., :-1], steps[..., 1:])[..., :count], -1, axis))
