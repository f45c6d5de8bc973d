"""Where a graph has its attention, and how to read it: from the outputs of ``--attention``, or from inside the graph.

In the deploy form (``zoo/selective_kernel.py``) a unit is ``U_M + sum_{m<M} a_m (U_m - U_M)``. So a gate is a Sigmoid (M = 2)
or a Softmax over branches (M > 2) whose values weigh a difference of maps. FP16 and INT8 keep the names of these tensors, so
they are searched in the FP32 graph and read by name from all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from skdeploy.backends.base import Array
from skdeploy.backends.logits import outputs_by_batch
from skdeploy.backends.onnxruntime import open_model
from skdeploy.core.errors import IntegrityError, ParityError
from skdeploy.core.patterns import module_of
from skdeploy.core.spec import ModelSpec
from skdeploy.images.decoding import Pixels
from skdeploy.ir.nodes import new_node
from skdeploy.passes.trace import attention_name

Attention = NDArray[np.float64]  # (N, M, C)

# What stands between a gate and the products with its weights: one branch is taken, and brought to (N, C, 1, 1).
MOVES: Final = frozenset({"Gather", "Slice", "Split", "Reshape", "Squeeze", "Unsqueeze", "Identity"})
# A sum of at most 8 numbers below 1, each rounded to FP16: 8 * 2^-12 is 0.002. What is no softmax is off by far more.
MAX_SUM_ERROR: Final = 5e-3


@dataclass(frozen=True)
class Gate:
    """The gate of one unit: its module's name, the tensor that holds its weights, and the sizes M and C."""

    unit: str
    tensor: str
    branches: int
    channels: int


def find_gates(model: ir.Model) -> tuple[Gate, ...]:
    """The gates of an FP32 graph in deploy form, in its order; none for a graph without selective kernel units.

    A unit is called by its module, or by the node of its gate where the graph does not tell modules apart.
    """
    found = [(node, sizes) for node in model.graph if (sizes := _sizes(node)) and _weighs_a_difference(node.outputs[0])]
    units = [attention_name(module_of(node.name)).removeprefix("attention.") for node, _ in found]
    return tuple(
        Gate(
            unit=unit if unit and units.count(unit) == 1 else node.name or "",
            tensor=node.outputs[0].name or "",
            branches=branches,
            channels=channels,
        )
        for unit, (node, (branches, channels)) in zip(units, found, strict=True)
    )


class AttentionReader:
    """A graph in ONNX Runtime on the CPU, which gives the attention of its units. Use it as a context manager."""

    def __init__(self, model: ir.Model, gates: Sequence[Gate], shown: str) -> None:
        """Opens ``model``, which is changed. Raises IntegrityError if it lacks a gate; ``shown`` is what errors call it."""
        self.shown = shown
        self._names = {gate: f"attention.{gate.unit}" for gate in gates}
        present = {value.name for value in model.graph.outputs}
        values = {value.name: value for node in model.graph for value in node.outputs}
        for gate, name in self._names.items():
            if name in present:
                continue
            if gate.tensor not in values:
                raise IntegrityError(
                    f"{shown} does not have the tensor {gate.tensor}, the attention of {gate.unit} in the FP32 graph",
                    advice="it was made by another skdeploy, or changed after the export: export again",
                )
            # A reader as the unit is one: FP16 weights reach it rounded, once the graph is prepared to run on the CPU.
            value, to = values[gate.tensor], {"to": ir.DataType.FLOAT}
            cast = new_node("Cast", [value], name, value.shape, attributes=to)
            model.graph.append(cast)
            model.graph.outputs.append(cast.outputs[0])
        self._session = open_model(model, shown)

    def __enter__(self) -> AttentionReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def read(self, crops: Sequence[Pixels], spec: ModelSpec, batch: int) -> dict[str, Attention]:
        """The attention of each unit on some crops, uint8 (H, W, C) each: unit -> float64 (N, M, C).

        Raises ParityError for attention that is not finite or does not sum to one over the branches.
        """
        parts: dict[Gate, list[Attention]] = {gate: [] for gate in self._names}
        for outputs, _ in outputs_by_batch(self._session, crops, spec, batch):
            for gate, name in self._names.items():
                parts[gate].append(self._checked(gate, outputs[name]))
        return {gate.unit: np.concatenate(arrays) for gate, arrays in parts.items()}

    def _checked(self, gate: Gate, array: Array) -> Attention:
        attention = all_weights(array, gate)
        if not np.isfinite(attention).all():
            raise ParityError(
                f"the attention of {gate.unit} in {self.shown} has NaN or infinite values",
                advice="check this graph with `skdeploy verify`",
            )
        error = float(np.max(np.abs(attention.sum(1) - 1)))
        if error > MAX_SUM_ERROR:
            raise ParityError(
                f"the attention of {gate.unit} in {self.shown} does not sum to 1 over its {gate.branches} "
                f"branches: it is off by {error:.2g}",
                advice="check this graph with `skdeploy verify`",
            )
        return attention


def all_weights(array: Array, gate: Gate) -> Attention:
    """(N, M, C) from what a graph gives: that itself, softmaxes (N, M, C, 1), or the first branch's sigmoid (N, C, 1, 1)."""
    values = array.astype(np.float64)
    if values.ndim == 4 and values.shape[1:] == (gate.channels, 1, 1):
        first = values.reshape(-1, 1, gate.channels)
        return np.concatenate([first, 1 - first], axis=1)
    return values.reshape(-1, gate.branches, gate.channels)


def _sizes(node: ir.Node) -> tuple[int, int] | None:
    """(M, C) if the node has the form of a gate."""
    if node.domain or node.op_type not in ("Sigmoid", "Softmax"):
        return None
    shape = node.outputs[0].shape
    sizes = [] if shape is None else list(shape)[1:]
    if len(sizes) != 3 or not all(isinstance(size, int) for size in sizes):
        return None
    if node.op_type == "Sigmoid":
        return (2, int(str(sizes[0]))) if sizes[1:] == [1, 1] else None
    over_branches = node.attributes.get_int("axis", -1) == 1 and sizes[2] == 1
    return (int(str(sizes[0])), int(str(sizes[1]))) if over_branches else None


def _weighs_a_difference(value: ir.Value) -> bool:
    """Whether ``value``, or a part of it, is multiplied with ``U_m - U_M``."""
    for use in value.uses():
        node = use.node
        if node.op_type == "Mul":
            other = node.inputs[1 - use.idx]
            if other is not None and (producer := other.producer()) is not None and producer.op_type == "Sub":
                return True
        elif node.op_type in MOVES and any(_weighs_a_difference(output) for output in node.outputs):
            return True
    return False
