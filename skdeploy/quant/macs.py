"""Multiply-accumulates of an ONNX graph's layers: what INT8 speeds up, and what a kept layer gives away."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod

import onnx_ir as ir

from skdeploy.core.errors import ExportError
from skdeploy.ir.constants import numbers
from skdeploy.ir.large import through_proto
from skdeploy.ir.nodes import operand, operands
from skdeploy.ir.rows import CONVOLUTIONS, WEIGHTED

Size = tuple[int, int] | Mapping[str, int]


def macs_of(model: ir.Model, size: Size | None = None) -> dict[str, int]:
    """Multiply-accumulates of each convolution and matrix product, for one image, as the paper counts them.

    Every weight is used once at each place of the output map, so it is the weight's numbers times height times width; of a
    transposed convolution, at each place of its input. A product of two computed matrices, as in attention, counts too.
    ``size``, (height, width) of the image in pixels or sizes of dimensions by name, is used where the graph leaves it open.
    Raises ExportError where neither tells.
    """
    places = _places(model)
    if any(count is None for count in places.values()):
        places = _places(_of_one_image(model, size))
    macs = {}
    for node in model.graph:
        if is_layer(node) or _is_product(node):
            count = places[node.name or ""]
            if count is None:
                raise ExportError(
                    f"cannot count the multiply-accumulates of {node.name}: the size of its output "
                    f"{node.outputs[0].name} depends on the image size, which the graph leaves open",
                    advice="export with a fixed image size",
                )
            macs[node.name or ""] = weights_of(node) * count if is_layer(node) else count
    return macs


def share_of_macs(model: ir.Model, nodes: Iterable[str], size: Size | None = None) -> float:
    """The share of all multiply-accumulates that these nodes do, 0 to 1. ``size`` and errors: see ``macs_of``."""
    macs = macs_of(model, size)
    total = sum(macs.values())
    return sum(macs[name] for name in set(nodes)) / total if total else 0.0


def is_layer(node: ir.Node) -> bool:
    """Whether it is a convolution or matrix product with a constant weight."""
    weight = node.inputs[1] if node.op_type in WEIGHTED and len(node.inputs) > 1 else None
    return weight is not None and weight.is_initializer()


def _is_product(node: ir.Node) -> bool:
    """Whether it multiplies two computed matrices."""
    return node.op_type == "MatMul" and not any(value.is_initializer() for value in operands(node))


def weights_of(node: ir.Node) -> int:
    """How many numbers a layer's weight has, without the bias."""
    return int(numbers(operand(node, 1)).size)


def _places(model: ir.Model) -> dict[str, int | None]:
    """At how many places of one image's output each layer's weight is used; None where the graph leaves that open.

    For a product of computed matrices, how many multiply-accumulates it is.
    """
    shape = model.graph.inputs[0].shape
    assert shape is not None  # a graph's input has a rank
    return {node.name or "": _places_of(node, shape[0]) for node in model.graph if is_layer(node) or _is_product(node)}


def _places_of(node: ir.Node, batch: int | ir.SymbolicDim) -> int | None:
    shape = operand(node, 0).shape if node.op_type == "ConvTranspose" else node.outputs[0].shape
    summed = operand(node, 0).shape if _is_product(node) else ()
    if shape is None or summed is None:
        return None
    # (N, C, ...) of a convolution; (N, classes) of a Gemm, or (N * tokens, features); (..., features) of a MatMul, N among them
    sizes = [shape[0], *shape[2:]] if node.op_type in CONVOLUTIONS else [*shape[:-1]]
    if _is_product(node):
        sizes = [*shape, *summed[-1:]]
    if not isinstance(batch, int):
        if batch not in sizes:
            return None
        sizes.remove(batch)
    known = [size for size in sizes if isinstance(size, int)]
    images = batch if isinstance(batch, int) else 1
    return prod(known) // images if len(known) == len(sizes) else None


def _of_one_image(model: ir.Model, size: Size | None) -> ir.Model:
    """The same graph for a batch of 1 where it was free, of the given image size, and the shapes that follow from it."""
    clone = model.clone()
    if isinstance(size, Mapping):
        for value in clone.graph.inputs:
            dims = [
                d if isinstance(d, int) else size.get(str(d.value)) if axis else 1
                for axis, d in enumerate(value.shape or ())
            ]
            value.shape = ir.Shape(dims)
        return _with_shapes_inferred(clone)
    image = clone.graph.inputs[0]
    assert image.shape is not None  # a graph's input has a rank
    batch = image.shape[0] if isinstance(image.shape[0], int) else 1
    places = 1 if image.dtype == ir.DataType.UINT8 else 2  # raw pixels come as (N, H, W, C), planes as (N, C, H, W)
    image.shape = ir.Shape(
        [batch, *image.shape[1:places], *(size or image.shape[places : places + 2]), *image.shape[places + 2 :]]
    )
    return _with_shapes_inferred(clone)


def _with_shapes_inferred(clone: ir.Model) -> ir.Model:
    import onnx

    for node in clone.graph:
        for value in node.outputs:
            value.shape = None
    return through_proto(clone, lambda proto: onnx.shape_inference.infer_shapes(proto, data_prop=True))
