"""Where an INT8 graph quantizes: which tensors, which weights, who reads them, and what stays in the fallback and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from skdeploy.core.errors import PassError
from skdeploy.core.patterns import module_of, modules_matched
from skdeploy.ir.nodes import FLOAT32, maker, only_one_reads, operands, optional
from skdeploy.ir.one_scale import tied
from skdeploy.ir.rows import CONVOLUTIONS, WEIGHTED, groups_of
from skdeploy.ir.statistics import Statistics, gate_nodes, statistics_of

ELEMENTWISE: Final = frozenset({"Add", "Sub", "Mul"})
# With constants, or of one tensor alone.
POINTWISE: Final = frozenset({
    "Sigmoid", "HardSigmoid", "Tanh", "Erf", "Exp", "Softplus", "Relu", "Clip", "Div", "Neg", "Sqrt", "Pow", "Gelu", "Mish",
    "HardSwish",
})  # fmt: skip
RECTIFYING: Final = frozenset({"Relu", "Clip", "Sigmoid", "HardSigmoid"})  # what they make is never negative
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
    reason. The tensors of each group of ``tied`` get one scale (``one_scale.py``).
    """

    readers: dict[str, tuple[Edge, ...]]
    raw: dict[str, tuple[Edge, ...]]
    weighted: tuple[str, ...]
    kept: dict[str, str]
    tied: tuple[tuple[str, ...], ...] = ()

    @property
    def tensors(self) -> tuple[str, ...]:
        """The activation tensors that need a range."""
        return tuple(self.readers)


def place(
    model: ir.Model, keep: Iterable[str] = (), *, keep_grouped: bool = False, float_skips: bool = True
) -> Placement:
    """Decides where Q/DQ pairs go. The rules, in this order:

    1. A gate stays in the fallback: every weighted node between a mean over space, or over channels, and a product with maps.
    2. A module that ``keep`` matches (``re.search`` on the module's name) stays, and with ``keep_grouped`` every grouped
       convolution. Grouped convolutions whose channels per group are not a multiple of 4, in or out, always stay: TensorRT
       has no INT8 kernel for them. So does what ``weighted_reason`` declines.
    3. Every other convolution, transposed convolution, Gemm and MatMul with constant weights reads INT8 activations and INT8
       weights.
    4. In an addition, subtraction or product of maps, every map that a layer made is read as INT8: the residual input of a skip
       and the branches that go into select. Not so the one convolution that has no other reader: the addition is fused into
       it. And not so what another addition, subtraction or product made for this one alone: they run as one kernel. And not
       in a product of a tensor with a function of itself: an activation such as GELU, or a square. And not where statistics of
       places take part: a normalisation over channels, or LSKNet's selection, which has too little work for its many tensors.
       And not what a depthwise convolution made, with the activation behind it: a kernel more would read its floats and write
       INT8, by TensorRT-RTX 1.7's plan, which saves no bytes. That cost 0.6 and 2.1 dB on two small networks.
    5. After the last layer nothing is read as INT8: the error of a skip that makes the output would be all in the output. And
       with ``float_skips`` not before a last layer that makes a map either, in what ``_into_last_layers`` finds: no other
       layer and no mean over places makes those errors less. They were half of all in a denoiser.
    6. A tensor that one reader takes as INT8 is quantized once, and every reader outside the kept modules and rule 5 takes it
       so: the mean of a gate too, or the tensor would have to exist twice.
    7. What is joined to a quantized tensor, or moved out of one, has its scale: ``one_scale.tied``.

    Nothing is ever placed between a convolution and the Relu that alone reads it. Raises UsageError for a pattern that is not a
    regular expression or matches no module, and PassError for a graph whose nodes' names are not unique.
    """
    _check_names(model)
    kept = modules_matched(keep, {module_of(node.name) for node in model.graph})
    statistics = statistics_of(model)
    gates = gate_nodes(model)
    last = _after_layers(model)
    if float_skips:
        last |= _into_last_layers(model, statistics, last)
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
        elif node.op_type in ELEMENTWISE and pattern is None and name not in last:
            maps = _quantized_operands(node, statistics)
            wanted.update(_name(value) for value in maps if not _is_depthwise(maker(_origin(value))))
    groups = tied(model, wanted, lambda node: module_of(node.name) in kept or (node.name or "") in last)
    values = (*model.graph.inputs, *(value for node in model.graph for value in node.outputs))
    readers: dict[str, tuple[Edge, ...]] = {name: () for name in map(_name, values) if name in wanted}
    raw = dict(readers)
    for node in model.graph:
        name = node.name or ""
        reading = raw if module_of(name) in kept or name in reasons or name in last else readers
        for index, tensor in enumerate(map(_name, node.inputs)):
            if tensor in readers:
                reading[tensor] = (*reading[tensor], Edge(name, index))
    return Placement(readers, {name: edges for name, edges in raw.items() if edges}, tuple(weighted), reasons, groups)


