"""Tensors of a graph that cannot be negative, whatever the inputs are."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir

from skdeploy.ir.constants import known
from skdeploy.ir.nodes import operand, optional

_ALWAYS: Final = frozenset(
    {"Abs", "Exp", "HardSigmoid", "ReduceL1", "ReduceL2", "ReduceSumSquare", "Relu", "Sigmoid", "Softmax", "Softplus"}
)
# What comes out is some of what goes in first, or between such values.
_OF_FIRST: Final = frozenset(
    {
        "AveragePool", "Dropout", "Expand", "Flatten", "Gather", "GlobalAveragePool", "GlobalMaxPool", "Identity", "MaxPool",
        "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose",
        "Unsqueeze",
    }
)  # fmt: skip
_OF_ALL: Final = frozenset({"Add", "Concat", "Div", "Max", "Min", "Mul", "Sum"})


def never_negative(graph: ir.Graph) -> frozenset[str]:
    """The names of the tensors that the operators before them keep from being negative. Float arithmetic keeps that too."""
    found: set[str] = set()

    def is_found(value: ir.Value) -> bool:
        if value.name in found:
            return True
        array = known(value)
        return array is not None and array.size > 0 and bool((array >= 0).all())

    for node in graph:
        if node.op_type in _ALWAYS:
            holds = True
        elif node.op_type == "Clip":
            least = known(low) if (low := optional(node, 1)) is not None else None
            holds = is_found(operand(node, 0)) or (least is not None and bool(np.all(least >= 0)))
        elif node.op_type in _OF_FIRST:
            holds = is_found(operand(node, 0))
        else:
            holds = node.op_type in _OF_ALL and all(is_found(value) for value in node.inputs if value is not None)
        if holds:
            found.update(value.name or "" for value in node.outputs)
    return frozenset(found)
