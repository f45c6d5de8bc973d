"""Which nodes of a graph a DLA core takes, and the rule that refuses the rest.

The rules are NVIDIA's for Jetson: DLA Supported Layers and Restrictions, TensorRT 10 and 11,
https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/dla-layer-restrictions.html
Read again there in November 2026: batch, sizes, fixed shapes, 16 loadables a core, the activations, the elementwise operators,
concatenation along channels, and convolution's kernel, stride and channels. The limits of padding, dilation, groups, pooling,
softmax, reductions and Reshape are as noted from that page before: the text at hand was cut off above them.
Which release has a DLA at all: Working with DLA, of TensorRT 11.3 and 11.4.1, in the same documentation.
Matrix products are refused to be safe; NVIDIA's list of TensorRT 8.5 (github.com/NVIDIA/Deep-Learning-Accelerator-SW) has them
with a constant as second input. Broadcasts in elementwise operators are taken as allowed. The builder decides.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Final

import onnx_ir as ir

from skdeploy.core.architecture import Frozen
from skdeploy.ir.nodes import operand
from skdeploy.ir.placement import Edge
from skdeploy.planning.layers import Layer
from skdeploy.planning.plain import Plain, dims

MAX_BATCH: Final = 4096
MAX_SIZE: Final = 8192
SOFTMAX_AXIS: Final = 1024
RELEASES: Final = (
    "skdeploy builds for a DLA with TensorRT 11.4.1 and later, on AGX Orin (JetPack 7.2.2); TensorRT up to 10.7 has one for "
    "weakly typed builds, which are not ours, and its INT8 takes a calibration cache (export --legacy-calibration-cache)"
)
ACTIVATIONS: Final = frozenset({"Relu", "Sigmoid", "Tanh", "Clip", "LeakyRelu"})
POOL: Final = (("window", "kernel_shape", 1, 8), ("padding", "pads", 0, 7), ("stride", "strides", 1, 16))
LIMITS: Final = {
    "Conv": (("padding", "pads", 0, 31), ("stride", "strides", 1, 8), ("dilation", "dilations", 1, 32)),
    "MaxPool": POOL,
    "AveragePool": POOL,
}
ELEMENTWISE: Final = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min", "Pow"})


class Refusal(Frozen):
    """A rule, and the nodes that it refuses."""

    rule: str
    nodes: tuple[str, ...]


class DlaReport(Frozen):
    """``segments`` is how often the graph enters DLA, each with a copy in and out of its format; at most 16 load on a core."""

    eligible_share_of_macs: float
    eligible_nodes: int
    nodes: int
    segments: int
    static: bool
    refusals: tuple[Refusal, ...]
    releases: str = RELEASES


def dla_report(plain: Plain, layers: Collection[Layer]) -> DlaReport:
    """As if the graph were static; ``static`` tells whether it is, which DLA asks for."""
    macs = {layer.name: layer.macs for layer in layers}
    refused: dict[str, list[str]] = {}
    eligible = segments = done = 0
    inside = False
    nodes = list(plain.model.graph)
    for node in nodes:
        rule = refusal(node, plain.scales)
        if rule:
            refused.setdefault(rule, []).append(node.name or "")
            inside = False
            continue
        eligible += 1
        done += macs.get(node.name or "", 0)
        segments += not inside
        inside = True
    total = sum(macs.values())
    return DlaReport(
        eligible_share_of_macs=done / total if total else 0.0,
        eligible_nodes=eligible,
        nodes=len(nodes),
        segments=segments,
        static=not plain.dynamic,
        refusals=tuple(Refusal(rule=rule, nodes=tuple(names)) for rule, names in refused.items()),
    )


def refusal(node: ir.Node, scales: Mapping[Edge, str]) -> str:
    """The rule that keeps a node off DLA; empty if none does. ``scales``: of inputs that are read as INT8."""
    kind = node.op_type
    if kind in ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand"):
        return f"{kind}: only 4-D transposes of tensors run on DLA"
    if kind == "GlobalAveragePool" or (kind.startswith("Reduce") and kind != "ReduceMax"):
        return f"{kind}: of the reductions, a DLA has only the maximum"
    if kind in ("MatMul", "Gemm"):
        return f"{kind}: a DLA has no matrix product; use a 1x1 convolution"
    shapes = [dims(value) for value in (*node.inputs[:1], *node.outputs) if value is not None]
    if any(len(shape) != 4 for shape in shapes):
        return f"{kind}: tensors must be 4-D"
    if any(shape[0] > MAX_BATCH or max(shape[1:]) > MAX_SIZE for shape in shapes):
        return f"{kind}: the batch may be up to {MAX_BATCH}, other sizes up to {MAX_SIZE}"
    if kind == "Conv" and not (node.inputs[1] is not None and node.inputs[1].is_initializer()):
        return "Conv: the weight must be a constant"
    if kind in LIMITS:
        return _outside(node)
    if kind in ELEMENTWISE:
        return _elementwise(node, scales)
    if kind == "Softmax":
        axis = node.attributes.get_int("axis", -1) % 4
        return (
            "" if axis and shapes[0][axis] <= SOFTMAX_AXIS else f"Softmax: over at most {SOFTMAX_AXIS}, not the batch"
        )
    if kind == "Concat":
        return "" if node.attributes.get_int("axis", 1) % 4 == 1 else "Concat: only along the channels"
    if kind in ACTIVATIONS | {"ReduceMax", "Slice", "Transpose", "BatchNormalization", "Resize"}:
        return ""
    return f"{kind}: a DLA has no such layer"


def _outside(node: ir.Node) -> str:
    """The first number of a convolution or pooling that DLA does not take."""
    for what, values, least, most in _limits(node):
        if any(not least <= value <= most for value in values):
            return f"{node.op_type}: {what} must be from {least} to {most}"
    return ""


def _limits(node: ir.Node) -> Iterator[tuple[str, Collection[int], int, int]]:
    for what, name, least, most in LIMITS[node.op_type]:
        attribute = node.attributes.get(name)
        if attribute is not None:
            yield what, attribute.as_ints(), least, most
    if node.op_type == "Conv":
        channels_out, into_group, *kernel = dims(operand(node, 1))
        groups = node.attributes.get_int("group", 1)
        yield "kernel", kernel, 1, 32
        yield "channels", (channels_out, into_group * groups), 1, MAX_SIZE
        yield "groups", (groups,), 1, MAX_SIZE


def _elementwise(node: ir.Node, scales: Mapping[Edge, str]) -> str:
    read = [scales[edge] for index in range(len(node.inputs)) if (edge := Edge(node.name or "", index)) in scales]
    if len(read) == len(node.inputs) and len(set(read)) > 1:
        return f"{node.op_type}: INT8 inputs must have equal ranges"
    return ""
