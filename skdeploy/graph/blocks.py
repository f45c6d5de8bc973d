"""Finds selective kernel blocks in a graph, however they are written, and says why those that are almost one are not.

A block is ``V = sum_m a_m U_m`` with ``a = softmax_m(logits)`` for each channel, ``logits = FC(z)`` and z a function of
``s = mean(sum_m U_m)`` (Li, Wang, Hu, Yang: "Selective Kernel Networks", CVPR 2019, section 3.1). It may be rewritten if

1. V is exactly that sum: for each image and channel, M maps, each times a weight of its own, and the M weights are the whole
   of one softmax. (``(1 - a)`` for the last weight, or the last map plus weighted differences, are the same sum.)
2. The maps are M tensors (N, C, H, W) of one shape, or channels in sequence of such tensors, in their own order of channels.
3. Image n is made of image n's maps, weights and statistics only.
4. The logits are fully connected layers with constant weights, all of one input z: Conv 1x1, Gemm or MatMul, with or without
   bias, one for all branches or one each, their rows in any order.
5. z depends on the branches only through s, the mean over height and width of the sum of just these maps, each once.
6. Nothing between the maps, z and V is used by anything else, and none of it is an output of the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from skdeploy.graph.weighted_sums import (
    MEANS,
    MOVES,
    RESHAPES,
    SUMS,
    Form,
    Labels,
    Leaves,
    Shape,
    Unknown,
    constant,
    evaluate,
    shape_of,
)

REDUCES = frozenset({"ReduceSum", "ReduceMean"})


@dataclass(frozen=True)
class BranchMap:
    """U_m: the ``channels`` channels from ``start`` on of a tensor (N, >= C, H, W)."""

    value: ir.Value
    start: int
    channels: int


@dataclass(frozen=True)
class Block:
    """``weight`` (M, C, d) and ``bias`` (M, C) give the logits from z; ``statistics`` is s, ``selected`` is V.

    ``statistics_shape`` and ``z_shape`` are those of one image.
    """

    name: str
    maps: tuple[BranchMap, ...]
    z: ir.Value
    z_shape: Shape
    weight: NDArray[Any]
    bias: NDArray[Any]
    statistics: ir.Value
    statistics_shape: Shape
    selected: ir.Value


def read_block(name: str, selected: ir.Value, maps: Labels, logits: Labels, leaves: Leaves) -> Block:
    """The block that selects ``selected`` from ``maps`` by ``logits``, labels (M, C). Raises Unknown if it is none."""
    branches = tuple(_branch(labels, shape_of(leaves.shapes, selected), leaves) for labels in maps)
    z, weight, bias = _fully_connected(logits, leaves)
    sources = {branch.value for branch in branches}
    statistics = _statistics(z, maps, sources, leaves)
    start = z if statistics is z else _origin(z)
    _check_private(selected, statistics, {*sources, start})
    z_shape, statistics_shape = (shape_of(leaves.shapes, value)[1:] for value in (start, statistics))
    return Block(name, branches, start, z_shape, weight, bias, statistics, statistics_shape, selected)


def data_inputs(node: ir.Node) -> list[ir.Value]:
    """What a node computes with: neither constants nor shapes, axes and indices."""
    several = not (node.op_type in (MOVES | REDUCES) and node.op_type != "Concat")
    inputs = node.inputs if several else node.inputs[:1]
    return [value for value in inputs if value is not None and constant(value) is None]


def _branch(labels: Labels, shape: Shape, leaves: Leaves) -> BranchMap:
    """Rule 2, for one branch."""
    numbers, _, elements = leaves.of(labels)
    leaf = leaves.leaves[numbers[0]]
    channels = len(labels)
    if (numbers != numbers[0]).any() or (elements != elements[0] + np.arange(channels)).any():
        raise Unknown("a branch is no channels in sequence of one tensor")
    own = leaf.form.shape
    if (own[0], *own[2:]) != (shape[0], *shape[2:]):
        raise Unknown(f"the branches' shapes differ: {list(own)} and {list(shape)}")
    return BranchMap(leaf.value, int(elements[0]), channels)


def _fully_connected(logits: Labels, leaves: Leaves) -> tuple[ir.Value, NDArray[Any], NDArray[Any]]:
    """Rule 4: z, weight (M, C, d) and bias (M, C)."""
    numbers, _, rows = leaves.of(logits)
    layers = {int(number): _layer(leaves.leaves[number].value, leaves) for number in np.unique(numbers)}
    inputs = {_origin(z): z for z, _, _ in layers.values()}
    widths = {weight.shape[1] for _, weight, _ in layers.values()}
    if len(inputs) > 1 or len(widths) > 1:
        names = ", ".join(sorted(value.name or "" for value in inputs))
        raise Unknown(f"its logits come from layers with different inputs: {names}")
    z, width = next(iter(inputs.values())), widths.pop()
    shape = shape_of(leaves.shapes, _origin(z))
    if int(np.prod(shape[1:])) != width:
        raise Unknown(f"its logits' layer takes {width} numbers of {z.name}, which has {list(shape)}")
    weight = np.empty((*logits.shape, width), dtype=np.float64)
    bias = np.empty(logits.shape, dtype=np.float64)
    for number, (_, layer_weight, layer_bias) in layers.items():
        own = numbers == number
        weight[own], bias[own] = layer_weight[rows[own]], layer_bias[rows[own]]
    return z, weight, bias


def _layer(value: ir.Value, leaves: Leaves) -> tuple[ir.Value, NDArray[Any], NDArray[Any]]:
    """A fully connected layer that makes ``value``: its input, weight (K, d) and bias (K)."""
    outputs = int(np.prod(shape_of(leaves.shapes, value)[1:]))
    added: NDArray[Any] = np.zeros(1)
    node = value.producer()
    if node is not None and node.op_type == "Add" and len(data_inputs(node)) == 1:
        constants = [array for operand in node.inputs if (array := constant(operand)) is not None]
        node, added = data_inputs(node)[0].producer(), constants[0]
    if node is None or len(data_inputs(node)) != 1 or node.op_type not in ("Conv", "Gemm", "MatMul"):
        made = "an input" if node is None else f"{node.op_type} {node.name}"
        raise Unknown(f"its logits come from {made}, which is no layer with constant weights")
    z = data_inputs(node)[0]
    matrix = constant(node.inputs[1])
    own = constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    scale_weight, scale_bias = 1.0, 1.0
    if matrix is None:
        raise Unknown(f"{node.op_type} {node.name} multiplies a constant by its logits' input, not the other way round")
    if node.op_type == "Conv":
        group = node.attributes["group"].as_int() if "group" in node.attributes else 1
        if group != 1 or shape_of(leaves.shapes, z)[2:] != (1, 1) or matrix.shape[2:] != (1, 1):
            raise Unknown(f"its logits come from the convolution {node.name}, which is not 1x1 on 1x1 with one group")
        matrix = matrix[:, :, 0, 0]
    elif node.op_type == "MatMul":
        matrix = matrix.T
    else:
        ints = {key: node.attributes[key].as_int() for key in ("transA", "transB") if key in node.attributes}
        if ints.get("transA"):
            raise Unknown(f"its logits come from {node.name}, which transposes its input")
        matrix = matrix if ints.get("transB") else matrix.T
        scale_weight = node.attributes["alpha"].as_float() if "alpha" in node.attributes else 1.0
        scale_bias = node.attributes["beta"].as_float() if "beta" in node.attributes else 1.0
    if matrix.ndim != 2 or len(matrix) != outputs or added.size not in (1, outputs):
        raise Unknown(f"its logits come from {node.op_type} {node.name}, which is more than one fully connected layer")
    bias = np.zeros(outputs) if own is None else scale_bias * own.astype(np.float64).reshape(-1)
    return z, scale_weight * matrix.astype(np.float64), np.broadcast_to(bias + added.reshape(-1), (outputs,))


def _origin(value: ir.Value) -> ir.Value:
    """The tensor that ``value`` is a reshape of."""
    node = value.producer()
    while node is not None and node.op_type in RESHAPES - {"Expand"} and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


def _statistics(z: ir.Value, maps: Labels, sources: set[ir.Value], leaves: Leaves) -> ir.Value:
    """Rule 5: s, the nearest tensor before z that is made of the branches by moves, sums and means only."""
    value = z
    while True:
        try:
            form = _made_of(value, sources, leaves)
            break
        except Unknown as reason:  # not yet s: a layer, an activation or a normalisation of the gate
            node = value.producer()
            inputs = [] if node is None else data_inputs(node)
            if node is None or len(inputs) != 1 or node.op_type in MEANS:
                made = value.name if node is None else f"{node.op_type} {node.name}"
                raise Unknown(f"its logits do not come from a mean of its branches alone: {made}: {reason}") from None
            value = inputs[0]
    if form.averaged != (True, True):
        raise Unknown(f"its statistics {value.name} are no mean over height and width")
    if any(term.factor != 1 or term.map is None for term in form.terms) or len(form.terms) != len(maps):
        raise Unknown(f"its statistics {value.name} are no sum of the {len(maps)} branches")
    images = form.shape[0]
    if int(np.prod(form.shape)) != images * maps.shape[1]:
        raise Unknown(f"its statistics {value.name} have not one number for each channel")
    summed = []
    for term in form.terms:
        assert term.map is not None  # asked above
        summed.append(leaves.first_image(np.broadcast_to(term.map, form.shape).reshape(images, -1)))
    if not np.array_equal(np.sort(summed, 0), np.sort(maps, 0)):
        raise Unknown(f"its statistics {value.name} are the mean of other maps than those it selects from")
    return value


def _made_of(value: ir.Value, sources: set[ir.Value], leaves: Leaves) -> Form:
    if value in sources:
        return leaves.form(value, maps=True)
    node = value.producer()
    if node is None or node.op_type not in (MOVES | SUMS | MEANS):
        raise Unknown(f"{value.name} is not made of the branches")
    return evaluate(node, lambda operand: _made_of(operand, sources, leaves), leaves.shapes)[value.index() or 0]


def _check_private(selected: ir.Value, statistics: ir.Value, stops: set[ir.Value]) -> None:
    """Rule 6."""
    inner = dict.fromkeys([*_nodes_between(selected, stops), *_nodes_between(statistics, stops)])
    for node in inner:
        for value in node.outputs:
            if value.is_graph_output() and value is not selected:
                raise Unknown(f"{value.name}, which would go, is an output of the graph")
            if value in (selected, statistics):
                continue
            for use in value.uses():
                if use.node not in inner and use.node.op_type != "Shape":
                    raise Unknown(f"{value.name}, which would go, is used by {use.node.op_type} {use.node.name} too")


def _nodes_between(end: ir.Value, stops: set[ir.Value]) -> Iterator[ir.Node]:
    waiting, seen = [end], {end}
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if value in stops or node is None:
            continue
        yield node
        for operand in data_inputs(node):
            if operand not in seen:
                seen.add(operand)
                waiting.append(operand)
