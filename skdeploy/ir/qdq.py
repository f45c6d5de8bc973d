"""INT8 as explicit QuantizeLinear/DequantizeLinear pairs: every runtime reads the same precision from the graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from skdeploy.core.patterns import module_of
from skdeploy.ir.constants import constant, drop_unused, free_name, known
from skdeploy.ir.nodes import maker, new_node, only_one_reads, operand
from skdeploy.ir.placement import Edge, Placement
from skdeploy.ir.rows import WEIGHTED

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
INT8_MIN: Final = -128
VIEWS: Final = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"})
THROUGH: Final = VIEWS | {QUANTIZE, DEQUANTIZE}


def is_qdq(node: ir.Node) -> bool:
    return node.op_type in (QUANTIZE, DEQUANTIZE)


def qdq_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """The QuantizeLinear and DequantizeLinear nodes of a graph, in its order."""
    return filter(is_qdq, model.graph)


def layers(model: ir.Model) -> tuple[str, ...]:
    """The convolutions and matrix products whose weight is a constant, or a constant that is dequantized."""
    return tuple(node.name or "" for node in model.graph if _weight_of(node) is not None)


def int8_layers(model: ir.Model) -> tuple[str, ...]:
    """Of ``layers``, those that read INT8 and whose weights are INT8."""
    return tuple(
        node.name or ""
        for node in model.graph
        if _weight_of(node) is not None and all(_is_dequantized(value) for value in node.inputs[:2])
    )


def _weight_of(node: ir.Node) -> ir.Value | None:
    value = node.inputs[1] if node.op_type in WEIGHTED and len(node.inputs) > 1 else None
    while value is not None and (producer := value.producer()) is not None and producer.op_type in THROUGH:
        value = producer.inputs[0]
    return value if value is not None and value.is_initializer() else None


def _is_dequantized(value: ir.Value | None) -> bool:
    producer = maker(value)
    while producer is not None and producer.op_type in VIEWS:
        producer = maker(producer.inputs[0])
    return producer is not None and producer.op_type == DEQUANTIZE


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight as INT8: ``values`` of the weight's own shape, ``scales`` (channels,) along ``axis``, its output channels.

    Or one scale, of shape (), and no axis. ``bias`` replaces the node's own, or is None to leave it as it is; a MatMul has
    none.
    """

    values: NDArray[np.int8]
    scales: NDArray[np.float32]
    axis: int | None
    bias: NDArray[np.float32] | None = None


class InsertQDQ(ir.passes.InPlacePass):
    """Puts Q/DQ pairs where a placement says, with the given scales, in an FP32 graph.

    * Activations: one QuantizeLinear and one DequantizeLinear a tensor, per tensor, zero point 0; its readers share them, and
      tensors with one scale share that constant.
    * Weights: the INT8 values as a constant and a DequantizeLinear, per output channel, zero points 0. Biases stay float.

    TensorRT takes symmetric INT8 only, with the type of the zero point saying so, and every scale must be positive. An ONNX
    DequantizeLinear without zero point would be unsigned by default in some readers, so it is always given.

    A Clip that does nothing but what saturation does goes: its only bound is -128 steps, and only the QuantizeLinear reads it,
    directly or through a max pool.
    """

    def __init__(
        self, placement: Placement, scales: Mapping[str, float], weights: Mapping[str, QuantizedWeight]
    ) -> None:
        super().__init__()
        self.placement = placement
        self.scales = scales
        self.weights = weights

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        nodes = {node.name or "": node for node in graph}
        values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
        zero = constant(graph, "zero_point_int8", np.int8(0))
        owner = {name: group[0] for group in self.placement.tied for name in group}
        made: dict[str, ir.Value] = {}
        for tensor in self.placement.tensors:
            value, raw = self._read_by_layers(values[tensor]), self.placement.raw.get(tensor, ())
            uses = [use for use in value.uses() if Edge(use.node.name or "", use.idx) not in raw]
            own, producer = owner.get(tensor, tensor), value.producer()
            if own not in made:
                made[own] = constant(graph, f"{own}_scale", np.float32(self.scales[own]))
            scale = made[own]
            stem = f"/{tensor}" if producer is None else tensor  # an input belongs to no module
            names = [free_name(graph, f"{stem}_{what}") for what in ("quantized", "dequantized")]
            quantized = new_node(QUANTIZE, [value, scale, zero], names[0], value.shape, ir.DataType.INT8)
            dequantized = new_node(DEQUANTIZE, [quantized.outputs[0], scale, zero], names[1], value.shape)
            if producer is None:
                graph.insert_before(graph[0], [quantized, dequantized])
            else:
                graph.insert_after(producer, [quantized, dequantized])
            for use in uses:
                use.node.replace_input_with(use.idx, dequantized.outputs[0])
            _drop_clip(graph, quantized, self.scales[tensor])
        for name in self.placement.weighted:
            _quantize_weight(graph, nodes[name], self.weights[name])
        drop_unused(graph)
        return ir.passes.PassResult(model, modified=True)

    def _read_by_layers(self, value: ir.Value) -> ir.Value:
        """The tensor, or what the Pad makes of it that ``ShiftTensors`` put between it and its readers."""
        readers = self.placement.readers[value.name or ""]
        (first, *others) = value.uses()
        is_put = not others and first.node.op_type == "Pad" and Edge(first.node.name or "", first.idx) not in readers
        return first.node.outputs[0] if is_put else value


def _drop_clip(graph: ir.Graph, quantized: ir.Node, scale: float) -> None:
    reader = quantized
    while (source := _only_source(reader)) is not None and source.op_type == "MaxPool":
        reader = source
    if source is None or source.op_type != "Clip" or len(source.inputs) != 2:
        return
    low = known(source.inputs[1])
    if low is not None and low.reshape(-1).tolist() == [np.float32(INT8_MIN * scale)]:
        reader.replace_input_with(0, source.inputs[0])
        graph.remove(source, safe=True)  # a removed node goes on reading its constants otherwise


def _only_source(reader: ir.Node) -> ir.Node | None:
    """The node that makes what ``reader`` alone reads."""
    return maker(reader.inputs[0]) if only_one_reads(operand(reader, 0)) else None


def _quantize_weight(graph: ir.Graph, node: ir.Node, weight: QuantizedWeight) -> None:
    name = operand(node, 1).name or ""
    node.replace_input_with(1, dequantize_weight(graph, node, weight))
    if weight.bias is not None:
        assert node.op_type != "MatMul"  # it has no bias to replace
        node.resize_inputs(3)
        node.replace_input_with(2, constant(graph, f"{name}_corrected_bias", weight.bias))


def dequantize_weight(graph: ir.Graph, node: ir.Node, weight: QuantizedWeight) -> ir.Value:
    """The output of a new DequantizeLinear, before ``node``, that gives its ``weight`` from INT8 constants."""
    original = operand(node, 1)
    module, name = module_of(node.name), original.name or ""
    values = constant(graph, f"{name}_int8", weight.values)
    scales = constant(graph, f"{name}_scale", weight.scales)
    zeros = constant(graph, f"{name}_zero_point", np.zeros(weight.scales.shape, np.int8))
    label = free_name(graph, f"{module}/weight_dequantized")
    axis = {} if weight.axis is None else {"axis": weight.axis}
    dequantized = new_node(DEQUANTIZE, [values, scales, zeros], label, original.shape, attributes=axis)
    graph.insert_before(node, [dequantized])
    return dequantized.outputs[0]
