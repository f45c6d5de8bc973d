"""Tensors with no or small negative values on all 256 levels of symmetric INT8: shifted, at no cost where it matters."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from skdeploy.ir.constants import add_to_bias, constant, drop_unused, free_name, numbers, weight_of
from skdeploy.ir.nodes import maker, new_node, only_one_reads, operand, operands
from skdeploy.ir.one_scale import moves
from skdeploy.ir.placement import ELEMENTWISE, POINTWISE, Edge, Placement, weighted_reason
from skdeploy.ir.rows import WEIGHTED, output_axis
from skdeploy.ir.statistics import SPATIAL_MEANS

ORDER_KEEPING: Final = frozenset({"MaxPool"})  # f(x - c) = f(x) - c, and it commutes with a lower bound
COPIES: Final = frozenset({"Slice", "Split"})


def shiftable(model: ir.Model, placement: Placement, *, padded: bool) -> tuple[str, ...]:
    """The quantized tensors that ``ShiftTensors`` can shift, by how they are read; how negative they are, it can't tell.

    Not so a tensor that a padded convolution reads, whose padding is a zero of the unshifted tensor: only with ``padded``, and
    where ``_border`` finds that its border can be written with it. Not so one that a transposed convolution reads, where the
    taps that meet differ from place to place. Not so one that a reader takes unquantized, that has another's scale, or that is
    the network's own input or output.
    """
    tied = {name for group in placement.tied for name in group}
    nodes = {node.name or "": node for node in model.graph}
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    return tuple(
        name
        for name, readers in placement.readers.items()
        if values[name].producer() is not None
        and not values[name].is_graph_output()
        and len(readers) == len(values[name].uses())
        and name not in tied
        and (
            not any(_reads_unevenly(nodes[edge.node]) for edge in readers)
            or (padded and bool(_border(values[name], readers, nodes)))
        )
    )


def shiftable_groups(model: ir.Model, placement: Placement, *, padded: bool) -> tuple[tuple[str, ...], ...]:
    """The groups of tensors with one scale that ``ShiftTensors`` can shift together, by one offset.

    What is joined, or moved out of a tensor that is shifted, is shifted as well: the nodes in between need nothing. Everyone
    else who reads a tensor of the group must allow it, as for a single tensor; and nothing but tensors of the group may come
    out of the nodes in between, no zeros of a Pad among them.
    """
    nodes = {node.name or "": node for node in model.graph}
    values = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    return tuple(group for group in placement.tied if _shifts_together(group, placement, nodes, values, padded=padded))


def _shifts_together(
    group: tuple[str, ...],
    placement: Placement,
    nodes: Mapping[str, ir.Node],
    values: Mapping[str, ir.Value],
    *,
    padded: bool,
) -> bool:
    for name in group:
        value = values[name]
        if value.producer() is None or value.is_graph_output() or len(placement.readers[name]) != len(value.uses()):
            return False
        if padded and _border(value, placement.readers[name], nodes):
            continue
        for edge in placement.readers[name]:
            node = nodes[edge.node]
            inside = _is_between(node, edge.index, group)
            if inside is False or (inside is None and _reads_unevenly(node)):
                return False
    return True


def _border(value: ir.Value, readers: Sequence[Edge], nodes: Mapping[str, ir.Node]) -> list[int]:
    """The padding of the convolutions that alone read a tensor, if its maker can as well write a padded one; else empty.

    A Slice or Split is a copy, and the elementwise operators of a select run as one kernel: both write the tensor for its
    readers, and a border more costs little. What a convolution makes, with the addition and activation fused into it, or a
    pool, would have to be copied.
    """
    found = {_padding(nodes[edge.node]) for edge in readers if edge.index == 0}
    pads = found.pop() if len(found) == 1 and all(edge.index == 0 for edge in readers) else ()
    return list(pads) if any(pads) and _is_written_for_readers(value) else []


def _padding(node: ir.Node) -> tuple[int, ...]:
    """The pads that a convolution states, if it can be shifted but for them."""
    if not _is_convolution(node) or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return ()
    pads = tuple(node.attributes.get_ints("pads", []))
    return pads if all(size >= 0 for size in pads) else ()


def _is_written_for_readers(value: ir.Value) -> bool:
    node = maker(value)
    while node is not None and node.op_type in POINTWISE and only_one_reads(operand(node, 0)):
        node = maker(operand(node, 0))
    if node is None or node.op_type in COPIES:
        return node is not None
    fused = (maker(each) for each in operands(node) if only_one_reads(each))
    return node.op_type in ELEMENTWISE and not any(each.op_type in WEIGHTED for each in fused if each is not None)


def _is_between(node: ir.Node, index: int, group: Collection[str]) -> bool | None:
    """Whether a node hands on what it reads to tensors of the group only; None if it computes with it."""
    if node.op_type != "Concat" and (not moves(node) or index != 0):
        return None
    if node.op_type == "Pad":
        return False
    return all(
        value.name in group
        or (not value.is_graph_output() and all(_is_between(use.node, use.idx, group) for use in value.uses()))
        for value in node.outputs
    )


def _is_handed_on(value: ir.Value, group: Collection[str]) -> bool:
    """Whether a tensor is joined, or moved, from others of its group."""
    node = maker(value)
    while node is not None and moves(node):
        source = operand(node, 0)
        if source.name in group:
            return True
        node = maker(source)
    return node is not None and node.op_type == "Concat" and all(each.name in group for each in operands(node))


class ShiftTensors(ir.passes.InPlacePass):
    """Replaces tensors t by t - c, and makes up for it wherever they are read. FP32 to FP32, the same function.

    Why: TensorRT's INT8 has zero point 0, so of a tensor that ReLU made, 127 of 256 levels are used. t - c with c = 128 steps
    uses all: 6 dB less noise for each such tensor. Where t reaches k steps below zero, as behind SiLU, GELU or hard-swish, c is
    128 - k steps. Zero stays a level, and padding exact. How t - c is made:

    * t = Relu(y), y from a convolution, or from an addition that a convolution goes into: c is taken from that convolution's
      bias, and Relu(y) - c = max(y - c, -c), a Clip. When it is quantized, saturation at -128 steps is that very Clip, which
      then goes (``ir/qdq.py``). So no operator is added, and a Relu less is left.
    * t made by a convolution, or by an addition that a convolution goes into: c is taken from that convolution's bias.
    * through a max pool in between, which commutes with all of these.
    * else by an Add.

    How t is had again from t - c:

    * a convolution or Gemm without padding: W t = W (t - c) + c sum(W), into its bias; a MatMul, by an Add of as much;
    * a convolution with padding, where ``_border`` allows it: the zeros around t are -c around t - c, so a Pad writes -c, and
      the convolution has no padding. -c is a whole number of steps, and what is quantized is the padded tensor: no rounding;
    * a skip addition that a convolution goes into: into that convolution's bias;
    * a mean over space, a pool's without padding too: mean(t) = mean(t - c) + c, an Add of one number a channel;
    * other elementwise operators, those of select: an Add, one for all of them.

    Every other tensor keeps its values and its name, and so do nodes: a Clip has the name of the Relu that was there.
    ``offsets`` has the c of each tensor; names must be ``shiftable``, or be in ``shiftable_groups``: then with all of their
    group, and one c. Of a group, those are shifted that are not moved or joined from others.
    """

    def __init__(self, placement: Placement, offsets: Mapping[str, float]) -> None:
        super().__init__()
        self.placement = placement
        self.offsets = offsets

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        owner = {name: group for group in self.placement.tied for name in group}
        borders = self._borders(graph)
        for name, offset in self.offsets.items():
            # By name, each time anew: shifting one tensor replaces nodes and outputs that the next one is made of.
            nodes = {node.name or "": node for node in graph}
            value = ir.convenience.create_value_mapping(graph, include_subgraphs=False)[name]
            group = owner.get(name, ())
            shifted = value if _is_handed_on(value, group) else self._subtract(graph, value, offset)
            if borders[name]:
                _pad(
                    graph, shifted, borders[name], -offset, [nodes[edge.node] for edge in self.placement.readers[name]]
                )
            restored: ir.Node | None = None
            for edge in self.placement.readers[name]:
                node = nodes[edge.node]
                if group and _is_between(node, edge.index, group):
                    continue
                if not self._absorb(graph, node, edge.index, offset):
                    restored = restored or _addition(graph, shifted, offset, f"{name}_unshifted")
                    node.replace_input_with(edge.index, restored.outputs[0])
        drop_unused(graph)
        return ir.passes.PassResult(model, modified=bool(self.offsets))

    def _borders(self, graph: ir.Graph) -> dict[str, list[int]]:
        """The border that each tensor gets, of the graph as it was when it was asked what can be shifted."""
        nodes = {node.name or "": node for node in graph}
        values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
        return {name: _border(values[name], self.placement.readers[name], nodes) for name in self.offsets}

    def _subtract(self, graph: ir.Graph, value: ir.Value, offset: float) -> ir.Value:
        """The value t - offset in place of ``value``, under its name and read where it was read."""
        clamped = value
        while (pool := clamped.producer()) is not None and pool.op_type in ORDER_KEEPING:
            if not only_one_reads(operand(pool, 0)):
                break
            clamped = operand(pool, 0)
        relu = clamped.producer()
        if relu is not None and relu.op_type == "Relu" and only_one_reads(operand(relu, 0)):
            convolution = self._convolution_of(operand(relu, 0))
            if convolution is not None:
                _shift_rows(graph, convolution, -offset)
                clipped = _clip_for_relu(graph, relu, -offset)
                return clipped if clamped is value else value
        if (convolution := self._convolution_of(clamped)) is not None:
            _shift_rows(graph, convolution, -offset)
            return value
        return _moved(graph, value, -offset, "plain")

    def _convolution_of(self, value: ir.Value) -> ir.Node | None:
        """The convolution whose bias shifts ``value``: its producer, or one that goes into the addition which makes it."""
        producer = value.producer()
        if producer is not None and producer.op_type == "Add":
            return next(self._summands(producer), None)
        return producer if producer is not None and _is_convolution(producer) else None

    def _summands(self, addition: ir.Node) -> Iterator[ir.Node]:
        """Convolutions that nothing but this addition reads, and that unquantized."""
        for value in operands(addition):
            node = value.producer()
            unquantized = only_one_reads(value) and value.name not in self.placement.readers
            if node is not None and _is_convolution(node) and unquantized:
                yield node

    def _absorb(self, graph: ir.Graph, node: ir.Node, index: int, offset: float) -> bool:
        """Makes a reader take t - offset for t without restoring t, if that can be."""
        if index == 0 and not weighted_reason(node):
            array = weight_of(node)
            columns = tuple(axis for axis in range(array.ndim) if axis != output_axis(node))
            change = offset * array.sum(axis=columns)
            if node.op_type == "MatMul":
                _moved(graph, node.outputs[0], change, "shifted")
            else:
                add_to_bias(graph, node, change)
            return True
        if node.op_type in SPATIAL_MEANS and index == 0 and not (node.op_type == "AveragePool" and _pads(node)):
            _moved(graph, node.outputs[0], offset, "shifted")
            return True
        if node.op_type == "Add" and (summand := next(self._summands(node), None)) is not None:
            _shift_rows(graph, summand, offset)
            return True
        return False


def _is_convolution(node: ir.Node) -> bool:
    return node.op_type == "Conv" and not weighted_reason(node)


def _pad(graph: ir.Graph, value: ir.Value, border: Sequence[int], filled: float, readers: Iterable[ir.Node]) -> None:
    """The border of convolutions as a Pad before them."""
    name, axes = value.name or "", len(border) // 2
    sizes = constant(graph, f"{name}_border", np.asarray([0, 0, *border[:axes], 0, 0, *border[axes:]], np.int64))
    fill = constant(graph, f"{name}_outside", np.float32(filled))
    shape = None if value.shape is None else [*value.shape[:2], *map(_larger, value.shape[2:], border, border[axes:])]
    pad, producer = new_node("Pad", [value, sizes, fill], free_name(graph, f"{name}_padded"), shape), value.producer()
    assert producer is not None  # made by a node of the graph
    graph.insert_after(producer, [pad])
    for node in readers:
        node.replace_input_with(0, pad.outputs[0])
        node.attributes["pads"] = ir.AttrInt64s("pads", [0] * len(border))


def _larger(size: int | ir.SymbolicDim, before: int, after: int) -> int | None:
    return size + before + after if isinstance(size, int) else None


def _reads_unevenly(node: ir.Node) -> bool:
    return node.op_type == "ConvTranspose" or (node.op_type == "Conv" and _pads(node))


def _pads(node: ir.Node) -> bool:
    """Whether the node reads values beside the map's edge; any way of padding that is not known to be none counts."""
    attributes = node.attributes
    chosen = attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    return any(attributes.get_ints("pads", [0])) or chosen or attributes.get_int("ceil_mode", 0) != 0


