"""Constants of a graph: read as numbers, and put in anew; and names that are free."""

from __future__ import annotations

from collections.abc import Iterator, Set
from itertools import chain, count

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import GraphProto

from skdeploy.ir.onnx_file import graphs_of


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
    """``wanted``, or with the first number that no node, tensor or constant of the graph, or of one inside it, has it with.

    One name space for all: nodes and their outputs share names here. A constant that nothing reads gives its name up.
    """
    old = graph.initializers.get(wanted)
    if old is not None and not old.uses() and not old.is_graph_output() and not old.is_graph_input():
        del graph.initializers[wanted]
    return free_among(names_in(graph), wanted)


def free_among(names: Set[str], wanted: str) -> str:
    """``wanted``, or with the first number, from 2, that makes it none of ``names``."""
    numbered = (f"{wanted}_{number}" for number in count(2))
    return next(name for name in chain((wanted,), numbered) if name not in names)


def names_in(graph: ir.Graph) -> set[str]:
    """The names of all nodes, tensors and constants of a graph and of the graphs inside its nodes."""
    names: set[str | None] = set()
    for part in (graph, *graphs_inside(graph)):
        names |= {*part.initializers, *(value.name for value in part.inputs)}
        for node in part:
            names.add(node.name)
            names.update(value.name for value in node.outputs)
    return {name for name in names if name}


def graphs_inside(graph: ir.Graph) -> Iterator[ir.Graph]:
    """The graphs inside the nodes of a graph, at any depth."""
    for node in graph:
        for attribute in node.attributes.values():
            found: tuple[ir.Graph, ...] = ()
            if attribute.type == ir.AttributeType.GRAPH:
                found = (attribute.as_graph(),)
            elif attribute.type == ir.AttributeType.GRAPHS:
                found = tuple(attribute.as_graphs())
            for inner in found:
                yield inner
                yield from graphs_inside(inner)


def names_of(graph: GraphProto) -> set[str]:
    """``names_in`` of a graph in protobuf's form."""
    names: set[str] = set()
    for part in graphs_of(graph):
        names.update(value.name for value in (*part.input, *part.output))
        names.update(tensor.name for tensor in part.initializer)
        names.update(sparse.values.name for sparse in part.sparse_initializer)
        for node in part.node:
            names.update((node.name, *node.output))
    return names - {""}


def drop_unused(graph: ir.Graph) -> None:
    """Removes the constants that nothing reads any more."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
