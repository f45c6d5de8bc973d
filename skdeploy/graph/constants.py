"""Constants of a graph: read as numbers, and put in anew."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def array_of(value: ir.Value) -> NDArray[np.float64]:
    """A constant in float64."""
    assert value.const_value is not None  # callers ask for initializers
    return value.const_value.numpy().astype(np.float64)


def constant(graph: ir.Graph, name: str, array: NDArray[np.generic] | np.generic) -> ir.Value:
    """A new constant. One of the same name is replaced: whoever still reads that one must be given this."""
    tensor = ir.tensor(np.asarray(array), name=name)
    value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype))
    graph.initializers.pop(name, None)
    graph.register_initializer(value)
    return value


def drop_unused(graph: ir.Graph) -> None:
    """Removes the constants that nothing reads any more."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
