"""FP16 graphs with Q/DQ, computed in numpy: FP16 elementwise, convolutions accumulated in FP32, INT8 rounded half to even."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from onnx import helper, numpy_helper

from tests.graphs.networks import Array

Attributes = Mapping[str, object]


def evaluate(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Every tensor of the graph by name."""
    values = dict(feeds) | {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        inputs = [values[name] if name else None for name in node.input]
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        with np.errstate(over="ignore"):
            values[node.output[0]] = OPERATORS[node.op_type](attributes, *inputs)
    return values


def _quantize(_: Attributes, x: Array, scale: Array, zero: Array) -> Array:
    assert zero.dtype == np.int8
    assert not zero.any()
    assert x.dtype == scale.dtype  # strong typing
    return np.clip(np.rint(x.astype(np.float32) / scale.astype(np.float32)), -128, 127).astype(np.int8)


def _dequantize(attributes: Attributes, x: Array, scale: Array, zero: Array) -> Array:
    assert not zero.any()
    shape = [1] * x.ndim
    if scale.ndim:
        shape[attributes.get("axis", 1)] = -1
    return (x.astype(np.float32) * scale.astype(np.float32).reshape(shape)).astype(scale.dtype)


def _conv(attributes: Attributes, x: Array, w: Array, b: Array | None = None) -> Array:
    groups = int(attributes.get("group", 1))
    strides, dilations = attributes.get("strides", [1, 1]), attributes.get("dilations", [1, 1])
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    padded = np.pad(x.astype(np.float32), ((0, 0), (0, 0), (top, bottom), (left, right)))
    reach = [(size - 1) * step + 1 for size, step in zip(w.shape[2:], dilations, strict=True)]
    windows = sliding_window_view(padded, reach, axis=(2, 3))[:, :, :: strides[0], :: strides[1]]
    windows = windows[..., :: dilations[0], :: dilations[1]]
    parts = [
        np.einsum("nchwij,ocij->nohw", part, kernel, optimize=True)
        for part, kernel in zip(
            np.split(windows, groups, axis=1), np.split(w.astype(np.float32), groups, axis=0), strict=True
        )
    ]
    total = np.concatenate(parts, axis=1)
    if b is not None:
        total = total + b.astype(np.float32)[:, None, None]
    return total.astype(x.dtype)


def _pool(attributes: Attributes, x: Array) -> Array:
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=-np.inf)
    strides = attributes["strides"]
    windows = sliding_window_view(padded, attributes["kernel_shape"], axis=(2, 3))
    return windows[:, :, :: strides[0], :: strides[1]].max(axis=(-2, -1))


def _gemm(attributes: Attributes, x: Array, w: Array, b: Array) -> Array:
    assert attributes.get("transB", 0) == 1
    return (x.astype(np.float32) @ w.astype(np.float32).T + b.astype(np.float32)).astype(x.dtype)


def _cast(attributes: Attributes, x: Array) -> Array:
    return x.astype(helper.tensor_dtype_to_np_dtype(attributes["to"]))


def _sigmoid(_: Attributes, x: Array) -> Array:
    return (1 / (1 + np.exp(-x.astype(np.float32)))).astype(x.dtype)


def _softmax(attributes: Attributes, x: Array) -> Array:
    axis = int(attributes.get("axis", -1))
    powers = np.exp(x.astype(np.float32) - x.max(axis=axis, keepdims=True).astype(np.float32))
    return (powers / powers.sum(axis=axis, keepdims=True)).astype(x.dtype)


def _pad(_: Attributes, x: Array, amounts: Array) -> Array:
    return np.pad(x, list(zip(amounts[: x.ndim], amounts[x.ndim :], strict=True)))


OPERATORS: dict[str, Callable[..., Array]] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "Conv": _conv,
    "MaxPool": _pool,
    "Gemm": _gemm,
    "Cast": _cast,
    "Sigmoid": _sigmoid,
    "Pad": _pad,
    "Relu": lambda _, x: np.maximum(x, x.dtype.type(0)),
    "Clip": lambda _, x, low: np.maximum(x, low),
    "Add": lambda _, a, b: a + b,
    "Sub": lambda _, a, b: a - b,
    "Mul": lambda _, a, b: a * b,
    "GlobalAveragePool": lambda _, x: x.mean(axis=(2, 3), keepdims=True),
    "Reshape": lambda _, x, shape: x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)]),
    "Softmax": _softmax,
    "Gather": lambda attributes, x, index: np.take(x, index, axis=attributes.get("axis", 0)),
    "Flatten": lambda _, x: x.reshape(len(x), -1),
}
