"""FP16 as a strongly typed graph: the tensors are FP16, so every compiler and runtime must do the same thing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from skdeploy.errors import PrecisionError, UsageError
from skdeploy.graph.constants import drop_unused
from skdeploy.graph.exact_input import MODULE as PIXELS
from skdeploy.graph.naming import module_of, modules_pattern
from skdeploy.graph.preprocess import MODULE as PREPROCESS
from skdeploy.graph.qdq import DEQUANTIZE, QUANTIZE

FP16_MAX: Final = 65504.0

FLOAT32, FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16

# Sums over a whole map: 12,544 values of 6 already leave FP16's range, if the kernel accumulates in the tensor's type.
REDUCTIONS: Final = frozenset({"ReduceMean", "ReduceSum", "GlobalAveragePool"})


class HalfPrecision(ir.passes.InPlacePass):
    """FP32 graph to FP16, inputs and outputs stay FP32. In an INT8 graph, what is not INT8 becomes FP16.

    Rules, in this order; a node is FP32 or FP16, and a Cast stands wherever a tensor passes from one to the other:

    1. Nodes without floating-point tensors are left alone.
    2. Q/DQ follow their neighbours, whatever module they are named after: a QuantizeLinear has the type of the tensor it reads,
       a DequantizeLinear is FP16 where any of its readers is. So no Cast stands between a weight and its convolution, or
       in front of a QuantizeLinear. Their scales get that type too, which strong typing wants, and must be FP16 numbers
       already: another scale would make other numbers of the same integers.
    3. Nodes of modules that ``keep_fp32`` matches (``re.search`` on the module's name) stay FP32.
    4. Normalisation of the input stays FP32, and counting its pixels for INT8 too: 8-bit pixels times a scale would otherwise
       be rounded twice.
    5. Means and sums over space stay FP32, and so does adding them up: these are the gate's statistics.
    6. All others become FP16, their constants too. A constant beyond FP16's range is an error naming it.

    ``halved`` lists the tensors that became FP16, by their names in the FP32 graph: what ``graph/headroom.py`` must measure.
    INT8 tensors are not among them, nor are weights, which are checked here.
    ``kept`` says which nodes stayed FP32 and why; ``flushed`` which constants lost what share of their values to zero.
    """

    def __init__(self, keep_fp32: Iterable[str] = ()) -> None:
        super().__init__()
        self.patterns = [_compile(pattern) for pattern in keep_fp32]
        self.halved: list[str] = []
        self.kept: dict[str, str] = {}
        self.flushed: dict[str, float] = {}
        self._statistics: set[ir.Node | None] = set()
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._constants: dict[ir.Value, ir.Value] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        # A constant's type is an attribute when it is a node, and then there would be two places to change.
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        used: set[str] = set()
        for node in graph:
            if _is_qdq(node):  # may be all that is left of a module whose Relu became saturation
                self._matching(node, used)
        reasons = {node: self._reason_to_keep(node, used) for node in graph if _has_single(node) and not _is_qdq(node)}
        for node in list(graph):
            if node.op_type == QUANTIZE:
                self._scale_as_data(graph, node)
                continue
            if not _has_single(node):
                continue
            reason = _reason_of_readers(node, reasons) if node.op_type == DEQUANTIZE else reasons[node]
            if reason:
                self.kept[node.name or node.op_type] = reason
                self._convert_inputs(graph, node, FLOAT32)
                continue
            self._convert_inputs(graph, node, FLOAT16)
            for value in node.outputs:
                if value.dtype == FLOAT32:
                    value.type = ir.TensorType(FLOAT16)  # not .dtype: a clone shares its type with the original
                    if not _is_weight(node):
                        self.halved.append(value.name or "")
        unused = [pattern.pattern for pattern in self.patterns if pattern.pattern not in used]
        if unused:
            raise UsageError(
                f"--keep-fp32 {unused[0]!r} matches no module", advice="`skdeploy inspect model.onnx` lists the modules"
            )
        if not self.halved:
            raise UsageError(
                "--keep-fp32 leaves nothing to be FP16", advice="export without --fp16, or keep less in FP32"
            )
        self._restore_outputs(graph)
        drop_unused(graph)
        return ir.passes.PassResult(model, modified=True)

    def _convert_inputs(self, graph: ir.Graph, node: ir.Node, dtype: ir.DataType) -> None:
        if node.op_type == DEQUANTIZE and dtype == FLOAT16:
            _check_dequantized(node)
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype in (FLOAT32, FLOAT16) and value.dtype != dtype:
                node.replace_input_with(index, self._converted(graph, value, dtype, node))

    def _scale_as_data(self, graph: ir.Graph, node: ir.Node) -> None:
        data, scale = node.inputs[:2]
        assert data is not None  # required by ONNX
        assert scale is not None
        if data.dtype == FLOAT16 and scale.dtype == FLOAT32:
            node.replace_input_with(1, self._converted(graph, scale, FLOAT16, node))

    def _matching(self, node: ir.Node, used: set[str]) -> list[str]:
        module = module_of(node.name)
        matching = [pattern.pattern for pattern in self.patterns if pattern.search(module)]
        used.update(matching)
        return matching

    def _reason_to_keep(self, node: ir.Node, used: set[str]) -> str:
        module = module_of(node.name)
        matching = self._matching(node, used)
        if matching:
            return f"--keep-fp32 {matching[0]}"
        if module in (PREPROCESS, PIXELS):
            return "normalisation of the input"
        if node.op_type in REDUCTIONS:
            self._statistics.add(node)
            return "a sum over space"
        data = [value.producer() for value in node.inputs if value is not None and not value.is_initializer()]
        if node.op_type == "Add" and data and all(producer in self._statistics for producer in data):
            self._statistics.add(node)
            return "adds sums over space"
        return ""

    def _converted(self, graph: ir.Graph, value: ir.Value, dtype: ir.DataType, user: ir.Node) -> ir.Value:
        if value.is_initializer():
            return self._constant(graph, value, module_of(user.name))
        key = (value, dtype)
        if key not in self._casts:
            suffix = "fp16" if dtype == FLOAT16 else "fp32"
            name = f"{value.name}_{suffix}"
            cast = ir.node("Cast", [value], attributes={"to": dtype}, name=name)
            output = cast.outputs[0]
            output.name, output.shape, output.type = name, value.shape, ir.TensorType(dtype)
            graph.insert_before(user, [cast])
            self._casts[key] = output
            if dtype == FLOAT16:
                self.halved.append(value.name or "")
        return self._casts[key]

    def _constant(self, graph: ir.Graph, value: ir.Value, module: str) -> ir.Value:
        if value not in self._constants:
            name = f"{value.name}_fp16"
            assert value.const_value is not None  # is_initializer
            single = value.const_value.numpy()
            array = half_constant(single, value.name or "", module)
            if any(_is_qdq(use.node) and use.idx == 1 for use in value.uses()):
                _check_scale(single, array, value.name or "")
            flushed = float(np.mean((array == 0) & (single != 0)))
            if flushed:
                self.flushed[value.name or ""] = flushed
            constant = ir.Value(name=name, const_value=ir.tensor(array, name=name), shape=value.shape)
            constant.type = ir.TensorType(FLOAT16)
            graph.register_initializer(constant)
            self._constants[value] = constant
        return self._constants[value]

    def _restore_outputs(self, graph: ir.Graph) -> None:
        for index, value in enumerate(graph.outputs):
            if value.dtype != FLOAT16:
                continue
            name = value.name
            value.name = f"{name}_fp16"
            cast = ir.node("Cast", [value], attributes={"to": FLOAT32}, name=f"{name}_fp32")
            output = cast.outputs[0]
            output.name, output.shape, output.type = name, value.shape, ir.TensorType(FLOAT32)
            graph.append(cast)
            graph.outputs[index] = output


def half_constant(array: np.ndarray, name: str, module: str) -> np.ndarray:
    """The constant of a module in FP16, rounded to nearest. Raises PrecisionError if a value does not fit."""
    largest = float(np.max(np.abs(array))) if array.size else 0.0
    if largest > FP16_MAX:
        raise PrecisionError(
            f"the constant {name} holds {largest:.4g}, and FP16 ends at {FP16_MAX:.0f}",
            advice=f"keep its module in FP32: --keep-fp32 '{modules_pattern([module])}'",
        )
    return array.astype(np.float16)


def _has_single(node: ir.Node) -> bool:
    return any(value.dtype == FLOAT32 for value in node.outputs)


def _is_qdq(node: ir.Node) -> bool:
    return node.op_type in (QUANTIZE, DEQUANTIZE)


def _is_weight(node: ir.Node) -> bool:
    return node.op_type == DEQUANTIZE and node.inputs[0] is not None and node.inputs[0].is_initializer()


def _reason_of_readers(node: ir.Node, reasons: Mapping[ir.Node, str]) -> str:
    """Why a DequantizeLinear stays FP32, or nothing if it does not."""
    readers = [use.node for value in node.outputs for use in value.uses()]
    return "" if any(reasons.get(reader) == "" for reader in readers) else "read in FP32 only"


def _check_scale(single: np.ndarray, half: np.ndarray, name: str) -> None:
    if not np.array_equal(half.astype(np.float32), single):
        worst = single.flat[int(np.argmax(np.abs(half.astype(np.float32) - single)))]
        raise PrecisionError(
            f"the scale {name} holds {worst:.9g}, which is no FP16 number: the INT8 values would mean others",
            advice="quantize again with skdeploy, whose scales are FP16 numbers, or take FP32 for what is not INT8",
        )


def _check_dequantized(node: ir.Node) -> None:
    """A weight's largest magnitude fits. That of an activation is measured."""
    values, scales = node.inputs[:2]
    assert values is not None  # required by ONNX
    assert scales is not None
    if values.const_value is None or scales.const_value is None:
        return
    shape = [1] * values.const_value.numpy().ndim
    if scales.const_value.size > 1:
        shape[node.attributes.get_int("axis", 1)] = -1
    array = values.const_value.numpy().astype(np.float32) * scales.const_value.numpy().reshape(shape)
    readers = [use.node for use in node.outputs[0].uses()]
    half_constant(array, values.name or "", module_of(readers[0].name) if readers else "")


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--keep-fp32 {pattern!r} is not a regular expression: {error}") from error
