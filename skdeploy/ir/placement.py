"""Where an INT8 graph quantizes: which tensors, which weights, who reads them, and what stays in the fallback and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from skdeploy.core.errors import PassError
from skdeploy.core.patterns import module_of, modules_matched
from skdeploy.ir.nodes import FLOAT32, maker, only_one_reads, operand, operands, optional

WEIGHTED: Final = frozenset({"Conv", "Gemm", "MatMul"})
ELEMENTWISE: Final = frozenset({"Add", "Sub", "Mul"})
SPATIAL_MEANS: Final = frozenset({"ReduceMean", "GlobalAveragePool", "AveragePool"})
# Grouped INT8 convolutions of TensorRT take channels per group in steps of four (shared/knowledge: TensorRT's rules).
GROUP_STEP: Final = 4


@dataclass(frozen=True)
class Edge:
    """Input ``index`` of the node named ``node``."""

    node: str
    index: int


@dataclass(frozen=True)
class Placement:
    """The layers and tensors to quantize. Names are those of the FP32 graph, in its order.

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

    1. A gate stays in the fallback: every weighted node between a mean over space and a product with maps.
    2. A module that ``keep`` matches (``re.search`` on the module's name) stays, and with ``keep_grouped`` every grouped
       convolution. Grouped convolutions whose channels per group are not a multiple of 4, in or out, always stay: TensorRT
       has no INT8 kernel for them. So does what ``weighted_reason`` declines.
    3. Every other convolution, Gemm and MatMul with constant weights reads INT8 activations and INT8 weights.
    4. In an addition, subtraction or product of maps, every map that a layer made is read as INT8: the residual input of a skip
       and the branches that go into select. Not so the one convolution that has no other reader: the addition is fused into
       it. And not so what another addition, subtraction or product made for this one alone: they run as one kernel.
    5. A tensor that one reader takes as INT8 is quantized once, and every reader outside the kept modules takes it so: the
       mean of a gate too, or the tensor would have to exist twice.

    Nothing is ever placed between a convolution and the Relu that alone reads it. Raises UsageError for a pattern that is not a
    regular expression or matches no module, and PassError for a graph whose nodes' names are not unique.
    """
    _check_names(model)
    kept = modules_matched(keep, {module_of(node.name) for node in model.graph})
    statistics = _statistics(model)
    gates = gate_nodes(model)
    wanted: set[str] = set()
    weighted: list[str] = []
    reasons: dict[str, str] = {}
    for node in model.graph:
        name = node.name or ""
        pattern = kept.get(module_of(name))
        if (weight := _constant_weight(node)) is not None:
            reason = _reason_to_keep(node, weight, pattern, name in gates, keep_grouped)
            if reason:
                reasons[name] = reason
            else:
                weighted.append(name)
                wanted.add(_name(node.inputs[0]))
        elif node.op_type in ELEMENTWISE and pattern is None:
            wanted.update(_name(value) for value in _quantized_operands(node, statistics))
    values = (*model.graph.inputs, *(value for node in model.graph for value in node.outputs))
    readers: dict[str, tuple[Edge, ...]] = {name: () for name in map(_name, values) if name in wanted}
    raw = dict(readers)
    for node in model.graph:
        name = node.name or ""
        reading = raw if module_of(name) in kept or name in reasons else readers
        for index, tensor in enumerate(map(_name, node.inputs)):
            if tensor in readers:
                reading[tensor] = (*reading[tensor], Edge(name, index))
    return Placement(readers, {name: edges for name, edges in raw.items() if edges}, tuple(weighted), reasons)


def gate_nodes(model: ir.Model) -> frozenset[str]:
    """Weighted nodes between means over space and a product of what they make with maps."""
    statistics = _statistics(model)
    gates: set[ir.Node] = set()
    for node in model.graph:
        if node.op_type != "Mul" or node.outputs[0] in statistics:
            continue
        if any(value is None or value.is_initializer() for value in node.inputs):
            continue
        pending = [value for value in node.inputs if value in statistics]
        while pending:
            producer = maker(pending.pop())
            if producer is not None and producer not in gates:
                gates.add(producer)
                pending.extend(value for value in producer.inputs if value in statistics)
    return frozenset(node.name or "" for node in gates if node.op_type in WEIGHTED)


def unit_of(model: ir.Model) -> dict[str, str]:
    """For each weighted node outside the gates, the unit that it belongs to, in the network's module names.

    A unit is what a skip connection spans: the outermost module with an addition of maps in its own forward around the node.
    Nodes outside such modules are units of their own. The network's own forward is not a module.
    """
    gates = gate_nodes(model)
    statistics = _statistics(model)
    spans = {
        module_of(node.name) for node in model.graph if node.op_type == "Add" and _is_map(node.outputs[0], statistics)
    }
    units: dict[str, str] = {}
    for node in model.graph:
        name = node.name or ""
        if name in gates or _constant_weight(node) is None:
            continue
        module = module_of(name)
        around = [span for span in spans if span and (module == span or module.startswith(f"{span}."))]
        units[name] = min(around, key=len) if around else module
    return units


def _reason_to_keep(node: ir.Node, weight: ir.Value, pattern: str | None, in_gate: bool, keep_grouped: bool) -> str:
    if in_gate:
        return "part of a gate"
    if pattern is not None:
        return f"kept by {pattern!r}"
    if declined := weighted_reason(node):
        return declined
    groups = node.attributes.get_int("group", 1) if node.op_type == "Conv" else 1
    if groups == 1:
        return ""
    if keep_grouped:
        return "a grouped convolution, and those are kept"
    out_of_group, into_group = weight.shape[0] // groups, weight.shape[1]  # type: ignore[index]  # a constant has a shape
    if out_of_group % GROUP_STEP or into_group % GROUP_STEP:
        return f"{into_group} -> {out_of_group} channels a group: TensorRT's INT8 takes multiples of {GROUP_STEP}"
    return ""


def _quantized_operands(node: ir.Node, statistics: frozenset[ir.Value]) -> Iterator[ir.Value]:
    """The maps that an elementwise node reads as INT8."""
    if any(value is None or value.is_initializer() for value in node.inputs):
        return
    maps = [value for value in operands(node) if _is_map(value, statistics)]
    if len(maps) != len(node.inputs) and node.op_type != "Mul":
        return  # statistics of a gate
    fused = next((value for value in maps if node.op_type == "Add" and _made_for_one_reader(value, {"Conv"})), None)
    for value in maps:
        if value is not fused and not _made_for_one_reader(value, ELEMENTWISE):
            yield value


def _made_for_one_reader(value: ir.Value, makers: Collection[str]) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type in makers and only_one_reads(value)


def _statistics(model: ir.Model) -> frozenset[ir.Value]:
    """Everything that comes from means over space alone, those included; whole numbers, of shapes, do not count."""
    found: set[ir.Value] = set()
    for node in model.graph:
        data = [value for value in operands(node) if not value.is_initializer() and _may_be_fractions(value.dtype)]
        if data and (all(value in found for value in data) or _is_mean_over_space(node)):
            found.update(node.outputs)
    return frozenset(found)


def _is_mean_over_space(node: ir.Node) -> bool:
    if node.op_type not in SPATIAL_MEANS or len(operand(node, 0).shape or ()) < 4:
        return False
    # A pool that leaves more than a number a channel makes a map; a mean over channels alone leaves height and width.
    left = node.outputs[0].shape
    return node.op_type == "GlobalAveragePool" or (left is not None and (len(left) < 4 or tuple(left[-2:]) == (1, 1)))


def _may_be_fractions(dtype: ir.DataType | None) -> bool:
    return dtype is None or dtype.is_floating_point()


def _is_map(value: ir.Value, statistics: frozenset[ir.Value]) -> bool:
    """(N, C, H, W), whatever the size is: of rank 4 and float32, and not made of means alone."""
    is_4d = value.dtype == FLOAT32 and value.shape is not None and len(value.shape) == 4
    return is_4d and not value.is_initializer() and value not in statistics


def weighted_reason(node: ir.Node) -> str:
    """Why a Conv, Gemm or MatMul is none that this package can requantize, reorder or shift: empty if it is one.

    The passes that rewrite weights know y = W x + b with W and b constant: a bias that is computed, a Gemm that scales or
    transposes what it reads, and products of stacked matrices are left as they are.
    """
    weight = _constant_weight(node)
    if weight is None or weight.shape is None:
        return "its weight is computed"
    if weight.dtype != FLOAT32:
        return f"its weight is {weight.dtype}, not float32"
    if 0 in weight.shape:
        return "its weight is empty"
    bias = optional(node, 2)
    if bias is not None and not bias.is_initializer():
        return "its bias is computed"
    if node.op_type != "Conv" and len(weight.shape) != 2:
        return "its weight is not a matrix"
    scales = [node.attributes.get_float(key, 1.0) for key in ("alpha", "beta")]
    if node.op_type == "Gemm" and (node.attributes.get_int("transA", 0) != 0 or scales != [1.0, 1.0]):
        return "it scales or transposes what it reads"
    return ""


def _constant_weight(node: ir.Node) -> ir.Value | None:
    weight = optional(node, 1) if node.op_type in WEIGHTED else None
    return weight if weight is not None and weight.is_initializer() else None


def _check_names(model: ir.Model) -> None:
    """The passes of INT8 find nodes by name."""
    for name, count in Counter(node.name or "" for node in model.graph).items():
        if not name or count > 1:
            raise PassError(
                f"{count} nodes of the graph are called {name!r}: names must be unique to say what is quantized",
                advice="please report the model",
            )


def _name(value: ir.Value | None) -> str:
    return (value.name if value is not None else "") or ""
