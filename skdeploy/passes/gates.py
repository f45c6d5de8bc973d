"""Gates, which weigh the maps of a select: softmaxes, as an operator or as exponentials divided by their sum, and sigmoids.

Each element of a gate's output gets a label, and the gate knows which logits were normalised together for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from skdeploy.passes.labels import Form, Labels, Term, Unknown

MAX_BRANCHES: Final = 8  # a softmax over more is an attention of another kind


@dataclass
class Gate:
    """A Softmax, a Div of exponentials by their sum, or a Sigmoid: groups of one. Its labels begin at ``offset``."""

    node: ir.Node
    offset: int
    members: Labels  # (groups, M): the labels of the logits that are normalised together
    groups: Labels  # the group of each label
    positions: Labels  # its place there: the branch
    block: str = ""  # the name of the block that it was found to belong to
    reason: tuple[ir.Node, str] | None = None  # why it has been found to belong to none, so far

    @property
    def is_softmax(self) -> bool:
        return self.node.op_type != "Sigmoid"


def operator_gate(node: ir.Node, offset: int, logits: Labels) -> Gate:
    """The gate of a Softmax or a Sigmoid; its labels number its elements."""
    if node.op_type == "Sigmoid":
        return Gate(node, offset, logits.reshape(-1, 1), np.arange(logits.size), np.zeros(logits.size, dtype=np.int64))
    axis = node.attributes.get_int("axis", -1)
    rows = np.moveaxis(logits, axis, -1)
    members = rows.reshape(-1, rows.shape[-1])
    groups, positions = (
        np.moveaxis(index.reshape(rows.shape), -1, axis).reshape(-1) for index in np.indices(members.shape)
    )
    return Gate(node, offset, members, groups, positions)


def quotient_gate(node: ir.Node, offset: int, numerator: Form, divisor: Form) -> tuple[Gate, Form]:
    """The gate of a Div, and the form of its result; the operands' "maps" are the logits of their exponentials.

    Its labels number groups and branches, so that another Div by the same sum can have the same gate. Raises Unknown unless
    each exponential is divided by a sum in which it is one of several.
    """
    terms = *numerator.terms, *divisor.terms
    if len(numerator.terms) != 1 or any(term.factor != 1 for term in terms):
        raise Unknown("it divides no exponential by a sum of some")
    if not 2 <= len(divisor.terms) <= MAX_BRANCHES:
        raise Unknown(f"it divides by a sum of {len(divisor.terms)} exponentials")
    shape = np.broadcast_shapes(numerator.shape, divisor.shape)
    own, *summed = (np.broadcast_to(np.asarray(term.map), shape).reshape(-1) for term in terms)
    rows = np.stack(summed, 1)
    same = rows == own[:, None]
    if (same.sum(1) != 1).any():
        raise Unknown("it divides exponentials by a sum of others")
    members, groups = np.unique(rows, axis=0, return_inverse=True)
    count = members.shape[1]
    labelled = offset + groups.reshape(-1) * count + same.argmax(1)
    numbers = np.arange(members.size)
    gate = Gate(node, offset, members, numbers // count, numbers % count)
    return gate, Form((Term(1.0, weight=labelled.reshape(shape)),), shape)
