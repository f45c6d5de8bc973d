"""Operators that move the elements of a tensor, or repeat them: its labels are moved with numpy, as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
import onnx_ir as ir

from skdeploy.ir.constants import known
from skdeploy.ir.nodes import integers
from skdeploy.passes.labels import FLAT, Form, Shape, Spatial, Term, Unknown

RESHAPES: Final = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand"})
MOVES: Final = RESHAPES | {"Transpose", "Concat", "Slice", "Gather", "Split", "Tile", "Resize"}


def fixed(node: ir.Node, index: int, attribute: str) -> list[int]:
    """``integers``, which the graph must fix."""
    found = integers(node, index, attribute)
    if found is None:
        raise Unknown(f"{attribute} of {node.op_type} is computed")
    return found


def own_axis(form: Form, axis: int) -> int:
    """A non-negative axis that is neither height nor width."""
    axis %= len(form.shape)
    if axis in form.spatial:
        raise Unknown("it works along height or width")
    return axis


def flattened(spatial: Spatial) -> bool:
    """Whether height and width are one axis."""
    return len(spatial) > 1 and None not in spatial and len(set(spatial)) == 1


def without_axis(spatial: Spatial, axis: int) -> Spatial:
    return placed(spatial, lambda place: place - (place > axis))


def placed(spatial: Spatial, place: Callable[[int], int]) -> Spatial:
    return tuple(None if axis is None else place(axis) for axis in spatial)


def _expanded(form: Form, _node: ir.Node, shape: Shape) -> Form:
    form = _padded(form, len(shape))
    if any(axis is not None and shape[axis] != form.shape[axis] for axis in form.spatial):
        raise Unknown("it repeats the pixels of a map")
    return replace(form, shape=shape)


def _tiled(form: Form, node: ir.Node, shape: Shape) -> Form:
    repeats = fixed(node, 1, "repeats")
    if any(repeats[axis] != 1 for axis in form.spatial if axis is not None):
        raise Unknown("it repeats the pixels of a map")
    return form.moved(lambda labels: np.tile(labels, repeats), shape, form.spatial)


def _resized(form: Form, node: ir.Node, shape: Shape) -> Form:
    """One number becomes many: what is interpolated between equal numbers is equal to them."""
    grown = [axis for axis, size in enumerate(shape) if size != form.shape[axis]]
    mode = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    if form.spatial != FLAT or any(form.shape[axis] != 1 for axis in grown) or mode == "tf_crop_and_resize":
        raise Unknown("it interpolates")
    return replace(form, shape=shape)


def reshaped(form: Form, _node: ir.Node, shape: Shape) -> Form:
    axes = sorted({axis for axis in form.spatial if axis is not None})
    if not axes:
        return form.moved(lambda labels: labels.reshape(shape), shape, form.spatial)
    if (squeezed := _without_ones(form, shape)) is not None:
        return squeezed
    first, last = axes[0], axes[-1]
    if None in form.spatial or form.spatial not in (tuple(range(first, last + 1)), (first,) * len(form.spatial)):
        raise Unknown("a reshape of maps whose height and width are not adjacent")
    before, area = int(np.prod(form.shape[:first])), form.shape[first : last + 1]
    pixels = form.pixels if flattened(form.spatial) else area
    form = replace(form, pixels=pixels)
    for wanted in (pixels, (int(np.prod(area)),)):
        for axis in range(len(shape)):
            if int(np.prod(shape[:axis])) == before and shape[axis : axis + len(wanted)] == wanted:
                return _with_map_axes(form, shape, axis, len(wanted))
    raise Unknown(f"a reshape from {list(form.shape)} to {list(shape)} mixes pixels with channels")


def _without_ones(form: Form, shape: Shape) -> Form | None:
    """The form in another shape that differs by axes of size 1 alone; None for others, and where height or width is 1."""
    own, other = ([axis for axis, size in enumerate(sizes) if size != 1] for sizes in (form.shape, shape))
    alike = [form.shape[axis] for axis in own] == [shape[axis] for axis in other]
    if not alike or any(axis is not None and axis not in own for axis in form.spatial) or flattened(form.spatial):
        return None
    spatial = placed(form.spatial, lambda place: other[own.index(place)])
    sizes = tuple(1 if axis in spatial else size for axis, size in enumerate(shape))
    return form.moved(lambda labels: labels.reshape(sizes), shape, spatial)


def _with_map_axes(form: Form, shape: Shape, first: int, count: int) -> Form:
    sizes = (*shape[:first], *[1] * count, *shape[first + count :])
    spatial = (first,) * len(form.spatial) if count == 1 else tuple(range(first, first + count))
    return form.moved(lambda labels: labels.reshape(sizes), shape, spatial)


def _transposed(form: Form, node: ir.Node, shape: Shape) -> Form:
    return in_order(form, fixed(node, 1, "perm") or list(range(len(form.shape)))[::-1], shape)


def in_order(form: Form, order: list[int], shape: Shape) -> Form:
    spatial = placed(form.spatial, order.index)
    return form.moved(lambda labels: labels.transpose(order), shape, spatial)


def _sliced(form: Form, node: ir.Node, shape: Shape) -> Form:
    starts, ends = fixed(node, 1, "starts"), fixed(node, 2, "ends")
    axes = fixed(node, 3, "axes") or list(range(len(starts)))
    steps = fixed(node, 4, "steps") or [1] * len(starts)
    window = [slice(None)] * len(form.shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        window[own_axis(form, axis)] = slice(start, end, step)
    return form.moved(lambda labels: labels[tuple(window)], shape, form.spatial)


def _gathered(form: Form, node: ir.Node, shape: Shape) -> Form:
    axis, indices = own_axis(form, node.attributes.get_int("axis", 0)), known(node.inputs[1])
    if indices is None or indices.ndim > 1:
        raise Unknown("a gather by computed or many-dimensional indices")
    spatial = form.spatial if indices.ndim else without_axis(form.spatial, axis)
    return form.moved(lambda labels: np.take(labels, indices, axis), shape, spatial)


def split(form: Form, node: ir.Node, shapes: list[Shape]) -> list[Form]:
    axis = own_axis(form, node.attributes.get_int("axis", 0))
    ends = np.cumsum([shape[axis] for shape in shapes])

    def part(index: int) -> Form:
        span = range(int(ends[index]) - shapes[index][axis], int(ends[index]))
        return form.moved(lambda labels: np.take(labels, span, axis), shapes[index], form.spatial)

    return [part(index) for index in range(len(shapes))]


def concatenated(forms: list[Form], node: ir.Node, shape: Shape) -> Form:
    first = forms[0]
    axis = own_axis(first, node.attributes.get_int("axis", 0))
    kinds = {(len(f.terms), f.terms[0].factor, f.terms[0].weight is None, f.terms[0].map is None, f.spatial, f.averaged,
              f.pixels) for f in forms}  # fmt: skip
    if len(kinds) > 1 or len(first.terms) > 1:
        raise Unknown("a concatenation of tensors of different kinds")
    joined = [form.moved(lambda labels: labels, form.shape, form.spatial).terms[0] for form in forms]
    weights = [term.weight for term in joined if term.weight is not None]
    maps = [term.map for term in joined if term.map is not None]
    term = Term(
        first.terms[0].factor,
        np.concatenate(weights, axis) if weights else None,
        np.concatenate(maps, axis) if maps else None,
    )
    return replace(first, terms=(term,), shape=shape)


def _padded(form: Form, rank: int) -> Form:
    """With leading axes of size 1, as broadcasting has it."""
    missing = rank - len(form.shape)
    terms = tuple(term.moved(lambda labels: labels.reshape((1,) * missing + labels.shape)) for term in form.terms)
    spatial = placed(form.spatial, lambda place: place + missing)
    return replace(form, terms=terms, shape=(1,) * missing + form.shape, spatial=spatial)


def aligned(left: Form, right: Form) -> tuple[Form, Form]:
    rank = max(len(left.shape), len(right.shape))
    return _padded(left, rank), _padded(right, rank)


# The others are reshapes.
MOVED: Final[dict[str, Callable[[Form, ir.Node, Shape], Form]]] = {
    "Expand": _expanded, "Tile": _tiled, "Resize": _resized, "Transpose": _transposed, "Slice": _sliced, "Gather": _gathered,
}  # fmt: skip
