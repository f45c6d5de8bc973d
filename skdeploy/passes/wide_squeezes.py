"""Squeeze of an axis whose size is not 1: torch leaves such an axis alone, and ONNX forbids it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from skdeploy.ir.onnx_file import inferred

AXES_ARE_AN_INPUT: Final = 13  # the opset from which those of Squeeze are
TORCH: Final = "pytorch"  # the producer that it writes


def drop_wide_axes(proto: ModelProto, path: Path) -> tuple[str, ...]:
    """Drop from the axes of each Squeeze those with a fixed size other than 1, in files that torch wrote, and return notes.

    ``x.squeeze(1)`` of 64 channels does nothing in torch; torch.onnx's dynamo exporter writes Squeeze(axes=[1]) all the same,
    and ONNX Runtime refuses that. The file of another exporter keeps them, since nothing says what it means.
    """
    changed: set[int] = set()
    while proto.producer_name == TORCH:
        found = [(index, kept) for index, kept in _found(proto, path) if index not in changed]
        if not found:
            break
        for index, axes in found:
            _name_axes(proto, proto.graph.node[index], axes)
        changed |= {index for index, _ in found}
    if not changed:
        return ()
    what = "1 Squeeze" if len(changed) == 1 else f"{len(changed)} Squeezes"
    return (
        f"{what} named an axis with a size other than 1, which torch leaves alone and ONNX forbids: these axes were dropped",
        "the file does not run as it was, so the function was compared with the file without these axes",
    )


def _found(proto: ModelProto, path: Path) -> list[tuple[int, list[int]]]:
    """Squeezes that name a wide axis, by their places, with the axes that remain."""
    named = {
        index: axes
        for index, node in enumerate(proto.graph.node)
        if node.op_type == "Squeeze" and (axes := _axes(proto, node))
    }
    if not named:
        return []
    graph = inferred(proto, path).graph  # the shapes that the file says, and more
    shapes = {value.name: value.type.tensor_type.shape.dim for value in (*graph.input, *graph.value_info)}
    found = []
    for index, axes in named.items():
        dims = shapes.get(proto.graph.node[index].input[0], ())
        kept = [axis for axis in axes if not -len(dims) <= axis < len(dims) or _may_be_one(dims[axis])]
        if len(kept) < len(axes):
            found.append((index, kept))
    return found


def _may_be_one(dim: onnx.TensorShapeProto.Dimension) -> bool:
    return not dim.HasField("dim_value") or dim.dim_value == 1


def _axes(proto: ModelProto, node: NodeProto) -> list[int]:
    """The axes that it names in an attribute or a constant; none where it takes any, or computes them."""
    for attribute in node.attribute:
        if attribute.name == "axes":
            return list(attribute.ints)
    if len(node.input) < 2 or not node.input[1]:
        return []
    tensors = [each for each in proto.graph.initializer if each.name == node.input[1]]
    for made in proto.graph.node:
        if made.op_type == "Constant" and node.input[1] in made.output:
            tensors += [each.t for each in made.attribute if each.name == "value"]
    return [int(axis) for tensor in tensors for axis in numpy_helper.to_array(tensor).reshape(-1)]


def _name_axes(proto: ModelProto, node: NodeProto, axes: list[int]) -> None:
    """Give it these axes; without any it does nothing."""
    opset = proto.opset_import[0].version
    del node.input[1:], node.attribute[:]  # a Squeeze has no attribute but its axes
    if not axes:
        node.op_type = "Identity"
    elif opset < AXES_ARE_AN_INPUT:
        node.attribute.append(onnx.helper.make_attribute("axes", axes))
    else:
        taken = {tensor.name for tensor in proto.graph.initializer} | {
            name for each in proto.graph.node for name in (*each.input, *each.output)
        }
        name = f"{node.output[0]}_axes"
        while name in taken:
            name += "_"
        node.input.append(name)
        proto.graph.initializer.append(numpy_helper.from_array(np.array(axes, np.int64), name))
