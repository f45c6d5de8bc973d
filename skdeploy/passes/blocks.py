"""Finds selective kernel blocks in a graph, however they are written, and says why those that are almost one are not.

A block is ``V = sum_m a_m U_m`` with ``a = softmax_m(logits)`` for each channel, where a gate makes the logits of
``s = mean(sum_m U_m)`` (Li, Wang, Hu, Yang: "Selective Kernel Networks", CVPR 2019, section 3.1). It may be rewritten if

1. V is exactly that sum: for each image and channel, M maps, each times a weight of its own, and the M weights are the whole
   of one softmax, or of another gate whose weights sum to one (``passes/gates.py``). ``(1 - a)`` for the last weight, or the
   last map plus weighted differences, are the same sum. It may have one constant factor, and other maps may be added to it.
2. The maps are M tensors (N, C, H, W) of one shape, or C channels of such tensors: up to four runs, each of which may skip as
   many channels every time. The same of sequences (N, C, T) and volumes (N, C, D, H, W); their "height and width" are all
   axes from the third on.
3. Image n is made of image n's maps and weights only.
4. The logits of each branch are elements of tensors whose first axis is the batch. Where they are all made of one input z
   by fully connected layers with constant weights (Conv 1x1, Gemm or MatMul, with or without bias, one for all branches or
   one each, their rows in any order; with groups, where two branches' rows are in the same group), those layers are part of
   the block. Else the logits stay as they are, and with them all that makes them of s: other activations, a temperature, a
   normalisation, groups.
5. The logits depend on the image only through s: one number times the mean over height and width of the sum of just these
   maps, each once. (A mean over branches has the number 1/M. A sum over height and width has their product, so they must be
   fixed in the graph; divided by it, 1.)
6. No weighted map is used by anything else, nor an output of the graph: it would have to stay. Weights, logits, the maps, their
   stack and their sum may be. Then they stay, and only what reads V reads something new.
7. The weights may instead belong to the rows of maps (N, C, H, W), or to another axis behind the channels: all of the above
   then holds with that axis in place of the channels, and s is the mean over the others. Frequency-wise selective kernel
   attention is that: Mun, Jung, Han, Kim, "Frequency and Multi-Scale Selective Kernel Attention for Speaker Verification",
   SLT 2022, section 3.2.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from skdeploy.ir.constants import WITH_GRAPHS, known
from skdeploy.ir.nodes import maker, operand, operands, optional
from skdeploy.passes.combinations import Combination
from skdeploy.passes.gates import Kind
from skdeploy.passes.labels import Form, Labels, Leaves, Shape, Unknown, scalar, shape_of
from skdeploy.passes.moves import MOVES, RESHAPES
from skdeploy.passes.weighted_sums import MEANS, SCALES, SUMS, evaluate

HOMOGENEOUS: Final = frozenset({"Relu", "LeakyRelu", "PRelu"})  # f(a x) = a f(x) for a >= 0
MAX_RUNS: Final = 4  # of channels that a branch is joined of: each is a copy
REDUCES: Final = frozenset({"ReduceSum", "ReduceMean"})


@dataclass(frozen=True)
class Part:
    """The channels, or the elements, ``rows`` of the ``count`` that ``value`` has for one image."""

    value: ir.Value
    count: int
    rows: NDArray[np.int64]


Parts = tuple[Part, ...]  # one after the other: a map, or the logits of one branch


@dataclass(frozen=True)
class Layer:
    """``weight`` (M, C, d) and ``bias`` (M, C), which give the logits of z. ``z_shape`` is that of one image.

    Where ``groups`` is above one, the layer that subtracts two branches' logits has as many.
    """

    z: ir.Value
    z_shape: Shape
    weight: NDArray[Any]
    bias: NDArray[Any]
    groups: int = 1


@dataclass(frozen=True)
class Statistics:
    """s is ``factor`` times the mean of the sum of the maps. ``shape`` is that of one image.

    It stays as it is (``kept``) where something else needs the sum too.
    """

    value: ir.Value
    shape: Shape
    factor: float
    kept: bool = False


@dataclass(frozen=True)
class Block:
    """``selected`` is ``factor * sum_m a_m U_m`` plus what is ``added``, of ``rank`` 4 for images.

    ``axis`` is that of the weights: 1, the channels, or another of rule 7, of whose rows all that is said of channels is true.

    ``logits`` are the layer that makes them of z, or those that are there already, branch by branch. A sigmoid has those of
    the first branch only. Of shares they are the numbers that are divided by their sum.
    """

    name: str
    kind: Kind
    maps: tuple[Parts, ...]
    logits: Layer | tuple[Parts, ...]
    statistics: Statistics
    selected: ir.Value
    rank: int
    factor: float = 1.0
    added: tuple[tuple[float, Parts], ...] = ()
    axis: int = 1

    def inputs(self) -> list[ir.Value]:
        """The tensors that the maps are taken from, and those that are added; before an activation, which V may have too."""
        taken = (*self.maps, *(parts for _, parts in self.added))
        values = dict.fromkeys(part.value for parts in taken for part in parts)
        makers = {value: maker(value) for value in values}
        return [operand(m, 0) if m is not None and m.op_type in HOMOGENEOUS else value for value, m in makers.items()]


def read_block(
    name: str, selected: ir.Value, found: Combination, kind: Kind, leaves: Leaves, forms: Mapping[ir.Value, Form]
) -> Block:
    """The block that selects ``selected``, of what ``forms`` say is made of weights. Raises Unknown if it is none."""
    shape = shape_of(leaves.shapes, selected)
    maps = tuple(_branch(labels, shape, leaves) for labels in found.maps)
    added = tuple((factor, _branch(labels, shape, leaves)) for factor, labels in found.added)
    sources = {part.value for branch in maps for part in branch}
    logits = found.logits[:1] if kind == "sigmoid" else found.logits
    rows = tuple(_elements(labels, leaves) for labels in logits)
    ends = {part.value for branch in rows for part in branch}
    layer, z = None, None
    if kind == "softmax" and not _are_read(selected, sources | ends, forms):
        with suppress(Unknown):  # the logits of other gates stay
            layer, z = _fully_connected(logits, leaves)
    statistics = _statistics([*ends] if z is None else [z], found.maps, sources, leaves)
    if layer is not None and statistics.value is z:
        assert z is not None
        layer = replace(layer, z=z, z_shape=shape_of(leaves.shapes, z)[1:])
    stops = sources | (ends if layer is None else {layer.z})
    _check_private(selected, stops, forms)
    inner = {*_nodes_between(selected, stops), *_nodes_between(statistics.value, sources)}
    kept = statistics.value.is_graph_output() or any(
        _outside(value, inner) for node in _nodes_between(statistics.value, sources) if node.op_type not in MOVES
        for value in node.outputs if value is not statistics.value
    )  # fmt: skip
    statistics = replace(statistics, kept=kept)
    return Block(
        name, kind, maps, rows if layer is None else layer, statistics, selected, len(shape), found.factor, added,
        leaves.axis,
    )  # fmt: skip


def data_inputs(node: ir.Node) -> list[ir.Value]:
    """The values a node computes with: not constants, shapes, axes or indices."""
    one = node.op_type in (MOVES | REDUCES) - {"Concat"}
    return [value for value in (operands(node)[:1] if one else operands(node)) if known(value) is None]


def _branch(labels: Labels, shape: Shape, leaves: Leaves) -> Parts:
    """Rule 2, for one branch: runs of channels, which may skip as many each time."""
    numbers, _, channels = leaves.of(labels)
    starts = [0]
    for index in range(1, len(labels)):
        steps = np.diff(channels[starts[-1] : index + 1])
        if numbers[index] != numbers[index - 1] or steps[-1] < 1 or steps[-1] != steps[0]:
            starts.append(index)
    if len(starts) > MAX_RUNS:
        raise Unknown(f"a branch is not a run of channels of one tensor, but {len(starts)} of them")
    parts = []
    for start, end in pairwise([*starts, len(labels)]):
        leaf = leaves.leaves[numbers[start]]
        own = shape_of(leaves.shapes, leaf.value)
        if len(own) != len(shape) or any(own[axis] != shape[axis] for axis in (0, *leaves.spatial(len(shape)))):
            raise Unknown(f"the branches' shapes differ: {list(own)} and {list(shape)}")
        parts.append(Part(leaf.value, leaf.elements, channels[start:end]))
    return tuple(parts)


def _elements(labels: Labels, leaves: Leaves) -> Parts:
    """Rule 4, for one branch."""
    numbers, _, elements = leaves.of(labels)
    bounds = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(labels)]
    if len(bounds) > MAX_RUNS + 1:
        raise Unknown("the logits of a branch come from several tensors in turn")
    parts = []
    for start, end in pairwise(bounds):
        leaf = leaves.leaves[numbers[start]]
        parts.append(Part(leaf.value, leaf.elements, elements[start:end]))
    return tuple(parts)


def _fully_connected(logits: Labels, leaves: Leaves) -> tuple[Layer, ir.Value]:
    """Rule 4, and the input of the layers, of which the layer's z may be a reshape."""
    numbers, _, rows = leaves.of(logits)
    layers = {int(number): _layer(leaves.leaves[number].value, leaves) for number in np.unique(numbers)}
    inputs = {_origin(z): z for z, *_ in layers.values()}
    widths = {weight.shape[1] for _, weight, *_ in layers.values()}
    if len(inputs) > 1 or len(widths) > 1:
        names = ", ".join(sorted(value.name or "" for value in inputs))
        raise Unknown(f"its logits come from layers with different inputs: {names}")
    z, width = next(iter(inputs.values())), widths.pop()
    origin = _origin(z)
    shape = shape_of(leaves.shapes, origin)
    if int(np.prod(shape[1:])) != width:
        raise Unknown(f"its logits' layer takes {width} numbers of {z.name}, which has {list(shape)}")
    weight = np.empty((*logits.shape, width), dtype=np.float64)
    bias = np.empty(logits.shape, dtype=np.float64)
    for number, (_, layer_weight, layer_bias, _) in layers.items():
        own = numbers == number
        weight[own], bias[own] = layer_weight[rows[own]], layer_bias[rows[own]]
    groups = max(layer[3] for layer in layers.values())
    if groups > 1 and not _difference_has_groups(weight, groups):
        raise Unknown(f"its logits come from a layer of {groups} groups, over which the branches are spread")
    return Layer(origin, shape[1:], weight, bias, groups), z


