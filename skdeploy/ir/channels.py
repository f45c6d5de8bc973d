"""Which channels of which tensors are one and the same number line: scaling one scales them all.

A convolution makes new channels. Operators that work on each channel alone and commute with a positive factor (Relu, pools,
means over space, sums of maps, products with a gate's weight) hand them on, and an addition ties those of its operands
together. So the channels of a residual stream, or of all branches of a selective kernel block with its output, form classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from skdeploy.ir.placement import WEIGHTED, weighted_reason

Ids = NDArray[np.int64]

PASSING_ON: Final = frozenset({"Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity"})
TYING: Final = frozenset({"Add", "Sub"})


@dataclass(frozen=True)
class ChannelClasses:
    """``of`` has, for each tensor's name, the class of every channel (C,); ``fixed`` (classes,) those that must not be scaled.

    Fixed are the channels of the network's inputs and outputs, of a gate's weights, and of whatever passes through an operator
    that this module does not know.
    """

    of: dict[str, Ids]
    fixed: NDArray[np.bool_]

    @property
    def count(self) -> int:
        return len(self.fixed)


def channel_classes(model: ir.Model) -> ChannelClasses:
    """The classes of all tensors with a known number of channels along axis 1."""
    finder = _Finder()
    for value in model.graph.inputs:
        finder.fix(finder.new(value))
    for node in model.graph:
        finder.visit(node)
    for value in model.graph.outputs:
        finder.fix(value)
    return finder.result()


class _Finder:
    """Union-find over channels; ``ids`` has those of each tensor."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.ids: dict[ir.Value, Ids] = {}
        self.fixed: set[int] = set()

    def visit(self, node: ir.Node) -> None:
        data = [value for value in node.inputs if value is not None and value in self.ids]
        output = node.outputs[0]
        if makes_channels(node):
            self.new(output)
        elif len(data) == 1 and _hands_on(node, data[0]) and self._same_channels(data[0], output):
            self.ids[output] = self.ids[data[0]]
        elif node.op_type in TYING and len(data) == 2 and _alike(*data) and self._same_channels(data[1], output):
            for first, second in zip(self.ids[data[0]], self.ids[data[1]], strict=True):
                self.union(int(first), int(second))
            self.ids[output] = self.ids[data[0]]
        elif (
            node.op_type == "Mul"
            and len(data) == 2
            and (weighed := _weighed_map(data[0], data[1]))
            and self._same_channels(weighed[0], output)
        ):
            scaled, weight = weighed
            self.fix(weight)
            self.ids[output] = self.ids[scaled]
        else:
            for value in data:
                self.fix(value)
            for value in node.outputs:
                self.fix(self.new(value))

    def new(self, value: ir.Value) -> ir.Value:
        """Fresh channels, where their number is known."""
        channels = _channels(value)
        if channels is not None:
            first = len(self.parent)
            self.parent.extend(range(first, first + channels))
            self.ids[value] = np.arange(first, first + channels)
        return value

    def fix(self, value: ir.Value) -> None:
        self.fixed.update(self.ids.get(value, np.empty(0, np.int64)).tolist())

    def union(self, first: int, second: int) -> None:
        self.parent[self.find(second)] = self.find(first)

    def find(self, channel: int) -> int:
        while self.parent[channel] != channel:
            self.parent[channel] = self.parent[self.parent[channel]]
            channel = self.parent[channel]
        return channel

    def result(self) -> ChannelClasses:
        roots = np.array([self.find(channel) for channel in range(len(self.parent))], np.int64)
        classes, number = np.unique(roots, return_inverse=True)
        fixed = np.zeros(len(classes), np.bool_)
        fixed[number[sorted(self.fixed)]] = True
        return ChannelClasses({value.name or "": number[ids] for value, ids in self.ids.items()}, fixed)

    def _same_channels(self, data: ir.Value, output: ir.Value) -> bool:
        return _channels(output) == len(self.ids[data])


def _channels(value: ir.Value) -> int | None:
    shape = value.shape
    if shape is None or len(shape) < 2 or not isinstance(shape[1], int):
        return None
    return shape[1]


def makes_channels(node: ir.Node) -> bool:
    """Whether the node is y = W x + b with constant W and b, from axis 1 to axis 1: its rows and columns may be scaled."""
    if node.op_type not in WEIGHTED or weighted_reason(node):
        return False
    data = node.inputs[0]
    return node.op_type != "MatMul" or (data is not None and data.shape is not None and len(data.shape) == 2)


def _hands_on(node: ir.Node, data: ir.Value) -> bool:
    """Whether the node works on each channel alone, and commutes with a positive factor."""
    if node.op_type in ("Reshape", "Flatten"):
        return _flattens_a_point(data, node.outputs[0])
    if node.op_type == "ReduceMean":
        return data.shape is not None and _means_beside_channels(node, len(data.shape))
    return node.op_type in PASSING_ON


def _means_beside_channels(node: ir.Node, rank: int) -> bool:
    """Whether a ReduceMean leaves axes 0 and 1 as they are."""
    axes = node.attributes.get_ints("axes", [])
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        if node.inputs[1].const_value is None:
            return False
        axes = node.inputs[1].const_value.numpy().reshape(-1).tolist()
    return len(axes) > 0 and all(axis % rank > 1 for axis in axes)


def _alike(first: ir.Value, second: ir.Value) -> bool:
    """Of equal rank and channels, so that axis 1 meets axis 1."""
    return (
        first.shape is not None
        and second.shape is not None
        and len(first.shape) == len(second.shape)
        and first.shape[1] == second.shape[1]
    )


def _flattens_a_point(data: ir.Value, output: ir.Value) -> bool:
    """(N, C, 1, 1) to (N, C)."""
    before, after = data.shape, output.shape
    return (
        before is not None
        and after is not None
        and len(after) == 2
        and len(before) == 4
        and tuple(before[2:]) == (1, 1)
        and before[1] == after[1]
    )


def _weighed_map(first: ir.Value, second: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """Of a map and a weight for each of its channels (N, C, 1, 1), which is which; None if it is not such a product."""
    if not _alike(first, second):
        return None
    points = [value.shape is not None and tuple(value.shape[2:]) == (1, 1) for value in (first, second)]
    if points == [False, True]:
        return first, second
    if points == [True, False]:
        return second, first
    return None
