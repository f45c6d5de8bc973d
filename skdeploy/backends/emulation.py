"""Whether ONNX Runtime's INT8 kernels compute what the graph says, layer by layer, on this CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import onnx_ir as ir

from skdeploy.backends.base import Array
from skdeploy.backends.onnxruntime import INT8_KERNELS, OnnxRuntimeSession, load_graph, open_model
from skdeploy.core.errors import UsageError
from skdeploy.ir.qdq import DEQUANTIZE, QUANTIZE

FORCED: Final = "_forced"
# Sums of these do not fit 16 bits: 2 * 255 * 127 = 64,770. Kernels without VNNI add pairs of products in 16 bits, saturating.
CHANNELS: Final = 64
KERNELS: Final = frozenset({"QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "ConvInteger"})


@dataclass(frozen=True)
class EmulationReport:
    """How far INT8 tensors are apart, in steps: the largest difference, where it is, and the share of values that differ.

    ``int8_layers`` is how many layers ONNX Runtime ran in INT8 kernels: with none, nothing was shown.
    """

    worst_steps: int
    tensor: str
    share_different: float
    int8_layers: int = 0


def emulation_error(model: ir.Model, feeds: Mapping[str, Array]) -> EmulationReport:
    """ONNX Runtime's INT8 kernels, wherever it has one, against the arithmetic of the graph's Q/DQ, on these feeds.

    Each layer of both runs gets the same INT8 values, those of the exact run ("teacher forcing"): so every difference is that
    of one layer, and does not grow on the way. Both round a layer's result to the nearest step, from sums in FP32 and in INT32:
    a result beside the middle between two steps may go either way, so one step is what exact kernels may differ by. The
    rounding of biases to INT32, which ONNX Runtime adds, is much less.

    ``model`` is not changed; what is not INT8 in it must be FP32. Raises UsageError otherwise, or if nothing is INT8.
    """
    exact = int8_tensors(model, feeds)
    forced = ir.to_proto(teacher_forced(model)).SerializeToString()
    given = {**feeds, **{f"{name}{FORCED}": values for name, values in exact.items()}}
    with tempfile.TemporaryDirectory() as folder:
        optimised = Path(folder) / "optimised.onnx"
        with OnnxRuntimeSession(forced, "cpu", None, config=INT8_KERNELS, optimised_graph=optimised) as session:
            found = session.run(given)
        return replace(steps_apart(exact, found), int8_layers=int8_layers(load_graph(optimised)))


def int8_layers(optimised: ir.Model) -> int:
    """How many nodes of a graph that ONNX Runtime optimised multiply in INT8."""
    return sum(node.op_type in KERNELS for node in optimised.graph)


def int8_tensors(model: ir.Model, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Every INT8 activation of the exact run, by name."""
    copy = model.clone()
    names = [node.outputs[0].name or "" for node in _quantizers(copy)]
    with open_model(copy, also=names) as session:
        found = session.run(feeds)
    return {name: found[name] for name in names}


def teacher_forced(model: ir.Model) -> ir.Model:
    """A copy in which every INT8 activation is an output, and its readers read an input named ``<tensor>_forced`` instead."""
    copy = model.clone()
    graph = copy.graph
    for node in _quantizers(copy):
        value = node.outputs[0]
        given = ir.Value(name=f"{value.name}{FORCED}", shape=value.shape, type=value.type)
        graph.inputs.append(given)
        for use in list(value.uses()):
            use.node.replace_input_with(use.idx, given)
        graph.outputs.append(value)
    return copy


def steps_apart(expected: Mapping[str, Array], found: Mapping[str, Array]) -> EmulationReport:
    """Compares INT8 tensors of the same names and shapes."""
    worst, tensor, different, total = 0, next(iter(expected)), 0, 0
    for name, values in expected.items():
        apart = np.abs(found[name].astype(np.int16) - values.astype(np.int16))
        different += int(np.count_nonzero(apart))
        total += apart.size
        if int(apart.max()) > worst:
            worst, tensor = int(apart.max()), name
    return EmulationReport(worst, tensor, different / total)


