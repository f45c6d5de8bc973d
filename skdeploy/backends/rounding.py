"""FP16 graphs on hardware without FP16 arithmetic, with every FP16 rounding that the graph asks for; other narrow types too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import onnx_ir as ir

from skdeploy.core.errors import PrecisionError
from skdeploy.core.precision import PRECISIONS, Precision
from skdeploy.ir.constants import free_name
from skdeploy.ir.nodes import FLOAT16, FLOAT32, new_node
from skdeploy.ir.operator_types import retype_attributes, subgraphs, types_of

EXACT_ON_HALF: Final = frozenset({"MaxPool", "Reshape", "Flatten", "Transpose", "Identity"})


def narrow_types() -> dict[ir.DataType | None, Precision]:
    """The float types that a CPU has no arithmetic of, each with its precision."""
    return {ir.DataType[each.onnx_type]: each for each in PRECISIONS.values() if each.onnx_type != FLOAT32.name}


def cpu_lacks(model: ir.Model) -> Precision | None:
    """The precision of a graph's tensors that ONNX Runtime's CPU provider refuses to load; None where it loads the graph.

    It puts casts around FP16, and around no other narrow type (1.32; the tests check it).
    """
    narrow = narrow_types()
    found = (narrow[value.dtype] for node in model.graph for value in node.outputs if value.dtype in narrow)
    return next((each for each in found if each.onnx_type != FLOAT16.name), None)


class RoundNarrow(ir.passes.InPlacePass):
    """Rewrites an FP16 graph to FP32 arithmetic with an explicit rounding of each FP16 tensor: Cast to FP16 and back.

    Why: ONNX Runtime's CPU provider on x86 has no FP16 kernels. It runs an FP16 graph in FP32 and removes the casts that it
    inserted, so nothing is rounded and nothing overflows. Parity measured on that run would prove nothing about FP16. Casts
    that an FP32 graph has from the start stay at every optimisation level (1.32; the tests check both facts).

    What it computes: each operator runs in FP32, accumulation included, as tensor cores do. Then each FP16 tensor is rounded
    once, to nearest even; overflow gives infinity. The rounding is left out where it changes nothing: after operators that
    only move or compare FP16 values. Before a Relu that is the only user, the Relu's output is rounded instead: rounding is
    monotone and keeps zero, so the order does not matter.

    Q/DQ in such a graph: a QuantizeLinear divides in FP32, as ONNX Runtime's own does for FP16 (the tests check it), and FP16
    numbers are exact in FP32. The output of a DequantizeLinear is rounded like any FP16 tensor: an integer of 8 bits times a
    scale of 11 does not fit FP16. A compiler that fuses it into an INT8 kernel does not round there; the difference is 2^-12
    of a value whose own step is 2^-8 of the range.

    Nodes that take their type from an attribute (Cast, ConstantOfShape, EyeLike) are FP16 in ONNX Runtime too, and are only
    widened. A graph inside a node (If, Loop, Scan) reads widened tensors from outside; ``HalfPrecision`` leaves it in FP32.
    One with FP16 tensors of its own is refused.

    Other narrow float types, such as BF16, are treated in the same way.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph, narrow = model.graph, narrow_types()
        _refuse_narrow_inside(graph, narrow)
        halves = [value for value in graph.initializers.values() if value.dtype in narrow]
        for value in halves:
            _widen_constant(value)
        modified = bool(halves)
        for value in graph.inputs:
            if value.dtype in narrow:
                first = graph[0]
                graph.insert_before(first, _widened(value))
                modified = True
        for node in list(graph):
            for value in node.outputs:
                if value.dtype in narrow:
                    modified = True
                    _round(graph, node, value)
        return ir.passes.PassResult(model, modified=modified)


class WithoutRange(ir.passes.InPlacePass):
    """Rewrites an FP16 graph to plain FP32: nothing is rounded, nothing overflows, and names stay.

    So an overflow shows where it is, and not in all that comes after it.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        halves: list[ir.Value] = []
        for graph in (model.graph, *model.graph.subgraphs()):
            halves.extend(value for value in (*graph.inputs, *graph.initializers.values()) if value.dtype == FLOAT16)
        for node in model.graph.all_nodes():
            halves.extend(value for value in node.outputs if value.dtype == FLOAT16)
            retype_attributes(node, FLOAT16, FLOAT32)
        for value in halves:
            if value.const_value is not None:
                _widen_constant(value)
            value.type = ir.TensorType(FLOAT32)
        return ir.passes.PassResult(model, modified=bool(halves))


def _refuse_narrow_inside(graph: ir.Graph, narrow: Mapping[ir.DataType | None, Precision]) -> None:
    for node in graph:
        for inside in subgraphs(node):
            for inner in inside.all_nodes():
                for value in inner.outputs:
                    if value.dtype not in narrow:
                        continue
                    words = narrow[value.dtype].words
                    raise PrecisionError(
                        f"{node.name} ({node.op_type}) has {words} tensors in its graph, such as {value.name}; "
                        f"a CPU cannot show how {words} rounds them",
                        advice="export the network with this part in FP32",
                    )


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    if types_of(node, graph.opset_imports[""]).is_free(
        node.outputs.index(value)
    ):  # a Cast: the rounding is done already
        graph.insert_after(node, _widened(value))
        return
    kind = value.dtype
    assert kind is not None  # it is narrow
    value.type = ir.TensorType(FLOAT32)
    output = value.is_graph_output()
    if not output and not _needs_rounding(node, value):
        return
    name = value.name or ""
    if output:
        value.name = free_name(graph, f"{name}_unrounded")
    narrow = _cast(value, kind, name if output else f"{name}_round16")
    _redirect(value, narrow)
    graph.insert_after(node, [narrow, *_widened(narrow.outputs[0])])
    if output:
        graph.outputs[graph.outputs.index(value)] = narrow.outputs[0]


def _needs_rounding(node: ir.Node, value: ir.Value) -> bool:
    if node.op_type in EXACT_ON_HALF:
        return False
    users = [use.node for use in value.uses()]
    return not (len(users) == 1 and users[0].op_type == "Relu")


def _widened(value: ir.Value) -> list[ir.Node]:
    """A Cast of ``value`` to FP32 that takes over all its uses; none if it has none."""
    if not value.uses():
        return []
    cast = _cast(value, FLOAT32, f"{value.name}_rounded")
    _redirect(value, cast)
    return [cast]


def _redirect(value: ir.Value, cast: ir.Node) -> None:
    """The users of ``value``, other than ``cast``, use the output of ``cast`` instead."""
    for use in [use for use in value.uses() if use.node is not cast]:
        use.node.replace_input_with(use.idx, cast.outputs[0])


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    return new_node("Cast", [value], name, value.shape, dtype, {"to": dtype})


def _widen_constant(value: ir.Value) -> None:
    assert value.const_value is not None  # it is an initializer
    value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
    value.type = ir.TensorType(FLOAT32)
