"""Finds selective kernel blocks in a graph, however they are written, and says why those that are almost one are not.

A block is ``V = sum_m a_m U_m`` with ``a = softmax_m(logits)`` for each channel, where a gate makes the logits of
``s = mean(sum_m U_m)`` (Li, Wang, Hu, Yang: "Selective Kernel Networks", CVPR 2019, section 3.1). It may be rewritten if

1. V is exactly that sum: for each image and channel, M maps, each times a weight of its own, and the M weights are the whole
   of one softmax. (``(1 - a)`` for the last weight, or the last map plus weighted differences, are the same sum.)
2. The maps are M tensors (N, C, H, W) of one shape, or channels in sequence of such tensors, in their own order of channels.
3. Image n is made of image n's maps and weights only.
4. The logits of each branch are elements of one tensor, whose first axis is the batch. Where they are all made of one input z
   by fully connected layers with constant weights (Conv 1x1, Gemm or MatMul, with or without bias, one for all branches or
   one each, their rows in any order), those layers are part of the block. Else the logits stay as they are, and with them
   all that makes them of s: other activations, a temperature, a normalisation, groups.
5. The logits depend on the image only through s: one number times the mean over height and width of the sum of just these
   maps, each once. (A mean over branches has the number 1/M. A sum over height and width has their product, so they must be
   fixed in the graph; divided by it, 1.)
6. Nothing between the maps, s, V and z, or the logits if there is no z, is used by anything else, and none of it is an output
   of the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from skdeploy.ir.constants import known
from skdeploy.ir.nodes import maker, operand, operands, optional
from skdeploy.passes.labels import Form, Labels, Leaves, Shape, Unknown, scalar, shape_of
from skdeploy.passes.weighted_sums import MEANS, MOVES, RESHAPES, SCALES, SUMS, evaluate

REDUCES: Final = frozenset({"ReduceSum", "ReduceMean"})
WITH_GRAPHS: Final = frozenset({"If", "Loop", "Scan"})


@dataclass(frozen=True)
class BranchMap:
    """U_m: the ``channels`` channels from ``start`` on of a tensor (N, >= C, H, W)."""

    value: ir.Value
    start: int
    channels: int


@dataclass(frozen=True)
class Layer:
    """``weight`` (M, C, d) and ``bias`` (M, C), which give the logits of z. ``z_shape`` is that of one image."""

    z: ir.Value
    z_shape: Shape
    weight: NDArray[Any]
    bias: NDArray[Any]


@dataclass(frozen=True)
class Rows:
    """The logits of one branch: the elements ``rows`` (C) of the ``count`` that ``value`` has for one image."""

    value: ir.Value
    count: int
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Statistics:
    """s is ``factor`` times the mean of the sum of the maps. ``shape`` is that of one image."""

    value: ir.Value
    shape: Shape
    factor: float


@dataclass(frozen=True)
class Block:
    """``selected`` is V. ``logits`` are the layer that makes them of z, or those that are there already, branch by branch."""

    name: str
    maps: tuple[BranchMap, ...]
    logits: Layer | tuple[Rows, ...]
    statistics: Statistics
    selected: ir.Value


def read_block(name: str, selected: ir.Value, maps: Labels, logits: Labels, leaves: Leaves) -> Block:
    """The block that selects ``selected`` from ``maps`` by ``logits``, labels (M, C). Raises Unknown if it is none."""
    branches = tuple(_branch(labels, shape_of(leaves.shapes, selected), leaves) for labels in maps)
    sources = {branch.value for branch in branches}
    rows = tuple(_rows(labels, leaves) for labels in logits)
    try:
        z, weight, bias = _fully_connected(logits, leaves)
    except Unknown:  # another gate, whose logits stay
        statistics = _statistics([branch.value for branch in rows], maps, sources, leaves)
        _check_private(selected, statistics.value, {*sources, *(branch.value for branch in rows)})
        return Block(name, branches, rows, statistics, selected)
    statistics = _statistics([z], maps, sources, leaves)
    start = z if statistics.value is z else _origin(z)
    _check_private(selected, statistics.value, {*sources, start})
    layer = Layer(start, shape_of(leaves.shapes, start)[1:], weight, bias)
    return Block(name, branches, layer, statistics, selected)


def data_inputs(node: ir.Node) -> list[ir.Value]:
    """The values a node computes with: not constants, shapes, axes or indices."""
    one = node.op_type in (MOVES | REDUCES) - {"Concat"}
    return [value for value in (operands(node)[:1] if one else operands(node)) if known(value) is None]


def _branch(labels: Labels, shape: Shape, leaves: Leaves) -> BranchMap:
    """Rule 2, for one branch."""
    found = _rows(labels, leaves, several := "a branch is not a run of channels of one tensor")
    if (found.rows != found.rows[0] + np.arange(len(labels))).any():
        raise Unknown(several)
    own = shape_of(leaves.shapes, found.value)
    if (own[0], *own[2:]) != (shape[0], *shape[2:]):
        raise Unknown(f"the branches' shapes differ: {list(own)} and {list(shape)}")
    return BranchMap(found.value, int(found.rows[0]), len(labels))


def _rows(labels: Labels, leaves: Leaves, several: str = "the logits of a branch come from several tensors") -> Rows:
    """Rule 4, for one branch. Raises Unknown, saying ``several``, if its labels are not those of one tensor."""
    numbers, _, elements = leaves.of(labels)
    if (numbers != numbers[0]).any():
        raise Unknown(several)
    leaf = leaves.leaves[numbers[0]]
    return Rows(leaf.value, leaf.elements, elements)


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
        added = next(array for value in node.inputs if (array := known(value)) is not None)
        node = maker(data_inputs(node)[0])
    if node is None or len(data_inputs(node)) != 1 or node.op_type not in ("Conv", "Gemm", "MatMul"):
        made = "an input" if node is None else f"{node.op_type} {node.name}"
        raise Unknown(f"its logits come from {made}, which is not a layer with constant weights")
    z = data_inputs(node)[0]
    matrix, own = known(node.inputs[1]), known(optional(node, 2))
    scale_weight, scale_bias = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
    if matrix is None:
        raise Unknown(f"{node.op_type} {node.name} multiplies a constant by its logits' input, not the other way round")
    if node.op_type == "Conv":
        if (
            node.attributes.get_int("group", 1) != 1
            or shape_of(leaves.shapes, z)[2:] != (1, 1)
            or matrix.shape[2:] != (1, 1)
        ):
            raise Unknown(f"its logits come from the convolution {node.name}, which is not 1x1 on 1x1 with one group")
        matrix = matrix[:, :, 0, 0]
    elif node.op_type == "MatMul":
        matrix = matrix.T
    else:
        if node.attributes.get_int("transA", 0):
            raise Unknown(f"its logits come from {node.name}, which transposes its input")
        matrix = matrix if node.attributes.get_int("transB", 0) else matrix.T
    if matrix.ndim != 2 or len(matrix) != outputs or added.size not in (1, outputs):
        raise Unknown(f"its logits come from {node.op_type} {node.name}, which is more than one fully connected layer")
    bias = np.zeros(outputs) if own is None else scale_bias * own.astype(np.float64).reshape(-1)
    return z, scale_weight * matrix.astype(np.float64), np.broadcast_to(bias + added.reshape(-1), (outputs,))


def _origin(value: ir.Value) -> ir.Value:
    """The tensor that ``value`` is a reshape of."""
    while (node := value.producer()) is not None and node.op_type in RESHAPES - {"Expand"}:
        value = operand(node, 0)
    return value


def _statistics(ends: list[ir.Value], maps: Labels, sources: set[ir.Value], leaves: Leaves) -> Statistics:
    """Rule 5: s, the only tensor through which ``ends`` depend on the image."""
    found = _means_before(ends, sources, leaves)
    if len(found) > 1:
        found = list(dict.fromkeys(_origin(value) for value in found))
    if len(found) != 1:
        names = ", ".join(sorted(value.name or "" for value in found)) or "none"
        raise Unknown(f"its gate takes {len(found)} means of its branches ({names}); one is expected")
    value = found[0]
    form = _made_of(value, sources, leaves)
    factors = {term.factor for term in form.terms}
    if len(form.terms) != len(maps):
        raise Unknown(f"its statistics {value.name} are not the sum of the {len(maps)} branches")
    if len(factors) > 1 or 0 in factors:
        raise Unknown(f"its statistics {value.name} weigh the branches by {', '.join(map(str, sorted(factors)))}")
    images = form.shape[0]
    if int(np.prod(form.shape)) != images * maps.shape[1]:
        raise Unknown(f"its statistics {value.name} do not have one number per channel")
    summed = [
        leaves.first_image(np.broadcast_to(term.map, form.shape).reshape(images, -1))
        for term in form.terms
        if term.map is not None
    ]
    if not np.array_equal(np.sort(summed, 0), np.sort(maps, 0)):
        raise Unknown(f"its statistics {value.name} are the mean of other maps than those it selects from")
    return Statistics(value, form.shape[1:], factors.pop())


def _means_before(ends: Iterable[ir.Value], sources: set[ir.Value], leaves: Leaves) -> list[ir.Value]:
    """The nearest tensors before ``ends`` that are made of the branches by moves, sums, means and factors only."""
    found: list[ir.Value] = []
    waiting = [(end, f"{end.name}") for end in dict.fromkeys(ends)]
    seen = {end for end, _ in waiting}
    sizes = {shape_of(leaves.shapes, source)[2:] for source in sources}
    while waiting:
        value, read_by = waiting.pop()
        node = value.producer()
        if node is not None and node.op_type == "Shape":
            continue  # says nothing of the image
        try:
            form = _made_of(value, sources, leaves)
        except Unknown as reason:  # not yet s: a layer, an activation or a normalisation of the gate
            made = value.name if node is None else f"{node.op_type} {node.name}"
            if node is None or node.op_type in WITH_GRAPHS or _reads_map(node, sizes, leaves):
                raise Unknown(f"its logits do not come from a mean of its branches alone: {made}: {reason}") from None
            unseen = [source for source in data_inputs(node) if source not in seen]
            waiting += [(source, f"{made}: {reason}") for source in unseen]
            seen.update(unseen)
            continue
        if form.averaged != (True, True):
            raise Unknown(f"its gate does not take the mean over height and width of its branches: {read_by}")
        found.append(value)
    return found


def _reads_map(node: ir.Node, sizes: set[Shape], leaves: Leaves) -> bool:
    """Whether it reads a map that is not made of the branches: one of their size, or one that it takes the mean of."""
    shapes = [leaves.shapes.get(value, ()) for value in data_inputs(node)]
    maps = [shape[2:] for shape in shapes if len(shape) == 4 and shape[2:] != (1, 1)]
    return any(node.op_type in MEANS or size in sizes for size in maps)


def _made_of(value: ir.Value, sources: set[ir.Value], leaves: Leaves) -> Form:
    if value in sources:
        return leaves.form(value, maps=True)
    number = scalar(value)
    if number is not None:
        return number
    node = value.producer()
    if node is None or node.op_type not in (MOVES | SUMS | MEANS | SCALES):
        raise Unknown(f"{value.name} is not a sum or a mean of the branches")
    return evaluate(node, lambda source: _made_of(source, sources, leaves), leaves.shapes)[value.index() or 0]


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
        unseen = [source for source in data_inputs(node) if source not in seen]
        waiting += unseen
        seen.update(unseen)
