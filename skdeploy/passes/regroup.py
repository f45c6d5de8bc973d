"""Grouped convolutions in fewer, fatter groups: blocks of exact zeros for work that tensor cores do faster."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from skdeploy.core.errors import UsageError
from skdeploy.ir.constants import constant, drop_unused, numbers
from skdeploy.ir.nodes import only_one_reads, operand, optional
from skdeploy.ir.qdq import DEQUANTIZE


@dataclass(frozen=True)
class Merged:
    """A convolution that was merged. ``factor``: how many times the weight's bytes, and the multiply-accumulates, it has now.

    ``weight_bytes`` is the weight's size before.
    """

    node: str
    groups: int
    factor: int
    weight_bytes: int


class Regroup(ir.passes.InPlacePass):
    """Merges the groups of every grouped convolution into ``groups`` wider ones. Any precision, the same function.

    With f = old groups / ``groups``, f neighbouring groups become one. Its weight is block-diagonal: an output channel keeps
    its numbers for the inputs that it had, and has exact zeros for those of its neighbours. Bias, and scales of each output
    channel, stay: the output channels keep their order. Each weight is used once at each place, so weight and
    multiply-accumulates grow by f alike. A convolution is merged where all of these hold:

    1. It has more groups than ``groups``, which divides them. Dense convolutions are not grouped and are not reported.
    2. A group has more than one input channel: depthwise convolutions have kernels of their own everywhere, and grow most.
    3. Its weight is a constant, or a DequantizeLinear of one that it alone reads, whose scale is one number or one for each
       output channel, with zero point 0: so that INT8's 0 is exactly zero.

    What is added is 0 * x = 0, exact for every finite x. It is not for Inf and NaN, which reached only the outputs of their own
    group and now reach the whole merged one; a graph whose activations overflow is in no parity before it either.
    ``merged`` and ``declined`` (node to reason) say what was done. Raises UsageError if nothing could be merged.
    """

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.merged: list[Merged] = []
        self.declined: dict[str, str] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for node in model.graph:
            groups = node.attributes.get_int("group", 1) if node.op_type == "Conv" else 1
            if groups == 1:
                continue
            reason = self._refused(node, groups)
            if reason:
                self.declined[node.name or ""] = reason
            else:
                self._merge(model.graph, node, groups)
        if not self.merged:
            raise UsageError(
                f"--regroup {self.groups} merges nothing: {_reasons(self.declined)}",
                advice="leave --regroup out, or give a smaller number that divides the groups",
            )
        drop_unused(model.graph)
        return ir.passes.PassResult(model, modified=True)

    def _refused(self, node: ir.Node, groups: int) -> str:
        """Why a grouped convolution is left, or nothing."""
        if groups <= self.groups:
            return f"it already has {groups} groups"
        if groups % self.groups:
            return f"{self.groups} does not divide its {groups} groups"
        weight = operand(node, 1)
        reader = weight.producer()
        if reader is not None:
            if reader.op_type != DEQUANTIZE:
                return "its weight is computed"
            if not only_one_reads(weight):
                return "its dequantized weight has other readers"
            if reason := _scales_refused(reader):
                return reason
        values = _stored(weight).const_value
        if values is None:
            return "its weight is not a constant"
        return "it is depthwise" if values.shape[1] == 1 else ""

    def _merge(self, graph: ir.Graph, node: ir.Node, groups: int) -> None:
        weight = operand(node, 1)
        reader, values = weight.producer(), _stored(weight)
        old = numbers(values)
        merged = constant(graph, f"{values.name}_regrouped", block_diagonal(old, groups, self.groups))
        if reader is None:
            node.replace_input_with(1, merged)
        else:
            reader.replace_input_with(0, merged)
            weight.shape = merged.shape
        node.attributes["group"] = ir.AttrInt64("group", self.groups)
        self.merged.append(Merged(node.name or "", groups, groups // self.groups, old.nbytes))


def block_diagonal(weight: np.ndarray, groups: int, fewer: int) -> np.ndarray:
    """A weight (M, C / groups, ...) of ``groups`` groups as one (M, C / fewer, ...) of ``fewer``, zero where it had none."""
    outputs, inputs, *kernel = weight.shape
    factor = groups // fewer
    blocks = weight.reshape(fewer, factor, outputs // groups, inputs * prod(kernel))
    wide = np.zeros((fewer, factor, outputs // groups, factor, inputs * prod(kernel)), weight.dtype)
    for index in range(factor):
        wide[:, index, :, index] = blocks[:, index]
    return wide.reshape(outputs, factor * inputs, *kernel)


def _stored(weight: ir.Value) -> ir.Value:
    """The stored numbers of a weight: its own, or those that a DequantizeLinear reads."""
    reader = weight.producer()
    return weight if reader is None else operand(reader, 0)


def _scales_refused(node: ir.Node) -> str:
    scale, zero = operand(node, 1).const_value, optional(node, 2)
    if scale is None or (zero is not None and zero.const_value is None):
        return "the scale of its weight is computed"
    if scale.size > 1 and (node.attributes.get_int("axis", 1), len(scale.shape)) != (0, 1):
        return "the scales of its weight are not those of its output channels"
    return "its weight has a zero point" if zero is not None and np.any(numbers(zero) != 0) else ""


def _reasons(declined: dict[str, str]) -> str:
    counts = Counter(declined.values()).items()
    said = "; ".join(f"of {count} grouped convolutions, {reason}" for reason, count in counts)
    return said or "the graph has no grouped convolution"
