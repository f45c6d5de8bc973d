"""Squeeze without axes, which takes the batch away too when the batch is one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from skdeploy.ir.constants import constant
from skdeploy.ir.nodes import integers


class KeepBatch(ir.passes.InPlacePass):
    """Gives each Squeeze without axes the axes that it takes away from a batch of two and more.

    ``torch.squeeze(x)`` before a classifier is exported so, and fails or mixes up axes for a single image. Legal if

    1. the first axis is the batch, by its name, or is free while nothing but the batch is: shape inference loses names, as at
       Reshapes. For two images and more nothing changes, and for one the batch stays;
    2. the sizes of all other axes are known, so that which of them are 1 does not change from image to image.

    ``changed``: the nodes, by name.
    """

    def __init__(self) -> None:
        self.changed: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        batch = _first(model.graph.inputs[0])
        only_batch = all(isinstance(size, int) for value in model.graph.inputs for size in (value.shape or [None])[1:])
        found = [node for node in model.graph if takes_any(node) and isinstance(batch, ir.SymbolicDim)]
        count = len(self.changed)
        for node in found:
            shape = node.inputs[0].shape if node.inputs[0] is not None else None
            first = _first(node.inputs[0])
            is_batch = first == batch or (only_batch and isinstance(first, ir.SymbolicDim))
            if shape is None or not is_batch or not all(isinstance(size, int) for size in shape[1:]):
                continue
            axes = np.array([axis for axis, size in enumerate(shape) if size == 1], np.int64)
            node.resize_inputs(2)
            node.replace_input_with(1, constant(model.graph, f"{node.name}_axes", axes))
            self.changed.append(node.name or "")
        return ir.passes.PassResult(model, modified=len(self.changed) > count)


def takes_any(node: ir.Node) -> bool:
    """Whether it is a Squeeze without axes, of opset 13 or later."""
    return node.op_type == "Squeeze" and (len(node.inputs) < 2 or node.inputs[1] is None)


def _first(value: ir.Value | None) -> object:
    return value.shape[0] if value is not None and value.shape is not None and len(value.shape) else None


def squeezing_node(graph: ir.Graph) -> str | None:
    """The first Squeeze that takes the first axis of a batch fixed to one away."""
    for node in graph:
        if node.op_type == "Squeeze" and _first(node.inputs[0]) == 1:
            axes = integers(node, 1, "axes")
            if not axes or 0 in axes:
                return node.name
    return None
