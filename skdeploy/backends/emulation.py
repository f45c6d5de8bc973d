"""Whether ONNX Runtime's INT8 kernels compute what the graph says, on this CPU."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir

from skdeploy.backends.base import Array
from skdeploy.backends.onnxruntime import open_model
from skdeploy.ir.qdq import DEQUANTIZE, QUANTIZE

# Sums of these do not fit 16 bits: 2 * 255 * 127 = 64,770. Kernels without VNNI add pairs of products in 16 bits, saturating.
CHANNELS: Final = 64
KERNELS: Final = frozenset({"QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "ConvInteger"})


def int8_layers(optimised: ir.Model) -> int:
    """How many nodes of a graph that ONNX Runtime optimised multiply in INT8."""
    return sum(node.op_type in KERNELS for node in optimised.graph)


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
    """Describe what is wrong with a convolution's sums; empty if nothing is."""
    if np.array_equal(found, expected):
        return ""
    worst = int(np.argmax(np.abs(found - expected)))
    return (
        f"ONNX Runtime's INT8 convolution of {kind} saturates on this CPU: it returns {found.flat[worst]:.0f} "
        f"instead of {expected.flat[worst]:.0f}, because a CPU without VNNI instructions adds pairs of "
        "products in 16 bits. With ONNX Runtime's default options the results are wrong; skdeploy's own runs "
        "are not affected"
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
        name: ir.Value(name=name, const_value=ir.Tensor(np.asarray(array), name=name))
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
