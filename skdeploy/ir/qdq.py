"""INT8 as explicit QuantizeLinear/DequantizeLinear pairs: every runtime reads the same precision from the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from skdeploy.ir.constants import constant, drop_unused, free_name
from skdeploy.ir.naming import module_of
from skdeploy.ir.placement import Edge, Placement, only_one_reads

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
INT8_MIN: Final = -128
INT8, FLOAT32 = ir.DataType.INT8, ir.DataType.FLOAT


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight as INT8: ``values`` of the weight's own shape, ``scales`` (channels,) along ``axis``, its output channels.

    ``bias`` replaces the node's own, or is None to leave it as it is; a MatMul has none.
    """

    values: NDArray[np.int8]
    scales: NDArray[np.float32]
    axis: int
    bias: NDArray[np.float32] | None = None


class InsertQDQ(ir.passes.InPlacePass):
    """Puts Q/DQ pairs where a placement says, with the given scales, in an FP32 graph.

    * Activations: one QuantizeLinear and one DequantizeLinear a tensor, per tensor, zero point 0; its readers share them.
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
        values = {value.name or "": value for value in graph.inputs}
        values.update({value.name or "": value for node in graph for value in node.outputs})
        zero = constant(graph, "zero_point_int8", np.int8(0))
        for tensor in self.placement.tensors:
            value = values[tensor]
            raw = self.placement.raw.get(tensor, ())
            uses = [use for use in value.uses() if Edge(use.node.name or "", use.idx) not in raw]
            scale = constant(graph, f"{tensor}_scale", np.float32(self.scales[tensor]))
            quantized, dequantized = _pair(graph, value, scale, zero)
            producer = value.producer()
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


def _pair(graph: ir.Graph, value: ir.Value, scale: ir.Value, zero: ir.Value) -> tuple[ir.Node, ir.Node]:
    stem = value.name if value.producer() is not None else f"/{value.name}"  # an input belongs to no module
    quantized, dequantized = (free_name(graph, f"{stem}_{what}") for what in ("quantized", "dequantized"))
    first = _node(QUANTIZE, [value, scale, zero], quantized, value, INT8)
    return first, _node(DEQUANTIZE, [first.outputs[0], scale, zero], dequantized, value, FLOAT32)


def _drop_clip(graph: ir.Graph, quantized: ir.Node, scale: float) -> None:
    reader = quantized
    value = reader.inputs[0]
    while value is not None and (producer := value.producer()) is not None and only_one_reads(value):
        if producer.op_type == "MaxPool":
            reader, value = producer, producer.inputs[0]
            continue
        bounds = producer.inputs[1:]
        if producer.op_type == "Clip" and len(bounds) == 1 and bounds[0] is not None:
            low = bounds[0].const_value
            if low is not None and low.numpy().reshape(-1).tolist() == [np.float32(INT8_MIN * scale)]:
                reader.replace_input_with(0, producer.inputs[0])
                graph.remove(producer, safe=True)  # a removed node goes on reading its constants otherwise
        return


def _quantize_weight(graph: ir.Graph, node: ir.Node, weight: QuantizedWeight) -> None:
    original = node.inputs[1]
    assert original is not None  # placed
    module, name = module_of(node.name), original.name or ""
    values = constant(graph, f"{name}_int8", weight.values)
    scales = constant(graph, f"{name}_scale", weight.scales)
    zeros = constant(graph, f"{name}_zero_point", np.zeros(len(weight.scales), np.int8))
    label = free_name(graph, f"{module}/weight_dequantized")
    dequantized = _node(DEQUANTIZE, [values, scales, zeros], label, original, FLOAT32, {"axis": weight.axis})
    graph.insert_before(node, [dequantized])
    node.replace_input_with(1, dequantized.outputs[0])
    if weight.bias is not None:
        assert node.op_type != "MatMul"  # it has no bias to replace
        node.resize_inputs(3)
        node.replace_input_with(2, constant(graph, f"{name}_corrected_bias", weight.bias))


def _node(
    operator: str,
    inputs: list[ir.Value],
    name: str,
    like: ir.Value,
    dtype: ir.DataType,
    attributes: dict[str, int] | None = None,
) -> ir.Node:
    node = ir.node(operator, inputs, attributes=attributes, name=name)
    output = node.outputs[0]
    output.name, output.shape, output.type = name, like.shape, ir.TensorType(dtype)
    return node
