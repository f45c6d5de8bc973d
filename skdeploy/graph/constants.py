"""Constants of a graph: read as numbers, and put in anew; and names that are free."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def array_of(value: ir.Value) -> NDArray[np.float64]:
    """A constant in float64."""
    assert value.const_value is not None  # callers ask for initializers
    return value.const_value.numpy().astype(np.float64)


def constant(graph: ir.Graph, name: str, array: NDArray[np.generic] | np.generic) -> ir.Value:
    """A new constant, called ``name``, or ``name_2`` and so on where that is taken: nobody's constant is replaced."""
    tensor = ir.tensor(np.asarray(array), name=free_name(graph, name))
    value = ir.Value(
        name=tensor.name, const_value=tensor, shape=ir.Shape(np.shape(array)), type=ir.TensorType(tensor.dtype)
    )
    graph.register_initializer(value)
    return value


def free_name(graph: ir.Graph, wanted: str) -> str:
    """``wanted``, or with the first number that no node, tensor or constant of the graph has it with.

    One name space for all: nodes and their outputs share names here. A constant that nothing reads gives its name up.
    """
    for name in (wanted, *(f"{wanted}_{number}" for number in range(2, len(graph) + len(graph.initializers) + 3))):
        old = graph.initializers.get(name)
        if old is not None and not old.uses() and not old.is_graph_output() and not old.is_graph_input():
            del graph.initializers[name]
        if name not in graph.initializers and not _is_taken(graph, name):
            return name
    raise AssertionError("there are more numbers than names")


def drop_unused(graph: ir.Graph) -> None:
    """Removes the constants that nothing reads any more."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def _is_taken(graph: ir.Graph, name: str) -> bool:
    return any(value.name == name for value in graph.inputs) or any(
        node.name == name or any(value.name == name for value in node.outputs) for node in graph
    )
