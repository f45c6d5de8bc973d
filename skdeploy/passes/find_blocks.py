"""Finds what looks like a select in a graph: a sweep that follows softmaxes and sigmoids to the maps that they weigh.

``passes/blocks.py`` says what a block is; here rules 1 and 3 are decided, and near misses are reported.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from skdeploy.backends.onnxruntime import OnnxRuntimeSession
from skdeploy.core.patterns import module_of
from skdeploy.ir.constants import Names, known
from skdeploy.ir.large import portable
from skdeploy.ir.nodes import maker, operand, operands
from skdeploy.passes.blocks import HOMOGENEOUS, Block, read_block
from skdeploy.passes.channels_last import has_channels_last, is_only_turned, with_channels_first
from skdeploy.passes.combinations import SIGMOIDS, combination
from skdeploy.passes.gates import MAX_BRANCHES, Gate, Gates
from skdeploy.passes.labels import MAP_RANKS, AlongAnotherAxis, Form, Leaves, NotAMap, Shape, Unknown, scalar, shape_of
from skdeploy.passes.moves import MOVES
from skdeploy.passes.same_function import EXAMPLE_BATCH, EXAMPLE_SIZE, random_images
from skdeploy.passes.weighted_sums import OPERATORS, evaluate

PLACES: Final = "its weights are sigmoids that differ from pixel to pixel; a block has one weight for a whole channel"
LAST: Final = "its last axis has the channels, and it is an output of the network"
LARGE: Final = 1024  # elements from which a constant is a weight and no shape


def example_shapes(model: ir.Model, sizes: Mapping[str, int] | None = None) -> dict[ir.Value, Shape]:
    """The shape of every tensor for one example input: three images where the batch is free, 64 pixels where the
    size is and ``sizes`` does not have it by name.

    Where inference does not find all of them, because the graph computes shapes or the amounts of a Pad, it is run once.
    """
    shapes = _inferred_shapes(model, sizes or {})
    unknown = [
        value.name
        for node in model.graph
        for value in node.outputs
        if value.name and value.name not in shapes and isinstance(value.type, ir.TensorType | None)
    ]
    if unknown:
        shapes |= _measured_shapes(model, unknown, sizes or {})
    own = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    return {own[name]: shape for name, shape in shapes.items() if name in own}


def _inferred_shapes(model: ir.Model, sizes: Mapping[str, int]) -> dict[str, Shape]:
    """Shape inference for the example input; of weights only the shapes matter."""
    stripped = model.clone()
    graph = stripped.graph
    for value in graph.inputs:
        value.shape = ir.Shape(
            d if isinstance(d, int) else sizes.get(str(d.value), EXAMPLE_SIZE if axis else EXAMPLE_BATCH)
            for axis, d in enumerate(value.shape or ())
        )
    for node in graph:
        for value in node.outputs:
            value.shape = None
    for name, array in list(graph.initializers.items()):
        if array.shape is not None and int(np.prod(array.shape.numpy())) > LARGE:
            del graph.initializers[name]
            array.const_value = None
            graph.inputs.append(array)
    inferred = onnx.shape_inference.infer_shapes(ir.to_proto(stripped), data_prop=True)
    shapes: dict[str, Shape] = {}
    for info in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        dims = info.type.tensor_type.shape.dim
        if info.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            shapes[info.name] = tuple(dim.dim_value for dim in dims)
    return shapes


def _measured_shapes(model: ir.Model, names: list[str], sizes: Mapping[str, int]) -> dict[str, Shape]:
    """The shapes that tensors have when the graph runs on the example input."""
    shown = model.clone()
    graph = shown.graph
    values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
    free = Names(graph)
    asked = {free.free(f"{name}_shape"): name for name in names}
    del graph.outputs[:]
    for output, name in asked.items():
        size = ir.val(output, ir.DataType.INT64)
        graph.append(ir.node("Shape", [values[name]], outputs=[size], name=output))
        graph.outputs.append(size)
    RemoveUnusedNodesPass()(shown)
    with OnnxRuntimeSession(portable(shown), "cpu", None) as session:
        found = session.run(random_images(session.inputs, 0, sizes=sizes))
    return {asked[output]: tuple(int(size) for size in shape) for output, shape in found.items()}


def find_blocks(model: ir.Model, sizes: Mapping[str, int] | None = None) -> BlockFinder:
    """Searches a graph, along another axis too where weights differ along one. ``sizes``: of free dimensions, by name."""
    shapes = example_shapes(model, sizes)
    finder = BlockFinder(model, shapes)
    for axis in sorted(finder.other_axes):
        finder.take(BlockFinder(model, shapes, axis))
    finder.conclude(model)
    return finder


class BlockFinder:
    """Sweeps a graph once, in its order. ``blocks`` may be rewritten; ``deployed`` need not be; ``near_misses`` say why not.

    ``channels_last`` are selects (N, H, W, C), to be turned. ``axis`` is that of the weights (rule 7); ``other_axes`` are those
    along which some differ. Raises nothing: what it does not understand is not a block.
    """

    def __init__(self, model: ir.Model, shapes: dict[ir.Value, Shape], axis: int = 1) -> None:
        self.shapes = shapes
        self.leaves = Leaves(shapes, axis)
        self.gates = Gates(self.leaves, partial(self._moved, maps=False))
        self.blocks: list[Block] = []
        self.deployed: list[str] = []
        self.near_misses: list[tuple[str, str]] = []
        self.channels_last: list[ir.Value] = []
        self.other_axes: set[int] = set()
        self._forms: dict[ir.Value, Form] = {}  # of all that is made of weights
        for node in model.graph:
            self._visit(node)

    def take(self, other: BlockFinder) -> None:
        """Takes over what a search along another axis found."""
        self.blocks += other.blocks
        self.deployed += other.deployed
        self.near_misses += other.near_misses
        found = {gate.node for gate in other.gates.opened if gate.block}
        for gate in self.gates.opened:
            gate.block = gate.block or (str(gate.node.name) if gate.node in found else "")

    def conclude(self, model: ir.Model) -> None:
        """Completes ``near_misses``."""
        self.near_misses += self.gates.near_misses
        for gate in self.gates.opened:
            self._conclude(gate)
        self.near_misses += [
            (node.name or node.op_type, PLACES) for node in model.graph if _selects_places(node, self.shapes)
        ]
        self.near_misses = list(dict.fromkeys(self.near_misses))

    def _visit(self, node: ir.Node) -> None:
        opened = self.gates.open(node)
        if opened is not None:
            self._forms[node.outputs[0]] = opened
            return
        gates = self._gates_of(node)
        if not gates or node.op_type == "Shape":
            return
        try:
            forms = (
                [self._activated(node)] if node.op_type in HOMOGENEOUS else evaluate(node, self._operand, self.shapes)
            )
        except Unknown as reason:
            self._give_up(node, gates, reason)
            return
        for value, form in zip(node.outputs, forms, strict=True):
            for gate in gates:
                gate.weighs |= form.holds_maps()
            if not self._selects(node, value, form, gates):
                self._forms[value] = self.gates.with_complements(form)

    def _give_up(self, node: ir.Node, gates: list[Gate], reason: Unknown) -> None:
        """Notes for each gate why its weights are not followed beyond ``node``."""
        forms = [self._forms[value] for value in operands(node) if value in self._forms]
        if isinstance(reason, AlongAnotherAxis):
            self.other_axes.add(reason.axis)
        averaged = any(any(form.averaged) for form in forms)
        product = any(len(form.terms) == 1 and form.holds_maps() for form in forms)
        for gate in gates:
            if gate.reason is None or product or (node.op_type in OPERATORS and not averaged):
                gate.reason = node, f"its weights go into {node.op_type}: {reason}"
            gate.is_lost |= product

    def _activated(self, node: ir.Node) -> Form:
        """The form of ``relu(a x)``, which is ``a relu(x)``, because the weights of a softmax or a sigmoid are not negative.

        So are leaky ones. Raises Unknown unless the graph has relu(x) too, as the statistics need it.
        """
        form = self._operand(operand(node, 0))
        (term,) = form.terms if len(form.terms) == 1 else (None,)
        if not form.holds_maps():
            raise Unknown(f"{node.op_type} is not a part of a weighted sum")
        if term is None or term.map is None or term.weight is None or term.factor <= 0:
            raise Unknown(f"{node.op_type} of more than one weighted map")
        if any(gate.kind == "shares" for gate in self._gates_of(node)):
            raise Unknown(f"{node.op_type} of a map with a weight that may be negative")
        numbers, _, _ = self.leaves.of(term.map)
        activated = term.map.copy()
        for number in np.unique(numbers):
            leaf = self.leaves.leaves[number]
            twin = next((use.node for use in leaf.value.uses() if _does_the_same(use.node, node)), None)
            if twin is None:
                raise Unknown(f"no other {node.op_type} reads {leaf.value.name}, so no mean is taken of what it gives")
            first = self.leaves.form(twin.outputs[0], maps=True).terms[0].map
            assert first is not None  # a leaf has labels
            activated[numbers == number] += first.flat[0] - leaf.offset
        return replace(form, terms=(replace(term, map=activated),))

    def _gates_of(self, node: ir.Node) -> list[Gate]:
        terms = [term for value in node.inputs if value in self._forms for term in self._forms[value].terms]
        ends = [end for term in terms if term.weight is not None for end in (term.weight.min(), term.weight.max())]
        return self.gates.of(ends)

    def _operand(self, value: ir.Value) -> Form:
        """The form of what is combined with weights: weights, one number, or maps that are only moved or subtracted."""
        if value in self._forms:
            return self._forms[value]
        number = scalar(value)
        if number is not None:
            return number
        if known(value) is not None:
            raise Unknown(f"{value.name} is a constant with different numbers")
        node = value.producer()
        if node is not None and node.op_type == "Sub" and len(shape_of(self.shapes, value)) in MAP_RANKS:
            return evaluate(node, partial(self._moved, maps=True), self.shapes)[0]
        return self._moved(value, maps=True)

    def _moved(self, value: ir.Value, *, maps: bool) -> Form:
        """The form of a tensor made by moving elements of others, which are the leaves."""
        node = value.producer()
        if node is not None and node.op_type in MOVES:
            try:
                return evaluate(node, partial(self._moved, maps=maps), self.shapes)[value.index() or 0]
            except Unknown as reason:  # it does more than move whole maps, so the maps begin with it
                if isinstance(reason, NotAMap) and _stacks(node, self.shapes):
                    raise  # what it stacks is not made of maps
        return self.leaves.form(value, maps=maps)

    def _selects(self, node: ir.Node, value: ir.Value, form: Form, gates: list[Gate]) -> bool:
        """Whether ``value`` is V; then it has been recorded as a block, as in deploy form, or why it is a near miss."""
        rank = len(form.shape)
        whole = rank in MAP_RANKS and form.holds_maps()
        if whole and self.leaves.axis == 1 and has_channels_last(form) and not is_only_turned(value):
            self._note_channels_last(node, value, form, gates)
        if not whole or form.spatial != self.leaves.spatial(rank):
            return False
        try:
            found = combination(form, gates, self.leaves)
        except Unknown as reason:
            why = self._mixed(form, gates[0]) or str(reason)
            for gate in gates:
                told = gate.kind != "sigmoid" or not self._goes_on(node)
                if told and (gate.reason is None or (len(form.terms) > 1 and not gate.is_lost)):
                    gate.reason = node, why
            return False
        gate = gates[0]
        gate.block = module_of(node.name) or node.name or node.op_type
        try:
            block = read_block(gate.block, value, found, gate.kind, self.leaves, self._forms)
        except Unknown as reason:
            gate.reason = node, str(reason)
            if gate.kind != "sigmoid":
                self.near_misses.append((gate.block, str(reason)))
            return True
        if (gate.kind != "softmax" or gate.branches > 2) and self._is_deploy_form(value, gate.branches):
            self.deployed.append(gate.block)
        else:
            self.blocks.append(block)
        return True

    def _note_channels_last(self, node: ir.Node, value: ir.Value, form: Form, gates: list[Gate]) -> None:
        try:
            combination(with_channels_first(form), gates, self.leaves)
        except Unknown:
            return  # it is followed further, as it is
        if value.is_graph_output():
            gates[0].reason = node, LAST
        else:
            self.channels_last.append(value)

    def _mixed(self, form: Form, gate: Gate) -> str:
        """Says that a softmax is over the channels of all branches together, as some write it; empty if it is not."""
        maps = [term.map for term in form.terms if term.map is not None]
        branches = len({int(number) for labels in maps for number in np.unique(self.leaves.of(labels)[0])})
        channels = form.shape[self.leaves.axis]
        few = 1 < branches <= MAX_BRANCHES and channels > 1
        if gate.kind != "softmax" or not few or gate.branches != branches * channels:
            return ""
        gate.mixes = True
        said = f"its softmax is over {gate.branches} numbers, the {channels} channels of {branches} branches together"
        return f"{said}; a block has one over the branches for each channel"

    def _goes_on(self, node: ir.Node) -> bool:
        """Whether a part of a sum is read elsewhere: the shortcut of a residual network, which selects nothing from it."""
        return any(len(value.uses()) > 1 for value in operands(node) if value in self._forms)

    def _is_deploy_form(self, selected: ir.Value, branches: int) -> bool:
        """Whether V is written as the last map and M - 1 weighted differences of maps, added up."""
        products = _summed(selected, self._forms)
        differences = [value for node in products for value in operands(node) if value not in self._forms]
        subtracted = [made for value in differences if (made := maker(value)) is not None and made.op_type == "Sub"]
        return len(products) == len(subtracted) == branches - 1

    def _conclude(self, gate: Gate) -> None:
        """Reports a gate that looks like one of a select and belongs to none."""
        if gate.block:
            return
        node, reason = gate.reason or (gate.node, "its weights multiply no maps")
        few = gate.branches <= MAX_BRANCHES and not gate.node.outputs[0].is_graph_output()
        if {"softmax": few or gate.mixes, "sigmoid": reason == SIGMOIDS, "shares": few and gate.weighs}[gate.kind]:
            self.near_misses.append((node.name or node.op_type, reason))


def _selects_places(node: ir.Node, shapes: dict[ir.Value, Shape]) -> bool:
    """Whether ``node`` adds two maps, each by its own part of one Sigmoid of a map, as LSKNet does."""
    products = [maker(value) for value in operands(node)] if node.op_type == "Add" else []
    weights = [
        {_source(value): value for value in operands(p)} for p in products if p is not None and p.op_type == "Mul"
    ]
    if len(weights) != 2:
        return False
    shared = [
        source for source in weights[0] if source in weights[1] and source is not None and source.op_type == "Sigmoid"
    ]
    return any(
        weights[0][source] is not weights[1][source] and any(size != 1 for size in shapes[weights[0][source]][2:])
        for source in shared
    )


def _source(value: ir.Value) -> ir.Node | None:
    """The node that made what ``value`` is moved from."""
    node = maker(value)
    while node is not None and node.op_type in MOVES - {"Concat"}:
        node = maker(operand(node, 0))
    return node


def _does_the_same(node: ir.Node, other: ir.Node) -> bool:
    """Whether two activations of other tensors are one function."""
    same = (node.domain, node.op_type) == (other.domain, other.op_type) and list(node.inputs[1:]) == list(
        other.inputs[1:]
    )
    return same and {k: a.value for k, a in node.attributes.items()} == {
        k: a.value for k, a in other.attributes.items()
    }


def _summed(value: ir.Value, weighed: Container[ir.Value]) -> list[ir.Node]:
    """The products with weights that a tree of Adds adds up to ``value``."""
    node = maker(value)
    if node is None or node.op_type not in ("Add", "Mul"):
        return []
    if node.op_type == "Add":
        return [product for term in operands(node) for product in _summed(term, weighed)]
    return [node] if any(term in weighed for term in operands(node)) else []


def _stacks(node: ir.Node, shapes: dict[ir.Value, Shape]) -> bool:
    """Whether ``node`` is a part of a stack: what it adds is not an axis behind those of the batch and the channels."""
    if node.op_type != "Unsqueeze":
        return node.op_type == "Concat"
    return shape_of(shapes, operand(node, 0))[:2] != shape_of(shapes, node.outputs[0])[:2]
