"""Which nodes of a graph run as one layer: the fusions that NVIDIA documents for TensorRT, and those of ONNX Runtime's CPU.

TensorRT's: Types of Fusions, https://docs.nvidia.com/deeplearning/tensorrt/latest/performance/best-practices.html
Convolution with bias, scale, batch normalisation and ReLU; with the elementwise sum of a skip; chains of pointwise operators.
Folding Q/DQ into convolutions is plain.py's, which takes both away. What a layer's own kernels do is not modelled.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Final

import onnx_ir as ir

from skdeploy.core.patterns import module_of
from skdeploy.planning.plain import dims

WEIGHTED: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
ACTIVATIONS: Final = frozenset({"Relu", "Clip", "LeakyRelu"})
POINTWISE: Final = ACTIVATIONS | {
    "Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Sqrt", "Exp", "Neg", "Abs", "Erf", "Sigmoid", "Tanh", "HardSigmoid",
    "HardSwish", "Elu", "Softplus", "BatchNormalization", "Cast", "PRelu", "Where",
}  # fmt: skip
# Views of the same bytes, or, for Concat, written in place by the makers of its inputs (TensorRT's concatenation elimination).
FREE: Final = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Concat", "Constant"})


@dataclass(frozen=True)
class Fusions:
    """A group of nodes that a runtime runs as one layer. ``chains``: pointwise operators of one shape, one after another."""

    activations: frozenset[str] = ACTIVATIONS
    chains: bool = True
    free: frozenset[str] = FREE  # what costs nothing


TENSORRT: Final = Fusions()
# Read off the graph that ONNX Runtime 1.32 writes with optimized_model_filepath: FusedConv and nchwc.Conv.
ONNXRUNTIME: Final = Fusions(ACTIVATIONS | {"Sigmoid", "Tanh", "HardSigmoid"}, chains=False, free=FREE - {"Concat"})


@dataclass
class Layer:
    """Nodes that run as one. ``macs`` and shapes are those of the whole batch. Equality is identity."""

    nodes: list[ir.Node]
    macs: int = 0
    kernel: tuple[int, ...] = ()
    groups: int = 1
    into_group: int = 0  # channels, per group
    out_of_group: int = 0
    skip: ir.Value | None = None  # what a fused sum adds

    @property
    def main(self) -> ir.Node:
        """The node that names the layer: the weighted one, or the first."""
        return next((node for node in self.nodes if node.op_type in WEIGHTED), self.nodes[0])

    @property
    def name(self) -> str:
        return self.main.name or ""

    @property
    def module(self) -> str:
        return module_of(self.name)

    @property
    def kind(self) -> str:
        """For people: ``3x3 conv, 32 groups of 4``, ``pointwise``, or the operator."""
        if self.main.op_type in ("Conv", "ConvTranspose"):
            what = f"{'x'.join(map(str, self.kernel))} {'conv' if self.main.op_type == 'Conv' else 'deconv'}"
            return f"{what}, {self.groups} groups of {self.into_group}" if self.groups > 1 else what
        return "pointwise" if self.main.op_type in POINTWISE else self.main.op_type

    @property
    def output(self) -> ir.Value:
        return self.nodes[-1].outputs[0]

    def reads(self) -> list[tuple[ir.Node, int, ir.Value]]:
        """The inputs that come from outside the layer, weights among them."""
        inside = {value for node in self.nodes for value in node.outputs}
        return [
            (node, index, value)
            for node in self.nodes
            for index, value in enumerate(node.inputs)
            if value is not None and value not in inside
        ]


def fuse(model: ir.Model, fusions: Fusions = TENSORRT) -> list[Layer]:
    """The layers of a plain graph, in the order in which they run. Nodes that cost nothing are in none."""
    made_by: dict[ir.Value, Layer] = {}
    layers: list[Layer] = []
    for node in model.graph:
        if node.op_type in fusions.free or _is_integers(node):
            continue
        layer = _joined(node, made_by, layers, fusions)
        if layer is None:
            layer = _started(node)
        else:
            layers.remove(layer)  # it runs where its last input is there
            layer.nodes.append(node)
        layers.append(layer)
        made_by |= dict.fromkeys(node.outputs, layer)
    return layers


def _joined(node: ir.Node, made_by: dict[ir.Value, Layer], layers: list[Layer], fusions: Fusions) -> Layer | None:
    """The layer that takes ``node`` as its next."""
    if node.op_type not in POINTWISE:
        return None
    values = [value for value in node.inputs if value is not None and not value.is_initializer()]
    if not values:
        return None
    # Of a sum of two convolutions, the later one takes it: the other's output is there by then.
    near = [made_by[value] for value in values if value in made_by and _is_sole(value, node)]
    near.sort(key=layers.index, reverse=True)
    for layer in near:
        if layer.main.op_type in WEIGHTED and _fits_epilogue(layer, node, values, fusions):
            return layer
    if not fusions.chains:
        return None
    chains = [layer for layer in near if layer.main.op_type in POINTWISE and _same_size(layer.output, node.outputs[0])]
    for other in chains[1:]:
        if other is not chains[0]:
            chains[0].nodes[:0] = other.nodes
            layers.remove(other)
            made_by |= {value: chains[0] for inner in other.nodes for value in inner.outputs}
    return chains[0] if chains else None


def _fits_epilogue(layer: Layer, node: ir.Node, values: list[ir.Value], fusions: Fusions) -> bool:
    last = layer.nodes[-1]
    if last.op_type in fusions.activations:
        return False
    if node.op_type in fusions.activations or node.op_type == "BatchNormalization":
        return True
    if node.op_type in ("Add", "Mul") and len(values) == 1:  # a bias or a scale
        return layer.skip is None
    if node.op_type == "Add" and layer.skip is None and all(_same_size(value, node.outputs[0]) for value in values):
        layer.skip = next((value for value in values if value is not layer.output), None)
        return layer.skip is not None
    return False


def _started(node: ir.Node) -> Layer:
    layer = Layer([node])
    if node.op_type not in WEIGHTED:
        return layer
    source, shape = (dims(value) for value in node.inputs[:2] if value is not None)  # both are required by ONNX
    output = dims(node.outputs[0])
    if node.op_type in ("Conv", "ConvTranspose"):
        layer.groups, layer.kernel = node.attributes.get_int("group", 1), shape[2:]
        layer.into_group, layer.out_of_group = shape[1], shape[0] // layer.groups
        places = output
        if node.op_type == "ConvTranspose":
            layer.into_group, layer.out_of_group = shape[0] // layer.groups, shape[1]
            places = source
        layer.macs = (
            prod(shape) * places[0] * prod(places[2:])
        )  # as quant/macs.py counts: every weight once at each place
    else:
        transposed = node.op_type == "Gemm" and bool(node.attributes.get_int("transA", 0))
        layer.into_group, layer.out_of_group = source[0 if transposed else -1], output[-1]
        layer.macs = prod(output) * layer.into_group
    return layer


def _is_sole(value: ir.Value, reader: ir.Node) -> bool:
    return not value.is_graph_output() and all(use.node is reader for use in value.uses())


def _same_size(one: ir.Value, other: ir.Value) -> bool:
    return dims(one) == dims(other)


def _is_integers(node: ir.Node) -> bool:
    """Arithmetic on shapes: whole numbers from whole numbers."""
    values = (*node.inputs, *node.outputs)
    kinds = [value.dtype for value in values if value is not None and value.dtype is not None]
    return bool(kinds) and all(kind in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL) for kind in kinds)