def _difference_has_groups(weight: NDArray[Any], groups: int) -> bool:
    """Whether the rows of two branches are in the same group of inputs, for each channel, and the groups follow in order."""
    branches, channels, width = weight.shape
    if branches != 2 or channels % groups:
        return False
    blocks = (weight[0] - weight[1]).reshape(groups, channels // groups, groups, width // groups)
    return not any(blocks[row, :, column].any() for row in range(groups) for column in range(groups) if row != column)


def _layer(value: ir.Value, leaves: Leaves) -> tuple[ir.Value, NDArray[Any], NDArray[Any], int]:
    """A fully connected layer that makes ``value``: its input, weight (K, d), bias (K) and groups.

    A layer with groups is a block-diagonal matrix.
    """
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
    groups = node.attributes.get_int("group", 1)
    if node.op_type == "Conv":
        if any(size != 1 for size in (*shape_of(leaves.shapes, z)[2:], *matrix.shape[2:])):
            raise Unknown(f"its logits come from the convolution {node.name}, which is not 1x1 on 1x1")
        matrix = _block_diagonal(matrix.reshape(matrix.shape[:2]), groups)
    elif node.op_type == "MatMul":
        matrix = matrix.T
    else:
        if node.attributes.get_int("transA", 0):
            raise Unknown(f"its logits come from {node.name}, which transposes its input")
        matrix = matrix if node.attributes.get_int("transB", 0) else matrix.T
    if matrix.ndim != 2 or len(matrix) != outputs or added.size not in (1, outputs):
        raise Unknown(f"its logits come from {node.op_type} {node.name}, which is more than one fully connected layer")
    bias = np.zeros(outputs) if own is None else scale_bias * own.astype(np.float64).reshape(-1)
    return z, scale_weight * matrix.astype(np.float64), np.broadcast_to(bias + added.reshape(-1), (outputs,)), groups


def _block_diagonal(matrix: NDArray[Any], groups: int) -> NDArray[Any]:
    """The matrix of a layer with groups: its rows (K, d / groups) at their group's inputs, zeros elsewhere."""
    rows, width = len(matrix) // groups, matrix.shape[1]
    whole = np.zeros((len(matrix), groups * width), dtype=matrix.dtype)
    for group in range(groups):
        own = slice(group * rows, (group + 1) * rows)
        whole[own, group * width : (group + 1) * width] = matrix[own]
    return whole


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
        if not (form.averaged and all(form.averaged)):
            axes = "height and width" if leaves.axis == 1 else f"all axes but the batch and {leaves.axis}"
            raise Unknown(f"its gate does not take the mean over {axes} of its branches: {read_by}")
        found.append(value)
    return found


def _reads_map(node: ir.Node, sizes: set[Shape], leaves: Leaves) -> bool:
    """Whether it reads a map that is not made of the branches: one of their size, or one that it takes the mean of."""
    shapes = [leaves.shapes.get(value, ()) for value in data_inputs(node)]
    ranks = {len(size) + 2 for size in sizes}
    maps = [shape[2:] for shape in shapes if len(shape) in ranks and any(size != 1 for size in shape[2:])]
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


def _check_private(selected: ir.Value, stops: set[ir.Value], forms: Mapping[ir.Value, Form]) -> None:
    """Rule 6."""
    inner = dict.fromkeys(_nodes_between(selected, stops))
    for node in inner:
        for value in node.outputs:
            if value is selected or value not in forms or not forms[value].holds_maps():
                continue
            if value.is_graph_output():
                raise Unknown(f"{value.name}, which would go, is an output of the graph")
            use = _outside(value, inner)
            if use is not None:
                raise Unknown(f"{value.name}, which would go, is used by {use.op_type} {use.name} too")


def _are_read(selected: ir.Value, stops: set[ir.Value], forms: Mapping[ir.Value, Form]) -> bool:
    """Whether something else reads the weights of a select, so that they stay."""
    inner = dict.fromkeys(_nodes_between(selected, stops))
    weights = [v for node in inner for v in node.outputs if v in forms and not forms[v].holds_maps()]
    return any(value.is_graph_output() or _outside(value, inner) is not None for value in weights)


def _outside(value: ir.Value, inner: Container[ir.Node]) -> ir.Node | None:
    """A node that is none of ``inner`` and reads the numbers of ``value``, if there is one."""
    uses = (use.node for use in value.uses())
    return next((node for node in uses if node not in inner and node.op_type != "Shape"), None)


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
