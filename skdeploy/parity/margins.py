"""How far the integers that a network gives are from being others: the margins in the reference graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from skdeploy.backends import onnxruntime
from skdeploy.backends.base import Array
from skdeploy.backends.logits import run_images
from skdeploy.backends.metrics import SMALLEST
from skdeploy.core.spec import ModelSpec
from skdeploy.images.dataset import Inputs, Pixels

if TYPE_CHECKING:
    from skdeploy.ir.deciding import Decision

Margins = Mapping[str, Array]  # of each output, in its shape: relative to the largest value of what decides


def margins_of(graph: Path, pixels: Pixels | Inputs, spec: ModelSpec) -> Margins:
    """The margins of the integer and boolean outputs for which ``ir/deciding.py`` knows what decides."""
    from skdeploy.ir.deciding import (
        decision_of,
        integer_outputs,
    )  # takes onnx-ir, and a line that is up to date needs none

    model = onnxruntime.load_graph(graph)
    decisions = {made.name or "": decision_of(made) for made in integer_outputs(model)}
    known = {name: decision for name, decision in decisions.items() if decision is not None}
    if not known:
        return {}
    inputs = {value.name for value in model.graph.inputs}
    tensors = {tensor for decision in known.values() for tensor in decision.tensors}
    if tensors & inputs:
        return {}  # of a graph that only compares its input, which no rounding changes
    with onnxruntime.open_model(model, str(graph), also=sorted(tensors)) as session:
        outputs = run_images(session, pixels, spec)
    found = {name: margin(decision, outputs, outputs[name]) for name, decision in known.items()}
    return {name: array for name, array in found.items() if array is not None}


def margin(decision: Decision, tensors: Mapping[str, Array], made: Array) -> Array | None:
    """How much the tensors must change for each value of ``made`` to change, twice: the difference of two.

    None where ``made`` is not what the operator itself gives, as of a part of it.
    """
    values = tensors[decision.tensors[0]].astype(np.float32)
    largest = float(np.max(np.abs(values)))
    found: Array | None
    if decision.operator in ("ArgMax", "ArgMin"):
        found = _first_two(values if decision.operator == "ArgMax" else -values, decision.axis)
    elif decision.operator == "TopK":
        found = _places(values, decision.axis, made)
    elif decision.value is not None:
        found = 2 * np.abs(values - decision.value)
    else:
        other = tensors[decision.tensors[1]].astype(np.float32)
        largest = max(largest, float(np.max(np.abs(other))))
        found = np.abs(values - other)
    if found is None or found.size != made.size:
        return None
    return np.asarray(found.reshape(made.shape) / max(largest, SMALLEST))


def _first_two(values: Array, axis: int) -> Array:
    """How far the largest is above the next one."""
    count = values.shape[axis]
    if count == 1:
        return np.full(np.take(values, 0, axis).shape, np.inf, np.float32)
    two = np.partition(values, count - 2, axis=axis)
    return np.asarray(np.take(two, count - 1, axis) - np.take(two, count - 2, axis))


def _places(values: Array, axis: int, made: Array) -> Array | None:
    """How far each of the first k is from the ones before and after it in order."""
    axis %= values.ndim
    if made.ndim != values.ndim:
        return None
    count = made.shape[axis]
    ordered = -np.sort(-values, axis=axis)
    steps = np.moveaxis(-np.diff(ordered, axis=axis), axis, -1)
    wide = np.full((*steps.shape[:-1], 1), np.inf, np.float32)
    steps = np.concatenate([wide, steps, wide], axis=-1)
    return np.asarray(np.moveaxis(np.minimum(steps[..., :-1], steps[..., 1:])[..., :count], -1, axis))
