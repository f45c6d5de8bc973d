"""Scales that FP16 does not hold, beside what becomes FP16: which nodes stay FP32 so that not a bit of a scale changes."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir

from skdeploy.ir.constants import known
from skdeploy.ir.nodes import maker, operands
from skdeploy.ir.qdq import DEQUANTIZE, VIEWS, is_qdq
from skdeploy.ir.rows import WEIGHTED

# What a compiler runs in the kernel of the layer before, whose sums are wider than FP16 anyway.
EPILOGUE: Final = VIEWS | {"Relu", "Clip", "LeakyRelu", "PRelu", "Add", "MaxPool"}


def beside_single_scales(graph: ir.Graph) -> frozenset[ir.Node]:
    """Q/DQ whose scale is not an FP16 number, with the layers that read them and what runs in the kernels of those.

    Strong typing gives a scale the type of the tensor beside it, and another scale would make other numbers of the same
    integers. So these tensors stay FP32, and no Cast stands where a compiler looks for DequantizeLinear, layer and
    QuantizeLinear: the INT8 kernels are the same, and only what is left between them is FP16. Where every scale is an FP16
    number, as skdeploy's own are, there are none.
    """
    odd = {node for node in graph if is_qdq(node) and not _fits_half(node)}
    if not odd:
        return frozenset()
    layers = {
        node for node in graph if node.op_type in WEIGHTED and any(_source(value) in odd for value in node.inputs[:2])
    }
    found, made = set(odd), {value for node in odd for value in node.outputs}
    for node in graph:
        if node in layers or _feeds(node, layers) or (node.op_type in EPILOGUE and _reads_only(node, made)):
            found.add(node)
        if node in found:
            made.update(node.outputs)
    return frozenset(found)


def _fits_half(node: ir.Node) -> bool:
    scale = known(node.inputs[1])
    with np.errstate(over="ignore"):
        return scale is not None and np.array_equal(
            scale.astype(np.float16).astype(np.float64), scale.astype(np.float64)
        )


def _source(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that a layer's input comes from, through views."""
    node = maker(value)
    while node is not None and node.op_type in VIEWS:
        node = maker(node.inputs[0])
    return node if node is not None and node.op_type == DEQUANTIZE else None


def _feeds(node: ir.Node, layers: set[ir.Node]) -> bool:
    """Whether it is a DequantizeLinear that one of the layers reads."""
    return node.op_type == DEQUANTIZE and any(
        _source(value) is node for layer in layers for value in layer.inputs[:2] if value is not None
    )


def _reads_only(node: ir.Node, made: set[ir.Value]) -> bool:
    data = [value for value in operands(node) if not value.is_initializer()]
    return bool(data) and all(value in made for value in data)
