"""Gates, which weigh the maps of a select, however they are written.

Three kinds of weights sum to one over the branches:

* softmaxes: the operator; LogSoftmax and Exp; exponentials divided by their sum, with or without the largest logit taken off;
  ``exp(l - logsumexp(l))``;
* sigmoids, with one minus them: ``sigmoid(-x) = 1 - sigmoid(x)``, and ``1 / (1 + exp(-x))`` is one too. They are a softmax
  of x and 0;
* shares: other numbers divided by their sum, such as Softplus, a power or sigmoids.

Each element of a gate's output gets a label, and the gate knows which logits were normalised together for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Final, Literal

import numpy as np
import onnx_ir as ir

from skdeploy.ir.constants import known
from skdeploy.ir.nodes import maker, operand, operands
from skdeploy.passes.labels import Form, Labels, Leaves, Term, Unknown, scalar, shape_of
from skdeploy.passes.moves import MOVES
from skdeploy.passes.weighted_sums import MAX_SUMMANDS, SUMS, evaluate, reduced_sum

MAX_BRANCHES: Final = 8  # a softmax over more that selects nothing is an attention of another kind
MAX_WEIGHTS: Final = 1 << 20  # elements: three images of 64 branches of 4096 channels have fewer
ZERO: Final = 1 << 62  # the label of a logit that is 0, whose exponential is 1

Kind = Literal["softmax", "sigmoid", "shares"]
ONE: Final = Form((Term(1.0, map=np.array(ZERO)),), ())  # the exponential of zero


@dataclass
class Gate:
    """Weights that sum to one in groups of M. Their labels are ``offset + group * M + branch``.

    ``members`` (groups, M) has the labels of what is normalised together: logits, or the numbers of which shares are taken.
    The second member of a sigmoid is ZERO. ``node`` makes the weights, or some of them.
    """

    node: ir.Node
    kind: Kind
    offset: int
    members: Labels
    weighs: bool = False  # whether its weights have been seen to multiply maps
    block: str = ""  # the name of the block that it was found to belong to
    reason: tuple[ir.Node, str] | None = None  # why it has been found to belong to none, so far
    mixes: bool = False  # whether it is a softmax over the channels of all branches together
    is_lost: bool = False  # whether a weighted map goes into something else before it is added to others

    @property
    def branches(self) -> int:
        return int(self.members.shape[1])

    def groups(self, labels: Labels) -> Labels:
        """The group of each weight."""
        return (labels - self.offset) // self.branches

    def positions(self, labels: Labels) -> Labels:
        """The branch of each weight, in its group."""
        return (labels - self.offset) % self.branches


class Gates:
    """The gates of a graph, in the order in which their labels begin. ``moved`` gives the form of moved logits."""

    def __init__(self, leaves: Leaves, moved: Callable[[ir.Value], Form]) -> None:
        self.opened: list[Gate] = []
        self.near_misses: list[tuple[str, str]] = []
        self._leaves, self._moved = leaves, moved
        self._ends: list[int] = []
        self._sigmoids: dict[tuple[ir.Value, ...], Gate] = {}
        self._logarithms: dict[
            ir.Value, Form
        ] = {}  # of what LogSoftmax nodes give: the weights of which it is the logarithm

    def of(self, labels: Sequence[int]) -> list[Gate]:
        """The gates that ``labels`` belong to, each once."""
        numbers = np.searchsorted(self._ends, labels, side="right")
        return [self.opened[number] for number in sorted(set(numbers.tolist()))]

    def with_complements(self, form: Form) -> Form:
        """The form of weights, with the other branch's weight for one minus a weight of two."""
        first, *others = form.terms
        if len(others) != 1 or form.holds_maps():
            return form
        one, rest = (first, others[0]) if first.weight is None else (others[0], first)
        if rest.weight is None or one.weight is not None or (one.factor, rest.factor) != (1, -1):
            return form
        gates = self.of([rest.weight.min(), rest.weight.max()])
        if len(gates) > 1 or gates[0].branches != 2:
            return form
        start = gates[0].offset
        return replace(form, terms=(Term(1.0, weight=start + ((rest.weight - start) ^ 1)),))

    def open(self, node: ir.Node) -> Form | None:
        """The form of a node's output if it is the weights of a gate, which may be new."""
        if node.domain not in ("", "ai.onnx"):
            return None
        try:
            match node.op_type:
                case "Softmax":
                    return self._softmax(node, operand(node, 0))
                case "Sigmoid":
                    return self._sigmoid(node)
                case "Exp":
                    return self._exponential(node)
                case "Div" | "Mul" | "Reciprocal":
                    return self._quotient(node)
        except Unknown as reason:
            if node.op_type == "Softmax":
                self.near_misses.append((node.name or node.op_type, str(reason)))
        return None

    def _new(self, node: ir.Node, kind: Kind, members: Labels) -> Gate:
        gate = Gate(node, kind, self._ends[-1] if self._ends else 0, members)
        self.opened.append(gate)
        self._ends.append(gate.offset + members.size)
        return gate

    def _softmax(self, node: ir.Node, logits: ir.Value) -> Form | None:
        """Softmax, or LogSoftmax before an Exp."""
        shape, axis = shape_of(self._leaves.shapes, logits), node.attributes.get_int("axis", -1)
        if shape[axis] > MAX_SUMMANDS or prod(shape) > MAX_WEIGHTS:
            return None
        form = self._moved(logits)
        rows = np.moveaxis(_labels(form), axis, -1)
        gate = self._new(node, "softmax", rows.reshape(-1, shape[axis]))
        weights = gate.offset + np.arange(rows.size).reshape(rows.shape)
        return Form((Term(1.0, weight=np.moveaxis(weights, -1, axis)),), form.shape)

    def _sigmoid(self, node: ir.Node) -> Form | None:
        """A sigmoid of x; of -x it is one minus that, and the same weights serve both."""
        value, other = operand(node, 0), False
        while (made := maker(value)) is not None and made.op_type == "Neg":
            value, other = operand(made, 0), not other
        if _is_activation(shape_of(self._leaves.shapes, value)):
            return None
        key = tuple(operands(made)) if made is not None and made.op_type == "Sub" else (value,)
        gate = self._sigmoids.get(key)
        if gate is None and len(key) == 2 and (gate := self._sigmoids.get(key[::-1])) is not None:
            other = not other
        form = self._moved(value)
        if gate is None:
            labels = _labels(form).reshape(-1, 1)
            gate = self._new(node, "sigmoid", np.hstack([labels, np.full_like(labels, ZERO)]))
            self._sigmoids[key] = gate
        weights = gate.offset + 2 * np.arange(prod(form.shape)).reshape(form.shape) + other
        return Form((Term(1.0, weight=weights),), form.shape)

    def _exponential(self, node: ir.Node) -> Form | None:
        """exp(log_softmax(l)), or exp(l - logsumexp(l))."""
        exponent = operand(node, 0)
        made = maker(exponent)
        if made is not None and made.op_type == "Sub" and _last_move(operand(made, 1), ("ReduceLogSumExp", "Log")):
            logits, total = operands(made)
            return self._normalised(node, self._moved(logits), self._logarithm(total), "softmax")
        log = _last_move(exponent, ("LogSoftmax",))
        if log is None:
            return None
        weights = log.outputs[0]
        if weights not in self._logarithms and (form := self._softmax(log, operand(log, 0))) is not None:
            self._logarithms[weights] = form
        return self._reached(exponent, self._logarithms.get)

    def _logarithm(self, value: ir.Value) -> Form:
        """The form of sums of exponentials, of which ``value`` has the logarithms."""
        node = maker(value)
        if node is not None and node.op_type == "Log":
            return self._reached(operand(node, 0), self._exponent)
        if node is not None and node.op_type in MOVES:
            return evaluate(node, self._logarithm, self._leaves.shapes)[value.index() or 0]
        if node is None or node.op_type != "ReduceLogSumExp":
            raise Unknown(f"{value.name} is not a logarithm of a sum of exponentials")
        return self._added_up(node, self._moved)

    def _added_up(self, node: ir.Node, resolve: Callable[[ir.Value], Form]) -> Form:
        """The form of the sum inside a reduction: ReduceL1 of positive numbers, or ReduceLogSumExp of logits."""
        return reduced_sum(resolve(operand(node, 0)), node, shape_of(self._leaves.shapes, node.outputs[0]))

    def _quotient(self, node: ir.Node) -> Form | None:
        """Exponentials, or other numbers, divided by their sum."""
        parts = _division(node)
        if parts is None:
            return None
        dividend, divisor = parts
        if known(divisor) is not None:
            return None
        try:
            numerator = ONE if dividend is None else self._reached(dividend, self._exponent)
        except Unknown:
            if dividend is None or known(dividend) is not None or _last_move(divisor, SUMS) is None:
                return None
            numerator = self._moved(dividend)
            numbers, _, _ = self._leaves.of(_labels(numerator))
            stops = {self._leaves.leaves[number].value for number in np.unique(numbers)}
            resolve = partial(self._plain, stops=stops)
            return self._normalised(node, numerator, self._reached(divisor, resolve), "shares")
        try:
            return self._normalised(node, numerator, self._reached(divisor, self._exponent), "softmax")
        except Unknown:
            made = _last_move(divisor)
            if (
                dividend is not None
                and known(dividend) is None
                and made is not None
                and made.op_type not in SUMS - {"Add"}
            ):
                reason = f"its exponentials are divided by {made.op_type} {made.name}, which is not their sum alone"
                self.near_misses.append((node.name or node.op_type, reason))
            return None

    def _exponent(self, value: ir.Value) -> Form | None:
        """The labels of logits, for their exponentials; one is the exponential of zero."""
        node, number = maker(value), scalar(value)
        if number is not None and number.number() == 1 and number.shape in ((), (1,)):
            return ONE
        if node is not None and node.op_type == "Exp":
            return self._moved(operand(node, 0))
        if node is None or node.op_type not in MOVES | SUMS | {"ReduceL1"}:
            raise Unknown(f"{value.name} is not made of exponentials")
        if node.op_type == "ReduceL1":  # exponentials are positive
            return self._added_up(node, partial(self._reached, leaf=self._exponent))
        return None

    def _plain(self, value: ir.Value, *, stops: set[ir.Value]) -> Form | None:
        node = maker(value)
        if value in stops or node is None or node.op_type not in MOVES | SUMS:
            if prod(shape_of(self._leaves.shapes, value)) > MAX_WEIGHTS:
                raise Unknown(f"{value.name} has too many numbers for a gate")
            return self._leaves.form(value, maps=False)
        return None

    def _reached(self, value: ir.Value, leaf: Callable[[ir.Value], Form | None]) -> Form:
        """The form of what moves and sums make of leaves; ``leaf`` gives theirs, and None for what is made of others."""
        form = leaf(value)
        if form is not None:
            return form
        node = maker(value)
        if node is None or node.op_type not in MOVES | SUMS:
            raise Unknown(f"{value.name} is not a sum")
        return evaluate(node, partial(self._reached, leaf=leaf), self._leaves.shapes)[value.index() or 0]

    def _normalised(self, node: ir.Node, numerator: Form, divisor: Form, kind: Kind) -> Form:
        """The form of a quotient, with the gate of an earlier one by the same sums, or a new one.

        Raises Unknown unless each number is divided by a sum in which it is one of several.
        """
        terms = *numerator.terms, *divisor.terms
        if len(numerator.terms) != 1 or any(term.factor != 1 for term in terms):
            raise Unknown("it divides no number by a sum of some")
        if not 2 <= len(divisor.terms) <= MAX_SUMMANDS:
            raise Unknown(f"it divides by a sum of {len(divisor.terms)} numbers")
        shape = np.broadcast_shapes(numerator.shape, divisor.shape)
        own, *summed = (np.broadcast_to(_labels_of(term), shape).reshape(-1) for term in terms)
        rows = np.stack(summed, 1)
        if ((rows == own[:, None]).sum(1) != 1).any():
            raise Unknown("it divides numbers by a sum of others")
        if (rows == ZERO).any():
            rows = np.sort(rows, 1)
            if rows.shape[1] != 2 or not (rows[:, 1] == ZERO).all():
                raise Unknown("it adds one to several exponentials")
            kind = "sigmoid"
        members, groups = np.unique(rows, axis=0, return_inverse=True)
        for gate in self.opened:
            if gate.kind == kind and np.array_equal(np.sort(gate.members, 1), np.sort(members, 1)):
                break
        else:
            gate = self._new(node, kind, members)
        groups = groups.reshape(-1)
        positions = (gate.members[groups] == own[:, None]).argmax(1)
        weights = gate.offset + groups * gate.branches + positions
        return Form((Term(1.0, weight=weights.reshape(shape)),), shape)


