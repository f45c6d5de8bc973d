"""Means over the whole map as average pools, the form that NVIDIA's DLA takes.

DLA has no mean, but average pools with windows from 1 to 8 and strides from 1 to 16 (``planning/dla.py`` has the source), in
FP16 and INT8 alone. In what ``--fp16`` and ``--int8`` make, the gate's means are FP32 between Casts (rule 5 of
``passes/half.py``), so their pools are FP32 too: **a DLA leaves them to the GPU**. They are of use to it in an FP32 graph that
a weakly typed builder lowers by itself, as TensorRT's up to 10 does under its FP16 flag. None of it was run on a DLA.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import Final

import onnx_ir as ir

from skdeploy.core.errors import UsageError
from skdeploy.ir.constants import drop_unused, free_name
from skdeploy.ir.nodes import FLOAT32, integers, new_node, operand

MEANS: Final = ("GlobalAveragePool", "ReduceMean")
LARGEST: Final = 8  # window of a pool on DLA
Size = tuple[int, int]


class AveragePoolForMean(ir.passes.InPlacePass):
    """GlobalAveragePool, and ReduceMean over height and width, to AveragePools that together cover the whole map.

    mean(x) over H x W = AveragePool(x) with kernel (H, W) and no padding, at its one place. A map larger than 8 x 8 takes pools
    in a row, whose windows multiply to the map, each with a stride of its window: a mean of means of equally many values is the
    mean, but for rounding. So 56 = 8 x 7 and 28 = 7 x 4. A size with a prime factor above 7 has no such windows: its pool is
    one, of the whole map. In the same type; a Cast, QuantizeLinear or DequantizeLinear before or after stays where it is.
    Where all of these hold:

    1. The map has four dimensions, and its height and width are known.
    2. A ReduceMean's axes are constant, and are exactly 2 and 3, in any order or sign.

    Where keepdims is 0, a Flatten follows, which makes (N, C) of (N, C, 1, 1). Nodes and outputs keep their names.
    ``windows`` has the (height, width) of the pools in place of each mean, in order; ``declined`` the reason of each mean that
    was left; ``single`` the means whose pools are FP32. Raises UsageError if there is none to be replaced.
    """

    def __init__(self) -> None:
        super().__init__()
        self.windows: dict[str, tuple[Size, ...]] = {}
        self.declined: dict[str, str] = {}
        self.single: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for node in list(model.graph):
            if node.op_type not in MEANS:
                continue
            reason = _axes_refused(node)
            size = _map_size(node)
            name = node.name or ""
            if reason or size is None:
                self.declined[name] = reason or "the height and width of its map are not known"
                continue
            self.windows[name] = windows_of(size)
            if operand(node, 0).dtype == FLOAT32:
                self.single.append(name)
            _replace(model.graph, node, size, self.windows[name])
        if not self.windows:
            reasons = "; ".join(f"{name}: {why}" for name, why in self.declined.items())
            raise UsageError(
                f"--gap average-pool finds no mean to replace: {reasons or 'the graph has none over a map'}",
                advice="leave --gap out, or export with a fixed image size",
            )
        drop_unused(model.graph)
        return ir.passes.PassResult(model, modified=True)


def windows_of(size: Size) -> tuple[Size, ...]:
    """Windows (height, width) up to ``LARGEST`` that multiply to the map; the map itself where it has no such factors."""
    height, width = (_factors(pixels) for pixels in size)
    if height is None or width is None:
        return (size,)
    return tuple(zip_longest(height, width, fillvalue=1)) or (size,)


def _factors(pixels: int) -> list[int] | None:
    """Factors up to ``LARGEST``, the largest first: what is left to be read shrinks most at once. None if there are none."""
    factors = []
    while pixels > 1:
        factor = next((factor for factor in range(LARGEST, 1, -1) if pixels % factor == 0), None)
        if factor is None:
            return None
        factors.append(factor)
        pixels //= factor
    return factors


def _axes_refused(node: ir.Node) -> str:
    if node.op_type != "ReduceMean":
        return ""
    axes = integers(node, 1, "axes")
    if axes is None:
        return "its axes are computed"
    return "" if sorted(axis % 4 for axis in axes) == [2, 3] else "it is not a mean over height and width"


def _map_size(node: ir.Node) -> Size | None:
    match tuple(operand(node, 0).shape or ()):
        case (_, _, int() as height, int() as width):
            return height, width
    return None


def _replace(graph: ir.Graph, node: ir.Node, size: Size, windows: tuple[Size, ...]) -> None:
    old, new, left = node.outputs[0], operand(node, 0), size
    added, name = [], old.name
    batch_and_channels = tuple(new.shape or ())[:2]
    for index, window in enumerate(windows, start=1):
        attributes = {"kernel_shape": window}
        if window != left:  # else it has one place
            attributes["strides"] = window
        left = left[0] // window[0], left[1] // window[1]
        label = free_name(graph, f"{node.name}_part_{index}" if index < len(windows) else f"{name}_pooled")
        added.append(new_node("AveragePool", [new], label, [*batch_and_channels, *left], old.dtype, attributes))
        new = added[-1].outputs[0]
    added[-1].name = node.name
    if node.op_type == "ReduceMean" and not node.attributes.get_int("keepdims", 1):
        flat = free_name(graph, f"{node.name}_flat")
        added.append(new_node("Flatten", [new], flat, None, old.dtype, {"axis": 1}))
        new = added[-1].outputs[0]
    new.shape = old.shape
    graph.insert_before(node, added)
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    new.name = name