def _shift_rows(graph: ir.Graph, convolution: ir.Node, change: float) -> None:
    add_to_bias(graph, convolution, np.full(len(numbers(operand(convolution, 1))), change))


def _clip_for_relu(graph: ir.Graph, relu: ir.Node, low: float) -> ir.Value:
    """max(y, low) for Relu(y), under its name."""
    old = relu.outputs[0]
    bound = constant(graph, f"{old.name}_low", np.float32(low))
    clip = new_node("Clip", [operand(relu, 0), bound], relu.name or "", old.shape, old.dtype)
    graph.insert_before(relu, [clip])
    old.replace_all_uses_with(clip.outputs[0])
    graph.remove(relu, safe=True)  # a removed node goes on reading its input otherwise
    clip.outputs[0].name = old.name
    return clip.outputs[0]


def _moved(graph: ir.Graph, value: ir.Value, change: float | NDArray[np.float64], old: str) -> ir.Value:
    """``value`` + ``change`` in place of ``value``, under its name and read where it was read, by those outside too."""
    name = value.name or ""
    value.name = free_name(graph, f"{name}_{old}")
    addition = _addition(graph, value, change, f"{name}_moved")
    moved = addition.outputs[0]
    value.replace_all_uses_with(moved, replace_graph_outputs=True)
    addition.replace_input_with(0, value)
    moved.name = name
    return moved


def _addition(graph: ir.Graph, value: ir.Value, change: float | NDArray[np.float64], name: str) -> ir.Node:
    amount = constant(graph, f"{name}_offset", np.asarray(change, np.float32))
    node, producer = new_node("Add", [value, amount], free_name(graph, name), value.shape), value.producer()
    assert producer is not None  # made by a node of the graph
    graph.insert_after(producer, [node])
    return node
