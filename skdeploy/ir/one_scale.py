"""Tensors that one scale must serve: what is joined, and what only moves from one place to another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import onnx_ir as ir

from skdeploy.ir.constants import known
from skdeploy.ir.nodes import FLOAT32, maker, operands, optional

# Each number that they give is one that they read.
MOVING: Final = frozenset({
    "MaxPool", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "DepthToSpace", "SpaceToDepth", "Slice", "Split",
    "Gather", "Expand", "Tile", "Identity",
})  # fmt: skip


def moves(node: ir.Node) -> bool:
    """Whether a node gives nothing but numbers that it reads, or zeros: they have the scale of what it reads."""
    if node.op_type == "Resize":
        return node.attributes.get_string("mode", "nearest") == "nearest"
    if node.op_type == "Pad":
        filled = optional(node, 2)
        constant = node.attributes.get_string("mode", "constant") == "constant"
        return not constant or filled is None or not np.any(known(filled) if known(filled) is not None else 1)
    return node.op_type in MOVING


def tied(model: ir.Model, wanted: set[str], is_left: Callable[[ir.Node], bool]) -> tuple[tuple[str, ...], ...]:
    """Groups of quantized tensors that get one scale, each in the graph's order. Adds to ``wanted`` what is joined to one.

    ``is_left`` says which nodes stay as they are.

    * What Concat joins is read as INT8 where the result is: with one scale for all, joining is copying bytes.
    * What a node only moves out of a quantized tensor has that tensor's scale: quantizing it again changes nothing, so a
      compiler may move INT8 as well.
    """
    leader: dict[str, str] = {}
    for node in reversed(list(model.graph)):
        if node.op_type != "Concat" or is_left(node) or node.outputs[0].name not in wanted:
            continue
        joined = [value.name or "" for value in operands(node)]
        if all(value.dtype == FLOAT32 and not value.is_initializer() for value in operands(node)):
            wanted.update(joined)
            _unite(leader, [node.outputs[0].name or "", *joined])
    for node in model.graph:
        for value in node.outputs:
            if value.name in wanted and not is_left(node) and (origin := _origin(value, wanted)):
                _unite(leader, [origin, value.name or ""])
    groups: dict[str, list[str]] = {}
    for name in _names(model):
        if name in wanted and name in leader:
            groups.setdefault(_first(leader, name), []).append(name)
    return tuple(map(tuple, groups.values()))


def _origin(value: ir.Value, wanted: set[str]) -> str:
    """The quantized tensor that ``value`` is moved from; empty if there is none."""
    node = maker(value)
    while node is not None and moves(node) and node.inputs[0] is not None:
        source = node.inputs[0]
        if source.name in wanted:
            return source.name or ""
        node = maker(source)
    return ""


def _unite(leader: dict[str, str], names: list[str]) -> None:
    for name in names:
        leader[_first(leader, name)] = _first(leader, names[0])


def _first(leader: dict[str, str], name: str) -> str:
    while leader.setdefault(name, name) != name:
        name = leader[name]
    return name


def _names(model: ir.Model) -> Iterator[str]:
    yield from (value.name or "" for value in model.graph.inputs)
    yield from (value.name or "" for node in model.graph for value in node.outputs)
