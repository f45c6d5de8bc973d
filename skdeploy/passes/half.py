"""FP16 and BF16 as a strongly typed graph: the tensors have the type, so every compiler and runtime must do the same thing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from skdeploy.core.errors import UsageError
from skdeploy.core.patterns import module_of, modules_matched
from skdeploy.core.precision import Precision
from skdeploy.ir.constants import Names, drop_unused
from skdeploy.ir.half_constants import HalfConstants, check_dequantized, largest_of
from skdeploy.ir.nodes import BFLOAT16, FLOAT16, FLOAT32, maker, new_node, operand, operands
from skdeploy.ir.operator_types import CASTS, OperatorTypes, is_single, is_tensor, retype_attributes, subgraphs
from skdeploy.ir.operator_types import types_of as types_in
from skdeploy.ir.qdq import DEQUANTIZE, QUANTIZE
from skdeploy.ir.variances import variance_nodes
from skdeploy.passes.exact_input import MODULE as PIXELS
from skdeploy.passes.preprocess import MODULE as PREPROCESS
from skdeploy.passes.single_scales import beside_single_scales

# Sums over a whole map: 12,544 values of 6 already leave FP16's range, if the kernel accumulates in the tensor's type.
REDUCTIONS: Final = frozenset({"ReduceMean", "ReduceSum", "GlobalAveragePool"})
NO_VARIABLES: Final[frozenset[str]] = frozenset()
SINGLE_SCALE: Final = "INT8 whose scale is not an FP16 number"


class HalfPrecision(ir.passes.InPlacePass):
    """FP32 graph to FP16, inputs and outputs stay FP32. In an INT8 graph, what is not INT8 becomes FP16.

    The operator's schema says what may be FP16 (``operator_types.py``): all inputs and outputs of one type variable together.
    What the schema fixes to float, as the scales of a Resize, stays FP32 in a node that is FP16 else. A Cast stands wherever a
    tensor passes from one to the other. Rules for a node, in this order:

    1. Nodes without floating-point tensors are left alone. Those that give none, as Shape and ArgMax, take what they read as it
       is; those that compare two are FP16 where one of what they compare is.
    2. Q/DQ follow their neighbours, whatever module they are named after: a QuantizeLinear has the type of the tensor it reads,
       a DequantizeLinear is FP16 where any of its readers is. So no Cast stands between a weight and its convolution, or
       in front of a QuantizeLinear. Their scales get that type too, which strong typing wants. Where a scale is not an FP16
       number, it and the layers around it stay FP32 (``single_scales.py``).
    3. Nodes of modules that ``keep_fp32`` matches (``re.search`` on the module's name) stay FP32.
    4. Normalisation of the input stays FP32, and counting its pixels for INT8 too: 8-bit pixels times a scale would otherwise
       be rounded twice.
    5. Means and sums over space stay FP32, and so does adding them up: these are the gate's statistics. So does a variance,
       from its squares to its root (``variances.py``).
    6. An operator that takes no FP16, by its schema in the graph's opset, stays FP32. So does one with a graph inside (If,
       Loop, Scan), with that graph and all that it reads from outside; one of sequences or optional values; and one that
       makes numbers of a type that an attribute names (EyeLike, RandomNormal).
    7. All others become FP16, their constants too. A constant beyond FP16's range is an error naming it, except where FP16
       numbers are only compared with it or clamped by it: there it becomes infinity, which does the same to each of them.

    ``halved`` lists the tensors that became FP16, by their names in the FP32 graph: what ``parity/headroom.py`` must measure.
    INT8 tensors are not among them, nor are weights, which are checked here.
    ``kept`` says which nodes stayed FP32 and why; ``flushed`` which constants lost what share of their values to zero.

    With ``precision`` BF16, all of this holds for BF16, in a graph without Q/DQ. ``raise_opset.py`` gives it an opset whose
    operators take BF16: by rule 6, one that does not stays FP32. So does one that TensorRT-RTX cannot build in it.
    """

    def __init__(self, keep_fp32: Iterable[str] = (), precision: Precision = Precision.FP16) -> None:
        super().__init__()
        self.precision, self._narrow = precision, ir.DataType[precision.onnx_type]
        self.patterns = tuple(keep_fp32)
        self.halved: list[str] = []
        self.kept: dict[str, str] = {}
        self.flushed: dict[str, float] = {}
        self._statistics: set[ir.Node | None] = set()
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._single: set[ir.Value] = set()  # what was FP32 in the beginning
        self._types: dict[ir.Node, OperatorTypes] = {}
        self._beside: frozenset[ir.Node] = frozenset()
        self._variances: frozenset[ir.Node] = frozenset()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        # A constant's type is an attribute when it is a node, and then there would be two places to change.
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        self._names = Names(graph)
        self._constants = HalfConstants(graph, self._names, self.precision)
        made = [value for node in graph for value in node.outputs if not _is_unused(value)]
        self._single = {value for value in (*graph.inputs, *graph.initializers.values(), *made) if is_single(value)}
        self._types = {node: types_in(node, graph.opset_imports[""], self._narrow) for node in graph}
        # Q/DQ may be all that is left of a module whose Relu became saturation.
        matched = [node for node in graph if _is_qdq(node) or _has_float(node)]
        self._matched = modules_matched(self.patterns, {module_of(node.name) for node in matched}, "--keep-fp32 ")
        self._variances = variance_nodes(model)
        reasons = {node: self._reason_to_keep(node) for node in matched if not _is_qdq(node)}
        self._beside = beside_single_scales(graph)
        reasons |= {node: SINGLE_SCALE for node in self._beside if not _is_qdq(node)}
        for node in list(graph):
            if node.op_type == QUANTIZE:
                self._scale_as_data(graph, node)
            elif node.op_type == DEQUANTIZE and _gives_single(node):
                self._dequantize(graph, node, self._reason_of_readers(node, reasons))
            elif node in reasons and not self._takes_any(node):
                self._lower(graph, node, reasons[node])
        if not self.halved and not self._beside:
            raise self._nothing_left()
        self.flushed = self._constants.flushed
        for index, value in enumerate(graph.outputs):
            if value.dtype == self._narrow:
                name, value.name = value.name, self._names.free(f"{value.name}_{self.precision}")
                cast = _cast(value, FLOAT32, self._names.free(f"{name}_fp32"))
                cast.outputs[0].name = name
                graph.append(cast)
                graph.outputs[index] = cast.outputs[0]
        drop_unused(graph)
        return ir.passes.PassResult(model, modified=True)

    def _nothing_left(self) -> UsageError:
        if self.patterns:
            return UsageError(
                "--keep-fp32 keeps everything in FP32",
                advice=f"export without {self.precision.flag}, or keep fewer modules in FP32",
            )
        why = "; ".join(dict.fromkeys(self.kept.values())) or "it has no FP32 tensors"
        return UsageError(
            f"nothing in this graph can be {self.precision.words}: {why}",
            advice=f"export without {self.precision.flag}",
        )

    def _lower(self, graph: ir.Graph, node: ir.Node, reason: str) -> None:
        """Gives the node's inputs and outputs their types."""
        types = self._types[node]
        # What only compares follows what it compares.
        halved = _gives_single(node) or any(value is not None and value.dtype == self._narrow for value in node.inputs)
        half = types.half if halved and not reason else NO_VARIABLES
        if reason:
            self.kept[node.name or node.op_type] = reason
        for index, (value, variable) in enumerate(zip(node.inputs, types.inputs, strict=True)):
            if value is not None:
                node.replace_input_with(index, self._wanted(graph, value, variable in half, node, node))
        for inside in subgraphs(node):
            for inner in ir.traversal.RecursiveGraphIterator(inside):
                for index, value in enumerate(inner.inputs):
                    if value is not None:
                        inner.replace_input_with(index, self._wanted(graph, value, False, inner, node))
        for index, value in enumerate(node.outputs):
            if value in self._single and types.outputs[index] in half:
                if types.is_free(index):
                    retype_attributes(node, FLOAT32, self._narrow)
                value.type = ir.TensorType(self._narrow)  # not .dtype: a clone shares its type with the original
                self.halved.append(value.name or "")

    def _takes_any(self, node: ir.Node) -> bool:
        """Whether a node that gives no FP32 reads one such tensor only, and may have it in the type that it has."""
        types = self._types[node]
        floats = [(v, kind) for v, kind in zip(node.inputs, types.inputs, strict=True) if v in self._single]
        if _gives_single(node) or len(floats) > 1 or any(subgraphs(node)):
            return False
        return all(value.dtype == FLOAT32 or kind in types.half for value, kind in floats)

    def _wanted(self, graph: ir.Graph, value: ir.Value, half: bool, user: ir.Node, before: ir.Node) -> ir.Value:
        """``value`` in the type that ``user`` takes it in: that of the FP32 graph, or the narrow one. Casts stand before
        ``before``.
        """
        dtype = self._narrow if half else FLOAT32
        if value not in self._single or value.dtype == dtype:
            return value
        if value.is_initializer():
            return self._constants.half(value, user)
        key = (value, dtype)
        if key not in self._casts:
            cast = _cast(value, dtype, self._names.free(f"{value.name}_{self.precision if half else 'fp32'}"))
            graph.insert_before(before, [cast])
            self._casts[key] = cast.outputs[0]
            if half:
                self.halved.append(value.name or "")
        return self._casts[key]

    def _dequantize(self, graph: ir.Graph, node: ir.Node, reason: str) -> None:
        if reason:
            self.kept[node.name or node.op_type] = reason
            return
        check_dequantized(node)
        node.replace_input_with(1, self._wanted(graph, operand(node, 1), True, node, node))
        value = node.outputs[0]
        value.type = ir.TensorType(FLOAT16)
        if not operand(node, 0).is_initializer():  # weights are checked, not measured
            self.halved.append(value.name or "")

    def _scale_as_data(self, graph: ir.Graph, node: ir.Node) -> None:
        if node in self._beside:
            node.replace_input_with(0, self._wanted(graph, operand(node, 0), False, node, node))
        scale = self._wanted(graph, operand(node, 1), operand(node, 0).dtype == FLOAT16, node, node)
        node.replace_input_with(1, scale)

    def _reason_to_keep(self, node: ir.Node) -> str:
        module = module_of(node.name)
        if module in self._matched:
            return f"--keep-fp32 {self._matched[module]}"
        if node.op_type in self.precision.no_kernels:
            return f"TensorRT-RTX has no {self.precision.words} kernels for {node.op_type}"
        if module in (PREPROCESS, PIXELS):
            return "normalisation of the input"
        if node in self._variances and node.op_type not in REDUCTIONS:
            return "part of a variance"
        if node.op_type in REDUCTIONS and _gives_single(node):
            self._statistics.add(node)
            return "a sum over space"
        data = [value for value in operands(node) if not value.is_initializer()]
        if node.op_type == "Add" and data and all(maker(value) in self._statistics for value in data):
            self._statistics.add(node)
            return "adds sums over space"
        return self._reason_of_schema(node)

    def _reason_of_schema(self, node: ir.Node) -> str:
        if any(subgraphs(node)):
            return f"{node.op_type} has a graph inside"
        values = [value for value in (*operands(node), *node.outputs) if not _is_unused(value)]
        if not all(map(is_tensor, values)):
            return f"{node.op_type} has sequences or optional values as inputs or outputs"
        types = self._types[node]
        free = any(value in self._single and types.is_free(index) for index, value in enumerate(node.outputs))
        if free and node.op_type not in CASTS:
            return f"{node.op_type} has its output type in an attribute"
        if node.op_type == "ConstantOfShape" and "value" in node.attributes:
            value = float(node.attributes["value"].as_tensor().numpy()[0])
            if abs(value) > largest_of(self.precision):
                return f"its value, {value:.4g}, does not fit {self.precision.words}"
        singles = [kind for value, kind in zip(node.outputs, types.outputs, strict=True) if value in self._single]
        singles += [kind for value, kind in zip(node.inputs, types.inputs, strict=True) if value in self._single]
        taken = types.half.intersection(singles)
        return "" if taken else f"{node.op_type} does not support {self.precision.words} in ONNX's schema"

    def _reason_of_readers(self, node: ir.Node, reasons: Mapping[ir.Node, str]) -> str:
        """Why a DequantizeLinear stays FP32, or nothing if it does not."""
        if node in self._beside:
            return SINGLE_SCALE
        for reader, index in node.outputs[0].uses():
            halved = reasons.get(reader) == "" and _gives_single(reader)
            if halved and self._types[reader].inputs[index] in self._types[reader].half:
                return ""
        return "read in FP32 only"


def _has_float(node: ir.Node) -> bool:
    return any(map(is_single, (*node.inputs, *node.outputs))) or any(subgraphs(node))


def _gives_single(node: ir.Node) -> bool:
    """Whether it gives FP32 tensors, in the FP32 graph or still."""
    return any(is_tensor(value) and value.dtype in (FLOAT32, FLOAT16, BFLOAT16) for value in node.outputs)


def _is_unused(value: ir.Value) -> bool:
    """An optional output that is left out."""
    return value.name == ""


def _is_qdq(node: ir.Node) -> bool:
    return node.op_type in (QUANTIZE, DEQUANTIZE)


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    return new_node("Cast", [value], name, value.shape, dtype, {"to": dtype})
