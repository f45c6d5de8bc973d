"""Second moments of what INT8 layers read, for rounding their weights (``gptq.py``): as integers, and so exact.

The INT8 graph itself runs on some images, and the integers that its QuantizeLinear nodes make are counted. Products of two
INT8 numbers are 2^14 at most, so float32 holds the sum of 2^10 of them without rounding: neither the threads of a matrix
product nor the order of its sums can change a bit. The sums of all go on in INT32, or in float64 where they need more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from math import ceil, prod
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from skdeploy.backends.base import Array
from skdeploy.backends.onnxruntime import OnnxRuntimeSession
from skdeploy.core import cpu
from skdeploy.images.reading import ahead
from skdeploy.ir.constants import numbers
from skdeploy.ir.large import portable
from skdeploy.ir.nodes import maker, operand
from skdeploy.ir.qdq import DEQUANTIZE, QUANTIZE
from skdeploy.ir.rows import groups_of, output_axis
from skdeploy.quant.observe import MOST_WORKERS, images_a_run, slices

# Rows that count for each column, spread evenly over the images and the places in them: more change nothing that can be
# measured (sknet-fashion: 0.05 dB either way), and cost a product of K x K each. At least so many, for layers of few columns.
ROWS_A_COLUMN: Final = 8
FEWEST_ROWS: Final = 1024
AT_ONCE: Final = 1 << 10  # rows in one product of float32, exact as above
# Of the sums of the layers that are counted in one turn. One layer alone may take more.
BUDGET_BYTES: Final = 224 << 20  # SKNet-50's take 208 MB
INT32_ROWS: Final = (
    2**31 - 1
) // 2**14  # sums of so many products are within INT32, which takes half the memory of float64

Floats = NDArray[np.float64]
Batches = Callable[[], Iterable[tuple[dict[str, Array], int]]]


@dataclass
class Moments:
    """Of a layer's inputs, for each group of K columns: how many rows, their sum (G, K), and that of the products (G, K, K)."""

    count: int
    sums: Floats
    products: NDArray[np.int32 | np.float64]

    def about(self, centre: Floats) -> Floats:
        """The second moments about a point, (G, K) in steps."""
        mean = self.sums / self.count
        away = mean - centre
        return self.covariance + away[:, :, None] * away[:, None, :]

    @property
    def covariance(self) -> Floats:
        """The second moments about the mean, (G, K, K)."""
        mean = self.sums / self.count
        return self.products / self.count - mean[:, :, None] * mean[:, None, :]


@dataclass(frozen=True)
class _Layer:
    """A layer of an INT8 graph: the integers that it reads, and how they become the columns of its weight."""

    node: ir.Node
    integers: str
    groups: int
    columns: int
    places: int  # of each image, at most
    type: type[np.int32 | np.float64]  # of the sums of products

    @property
    def bytes(self) -> int:
        return np.dtype(self.type).itemsize * self.groups * self.columns**2


def moments_in_turn(
    model: ir.Model, names: Sequence[str], batches: Batches, images: int, threads: int | None = None
) -> Iterator[tuple[str, Moments]]:
    """The moments of each of the named layers of an INT8 graph with FP32 beside it, in as many turns as memory asks for.

    ``batches`` starts the images anew, each time: feeds, and how many of them are real.
    """
    nodes = {node.name or "": node for node in model.graph}
    for turn in _turns([_layer(nodes[name], images) for name in names]):
        yield from _moments(model, turn, batches(), threads or cpu.cores()).items()


def _moments(
    model: ir.Model, turn: Sequence[_Layer], batches: Iterable[tuple[dict[str, Array], int]], threads: int
) -> dict[str, Moments]:
    watched = list(dict.fromkeys(layer.integers for layer in turn))
    found = {layer.node.name or "": _empty(layer) for layer in turn}
    workers = min(threads, MOST_WORKERS)
    session = _open(model, watched, threads - workers + 1)
    # A few images at a time: whole batches of maps are much memory, and leave the cache.
    parts = slices(session, batches, images_a_run(model, watched))
    runs = ahead(lambda part: (part, session.run(part.feeds)), parts, workers, workers)
    with session, closing(runs):  # the session last: threads may be in it
        for part, outputs in runs:
            fed = len(next(iter(part.feeds.values())))
            for layer in turn:
                values = outputs[layer.integers]
                _add(found[layer.node.name or ""], layer, values[: part.count] if len(values) == fed else values)
    return found


def _turns(layers: Sequence[_Layer]) -> Iterator[list[_Layer]]:
    turn: list[_Layer] = []
    for layer in layers:
        if turn and sum(each.bytes for each in (*turn, layer)) > BUDGET_BYTES:
            yield turn
            turn = []
        turn.append(layer)
    if turn:
        yield turn


def _layer(node: ir.Node, images: int) -> _Layer:
    source = maker(operand(node, 0))
    while source is not None and source.op_type not in (DEQUANTIZE, QUANTIZE):
        source = maker(operand(source, 0))  # a view between the pair and the layer
    assert source is not None  # a layer with an INT8 weight reads INT8
    weight = weight_shape(node)
    groups = groups_of(node)
    if node.op_type == "Conv":
        columns = prod(weight[1:])
    elif node.op_type == "ConvTranspose":
        columns = weight[0] // groups
    else:
        columns = weight[1 - output_axis(node)]
    places = ceil(max(FEWEST_ROWS, ROWS_A_COLUMN * columns) / images)
    kind = np.int32 if places * images <= INT32_ROWS else np.float64
    return _Layer(node, operand(source, 0).name or "", groups, columns, places, kind)


