"""Where an INT8 graph quantizes: which tensors, which weights, who reads them, and what stays in the fallback and why."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from skdeploy.errors import UsageError
from skdeploy.graph.naming import module_of

WEIGHTED: Final = frozenset({"Conv", "Gemm", "MatMul"})
ELEMENTWISE: Final = frozenset({"Add", "Sub", "Mul"})
SPATIAL_MEANS: Final = frozenset({"ReduceMean", "GlobalAveragePool", "AveragePool"})
GATE_ENDS: Final = frozenset({"Sigmoid", "Softmax"})
# What a gate's weights pass through on their way to the maps that they weigh.
RESHAPING: Final = frozenset(
    {"Reshape", "Slice", "Split", "Sub", "Unsqueeze", "Squeeze", "Transpose", "Gather", "Expand", "Cast"}
)
# Grouped INT8 convolutions of TensorRT take channels per group in steps of four (shared/knowledge: TensorRT's rules).
GROUP_STEP: Final = 4


@dataclass(frozen=True)
class Edge:
    """Input ``index`` of the node named ``node``."""

    node: str
    index: int


@dataclass(frozen=True)
class Placement:
    """What to quantize. Names are those of the FP32 graph, in its order.

    ``readers`` has, for each quantized activation tensor, the inputs that read it as INT8; ``raw`` those that go on reading it
    as it is. ``weighted`` are the nodes whose weights become INT8; ``kept`` those that stay in the fallback, each with the
    reason.
    """

    readers: dict[str, tuple[Edge, ...]]
    raw: dict[str, tuple[Edge, ...]]
    weighted: tuple[str, ...]
    kept: dict[str, str]

    @property
    def tensors(self) -> tuple[str, ...]:
        """The activation tensors that need a range."""
        return tuple(self.readers)


def place(model: ir.Model, keep: Iterable[str] = (), *, keep_grouped: bool = False) -> Placement:
    """Decides where Q/DQ pairs go. The rules, in this order:

    1. A gate stays in the fallback: every weighted node between a mean over space and the Sigmoid or Softmax that weighs maps.
    2. A module that ``keep`` matches (``re.search`` on the module's name) stays, and with ``keep_grouped`` every grouped
       convolution. Grouped convolutions whose channels per group are no multiple of 4, in or out, always stay: TensorRT has no
       INT8 kernel for them.
    3. Every other convolution, Gemm and MatMul with constant weights reads INT8 activations and INT8 weights.
    4. In an addition, subtraction or product of maps, every map that a layer made is read as INT8: the residual input of a skip
       and the branches that go into select. Not so the one convolution that has no other reader: the addition is fused into
       it. And not so what select itself computes.
    5. A tensor that one reader takes as INT8 is quantized once, and every reader outside the kept modules takes it so: the
       mean of a gate too, or the tensor would have to exist twice.

    Nothing is ever placed between a convolution and the Relu that alone reads it. Raises UsageError for a pattern that is no
    regular expression or matches no module.
    """
    kept = _kept_modules(model, keep)
    gates = gate_nodes(model)
    wanted: set[str] = set()
    weighted: list[str] = []
    reasons: dict[str, str] = {}
    for node in model.graph:
        name = node.name or ""
        pattern = kept.get(module_of(name))
        if node.op_type in WEIGHTED and _constant_weight(node) is not None:
            reason = _reason_to_keep(node, pattern, name in gates, keep_grouped)
            if reason:
                reasons[name] = reason
            else:
                weighted.append(name)
                wanted.add(_name(node.inputs[0]))
        elif node.op_type in ELEMENTWISE and pattern is None:
            wanted.update(_name(value) for value in _quantized_operands(node))
    readers: dict[str, tuple[Edge, ...]] = {name: () for name in _in_graph_order(model) if name in wanted}
    raw = dict(readers)
    for node in model.graph:
        name = node.name or ""
        reading = raw if module_of(name) in kept or name in reasons else readers
        for index, value in enumerate(node.inputs):
            if value is not None and value.name in readers:
                reading[value.name] = (*reading[value.name], Edge(name, index))
    return Placement(readers, {name: edges for name, edges in raw.items() if edges}, tuple(weighted), reasons)


def gate_nodes(model: ir.Model) -> frozenset[str]:
    """Weighted nodes between a mean over space and a Sigmoid or Softmax whose result weighs maps."""
    found: set[str] = set()
    for end in model.graph:
        if end.op_type in GATE_ENDS and _weighs_maps(end):
            between = _back_to_means(end)
            found.update(node.name or "" for node in between if node.op_type in WEIGHTED)
    return frozenset(found)


def unit_of(model: ir.Model) -> dict[str, str]:
    """For each weighted node outside the gates, the unit that it belongs to, in the network's module names.

    A unit is what a skip connection spans: the longest module name of an addition of maps that contains the node's. Nodes outside
    such modules are units of their own.
    """
    gates = gate_nodes(model)
    spans = {module_of(node.name) for node in model.graph if node.op_type == "Add" and _is_map(node.outputs[0])}
    units: dict[str, str] = {}
    for node in model.graph:
        name = node.name or ""
        if node.op_type not in WEIGHTED or name in gates or _constant_weight(node) is None:
            continue
        module = module_of(name)
        around = [span for span in spans if span and (module == span or module.startswith(f"{span}."))]
        outer = min(around, key=len) if around else module
        units[name] = outer
    return units


def _reason_to_keep(node: ir.Node, pattern: str | None, in_gate: bool, keep_grouped: bool) -> str:
    if in_gate:
        return "part of a gate"
    if pattern is not None:
        return f"kept by {pattern!r}"
    groups = node.attributes.get_int("group", 1) if node.op_type == "Conv" else 1
    if groups == 1:
        return ""
    if keep_grouped:
        return "a grouped convolution, and those are kept"
    weight = _constant_weight(node)
    assert weight is not None  # the caller asked
    out_of_group, into_group = weight.shape[0] // groups, weight.shape[1]  # type: ignore[index]
    if out_of_group % GROUP_STEP or into_group % GROUP_STEP:
        return f"{into_group} -> {out_of_group} channels a group: TensorRT's INT8 takes multiples of {GROUP_STEP}"
    return ""


def _kept_modules(model: ir.Model, patterns: Iterable[str]) -> dict[str, str]:
    """Modules that a pattern matches, and which."""
    modules = {module_of(node.name) for node in model.graph}
    kept: dict[str, str] = {}
    for pattern in patterns:
        try:
            matching = [module for module in modules if re.search(pattern, module)]
        except re.error as error:
            raise UsageError(f"{pattern!r} is not a regular expression: {error}") from error
        if not matching:
            raise UsageError(
                f"{pattern!r} matches no module", advice="`skdeploy inspect model.onnx` lists the modules"
            )
        kept.update(dict.fromkeys(matching, pattern))
    return kept


def _quantized_operands(node: ir.Node) -> Iterator[ir.Value]:
    """The maps that an elementwise node reads as INT8."""
    if any(value is None or value.is_initializer() for value in node.inputs):
        return
    maps = [value for value in node.inputs if value is not None and _is_map(value)]
    if len(maps) != len(node.inputs) and node.op_type != "Mul":
        return  # statistics of a gate
    fused = next((value for value in maps if node.op_type == "Add" and _fuses_into_convolution(value)), None)
    for value in maps:
        if value is not fused and not _inside_select(value):
            yield value


def _fuses_into_convolution(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "Conv" and len(value.uses()) == 1


def _inside_select(value: ir.Value) -> bool:
    producer = value.producer()
    if producer is None:
        return False
    if producer.op_type in ("Sub", "Mul"):
        return True
    return producer.op_type == "Add" and any(
        operand is not None and operand.producer() is not None and _inside_select(operand)
        for operand in producer.inputs
    )


def _is_map(value: ir.Value) -> bool:
    """Rank 4, and more than one number a channel."""
    shape = value.shape
    return (
        shape is not None and len(shape) == 4 and tuple(shape[2:]) != (1, 1) and not value.is_initializer()  # (N, C, H, W)
    )


def _weighs_maps(end: ir.Node) -> bool:
    pending, seen = list(end.outputs), set[ir.Value]()
    while pending:
        value = pending.pop()
        for use in value.uses():
            if use.node.op_type == "Mul" and any(_is_map(output) for output in use.node.outputs):
                return True
            if use.node.op_type in RESHAPING:
                pending.extend(output for output in use.node.outputs if output not in seen)
                seen.update(use.node.outputs)
    return False


def _back_to_means(end: ir.Node) -> set[ir.Node]:
    """All nodes between ``end`` and the means over space that it comes from; none if it also comes from elsewhere."""
    between: set[ir.Node] = set()
    pending = [end]
    while pending:
        node = pending.pop()
        for value in node.inputs:
            if value is None or value.is_initializer():
                continue
            producer = value.producer()
            if producer is None or _is_map(value):
                return set()
            if producer.op_type not in SPATIAL_MEANS and producer not in between:
                between.add(producer)
                pending.append(producer)
    return between


def _constant_weight(node: ir.Node) -> ir.Value | None:
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    return weight if weight is not None and weight.is_initializer() else None


def _in_graph_order(model: ir.Model) -> Iterator[str]:
    yield from (_name(value) for value in model.graph.inputs)
    for node in model.graph:
        yield from (_name(value) for value in node.outputs)


def _name(value: ir.Value | None) -> str:
    return (value.name if value is not None else "") or ""