def _labels(form: Form) -> Labels:
    """The labels of a tensor that is made of leaves by moving, in its shape."""
    if len(form.terms) != 1:
        raise Unknown("it is a sum")
    return np.broadcast_to(_labels_of(form.terms[0]), form.shape)


def _labels_of(term: Term) -> Labels:
    if term.map is None or term.weight is not None:
        raise Unknown("it is made of other weights or of numbers")
    return term.map


def _is_activation(shape: tuple[int, ...]) -> bool:
    """Whether a sigmoid has one number for each pixel and channel, as a part of an activation function has."""
    return len(shape) > 3 and shape[1] > MAX_BRANCHES and all(size > 1 for size in shape[2:])


def _last_move(value: ir.Value, operators: frozenset[str] | tuple[str, ...] | None = None) -> ir.Node | None:
    """The node before the moves that make ``value``, if there is one and it is one of ``operators``."""
    node = maker(value)
    while node is not None and node.op_type in MOVES and (operators is None or node.op_type not in operators):
        node = maker(node.inputs[0])
    return node if node is not None and (operators is None or node.op_type in operators) else None


def _division(node: ir.Node) -> tuple[ir.Value | None, ir.Value] | None:
    """Dividend and divisor of a Div, of a Mul by a Reciprocal, or of a Reciprocal, which divides one."""
    if node.op_type == "Div":
        return operand(node, 0), operand(node, 1)
    if node.op_type == "Reciprocal":
        return None, operand(node, 0)
    first, second = operands(node)
    for value, other in ((first, second), (second, first)):
        made = maker(other)
        if made is not None and made.op_type == "Reciprocal":
            return value, operand(made, 0)
    return None