def weight_shape(node: ir.Node) -> tuple[int, ...]:
    """Of a weight that is a constant, or is dequantized."""
    value = operand(node, 1)
    producer = maker(value)
    return numbers(operand(producer, 0) if producer is not None else value).shape


def _empty(layer: _Layer) -> Moments:
    products = np.zeros((layer.groups, layer.columns, layer.columns), layer.type)
    return Moments(0, np.zeros((layer.groups, layer.columns)), products)


def _add(total: Moments, layer: _Layer, values: NDArray[np.int8]) -> None:
    for rows in _rows(layer, values):
        for start in range(0, rows.shape[1], AT_ONCE):
            part = rows[:, start : start + AT_ONCE].astype(np.float32)
            total.count += part.shape[1]
            total.sums += part.sum(axis=1)
            products = part.transpose(0, 2, 1) @ part
            total.products += products.astype(layer.type)


def _rows(layer: _Layer, values: NDArray[np.int8]) -> Iterator[NDArray[np.int8]]:
    """Yield what meets the layer's weight, (G, rows, K) a time: patches of a map, or what lies along the last axis."""
    node = layer.node
    if node.op_type in ("Gemm", "MatMul"):
        rows = values.reshape(-1, values.shape[-1])
        yield rows[None, :: ceil(len(rows) / (layer.places * len(values)))]
        return
    if node.op_type == "ConvTranspose":  # a product of each place with a matrix, whose results are then added up
        maps = values.reshape(*values.shape[:2], -1)
        maps = maps[:, :, :: ceil(maps.shape[2] / layer.places)]
        yield np.moveaxis(maps.reshape(len(maps), layer.groups, layer.columns, -1), (1, 2), (0, 3)).reshape(
            layer.groups, -1, layer.columns
        )
        return
    yield _patches(layer, values)


def _patches(layer: _Layer, maps: NDArray[np.int8]) -> NDArray[np.int8]:
    """Patches at ``layer.places`` places or fewer of the output: (G, images * places, K)."""
    node, kernel = layer.node, weight_shape(layer.node)[2:]
    axes = len(kernel)
    strides, dilations = (node.attributes.get_ints(key, [1] * axes) for key in ("strides", "dilations"))
    begin, end = _padding(node, kernel, maps.shape[2:], strides, dilations)
    padded = np.pad(maps, ((0, 0), (0, 0), *zip(begin, end, strict=True)))
    reach = [dilation * (size - 1) for dilation, size in zip(dilations, kernel, strict=True)]
    outputs = [
        (size - away - 1) // stride + 1 for size, away, stride in zip(padded.shape[2:], reach, strides, strict=True)
    ]
    apart = _apart(outputs, layer.places)
    patches = padded
    for axis in range(axes):
        first = ((outputs[axis] - 1) % apart[axis]) // 2
        places = np.arange(first, outputs[axis], apart[axis]) * strides[axis]
        taps = np.arange(kernel[axis]) * dilations[axis]
        patches = np.take(patches, places[:, None] + taps, axis=2 + 2 * axis)
    # (N, C, places, taps, places, taps, ...) -> (G, N, places ..., C / G, taps ...)
    images, channels = maps.shape[:2]
    patches = patches.reshape(images, layer.groups, channels // layer.groups, *patches.shape[2:])
    at, within = [3 + 2 * axis for axis in range(axes)], [4 + 2 * axis for axis in range(axes)]
    return patches.transpose(1, 0, *at, 2, *within).reshape(layer.groups, -1, layer.columns)


def _apart(outputs: Sequence[int], most: int) -> list[int]:
    """How far apart the places of each axis are, for ``most`` of them."""
    apart = [1] * len(outputs)
    while prod(ceil(size / step) for size, step in zip(outputs, apart, strict=True)) > most:
        widest = max(range(len(outputs)), key=lambda axis: outputs[axis] / apart[axis])
        apart[widest] += 1
    return apart


def _padding(
    node: ir.Node, kernel: Sequence[int], sizes: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[Sequence[int], Sequence[int]]:
    axes = len(kernel)
    chosen = node.attributes.get_string("auto_pad", "NOTSET")
    if chosen in ("NOTSET", "VALID"):
        pads = node.attributes.get_ints("pads", [0] * 2 * axes) if chosen == "NOTSET" else [0] * 2 * axes
        return pads[:axes], pads[axes:]
    total = [
        max(0, (ceil(size / stride) - 1) * stride + dilation * (taps - 1) + 1 - size)
        for size, stride, dilation, taps in zip(sizes, strides, dilations, kernel, strict=True)
    ]
    less, more = [each // 2 for each in total], [each - each // 2 for each in total]
    return (less, more) if chosen == "SAME_UPPER" else (more, less)


def _open(model: ir.Model, names: Sequence[str], threads: int | None) -> OnnxRuntimeSession:
    """The INT8 graph with these tensors as its only outputs."""
    model = model.clone()
    graph = model.graph
    values = {value.name: value for node in graph for value in node.outputs}
    graph.outputs.clear()
    graph.outputs.extend(values[name] for name in names)
    return OnnxRuntimeSession(portable(model), "cpu", threads)
