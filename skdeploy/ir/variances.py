"""Variances that a network computes by itself: squares, summed over places, under a root."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir

from skdeploy.ir.constants import known
from skdeploy.ir.nodes import maker, operands, optional

SUMS: Final = frozenset({"ReduceMean", "ReduceSum", "GlobalAveragePool"})
BETWEEN: Final = frozenset(
    {"Add", "Sub", "Mul", "Div", "Clip", "Max", "Abs", "Relu", "Squeeze", "Unsqueeze", "Reshape"}
)


def variance_nodes(model: ir.Model) -> frozenset[ir.Node]:
    """The nodes of every standard deviation: from the squares, their sums and what is subtracted, to the Sqrt.

    A square leaves FP16's range where the tensor passes 256, and the difference of two squares, E[x^2] - E[x]^2, has fewer
    digits than either: both want more than FP16 holds. Pooling by attentive statistics has both, a normalisation by hand the
    first. A Sqrt without a sum of squares below it is none of these.
    """
    found: set[ir.Node] = set()
    for root in model.graph:
        if root.op_type != "Sqrt":
            continue
        below: set[ir.Node] = {root}
        asked = [maker(root.inputs[0])]
        while asked:
            node = asked.pop()
            if node is None or node in below:
                continue
            square = is_square(node)
            if not square and node.op_type not in BETWEEN | SUMS:
                continue
            below.add(node)
            asked += [maker(value) for value in operands(node) if not square or _is_statistic(value)]
        if any(map(is_square, below)) and any(node.op_type in SUMS for node in below):
            found |= below
    return frozenset(found)


def is_square(node: ir.Node) -> bool:
    """Whether a node multiplies a tensor by itself."""
    if node.op_type == "Mul":
        return node.inputs[0] is node.inputs[1]
    exponent = known(optional(node, 1)) if node.op_type == "Pow" else None
    return exponent is not None and bool(np.all(exponent == 2))


def _is_statistic(value: ir.Value) -> bool:
    """Whether what is squared is a sum itself, as the mean in E[x]^2 is."""
    node = maker(value)
    return node is not None and node.op_type in SUMS
