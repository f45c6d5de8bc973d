"""Which channels of which tensors are one and the same number line: scaling one scales them all.

A convolution makes new channels. Operators that work on each channel alone and commute with a positive factor (Relu, pools,
resizing, means over space, sums of maps, products with a gate's weight) hand them on, and an addition ties those of its
operands together. Concat puts channels side by side; DepthToSpace makes one of several, which it ties. So the channels of a
residual stream, or of all branches of a selective kernel block with its output, form classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from skdeploy.ir.nodes import integers, is_point, operand, operands
from skdeploy.ir.one_scale import moves
from skdeploy.ir.placement import weighted_reason

Ids = NDArray[np.int64]

PASSING_ON: Final = frozenset({
    "Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity", "Resize",
})  # fmt: skip
READS_SIZES: Final = frozenset({"Shape", "Size"})
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
        if node.op_type in READS_SIZES:
            return
        data = [value for value in operands(node) if value in self.ids]
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
            node.op_type == "Concat"
            and _joins_channels(node, data)
            and _channels(output) == sum(map(self._count, data))
        ):
            self.ids[output] = np.concatenate([self.ids[value] for value in data])
        elif node.op_type == "DepthToSpace" and data and (folded := self._folded(node, data[0])) is not None:
            for tied in folded:
                for channel in tied[1:]:
                    self.union(int(tied[0]), int(channel))
            self.ids[output] = folded[:, 0].copy()
        elif (weighed := _weighed_map(node, data)) and self._same_channels(weighed[0], output):
            self.fix(weighed[1])
            self.ids[output] = self.ids[weighed[0]]
        else:
            for value in (*data, *map(self.new, node.outputs)):
                self.fix(value)

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

    def _count(self, value: ir.Value) -> int:
        return len(self.ids[value])

    def _folded(self, node: ir.Node, data: ir.Value) -> Ids | None:
        """The channels that DepthToSpace makes one map of: (channels after, channels of each)."""
        block = node.attributes.get_int("blocksize") ** 2
        ids = self.ids[data]
        if len(ids) % block:
            return None
        if node.attributes.get_string("mode", "DCR") == "CRD":
            return ids.reshape(-1, block)
        return ids.reshape(block, -1).T

    def _same_channels(self, data: ir.Value, output: ir.Value) -> bool:
        return _channels(output) == len(self.ids[data])


def _channels(value: ir.Value) -> int | None:
    size = value.shape[1] if value.shape is not None and len(value.shape) > 1 else None
    return size if isinstance(size, int) else None


def makes_channels(node: ir.Node) -> bool:
    """Whether the node is y = W x + b with constant W and b, from axis 1 to axis 1: its rows and columns may be scaled."""
    if weighted_reason(node):
        return False
    shape = operand(node, 0).shape
    return node.op_type != "MatMul" or (shape is not None and len(shape) == 2)


def _hands_on(node: ir.Node, data: ir.Value) -> bool:
    """Whether the node works on each channel alone, and commutes with a positive factor."""
    if node.op_type in ("Reshape", "Flatten"):  # (N, C, 1, 1) to (N, C)
        after = node.outputs[0].shape
        return is_point(data) and after is not None and len(after) == 2 and _channels(data) == after[1]
    if node.op_type == "ReduceMean":
        axes = integers(node, 1, "axes")
        return data.shape is not None and bool(axes) and all(axis % len(data.shape) > 1 for axis in axes or ())
    if node.op_type == "Pad":
        return moves(node) and _leaves_channels(node)
    return node.op_type in PASSING_ON


def _leaves_channels(node: ir.Node) -> bool:
    """Whether nothing is added along the channels: the sizes before and after say it."""
    before, after = operand(node, 0).shape, node.outputs[0].shape
    return before is not None and after is not None and before[1] == after[1]


def _joins_channels(node: ir.Node, data: list[ir.Value]) -> bool:
    """Whether all that is joined has known channels, along axis 1."""
    shape = operand(node, 0).shape
    axis = node.attributes.get_int("axis")
    return len(data) == len(node.inputs) and shape is not None and axis % len(shape) == 1


def _alike(first: ir.Value, second: ir.Value) -> bool:
    """Of equal rank and channels, so that axis 1 meets axis 1."""
    one, other = first.shape, second.shape
    return one is not None and other is not None and len(one) == len(other) and one[1] == other[1]


def _weighed_map(node: ir.Node, data: list[ir.Value]) -> tuple[ir.Value, ir.Value] | None:
    """Of a map and a weight for each of its channels (N, C, 1, 1), which is which; None if it is not such a product."""
    if node.op_type != "Mul" or len(data) != 2 or not _alike(*data) or is_point(data[0]) == is_point(data[1]):
        return None
    first, second = data
    return (second, first) if is_point(first) else (first, second)
