"""Constants of a graph: read as numbers, and put in anew; and names that are free."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from skdeploy.ir.nodes import operand, optional

WITH_GRAPHS: Final = frozenset({"If", "Loop", "Scan", "SequenceMap"})  # the operators of ONNX that hold graphs


def known(value: ir.Value | None) -> NDArray[Any] | None:
    """The numbers of an initializer, a Constant or an Identity of one; None for what is computed or given from outside."""
    while value is not None and (producer := value.producer()) is not None and producer.op_type == "Identity":
        value = producer.inputs[0]
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def numbers(value: ir.Value) -> NDArray[Any]:
    """The numbers of an initializer."""
    assert value.const_value is not None  # callers ask for initializers
    return value.const_value.numpy()


def array_of(value: ir.Value) -> NDArray[np.float64]:
    """An initializer in float64."""
    return numbers(value).astype(np.float64)


def constant(graph: ir.Graph, name: str, array: NDArray[np.generic] | np.generic) -> ir.Value:
    """A new constant, called ``name``, or ``name_2`` and so on where that is taken: nobody's constant is replaced."""
    return named_constant(graph, free_name(graph, name), array)


def tensor_constant(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """``constant`` of a tensor, which gets the constant's name."""
    tensor.name = free_name(graph, name)
    value = ir.val(tensor.name, const_value=tensor)
    graph.register_initializer(value)
    return value


def named_constant(graph: ir.Graph, name: str, array: NDArray[np.generic] | np.generic) -> ir.Value:
    """A new constant of a name that is free."""
    value = ir.val(name, const_value=ir.Tensor(np.asarray(array), name=name))
    graph.register_initializer(value)
    return value


def weight_of(node: ir.Node) -> NDArray[np.float64]:
    """The weight of a Conv, Gemm or MatMul whose weight is an initializer, in float64."""
    return array_of(operand(node, 1))


def add_to_bias(graph: ir.Graph, node: ir.Node, change: NDArray[np.float64]) -> None:
    """Adds a number a row to a layer's bias, which other layers may share, in float64; a layer without a bias gets one."""
    old = optional(node, 2)
    node.resize_inputs(3)
    bias = change if old is None else array_of(old) + change
    node.replace_input_with(2, constant(graph, f"{node.name}_bias", bias.astype(np.float32)))


class Names:
    """The names of a graph, to take new ones from: one name space for all, as nodes and their outputs share names here."""

    def __init__(self, graph: ir.Graph) -> None:
        self._taken = names_in(graph)

    def free(self, wanted: str) -> str:
        """``wanted``, or with the first number, from 2, that makes it a name that nothing has. It is taken from now on."""
        numbered = (f"{wanted}_{number}" for number in count(2))
        name = next(name for name in chain((wanted,), numbered) if name not in self._taken)
        self._taken.add(name)
        return name


_collected: Final[dict[int, set[str]]] = {}  # the names of the graphs whose ``collected_names`` are open


@contextmanager
def collected_names(graph: ir.Graph) -> Iterator[None]:
    """While no new name comes into the graph but by ``free_name``, which need not look through all nodes for each then.

    Of SKNet-50, quantization asks for a thousand, and looking took half of its time.
    """
    _collected[id(graph)] = names_in(graph)
    try:
        yield
    finally:
        del _collected[id(graph)]


def free_name(graph: ir.Graph, wanted: str) -> str:
    """The name that ``Names`` gives for now. A constant that nothing reads gives its name up."""
    collected = _collected.get(id(graph))
    old = graph.initializers.get(wanted)
    if old is not None and not old.uses() and not old.is_graph_output() and not old.is_graph_input():
        del graph.initializers[wanted]
    numbered = (f"{wanted}_{number}" for number in count(2))
    free = next(
        name
        for name in chain((wanted,), numbered)
        if (collected is not None and name not in collected) or not _is_taken(graph, name)
    )
    if collected is not None:
        collected.add(free)
    return free


def _is_taken(graph: ir.Graph, name: str) -> bool:
    """Whether ``name`` is in ``names_in``. Nothing is collected: a pass asks for hundreds of names."""
    if name in graph.initializers or any(value.name == name for value in graph.inputs):
        return True
    for node in graph:
        if node.name == name:
            return True
        for value in node.outputs:
            if value.name == name:
                return True
        if (node.domain or node.op_type in WITH_GRAPHS) and any(_is_taken(inner, name) for inner in _graphs_in(node)):
            return True
    return False


def _graphs_in(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def names_in(graph: ir.Graph) -> set[str]:
    """The names of all nodes, tensors and constants of a graph and of the graphs inside its nodes."""
    names: set[str | None] = set()
    for part in (graph, *graph.subgraphs()):
        names |= {*part.initializers, *(value.name for value in part.inputs)}
        for node in part:
            names.add(node.name)
            names.update(value.name for value in node.outputs)
    return {name for name in names if name}


def drop_unused(graph: ir.Graph) -> None:
    """Removes the constants that nothing reads any more."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
