"""The floating-point tensors that decide an integer or boolean output, such as the logits before an ArgMax."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import onnx_ir as ir

from skdeploy.core.errors import UsageError
from skdeploy.ir.carried import ARRANGES, BY_VALUE, RESHAPES, Move, NotCarriedError, source_and_move

COMPARES: Final = frozenset({"Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
PICKS: Final = frozenset({"ArgMax", "ArgMin", "TopK"})
ROUNDS: Final = frozenset({"Round", "Floor", "Ceil", "Clip"})  # before a Cast to integers


class Decision(NamedTuple):
    """The operator that makes integers of floating-point ``tensors``: ArgMax, ArgMin, TopK or a comparison. ``axis``: of these.

    ``value``: what a tensor is compared with, if that is one number; the other tensor is then the only one. ``smallest``: a
    TopK of the least. ``made``: the operator's integers; ``moves`` take an array of their shape to the places of the output.
    ``changed``: the output has other numbers than these, such as one more.
    """

    operator: str
    tensors: tuple[str, ...]
    axis: int = 0
    value: float | None = None
    smallest: bool = False
    made: str = ""
    moves: tuple[Move, ...] = ()
    changed: bool = False


class Undecided(NamedTuple):
    """Why nothing tells which floating-point numbers decide an output."""

    why: str


def is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype is not None and value.dtype.is_floating_point()


def integer_outputs(model: ir.Model) -> list[ir.Value]:
    return [made for made in model.graph.outputs if made.dtype is not None and not made.dtype.is_floating_point()]


def decision_of(output: ir.Value) -> Decision | Undecided:
    """Return the operator that decides an output, if what lies between them carries single values (``carried.py``)."""
    value, moves, plain, changed, cast = output, list[Move](), True, False, ""
    while True:
        node = value.producer()
        if node is None:
            return Undecided(f"it is made of {value.name}, which the network does not compute")
        if is_float(node.inputs[0]) and node.op_type in PICKS | COMPARES and not _was_integer(node.inputs[0]):
            found = _decided_by(node, value)
            if isinstance(found, Undecided):
                return found
            return found._replace(moves=tuple(reversed(moves)), changed=changed)
        try:
            read, move = source_and_move(node, shape_matters=not plain)
        except NotCarriedError as error:
            return Undecided(cast or str(error))
        if node.op_type == "Cast" and is_float(read) and not cast:
            cast = f"the node {node.name} (Cast) makes integers of numbers that {read.name} holds"
        plain = plain and node.op_type in RESHAPES
        changed = changed or node.op_type in BY_VALUE or read is not node.inputs[0]
        moves.append(move)
        value = read


def _was_integer(value: ir.Value | None) -> bool:
    """Whether a floating-point tensor holds integers that a Cast made floats of: no rounding comes near these."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == "Cast" and not is_float(node.inputs[0]):
            return True
        if node.op_type not in RESHAPES | BY_VALUE | ARRANGES:
            return False
        value = next((read for read in node.inputs if is_float(read) and not _is_constant(read)), None)
    return False


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and ir.convenience.get_const_tensor(value) is not None


def _decided_by(node: ir.Node, made: ir.Value) -> Decision | Undecided:
    read = [value for value in node.inputs if is_float(value) and value is not None]
    names = tuple(value.name or "" for value in read)
    if node.op_type in PICKS:
        if is_float(made):
            return Undecided(f"it is made of {made.name}, the largest values, and not of their places")
        axis = node.attributes.get_int("axis", -1 if node.op_type == "TopK" else 0)
        least = node.op_type == "TopK" and node.attributes.get_int("largest", 1) != 1
        if node.op_type == "TopK" and node.attributes.get_int("sorted", 1) != 1:
            return Undecided(f"the node {node.name} (TopK) gives its places in any order")
        return Decision(node.op_type, names[:1], axis, smallest=least, made=made.name or "")
    constants = [ir.convenience.get_const_tensor(value) for value in read]
    known = [tensor for tensor in constants if tensor is not None]
    if not known:
        return Decision(node.op_type, names, made=made.name or "")
    free = tuple(name for name, tensor in zip(names, constants, strict=True) if tensor is None)
    if len(free) != 1 or known[0].size != 1:
        return Undecided(f"the node {node.name} ({node.op_type}) compares with {known[0].size} numbers")
    return Decision(node.op_type, free, value=float(known[0].numpy().reshape(-1)[0]), made=made.name or "")


def float_sources(model: ir.Model) -> list[ir.Value]:
    """The tensors by which a graph's error can be measured: its floating-point outputs, and before integer ones the tensors
    that decide them, else the nearest floating-point tensors that they are made of, before they were rounded. Constants are
    left out. In the order of the outputs.
    """
    found: dict[ir.Value, None] = {}
    values = {value.name: value for node in model.graph for value in node.outputs}
    values |= {value.name: value for value in model.graph.inputs}
    for output in model.graph.outputs:
        decision = None if is_float(output) else decision_of(output)
        if isinstance(decision, Decision):
            found |= dict.fromkeys(values[name] for name in decision.tensors if name in values)
            continue
        asked, seen = [output], set[ir.Value]()
        while asked:
            value = asked.pop()
            if value in seen or _is_constant(value):
                continue
            seen.add(value)
            node = value.producer()
            rounds = node is not None and node.op_type in ROUNDS and value is not output
            if is_float(value) and not rounds:
                found[value] = None
            elif node is not None:
                asked += [read for read in reversed(node.inputs) if read is not None]
    return list(found)


@contextmanager
def with_sources(model: ir.Model) -> Iterator[dict[str, str]]:
    """The graph with its ``float_sources`` among its outputs, as long as this is open.

    Gives their names by keys that two graphs of one network share: an output's own name, or which source it is.
    Raises UsageError where there is none.
    """
    sources = float_sources(model)
    if not sources:
        raise UsageError(
            "no output is floating point, and none is made of floating-point tensors, so no error can be measured",
            advice="deploy the network in FP32, as it is",
        )
    own = list(model.graph.outputs)
    model.graph.outputs.extend(value for value in sources if value not in own)
    try:
        yield {
            (value.name or "") if value in own else f"source {place}": value.name or ""
            for place, value in enumerate(sources)
        }
    finally:
        while len(model.graph.outputs) > len(own):
            model.graph.outputs.pop()
