"""FP16 as a strongly typed graph: the tensors are FP16, so every compiler and runtime must do the same thing."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from skdeploy.errors import PrecisionError, UsageError
from skdeploy.graph.naming import module_of, modules_pattern
from skdeploy.graph.preprocess import MODULE as PREPROCESS

FP16_MAX: Final = 65504.0

FLOAT32, FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16

# Sums over a whole map: 12,544 values of 6 already leave FP16's range, if the kernel accumulates in the tensor's type.
REDUCTIONS: Final = frozenset({"ReduceMean", "ReduceSum", "GlobalAveragePool"})


class HalfPrecision(ir.passes.InPlacePass):
    """FP32 graph to FP16, inputs and outputs stay FP32.

    Rules, in this order; a node is FP32 or FP16, and a Cast stands wherever a tensor passes from one to the other:

    1. Nodes without floating-point tensors are left alone.
    2. Nodes of modules that ``keep_fp32`` matches (``re.search`` on the module's name) stay FP32.
    3. Normalisation of the input stays FP32: 8-bit pixels times a scale would otherwise be rounded twice.
    4. Means and sums over space stay FP32, and so does adding them up: these are the gate's statistics.
    5. All others become FP16, their constants too. A constant beyond FP16's range is an error naming it.

    ``halved`` lists the tensors that became FP16, by their names in the FP32 graph: what ``graph/headroom.py`` must measure.
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
        for node in list(graph):
            if not any(value.dtype == FLOAT32 for value in node.outputs):
                continue
            reason = self._reason_to_keep(node, used)
            if reason:
                self.kept[node.name or node.op_type] = reason
            dtype = FLOAT32 if reason else FLOAT16
            for index, value in enumerate(node.inputs):
                if value is not None and value.dtype in (FLOAT32, FLOAT16) and value.dtype != dtype:
                    node.replace_input_with(index, self._converted(graph, value, dtype, node))
            for value in node.outputs:
                if dtype == FLOAT16 and value.dtype == FLOAT32:
                    value.dtype = FLOAT16
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
        _drop_unused_initializers(graph)
        return ir.passes.PassResult(model, modified=True)

    def _reason_to_keep(self, node: ir.Node, used: set[str]) -> str:
        module = module_of(node.name)
        matching = [pattern.pattern for pattern in self.patterns if pattern.search(module)]
        used.update(matching)
        if matching:
            return f"--keep-fp32 {matching[0]}"
        if module == PREPROCESS:
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
            array = half_constant(value.const_value.numpy(), value.name or "", module)
            flushed = float(np.mean((array == 0) & (value.const_value.numpy() != 0)))
            if flushed:
                self.flushed[value.name or ""] = flushed
            constant = ir.Value(name=name, const_value=ir.tensor(array, name=name), shape=value.shape)
            constant.dtype = FLOAT16
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


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--keep-fp32 {pattern!r} is not a regular expression: {error}") from error


def _drop_unused_initializers(graph: ir.Graph) -> None:
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
