"""The roofline floor: each layer takes at least what its arithmetic needs, and at least what its bytes need.

No launch overhead, no caches that outlive a layer: inputs are read and outputs written once, from and to the device's memory. A
cache as large as the activations can beat the memory's part; nothing beats the arithmetic's, except Winograd's.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import prod
from typing import Literal, Protocol

import onnx_ir as ir

from skdeploy.core.precision import PRECISIONS, Precision
from skdeploy.ir.placement import Edge, place
from skdeploy.planning.layers import Layer
from skdeploy.planning.plain import Plain, dims
from skdeploy.planning.tensor_cores import merge_factor, padded_macs
from skdeploy.quant.macs import is_layer


class Peaks(Protocol):
    """The figures of a device that a floor needs."""

    def macs_a_second(self, precision: Precision) -> float: ...

    @property
    def bytes_a_second(self) -> float: ...


@dataclass(frozen=True)
class Types:
    """Which precision everything has: ``base``, but ``narrow`` for these inputs (``edges``) and these nodes' weights."""

    base: Precision
    narrow: Precision = Precision.INT8
    edges: Collection[Edge] = frozenset()
    weighted: Collection[str] = frozenset()

    def of_layer(self, layer: Layer) -> Precision:
        return self.narrow if layer.name in self.weighted else self.base


@dataclass(frozen=True)
class Work:
    """The work of a layer on any device: bytes and MACs of the whole batch."""

    layer: Layer
    precision: Precision
    padded_macs: int
    bytes_moved: int


@dataclass(frozen=True)
class Cost(Work):
    """A layer's work on one device."""

    compute_ms: float
    memory_ms: float

    @property
    def floor_ms(self) -> float:
        return max(self.compute_ms, self.memory_ms)

    @property
    def bound(self) -> Literal["compute", "memory"]:
        return "compute" if self.compute_ms > self.memory_ms else "memory"

    @property
    def intensity(self) -> float:
        """Multiply-accumulates a byte, without padding."""
        return self.layer.macs / self.bytes_moved if self.bytes_moved else 0.0


def types_of(plain: Plain, precision: Precision, *, keep_grouped: bool = False) -> Types:
    """The types of a graph in that precision: of an integer one, what its own Q/DQ say where it has them, else
    what placement would say; of INT8 weights alone, those that it has, else those of every layer.
    """
    if not precision.beside:
        return Types(precision)
    beside = PRECISIONS[precision.beside]
    if precision.weights_only:
        layers = (node.name or "" for node in plain.model.graph if is_layer(node))
        return Types(beside, precision, weighted=plain.int8_weights or frozenset(layers))
    if not plain.quantized:
        placement = place(plain.model, keep_grouped=keep_grouped)
        edges = frozenset(edge for readers in placement.readers.values() for edge in readers)
        return Types(beside, precision, edges, frozenset(placement.weighted))
    dropped = {
        node.name or ""
        for node in plain.model.graph
        if keep_grouped and node.op_type == "Conv" and node.attributes.get_int("group", 1) > 1
    }
    edges = frozenset(edge for edge in plain.scales if edge.node not in dropped)
    return Types(beside, precision, edges, plain.int8_weights - dropped)


def work_of(layers: Collection[Layer], types: Types, regroup: int | None = None) -> list[Work]:
    """Every layer's work. ``regroup``: N of ``export --regroup N``, the groups that grouped convolutions have afterwards."""
    found = []
    for layer in layers:
        precision = types.of_layer(layer)
        found.append(Work(layer, precision, padded_macs(layer, precision, regroup), bytes_moved(layer, types, regroup)))
    return found


def costs(works: Collection[Work], device: Peaks) -> list[Cost]:
    """Every layer's floor on a device."""
    return [
        Cost(
            **vars(work),
            compute_ms=1000 * work.padded_macs / device.macs_a_second(work.precision),
            memory_ms=1000 * work.bytes_moved / device.bytes_a_second,
        )
        for work in works
    ]


def floor_ms(found: Collection[Cost]) -> float:
    """Latency of one batch, layers one after another."""
    return sum(cost.floor_ms for cost in found)


def least_memory_bytes(layers: Collection[Layer], types: Types) -> int:
    """All weights, and beside them the inputs and outputs of the one layer that has most: an engine hardly needs less."""
    weights: dict[ir.Value, int] = {}
    maps = 0
    for layer in layers:
        reads = [read for read in layer.reads() if read[2].is_initializer()]
        own = {value: prod(dims(value)) * _width(layer, types, node, index, value) for node, index, value in reads}
        maps = max(maps, bytes_moved(layer, types) - sum(own.values()))
        weights |= own
    return sum(weights.values()) + maps


def bytes_moved(layer: Layer, types: Types, regroup: int | None = None) -> int:
    """Inputs, weights and outputs of a layer, each once."""
    factor = merge_factor(layer, regroup)
    moved: dict[ir.Value, int] = {}
    for node, index, value in layer.reads():
        merged = factor if _is_weight(layer, node, index, value) else 1
        moved.setdefault(value, prod(dims(value)) * _width(layer, types, node, index, value) * merged)
    return sum(moved.values()) + _written(layer, types)


def _is_weight(layer: Layer, node: ir.Node, index: int, value: ir.Value) -> bool:
    return value.is_initializer() and node is layer.main and index == 1


def _width(layer: Layer, types: Types, node: ir.Node, index: int, value: ir.Value) -> int:
    """Bytes of an element of what a layer reads at an input of one of its nodes."""
    if value.is_initializer():
        return (types.of_layer(layer) if _is_weight(layer, node, index, value) else types.base).width_bytes
    if value.is_graph_input():
        return _stored_bytes(value)
    return (types.narrow if Edge(node.name or "", index) in types.edges else types.base).width_bytes


def _written(layer: Layer, types: Types) -> int:
    """An output is written once for its readers of the narrow type and once for the others."""
    total = 0
    inside = set(layer.nodes)
    for node in layer.nodes:
        for value in node.outputs:
            readers = [use for use in value.uses() if use.node not in inside]
            quantized = [Edge(use.node.name or "", use.idx) in types.edges for use in readers]
            widths = types.narrow.width_bytes if any(quantized) else 0
            if value.is_graph_output():
                widths += _stored_bytes(value)
            elif readers and not all(quantized):
                widths += types.base.width_bytes
            total += prod(dims(value)) * widths
    return total


def _stored_bytes(value: ir.Value) -> int:
    """Bytes of an element of an input or output of the graph, which no precision changes."""
    return int(value.dtype.itemsize) if value.dtype is not None else Precision.FP32.width_bytes