def _after_layers(model: ir.Model) -> frozenset[str]:
    """Nodes from which no layer's input is reached."""
    before: set[ir.Node] = set()
    for node in reversed(list(model.graph)):
        if _constant_weight(node) is not None or any(reader in before for reader in _readers(node)):
            before.add(node)
    return frozenset(node.name or "" for node in model.graph if node not in before)


def _into_last_layers(model: ir.Model, statistics: Statistics, after: frozenset[str]) -> frozenset[str]:
    """Additions, subtractions and products of maps that go into a last layer through others of them alone, where the network
    gives maps. Not so those that read what a ReLU made: its 256 levels would be 128 for the layer that reads it too.
    """
    found: set[str] = set()
    if any(node.name in after and statistics.has(value) for node in model.graph for value in node.outputs):
        return frozenset()  # such as a mean over places of class maps
    for node in model.graph:
        is_last = _constant_weight(node) is not None and all(reader.name in after for reader in _readers(node))
        pending = [maker(node.inputs[0])] if is_last and statistics.is_map(node.outputs[0]) else []
        while pending:
            each = pending.pop()
            if each is None or each.op_type not in ELEMENTWISE or each.name in found:
                continue
            makers = [maker(value) for value in operands(each) if statistics.is_map(value)]
            if not any(made is not None and made.op_type in RECTIFYING for made in makers):
                found.add(each.name or "")
                pending += makers
    return frozenset(found)


def _readers(node: ir.Node) -> Iterator[ir.Node]:
    return (use.node for value in node.outputs for use in value.uses())


def unit_of(model: ir.Model) -> dict[str, str]:
    """For each weighted node outside the gates, the unit that it belongs to, in the network's module names.

    A unit is what a skip connection spans: the outermost module with an addition of maps in its own forward around the node.
    Nodes outside such modules are units of their own. The network's own forward is not a module.
    """
    gates = gate_nodes(model)
    statistics = statistics_of(model)
    spans = {
        module_of(node.name) for node in model.graph if node.op_type == "Add" and statistics.is_map(node.outputs[0])
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
    groups = groups_of(node)
    if groups == 1:
        return ""
    if keep_grouped:
        return "a grouped convolution, and those are kept"
    first, second = weight.shape[0] // groups, weight.shape[1]  # type: ignore[index]  # a constant has a shape
    into_group, out_of_group = (first, second) if node.op_type == "ConvTranspose" else (second, first)
    if out_of_group % GROUP_STEP or into_group % GROUP_STEP:
        return f"{into_group} -> {out_of_group} channels a group: TensorRT's INT8 takes multiples of {GROUP_STEP}"
    return ""


def _quantized_operands(node: ir.Node, statistics: Statistics) -> Iterator[ir.Value]:
    """The maps that an elementwise node reads as INT8."""
    if any(value is None or value.is_initializer() for value in node.inputs):
        return
    if any(value in statistics.of_places for value in operands(node)) or len(set(map(_origin, operands(node)))) == 1:
        return
    maps = [value for value in operands(node) if statistics.is_map(value)]
    if len(maps) != len(node.inputs) and node.op_type != "Mul":
        return  # statistics of a gate
    fused = next((value for value in maps if node.op_type == "Add" and _made_for_one_reader(value, {"Conv"})), None)
    for value in maps:
        if value is not fused and not _made_for_one_reader(value, ELEMENTWISE):
            yield value


def _origin(value: ir.Value) -> ir.Value:
    """The tensor that ``value`` is a function of, number by number."""
    node = maker(value)
    while node is not None and (node.op_type in POINTWISE or node.op_type in ELEMENTWISE):
        data = {each for each in operands(node) if not each.is_initializer()}
        sources = data if len(data) == 1 else {_origin(each) for each in data}
        if len(sources) != 1:
            break
        value = sources.pop()
        node = maker(value)
    return value


def _is_depthwise(node: ir.Node | None) -> bool:
    """Whether the node is a depthwise convolution, which has no INT8 kernel: see ``GROUP_STEP``."""
    weight = None if node is None or node.op_type != "Conv" else _constant_weight(node)
    return (
        node is not None
        and groups_of(node) > 1
        and weight is not None
        and weight.shape is not None
        and weight.shape[1] == 1
    )


def _made_for_one_reader(value: ir.Value, makers: Collection[str]) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type in makers and only_one_reads(value)


def weighted_reason(node: ir.Node) -> str:
    """Why a Conv, ConvTranspose, Gemm or MatMul is none that this package can requantize, reorder or shift: empty if it is one.

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
    if node.op_type not in CONVOLUTIONS and len(weight.shape) != 2:
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
