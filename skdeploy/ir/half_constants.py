"""Constants in FP16 or BF16: each rounded once, checked against the type's range, and called by a free name."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from skdeploy.core.errors import PrecisionError
from skdeploy.core.patterns import module_of, modules_pattern
from skdeploy.core.precision import FP32S_RANGE, Precision
from skdeploy.ir.constants import Names, named_constant, numbers
from skdeploy.ir.operator_types import BOUNDED
from skdeploy.ir.weights_of_files import WEIGHTED


class HalfConstants:
    """The constants of one graph in ``precision``. ``flushed`` says which lost what share of their values to zero."""

    def __init__(self, graph: ir.Graph, names: Names, precision: Precision = Precision.FP16) -> None:
        self._precision, self._dtype = precision, ir.DataType[precision.onnx_type]
        self.flushed: dict[str, float] = {}
        self._graph, self._names = graph, names
        self._made: dict[ir.Value, ir.Value] = {}

    def half(self, value: ir.Value, user: ir.Node) -> ir.Value:
        """The constant ``value`` in the narrow type, as ``user`` may read it. Raises PrecisionError if it does not fit."""
        single, name = numbers(value), value.name or ""
        if value not in self._made:
            with np.errstate(over="ignore"):
                array = single.astype(self._dtype.numpy())
            flushed = float(np.mean((array == 0) & (single != 0))) if single.size else 0.0
            if flushed:
                self.flushed[name] = flushed
            self._made[value] = named_constant(self._graph, self._names.free(f"{name}_{self._precision}"), array)
        made = self._made[value]
        if user.op_type not in BOUNDED:
            _check_range(single, name, user, self._precision)
        return made


def check_dequantized(node: ir.Node) -> None:
    """A weight's largest magnitude fits. That of an activation is measured. Raises PrecisionError."""
    values, scales = node.inputs[:2]
    if values is None or values.const_value is None or scales is None or scales.const_value is None:
        return
    shape = [1] * len(values.const_value.shape)
    if scales.const_value.size > 1:
        shape[node.attributes.get_int("axis", 1)] = -1
    array = numbers(values).astype(np.float32) * numbers(scales).reshape(shape)
    readers = node.outputs[0].consumers()
    _check_range(array, values.name or "", readers[0] if readers else node, Precision.FP16)


def largest_of(precision: Precision) -> float:
    """The largest number of a float type."""
    return float(ml_dtypes.finfo(ir.DataType[precision.onnx_type].numpy()).max)  # type: ignore[no-untyped-call]  # numpy's knows no BF16


def _check_range(array: np.ndarray, name: str, reader: ir.Node, precision: Precision) -> None:
    """An infinity that is not a weight is one in the narrow type too: the mask of an attention."""
    magnitudes = np.abs(array)
    counted = np.full(array.shape, reader.op_type in WEIGHTED) | np.isfinite(array)
    largest = float(np.max(magnitudes, initial=0.0, where=counted))
    if largest > (end := largest_of(precision)):
        module = module_of(reader.name)
        kept = "its module" if module else "the constants that belong to no module"
        raise PrecisionError(
            f"the constant {name}, which node {reader.name} ({reader.op_type}) reads, holds {largest:.4g}, but "
            f"{precision.words} ends at {_number(end)}",
            advice=f"keep {kept} in FP32: --keep-fp32 '{modules_pattern([module])}'"
            + (f"; or export with --bf16, {FP32S_RANGE}" if precision is Precision.FP16 else ""),
        )


def _number(value: float) -> str:
    return f"{value:.0f}" if value < 1e6 else f"{value:.4g}"
