"""Second moments of what INT8 layers read, for rounding their weights (``gptq.py``): as integers, and so exact.

The INT8 graph itself runs on some images, and of the integers that its QuantizeLinear nodes make, the rows that meet a layer's
weight are kept, a byte for each number. They are multiplied when all images are through, one layer at a time: to add a K x K
matrix for every image takes longer than the products. Products of two INT8 numbers are 2^14 at most, so float32 holds the sum
of 2^10 of them without rounding, and float64 all sums: neither the threads of a matrix product nor the order of its sums can
change a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
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
from skdeploy.quant.observe import MOST_WORKERS, Slice, images_a_run, slices

# Rows that count for each column, spread evenly over the images and the places in them: more are not better (8: -0.1 to 0.03 dB
# on the references), and cost a product of K x K each. At least so many, for layers of few columns.
ROWS_A_COLUMN: Final = 6
FEWEST_ROWS: Final = 1024
AT_ONCE: Final = 1 << 10  # rows in one product of float32, exact as above
# Of the rows of the layers that are gathered in one turn. One layer alone may take more.
BUDGET_BYTES: Final = 240 << 20  # SKNet-50 has 146 MB

Floats = NDArray[np.float64]
Batches = Callable[[], Iterable[tuple[dict[str, Array], int]]]


@dataclass
class Moments:
    """Of a layer's inputs, for each group of K columns: how many rows, their sum (G, K), and that of the products (G, K, K)."""

    count: int
    sums: Floats
    products: Floats

    def about(self, centre: Floats) -> Floats:
        """The second moments about a point, (G, K) in steps."""
        mean = self.sums / self.count
        away = mean - centre
        moments = self.covariance
        moments += away[:, :, None] * away[:, None, :]
        return moments

    @property
    def covariance(self) -> Floats:
        """The second moments about the mean, (G, K, K)."""
        mean = self.sums / self.count
        moments = self.products / self.count
        moments -= mean[:, :, None] * mean[:, None, :]
        return moments


@dataclass(frozen=True)
class _Layer:
    """A layer of an INT8 graph: the integers that it reads, and how they become the columns of its weight.

    ``whole``: all that it reads is kept, as that takes less memory than the rows, and layers that read the same share it.
    """

    node: ir.Node
    integers: str
    groups: int
    columns: int
    places: int  # of each image, at most
    bytes: int  # of what is kept of all images, at most
    whole: bool


@dataclass
class Rows:
    """The integers that meet a layer's weight, in the order of the images."""

    layer: _Layer
    parts: list[NDArray[np.int8]] = field(default_factory=list)

    def moments(self) -> Moments:
        """Their moments. The rows are given up on the way: they may take as much memory as the products."""
        layer, parts = self.layer, self.parts
        self.parts = []
        rows = np.concatenate([_rows(layer, part) if layer.whole else part for part in parts], axis=1)
        del parts
        sums, products = np.zeros(rows.shape[::2]), np.zeros((layer.groups, layer.columns, layer.columns))
        for start in range(0, rows.shape[1], AT_ONCE):
            part = rows[:, start : start + AT_ONCE].astype(np.float32)
            sums += part.sum(axis=1)
            products += part.transpose(0, 2, 1) @ part
        return Moments(rows.shape[1], sums, products)


def rows_in_turn(
    model: ir.Model, names: Sequence[str], batches: Batches, images: int, threads: int | None = None
) -> Iterator[tuple[str, Rows]]:
    """The rows of each of the named layers of an INT8 graph with FP32 beside it, in as many turns as memory asks for.

    ``batches`` starts the images anew, each time: feeds, and how many of them are real.
    """
    nodes = {node.name or "": node for node in model.graph}
    for turn in _turns([_layer(nodes[name], images) for name in names]):
        found = _gathered(model, turn, batches(), threads or cpu.cores())
        while found:
            rows = found.pop(0)
            yield rows.layer.node.name or "", rows


