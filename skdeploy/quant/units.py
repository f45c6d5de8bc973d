"""The units of a network: what is INT8 or in the fallback as a whole, and the patterns that keep each."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir

from skdeploy.core.patterns import module_of, modules_pattern
from skdeploy.core.spec import ModelSpec
from skdeploy.ir.placement import place, unit_of
from skdeploy.quant.macs import macs_of, weights_of


@dataclass(frozen=True)
class Unit:
    """A part of the network that is INT8 or in the fallback as a whole.

    ``modules`` are those of the graph that lie in it, ``pattern`` is the regular expression of ``--int8-keep`` for them;
    ``layers`` the nodes that have INT8 weights unless it is kept, ``macs`` and ``parameters`` those of these layers.
    """

    name: str
    pattern: str
    modules: frozenset[str]
    layers: tuple[str, ...]
    macs: int
    parameters: int


def units_of(
    model: ir.Model, spec: ModelSpec, keep: tuple[str, ...] = (), *, keep_grouped: bool = False
) -> tuple[Unit, ...]:
    """The units with a layer that can be INT8, in the graph's order. Raises UsageError for a pattern that matches no module."""
    weighted = set(place(model, keep, keep_grouped=keep_grouped).weighted)
    macs = macs_of(model, spec.one_size)
    unit_names = unit_of(model)
    layers: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        if node.name in weighted:
            layers.setdefault(unit_names[node.name or ""], []).append(node)
    modules = _modules(model)
    names = set(unit_names.values())
    inside: dict[str, set[str]] = {name: set() for name in names}
    for module in modules:
        around = [name for name in names if _lies_in(module, name)]
        if around:
            inside[max(around, key=len)].add(module)
    return tuple(
        Unit(
            name=name,
            pattern=_pattern(name, inside[name], modules),
            modules=frozenset(inside[name]),
            layers=tuple(node.name or "" for node in nodes),
            macs=sum(macs[node.name or ""] for node in nodes),
            parameters=sum(_parameters(node) for node in nodes),
        )
        for name, nodes in layers.items()
    )


def all_but(model: ir.Model, unit: Unit) -> tuple[str, ...]:
    """The pattern that keeps all modules but those of the unit; none if there are no others.

    Whatever the unit reads is then INT8 for its own readers alone, and what it makes is read by others as it is.
    """
    others = _modules(model) - unit.modules
    return (modules_pattern(others),) if others else ()


def _modules(model: ir.Model) -> set[str]:
    return {module_of(node.name) for node in model.graph}


def _lies_in(module: str, unit: str) -> bool:
    return module == unit or (bool(unit) and module.startswith(f"{unit}."))


def _pattern(name: str, inside: Collection[str], modules: Collection[str]) -> str:
    """Short where a unit is a module and all below it; else, where other units lie below it, the list of its modules."""
    short = rf"^{re.escape(name)}(\.|$)"
    return (
        short if {module for module in modules if re.search(short, module)} == set(inside) else modules_pattern(inside)
    )


def _parameters(node: ir.Node) -> int:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return weights_of(node) + (0 if bias is None or bias.const_value is None else bias.const_value.size)
