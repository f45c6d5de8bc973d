"""Large maps are reduced inside the graph that is watched, right after they are made, while they are in the cache.

A map that comes out of the graph is laid out anew, and read again from memory for each number that is taken of it: of SKNet-50
that was a third of the time. What is kept of a map that is never negative are the largest value and the mean of each channel,
and some places to count magnitudes at. Reductions of a value are the same bits in every batch and on any number of threads.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from skdeploy.ir.constants import Names
from skdeploy.ir.nodes import new_node
from skdeploy.ir.signs import never_negative
from skdeploy.quant.observers import MOST_COUNTED, apart

AXES: Final = 4  # (N, C, H, W)


@dataclass(frozen=True)
class Reduced:
    """The outputs that stand for a map: the largest value and the mean of each channel, (N, C, 1, 1), and some of its
    rows and columns, None where nothing is counted.
    """

    maxima: str
    means: str
    some: str | None


def reduce_maps(model: ir.Model, names: Collection[str], *, counted: bool) -> Mapping[str, Reduced]:
    """Adds the reductions of the large maps among ``names`` to the graph, in place, and makes them outputs.

    Of maps that are never negative: for the least value of others there is no quick operator.
    """
    graph = model.graph
    positive, taken = never_negative(graph), Names(graph)
    reduced: dict[str, Reduced] = {}
    values = {value.name or "": value for node in graph for value in node.outputs}
    for name in names:
        value = values.get(name)
        size = None if value is None else _size(value)
        if value is None or size is None or name not in positive:
            continue
        maxima = _output(graph, value, "GlobalMaxPool", taken)
        means = _output(graph, value, "GlobalAveragePool", taken)
        step = apart(size)
        places = _output(graph, value, "MaxPool", taken, kernel_shape=[1, 1], strides=[step, step]) if counted else None
        reduced[name] = Reduced(maxima, means, places)
    graph.sort()
    return reduced


def _size(value: ir.Value) -> tuple[int, int, int] | None:
    """(C, H, W) of a map with more values than are counted; None of anything else."""
    if value.shape is None or len(value.shape) != AXES or value.dtype != ir.DataType.FLOAT:
        return None
    channels, height, width = list(value.shape)[1:]
    if not (isinstance(channels, int) and isinstance(height, int) and isinstance(width, int)):
        return None
    return (channels, height, width) if channels * height * width > MOST_COUNTED else None


def _output(graph: ir.Graph, value: ir.Value, operator: str, taken: Names, **attributes: list[int]) -> str:
    node = new_node(operator, [value], taken.free(f"{value.name}/{operator}"), None, value.dtype, attributes)
    graph.append(node)
    graph.outputs.append(node.outputs[0])
    return node.outputs[0].name or ""