def saturates() -> str:
    """Why ONNX Runtime's INT8 convolution is not exact on this CPU, from running one; empty if it is exact."""
    for kind in (np.uint8, np.int8):
        model, pixels = extreme_convolution(kind)
        with open_model(model, optimised=True) as session:
            found = session.run({"x": pixels})["y"]
        with open_model(model) as session:
            expected = session.run({"x": pixels})["y"]
        reason = difference_in_words(found, expected, np.dtype(kind).name)
        if reason:
            return reason
    return ""


def difference_in_words(found: Array, expected: Array, kind: str) -> str:
    """What is wrong with a convolution's sums; empty if nothing is."""
    if np.array_equal(found, expected):
        return ""
    worst = int(np.argmax(np.abs(found - expected)))
    return (
        f"ONNX Runtime's INT8 convolution of {kind} saturates on this CPU: it gives {found.flat[worst]:.0f} for "
        f"{expected.flat[worst]:.0f}, because without VNNI instructions pairs of products are added in 16 bits. With its "
        "default options it does not compute what the graph says; skdeploy's own runs are not affected"
    )


def extreme_convolution(kind: type[np.uint8] | type[np.int8]) -> tuple[ir.Model, Array]:
    """A graph Q-DQ-Conv-Q-DQ, x to y, of the largest activations and weights, and the x to feed.

    Scales are powers of two, so every product and sum is exact in FP32 and in INT32, and sums that saturate in 16 bits show in
    the output: 64 * 255 * 127 is 2,072,640, or 127 steps of 2^14.
    """
    rows = np.array([[127] * CHANNELS, [-127] * CHANNELS, [127, -127] * (CHANNELS // 2), [1] * CHANNELS], np.int8)
    pixels = np.full((1, CHANNELS, 4, 4), np.iinfo(kind).max, np.float32)
    pixels[..., 2:] = np.iinfo(kind).min
    shapes = {"x": pixels.shape, "y": (1, len(rows), 4, 4)}
    constants = {
        "one": np.float32(1),
        "step": np.float32(2.0**14),
        "zero": kind(0),
        "middle": np.uint8(128) if kind is np.uint8 else np.int8(0),
        "weight_zero": np.int8(0),
        "weight_int8": rows.reshape(len(rows), CHANNELS, 1, 1),
    }
    values = {
        name: ir.Value(name=name, const_value=ir.tensor(np.asarray(array), name=name))
        for name, array in constants.items()
    }
    values["x"] = ir.Value(name="x", shape=ir.Shape(shapes["x"]), type=ir.TensorType(ir.DataType.FLOAT))
    nodes = []
    for operator, inputs, output in (
        (QUANTIZE, "x one zero", "x_int8"),
        (DEQUANTIZE, "x_int8 one zero", "x_float"),
        (DEQUANTIZE, "weight_int8 one weight_zero", "weight"),
        ("Conv", "x_float weight", "sum"),
        (QUANTIZE, "sum step middle", "y_int8"),
        (DEQUANTIZE, "y_int8 step middle", "y"),
    ):
        node = ir.node(operator, [values[name] for name in inputs.split()], name=output)
        values[output] = node.outputs[0]
        node.outputs[0].name = output
        nodes.append(node)
    values["y"].shape, values["y"].type = ir.Shape(shapes["y"]), ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [values["x"]],
        [values["y"]],
        nodes=nodes,
        initializers=[values[name] for name in constants],
        opset_imports={"": 19},
        name="extreme",
    )
    return ir.Model(graph, ir_version=9), pixels


def _quantizers(model: ir.Model) -> list[ir.Node]:
    found = [node for node in model.graph if node.op_type == QUANTIZE]
    half = next((v.name for node in model.graph for v in node.outputs if v.dtype == ir.DataType.FLOAT16), None)
    if half is not None:
        raise UsageError(
            f"{half} is FP16: ONNX Runtime has no such kernels on a CPU", advice="give the graph with FP32 left"
        )
    if not found:
        raise UsageError("the graph has no QuantizeLinear: nothing in it is INT8", advice="give an INT8 graph")
    return found
