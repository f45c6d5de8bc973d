"""Finds what looks like a select in a graph: a sweep that follows softmaxes and sigmoids to the maps that they weigh.

``passes/blocks.py`` says what a block is; here rules 1 and 3 are decided, and near misses are reported.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from skdeploy.backends.onnxruntime import OnnxRuntimeSession
from skdeploy.core.patterns import module_of
from skdeploy.ir.constants import constant, known
from skdeploy.ir.nodes import operand, operands
from skdeploy.passes.blocks import Block, read_block
from skdeploy.passes.gates import MAX_BRANCHES, Gate, operator_gate, quotient_gate
from skdeploy.passes.labels import FLAT, Form, Labels, Leaves, NotAMap, Shape, Term, Unknown, scalar, shape_of
from skdeploy.passes.same_function import EXAMPLE_BATCH, EXAMPLE_SIZE, random_images
from skdeploy.passes.weighted_sums import MOVES, OPERATORS, SUMS, evaluate

SIGMOIDS: Final = "its weights are sigmoids, which do not sum to one"
UNWEIGHED: Final = -1  # the place of a map that no weight multiplies
LARGE: Final = 1024  # elements from which a constant is a weight and no shape


@dataclass(frozen=True)
class Combination:
    """The terms of V for each channel: the labels of M maps and of the logits that weigh them, both (M, C)."""

    maps: Labels
    logits: Labels
    deployed: bool  # is written as the last map plus weighted differences


def example_shapes(model: ir.Model) -> dict[ir.Value, Shape]:
    """The shape of every value for one example input: three images where the batch is free, 64 pixels where the size is.

    Shapes that the graph computes itself and that inference cannot follow are computed, by running it. Values whose shape
    cannot be inferred even so are missing.
    """
    shapes = _inferred_shapes(model, {})
    if any(value.name not in shapes for node in model.graph for value in node.outputs):
        shapes = _inferred_shapes(model, _computed_shapes(model))
    own = ir.convenience.create_value_mapping(model.graph, include_subgraphs=False)
    return {own[name]: shape for name, shape in shapes.items() if name in own}


def _inferred_shapes(model: ir.Model, computed: dict[str, NDArray[np.int64]]) -> dict[str, Shape]:
    """Shape inference for the example input, with constants for what is ``computed``; of weights only the shapes matter."""
    stripped = model.clone()
    graph = stripped.graph
    for value in graph.inputs:
        free = [EXAMPLE_BATCH, *[EXAMPLE_SIZE] * len(value.shape or ())]
        value.shape = ir.Shape(d if isinstance(d, int) else free[axis] for axis, d in enumerate(value.shape or ()))
    values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
    for node in graph:
        for value in node.outputs:
            value.shape = None
    for name, array in computed.items():
        values[name].replace_all_uses_with(constant(graph, f"{name}_computed", array))
    for name, value in list(graph.initializers.items()):
        if value.shape is not None and int(np.prod(value.shape.numpy())) > LARGE:
            del graph.initializers[name]
            value.const_value = None
            graph.inputs.append(value)
    inferred = onnx.shape_inference.infer_shapes(ir.to_proto(stripped), data_prop=True)
    shapes: dict[str, Shape] = {}
    for info in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        dims = info.type.tensor_type.shape.dim
        if info.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            shapes[info.name] = tuple(dim.dim_value for dim in dims)
    return shapes


def _computed_shapes(model: ir.Model) -> dict[str, NDArray[np.int64]]:
    """The values, for the example input, of all that reshapes take as a shape and that is not a constant."""
    shown = model.clone()
    graph = shown.graph
    asked = [operand(node, 1) for node in graph if node.op_type in ("Reshape", "Expand")]
    outputs = {value for value in asked if known(value) is None}
    if not outputs:
        return {}
    del graph.outputs[:]
    graph.outputs.extend(outputs)
    RemoveUnusedNodesPass()(shown)
    for value in outputs:
        value.dtype = ir.DataType.INT64
    with OnnxRuntimeSession(ir.to_proto(shown).SerializeToString(), "cpu", None) as session:
        return session.run(random_images(session.inputs, 0))


class BlockFinder:
    """Sweeps a graph once, in its order. ``blocks`` may be rewritten; ``deployed`` need not be; ``near_misses`` say why not.

    Raises nothing: what it does not understand is not a block.
    """

    def __init__(self, model: ir.Model) -> None:
        self.shapes = example_shapes(model)
        self.leaves = Leaves(self.shapes)
        self.gates: list[Gate] = []
        self.blocks: list[Block] = []
        self.deployed: list[str] = []
        self.near_misses: list[tuple[str, str]] = []
        self._forms: dict[ir.Value, Form] = {}  # of all that is made of weights
        for node in model.graph:
            self._visit(node)
        for gate in self.gates:
            self._conclude(gate)

    def _visit(self, node: ir.Node) -> None:
        if node.op_type in ("Softmax", "Sigmoid") and node.domain == "":
            self._open_gate(node)
            return
        gates = self._gates_of(node)
        if (node.op_type == "Div" and self._opens_quotient(node)) or not gates:
            return
        try:
            forms = evaluate(node, self._operand, self.shapes)
        except Unknown as reason:
            for gate in gates:
                if gate.reason is None or node.op_type in OPERATORS:
                    gate.reason = node, f"its weights go into {node.op_type}: {reason}"
            return
        for value, form in zip(node.outputs, forms, strict=True):
            if not self._selects(node, value, form, gates):
                self._forms[value] = form

    def _open_gate(self, node: ir.Node) -> None:
        try:
            form = self._moved(operand(node, 0), maps=False)
        except Unknown as reason:
            if node.op_type == "Softmax":
                self.near_misses.append((node.name or node.op_type, str(reason)))
            return
        logits = form.terms[0].map
        assert logits is not None  # a leaf has labels
        gate = operator_gate(node, self._end(), logits)
        labels = np.arange(gate.offset, gate.offset + logits.size, dtype=np.int64).reshape(form.shape)
        self.gates.append(gate)
        self._forms[node.outputs[0]] = Form((Term(1.0, weight=labels),), form.shape)

    def _opens_quotient(self, node: ir.Node) -> bool:
        """Whether a Div is a softmax by hand. Then it opens a gate, or has that of an earlier Div by the same sums."""
        dividend, divisor = operands(node)
        try:
            exponential = self._exponentials(dividend)
        except Unknown:
            return False
        try:
            gate, form = quotient_gate(node, self._end(), exponential, self._exponentials(divisor))
        except Unknown:
            made = divisor.producer()
            if made is not None and made.op_type not in MOVES | SUMS - {"Add"}:
                reason = f"its exponentials are divided by {made.op_type} {made.name}, which is not their sum alone"
                self.near_misses.append((node.name or node.op_type, reason))
            return False
        for earlier in self.gates:
            if earlier.node.op_type == "Div" and np.array_equal(earlier.members, gate.members):
                form = form.moved(partial(np.add, earlier.offset - gate.offset), form.shape, FLAT)
                break
        else:
            self.gates.append(gate)
        self._forms[node.outputs[0]] = form
        return True

    def _exponentials(self, value: ir.Value) -> Form:
        """The form of sums of exponentials, told by the labels of their logits."""
        node = value.producer()
        if node is not None and node.op_type == "Exp":
            return self._moved(operand(node, 0), maps=False)
        if node is None or node.op_type not in MOVES | SUMS:
            raise Unknown(f"{value.name} is made of no exponentials")
        return evaluate(node, self._exponentials, self.shapes)[value.index() or 0]

    def _end(self) -> int:
        """The first label that no gate has."""
        return self.gates[-1].offset + self.gates[-1].members.size if self.gates else 0

    def _gates_of(self, node: ir.Node) -> list[Gate]:
        terms = [term for value in node.inputs if value in self._forms for term in self._forms[value].terms]
        ends = [end for term in terms if term.weight is not None for end in (term.weight.min(), term.weight.max())]
        numbers = np.searchsorted([gate.offset for gate in self.gates], ends, side="right") - 1
        return [self.gates[number] for number in sorted(set(numbers.tolist()))]

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
        if node is not None and node.op_type == "Sub" and len(shape_of(self.shapes, value)) == 4:
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
                    raise  # (M, N, C, T) is not made of images
        return self.leaves.form(value, maps=maps)

    def _selects(self, node: ir.Node, value: ir.Value, form: Form, gates: list[Gate]) -> bool:
        """Whether ``value`` is V; then it has been recorded as a block, as in deploy form, or why it is a near miss."""
        if not (form.holds_maps() and form.spatial == (2, 3) and len(form.shape) == 4):
            return False
        try:
            combination = self._combination(form, gates)
        except Unknown as reason:
            for gate in gates:
                gate.reason = node, str(reason)
            return False
        gate = gates[0]
        gate.block = module_of(node.name) or node.name or node.op_type
        try:
            block = read_block(gate.block, value, combination.maps, combination.logits, self.leaves)
        except Unknown as reason:
            gate.reason = node, str(reason)
            if gate.is_softmax:
                self.near_misses.append((gate.block, str(reason)))
            return True
        if combination.deployed:
            self.deployed.append(gate.block)
        else:
            self.blocks.append(block)
        return True

    def _combination(self, form: Form, gates: list[Gate]) -> Combination:
        """Reads a weighted sum as a select. Raises Unknown where it is none."""
        gate = gates[0]
        shape = form.shape[:2]
        weighed = [term for term in form.terms if term.weight is not None]
        maps = [_channels(term.map, shape) for term in form.terms]
        weights = {
            k: _channels(t.weight, shape) - gate.offset for k, t in enumerate(form.terms) if t.weight is not None
        }
        several = len({int(labels[0, 0]) for labels in maps}) > 1
        if not gate.is_softmax and several and len({int(w[0, 0]) for w in weights.values()}) > 1:
            raise Unknown(SIGMOIDS)
        if len(gates) > 1:
            names = ", ".join(gate.node.name or "" for gate in gates)
            raise Unknown(f"its weights come from {len(gates)} nodes: {names}")
        used = [self.leaves.first_image(labels) for labels in maps]
        for labels in weights.values():
            self.leaves.first_image(gate.members[gate.groups[labels], gate.positions[labels]])
        branches = gate.members.shape[1] if gate.is_softmax else 2
        chosen = np.empty((branches, shape[1]), dtype=np.int64)
        logits = np.empty((gate.members.shape[1], shape[1]), dtype=np.int64)
        for channel in range(shape[1]):
            sums: dict[tuple[int, int], float] = defaultdict(float)
            groups = {int(gate.groups[labels[0, channel]]) for labels in weights.values()}
            if len(groups) != 1:
                raise Unknown("one channel is weighed by numbers that no softmax made sum to one")
            for k, term in enumerate(form.terms):
                position = int(gate.positions[weights[k][0, channel]]) if k in weights else UNWEIGHED
                sums[position, int(used[k][channel])] += term.factor
            chosen[:, channel] = _branches(sums, branches)
            logits[:, channel] = gate.members[groups.pop()]
        deployed = not gate.is_softmax or (branches > 2 and len(weighed) < len(form.terms))
        return Combination(chosen, logits, deployed)

    def _conclude(self, gate: Gate) -> None:
        """Reports a gate that looks like one of a select and belongs to none."""
        if gate.block:
            return
        node, reason = gate.reason or (gate.node, "its weights multiply no maps")
        small = 2 <= gate.members.shape[1] <= MAX_BRANCHES and not gate.node.outputs[0].is_graph_output()
        if small if gate.is_softmax else reason == SIGMOIDS:
            self.near_misses.append((node.name or node.op_type, reason))


def _stacks(node: ir.Node, shapes: dict[ir.Value, Shape]) -> bool:
    """Whether ``node`` is a part of a stack: what it adds is not an axis behind those of the batch and the channels."""
    if node.op_type != "Unsqueeze":
        return node.op_type == "Concat"
    return shape_of(shapes, operand(node, 0))[:2] != shape_of(shapes, node.outputs[0])[:2]


def _channels(labels: Labels | None, shape: Shape) -> Labels:
    """Labels of one term for each image and channel (N, C)."""
    if labels is None:
        raise Unknown("it adds a weight to maps")
    return np.broadcast_to(labels, (*shape, 1, 1)).reshape(shape)


def _branches(sums: dict[tuple[int, int], float], branches: int) -> list[int]:
    """The maps of one channel, branch by branch, from the factors of its products (branch of the weight, map).

    ``a_last = 1 - sum of the others`` takes every way to write the sum to ``U_last + sum_m a_m (U_m - U_last)``.
    """
    last = branches - 1
    for (position, label), factor in list(sums.items()):
        if position == last:
            del sums[position, label]
            sums[UNWEIGHED, label] += factor
            for other in range(last):
                sums[other, label] -= factor
    left = {key: factor for key, factor in sums.items() if factor}
    rest = [label for position, label in left if position == UNWEIGHED]
    if len(rest) == 1:
        chosen = [next((u for (p, u), f in left.items() if p == m and f == 1), rest[0]) for m in range(last)]
        wanted: dict[tuple[int, int], float] = {(UNWEIGHED, rest[0]): 1}
        wanted |= dict.fromkeys(enumerate(chosen), 1) | {(m, rest[0]): -1 for m in range(last)}
        if left == wanted and rest[0] not in chosen:
            return [*chosen, rest[0]]
    raise Unknown(f"it is not the sum of {branches} maps, each by its own weight")
