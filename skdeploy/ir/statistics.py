"""Which tensors are maps, and which are a few numbers that weigh maps: a gate's, over channels or over places."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from skdeploy.ir.nodes import FLOAT32, integers, maker, operand, operands
from skdeploy.ir.rows import CONVOLUTIONS, WEIGHTED

SPATIAL_MEANS: Final = frozenset({"ReduceMean", "GlobalAveragePool", "AveragePool"})
CHANNEL_REDUCTIONS: Final = frozenset({"ReduceMean", "ReduceMax", "ReduceSum", "ReduceL2", "ReduceSumSquare"})
IMAGE_RANK: Final = 4
# A gate over places has a number or two a branch (LSKNet, CBAM). What has more channels is a map again, such as that of a
# network which begins with the mean of the colours.
MOST_A_PLACE: Final = 4


@dataclass(frozen=True)
class Statistics:
    """Everything that comes from means over space alone, ``of_channels``, or from means and maxima over channels alone,
    ``of_places``; those included. ``ranks`` are those of maps: 4, and those that the network's convolutions read.
    """

    of_channels: frozenset[ir.Value]
    of_places: frozenset[ir.Value]
    ranks: frozenset[int]

    def is_map(self, value: ir.Value) -> bool:
        """(N, C, ...) with places of any number, float32, and not statistics alone."""
        is_tensor = value.dtype == FLOAT32 and value.shape is not None and len(value.shape) in self.ranks
        return is_tensor and not value.is_initializer() and not self.has(value)

    def has(self, value: ir.Value) -> bool:
        return value in self.of_channels or value in self.of_places


def statistics_of(model: ir.Model) -> Statistics:
    """The statistics of a graph; whole numbers, of shapes, do not count."""
    slid = [operand(node, 0).shape for node in model.graph if node.op_type in CONVOLUTIONS]
    of_convolutions = frozenset(len(shape) for shape in slid if shape is not None)
    of_channels = _following(model, lambda node: _is_mean_over_space(node, of_convolutions), lambda _: True)
    of_places = _following(model, lambda node: _reduces_channels(node, of_convolutions), _has_few_channels)
    read = [operand(node, 0) for node in model.graph if node.op_type in CONVOLUTIONS]
    ranks = {len(value.shape) for value in read if value.shape is not None and value not in of_channels}
    return Statistics(of_channels, of_places, frozenset({IMAGE_RANK, *ranks}))


def gate_nodes(model: ir.Model) -> frozenset[str]:
    """Weighted nodes between statistics, of channels or of places, and a product of what they make with maps."""
    statistics = statistics_of(model)
    gates: set[ir.Node] = set()
    for kind in (statistics.of_channels, statistics.of_places):
        for node in model.graph:
            if node.op_type != "Mul" or node.outputs[0] in kind:
                continue
            if any(value is None or value.is_initializer() for value in node.inputs):
                continue
            pending = [value for value in node.inputs if value in kind]
            while pending:
                producer = maker(pending.pop())
                if producer is not None and producer not in gates:
                    gates.add(producer)
                    pending.extend(value for value in producer.inputs if value in kind)
    return frozenset(node.name or "" for node in gates if node.op_type in WEIGHTED)


def _following(
    model: ir.Model, begins: Callable[[ir.Node], bool], may_be: Callable[[ir.Value], bool]
) -> frozenset[ir.Value]:
    """Outputs of such nodes, and all that is computed from these alone."""
    found: set[ir.Value] = set()
    for node in model.graph:
        data = [value for value in operands(node) if not value.is_initializer() and _may_be_fractions(value.dtype)]
        if data and (all(value in found for value in data) or begins(node)):
            found.update(value for value in node.outputs if may_be(value))
    return frozenset(found)


def _is_mean_over_space(node: ir.Node, ranks: frozenset[int]) -> bool:
    rank = len(operand(node, 0).shape or ()) if node.op_type in SPATIAL_MEANS else 0
    if rank < IMAGE_RANK and rank not in ranks:
        return False
    if rank < 3 or (node.op_type == "ReduceMean" and integers(node, 1, "axes") == [1]):
        return False
    # A pool that leaves more than a number a channel makes a map; a mean over channels alone leaves height and width.
    left, places = node.outputs[0].shape, rank - 2 if rank in ranks else 2
    is_flat = left is not None and len(left) < min(rank, IMAGE_RANK)
    is_point = left is not None and tuple(left[-places:]) == (1,) * places
    return node.op_type == "GlobalAveragePool" or is_flat or is_point


def _reduces_channels(node: ir.Node, ranks: frozenset[int]) -> bool:
    """(N, C, ...) to (N, 1, ...), of more than one channel."""
    if node.op_type not in CHANNEL_REDUCTIONS:
        return False
    before, after = operand(node, 0).shape, node.outputs[0].shape
    if before is None or after is None or len(before) not in ranks or len(before) != len(after):
        return False
    return before[1] != 1 and after[1] == 1 and tuple(before[2:]) == tuple(after[2:])


def _has_few_channels(value: ir.Value) -> bool:
    channels = value.shape[1] if value.shape is not None and len(value.shape) > 1 else None
    return isinstance(channels, int) and channels <= MOST_A_PLACE


def _may_be_fractions(dtype: ir.DataType | None) -> bool:
    return dtype is None or dtype.is_floating_point()