def _gathered(
    model: ir.Model, turn: Sequence[_Layer], batches: Iterable[tuple[dict[str, Array], int]], threads: int
) -> list[Rows]:
    watched = list(dict.fromkeys(layer.integers for layer in turn))
    found = [Rows(layer) for layer in turn]
    workers = min(threads, MOST_WORKERS)
    session = _open(model, watched, threads - workers + 1)
    # A few images at a time: whole batches of maps are much memory, and leave the cache.
    parts = slices(session, batches, images_a_run(model, watched))

    def read(part: Slice) -> list[NDArray[np.int8]]:
        outputs = session.run(part.feeds)
        fed = len(next(iter(part.feeds.values())))
        real = {name: values[: part.count] if len(values) == fed else values for name, values in outputs.items()}
        return [real[each.integers] if each.whole else _rows(each, real[each.integers]) for each in turn]

    runs = ahead(read, parts, workers, workers)
    with session, closing(runs):  # the session last: threads may be in it
        for made in runs:
            for rows, part in zip(found, made, strict=True):
                rows.parts.append(part)
    return found


def _turns(layers: Sequence[_Layer]) -> Iterator[list[_Layer]]:
    turn: list[_Layer] = []
    for layer in layers:
        if turn and _bytes([*turn, layer]) > BUDGET_BYTES:
            yield turn
            turn = []
        turn.append(layer)
    if turn:
        yield turn


def _bytes(layers: Sequence[_Layer]) -> int:
    """Of what is kept of these layers in one turn; what several read is kept once."""
    return sum({layer.integers if layer.whole else layer.node: layer.bytes for layer in layers}.values())


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
    integers = operand(source, 0)
    rows = groups * columns * (min(places, known) if (known := _places(node)) else places)
    all_of_it = _values(integers)
    whole = all_of_it is not None and all_of_it <= rows
    kept = images * (all_of_it if whole and all_of_it is not None else rows)
    return _Layer(node, integers.name or "", groups, columns, places, kept, whole)


def _values(value: ir.Value) -> int | None:
    """How many numbers an image has in a tensor, where the graph tells and the images come first."""
    sizes = [] if value.shape is None else [size for size in list(value.shape)[1:] if isinstance(size, int)]
    return prod(sizes) if sizes and value.shape is not None and len(sizes) == len(value.shape) - 1 else None


def _places(node: ir.Node) -> int | None:
    """How many rows an image has for a layer, where the graph tells."""
    value = operand(node, 0) if node.op_type == "ConvTranspose" else node.outputs[0]
    shape = () if value.shape is None else tuple(value.shape)
    sizes = shape[1:-1] if node.op_type in ("Gemm", "MatMul") else shape[2:]
    known = [size for size in sizes if isinstance(size, int)]
    return prod(known) if shape and len(known) == len(sizes) else None


def weight_shape(node: ir.Node) -> tuple[int, ...]:
    """Of a weight that is a constant, or is dequantized."""
    value = operand(node, 1)
    producer = maker(value)
    return numbers(operand(producer, 0) if producer is not None else value).shape


def _rows(layer: _Layer, values: NDArray[np.int8]) -> NDArray[np.int8]:
    """A copy of what meets the layer's weight, (G, rows, K): patches of a map, or what lies along the last axis."""
    node = layer.node
    if node.op_type in ("Gemm", "MatMul"):
        rows = values.reshape(-1, values.shape[-1])
        return rows[None, :: ceil(len(rows) / (layer.places * len(values)))].copy()
    if node.op_type == "ConvTranspose":  # a product of each place with a matrix, whose results are then added up
        maps = values.reshape(*values.shape[:2], -1)
        maps = maps[:, :, :: ceil(maps.shape[2] / layer.places)]
        by_group = maps.reshape(len(maps), layer.groups, layer.columns, -1)
        return np.moveaxis(by_group, (1, 2), (0, 3)).reshape(layer.groups, -1, layer.columns).copy()
    return _patches(layer, values)


def _patches(layer: _Layer, maps: NDArray[np.int8]) -> NDArray[np.int8]:
    """Patches at ``layer.places`` places or fewer of the output: (G, images * places, K)."""
    node, kernel = layer.node, weight_shape(layer.node)[2:]
    axes = len(kernel)
    strides, dilations = (node.attributes.get_ints(key, [1] * axes) for key in ("strides", "dilations"))
    begin, end = _padding(node, kernel, maps.shape[2:], strides, dilations)
    around = tuple(zip(begin, end, strict=True))
    padded = np.pad(maps, ((0, 0), (0, 0), *around)) if any(map(any, around)) else maps
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
