"""The floating-point tensors that decide an integer or boolean output, such as the logits before an ArgMax."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import onnx_ir as ir

from skdeploy.core.errors import UsageError

# They give the values that they take, in the same order.
CARRIES: Final = frozenset({"Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Not"})
COMPARES: Final = frozenset({"Greater", "GreaterOrEqual", "Less", "LessOrEqual"})


class Decision(NamedTuple):
    """The operator that makes integers of floating-point ``tensors``: ArgMax, ArgMin, TopK or a comparison. ``axis``: of these.

    ``value``: what a tensor is compared with, if that is one number; the other tensor is then the only one.
    """

    operator: str
    tensors: tuple[str, ...]
    axis: int = 0
    value: float | None = None


def is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype is not None and value.dtype.is_floating_point()


def integer_outputs(model: ir.Model) -> list[ir.Value]:
    return [made for made in model.graph.outputs if made.dtype is not None and not made.dtype.is_floating_point()]


def decision_of(output: ir.Value) -> Decision | None:
    """Return the operator that decides an output, if nothing between them changes the order of values; else None."""
    node = output.producer()
    while node is not None and node.op_type in CARRIES and not is_float(node.inputs[0]):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node is None or not is_float(node.inputs[0]):
        return None
    read = [value for value in node.inputs if is_float(value) and value is not None]
    names = tuple(value.name or "" for value in read)
    if node.op_type in ("ArgMax", "ArgMin", "TopK"):
        if node.op_type == "TopK" and _of(node, "largest", 1) != 1:
            return None
        return Decision(node.op_type, names[:1], _of(node, "axis", -1 if node.op_type == "TopK" else 0))
    if node.op_type not in COMPARES:
        return None
    constants = [ir.convenience.get_const_tensor(value) for value in read]
    known = [tensor for tensor in constants if tensor is not None]
    if not known:
        return Decision(node.op_type, names)
    free = tuple(name for name, tensor in zip(names, constants, strict=True) if tensor is None)
    if len(free) != 1 or known[0].size != 1:
        return None
    return Decision(node.op_type, free, value=float(known[0].numpy().reshape(-1)[0]))


def float_sources(model: ir.Model) -> list[ir.Value]:
    """The tensors by which a graph's error can be measured: its floating-point outputs, and before integer ones the nearest
    floating-point tensors that they are made of. Constants are left out. In the order of the outputs.
    """
    found: dict[ir.Value, None] = {}
    for output in model.graph.outputs:
        asked, seen = [output], set[ir.Value]()
        while asked:
            value = asked.pop()
            if value in seen or ir.convenience.get_const_tensor(value) is not None:
                continue
            seen.add(value)
            if is_float(value):
                found[value] = None
                continue
            node = value.producer()
            if node is not None:
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


def _of(node: ir.Node, name: str, default: int) -> int:
    found = node.attributes.get(name)
    return default if found is None else found.as_int()
