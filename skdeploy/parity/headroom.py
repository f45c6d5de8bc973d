"""How far each tensor is from the end of FP16's range, measured on real images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import onnx_ir as ir

from skdeploy.backends import onnxruntime
from skdeploy.backends.base import Array
from skdeploy.backends.rounding import WithoutRange
from skdeploy.core.errors import PrecisionError
from skdeploy.core.patterns import module_of
from skdeploy.core.precision import FP16_MAX
from skdeploy.ir.weights_of_files import WEIGHTED
from skdeploy.parity.report import HeadroomReport, TensorHeadroom


def measure_headroom(
    graph: Path, tensors: Sequence[str], batches: Iterable[tuple[dict[str, Array], int]], dataset: str
) -> HeadroomReport:
    """Runs ``graph`` with ``tensors`` as outputs, one batch of feeds at a time (feeds, number of images).

    ``tensors`` are what ``HalfPrecision`` halved. The graph is the FP32 graph that it was given, INT8 or not, or the FP16 graph
    that it made: that one is run in FP32, so a tensor shows what it would hold if FP16 had no end, and one overflow does not
    spoil the figures of all that comes after it.

    Infinities of a mask are not looked at: FP16 has them too.

    Raises PrecisionError for a tensor that is not finite even in FP32, UsageError for one that the graph does not have.
    """
    largest = dict.fromkeys(tensors, 0.0)
    images = 0
    model = onnxruntime.load_graph(graph)
    modules, inputs = _modules(model), {value.name for value in model.graph.inputs}
    operators = {value.name: node.op_type for node in model.graph for value in node.outputs}
    masked = _masked(model)
    WithoutRange()(model)
    also = [name for name in tensors if name not in inputs]
    with onnxruntime.open_model(model, str(graph), also=also) as session:
        for feeds, count in batches:
            images += count
            reached = {
                name: _largest(values, but_infinity=name in masked)
                for name, values in chain(feeds.items(), session.run_each(feeds))
                if name in largest
            }
            for name in tensors:  # in the order of the network, so that the first is where it begins
                if not np.isfinite(reached[name]):
                    maker = f" ({operators[name]})" if name in operators else ""
                    raise PrecisionError(
                        f"the tensor {name}{maker} is not finite on {dataset}, already in FP32",
                        advice="the weights are damaged, or the preprocessing is not the one from training",
                    )
                largest[name] = max(largest[name], reached[name])
    rows = [
        TensorHeadroom(
            tensor=name, modules=tuple(modules[name]), max_abs=value, headroom=min(FP16_MAX / max(value, 1e-30), 1e9)
        )
        for name, value in largest.items()
    ]
    return HeadroomReport(images=images, dataset=dataset, tensors=tuple(sorted(rows, key=lambda row: row.headroom)))


def _largest(values: Array, *, but_infinity: bool) -> float:
    """The largest magnitude, without a copy of the values where all of them count; NaN if one of them is."""
    if but_infinity:  # numpy takes four times as long with a mask, though it be True for all
        values = values[~np.isinf(values)]
    high, low = float(np.max(values, initial=0.0)), float(np.min(values, initial=0.0))
    return float(np.maximum(high, -low))  # NaN, unlike max(), whichever is


def _modules(model: ir.Model) -> dict[str, list[str]]:
    """For each tensor, the modules that make or use it."""
    found: dict[str, set[str]] = {}
    for node in model.graph:
        for value in (*node.inputs, *node.outputs):
            if value is not None:
                found.setdefault(value.name or "", set()).add(module_of(node.name))
    return {name: sorted(modules) for name, modules in found.items()}


def _masked(model: ir.Model) -> frozenset[str]:
    """The tensors that an infinite constant, such as an attention's mask, may make infinite.

    A softmax makes zeros of the masked values. What multiplies by weights sums: an infinity there is an overflow.
    """
    masked = {
        value.name or ""
        for value in model.graph.initializers.values()
        if any(use.node.op_type not in WEIGHTED for use in value.uses()) and _holds_infinity(value)
    }
    for node in model.graph:
        if node.op_type in WEIGHTED or node.op_type == "Softmax":
            continue
        if any(value is not None and value.name in masked for value in node.inputs):
            masked.update(value.name or "" for value in node.outputs)
    return frozenset(masked)


def _holds_infinity(value: ir.Value) -> bool:
    assert value.const_value is not None  # it is an initializer
    if value.dtype is None or not value.dtype.is_floating_point():
        return False
    return bool(np.isinf(value.const_value.numpy()).any())
