"""The planner's model, held to a measurement: ONNX Runtime on this CPU, predicted from rates that single operators reach."""

from __future__ import annotations

from collections.abc import Collection
from math import prod
from typing import Final

import onnx_ir as ir

from benchmarks.cpu_rates import CpuRates, Kind
from skdeploy.core.spec import Precision
from skdeploy.planning.layers import Layer
from skdeploy.planning.plain import dims
from skdeploy.planning.roofline import Cost, Types, bytes_moved

FEW_INPUTS: Final = 4  # channels of an image: a convolution of few channels has a kernel of its own
# ONNX Runtime keeps maps in blocks of channels; convolutions whose groups are narrower than a block, and all other operators,
# take them plain, and a map that goes from one to the other is copied.
BLOCK: Final = 8
POOLS: Final = frozenset({"MaxPool", "AveragePool"})


def cpu_costs(layers: Collection[Layer], rates: CpuRates) -> list[Cost]:
    """Every layer's time in FP32, as the roofline counts it: the larger of arithmetic and bytes, with rates in place of peaks.

    Arithmetic: at the rate of the measured convolution most like it. Bytes: weights from memory, which no cache holds all of;
    maps at the rate of elementwise operators, which is that of a cache.
    """
    layouts = _plain_values(layers)
    return [_cost(layer, rates, layouts) for layer in layers]


def predicted_ms(found: Collection[Cost], rates: CpuRates) -> float:
    """Latency: the layers one after another, and what each operator costs however small."""
    return sum(cost.floor_ms + rates.operator_ms for cost in found)


def _cost(layer: Layer, rates: CpuRates, plain: frozenset[ir.Value]) -> Cost:
    moved = bytes_moved(layer, Types(Precision.FP32))
    weights = sum(
        prod(dims(value)) * Precision.FP32.width_bytes for _, _, value in layer.reads() if value.is_initializer()
    )
    output_bytes = prod(dims(layer.output)) * Precision.FP32.width_bytes
    copied = moved - weights
    memory_s = weights / rates.memory_bytes_a_second
    compute_s = 0.0
    if layer.macs:
        kind = kind_of(layer)
        if kind is None:
            compute_s = layer.macs / rates.peak_macs_a_second
        else:
            compute_s = layer.macs / rates.conv_rate(kind, layer.into_group, _pixels(layer))
        copied = prod(dims(layer.skip)) * Precision.FP32.width_bytes if layer.skip is not None else 0
        compute_s += copied / rates.copy_rate(output_bytes)
    else:
        memory_s += copied / rates.copy_rate(max(output_bytes, copied // 3))
    relaid = 0
    if _is_blocked(layer):
        read = {value for _, _, value in layer.reads()}
        relaid = sum(2 * prod(dims(value)) * Precision.FP32.width_bytes for value in read & plain)
        relaid += 2 * output_bytes if _has_plain_reader(layer) else 0
    both_s = relaid / rates.copy_rate(output_bytes)
    return Cost(
        layer, Precision.FP32, layer.macs, moved + relaid, 1000 * (compute_s + both_s), 1000 * (memory_s + both_s)
    )


def kind_of(layer: Layer) -> Kind | None:
    """Which measured convolution a layer is like; None for matrix products and transposed convolutions."""
    if layer.main.op_type != "Conv":
        return None
    if layer.groups > 1:
        return "depthwise" if layer.into_group == 1 else "grouped"
    if layer.into_group <= FEW_INPUTS:
        return "first"
    return "pointwise" if prod(layer.kernel) == 1 else "dense"


def _pixels(layer: Layer) -> int:
    return prod(dims(layer.main.outputs[0])[2:])


def _is_blocked(layer: Layer) -> bool:
    """Whether it is a convolution that takes maps in blocks of channels."""
    return layer.main.op_type == "Conv" and _takes_blocks(layer.groups, layer.into_group)


def _plain_values(layers: Collection[Layer]) -> frozenset[ir.Value]:
    """Maps that come plain: out of all but convolutions in blocks and poolings of such."""
    return frozenset(layer.output for layer in layers if not _is_blocked(layer) and layer.main.op_type not in POOLS)


def _has_plain_reader(layer: Layer) -> bool:
    """Whether an operator that takes maps plain reads the output of this convolution."""
    return any(
        use.node not in layer.nodes
        and not (use.node.op_type in POOLS or _is_blocked_node(use.node) or _is_skip(use.node))
        for use in layer.output.uses()
    )


def _is_blocked_node(node: ir.Node) -> bool:
    weight = node.inputs[1] if node.op_type == "Conv" else None
    return weight is not None and _takes_blocks(node.attributes.get_int("group", 1), dims(weight)[1])


def _takes_blocks(groups: int, into_group: int) -> bool:
    return groups == 1 or into_group == 1 or into_group % BLOCK == 0


def _is_skip(node: ir.Node) -> bool:
    """A sum that a convolution takes up."""
    makers = [value.producer() for value in node.inputs if value is not None]
    return node.op_type == "Add" and any(maker is not None and maker.op_type == "Conv" for maker in makers)
