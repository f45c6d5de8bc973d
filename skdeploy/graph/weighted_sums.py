"""What a tensor is made of, told without running it: for each element a sum of products of one weight and one feature map.

The select of a selective kernel block is written in many ways, but between the branches and the result nothing happens except
that maps are stacked, moved, multiplied by weights and added. So each tensor there is told by labels: arrays of its own shape
that name, element by element, which weight and which map it holds. Operators that move elements move the labels, with numpy,
and the layout (stacked or concatenated, branch-major or channel-major, transposed or not) needs no case of its own.

Height and width are carried along and not told apart: label arrays have size 1 there. Batches are told apart: a graph that
mixes images is seen. Sizes are those of one example (``shapes``), with three images where the batch is free.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Shape = tuple[int, ...]
Spatial = tuple[int | None, int | None]

FLAT: Final[Spatial] = (None, None)
RESHAPES: Final = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand"})
MOVES: Final = RESHAPES | {"Transpose", "Concat", "Slice", "Gather", "Split"}
MEANS: Final = frozenset({"GlobalAveragePool", "AveragePool", "ReduceMean"})
SUMS: Final = frozenset({"Add", "Sub", "Sum", "ReduceSum"})
OPERATORS: Final = MOVES | MEANS | SUMS | {"Mul"}


class Unknown(Exception):  # noqa: N818 - an answer to a question, not a failure
    """This tensor is no weighted sum of maps; the message says why."""


class NotAMap(Unknown):
    """This tensor has not the rank of a map of an image."""


@dataclass(frozen=True)
class Term:
    """``factor * weight * map``; without labels, a weight or a map is 1."""

    factor: float
    weight: Labels | None = None
    map: Labels | None = None

    def moved(self, move: Callable[[Labels], Labels]) -> Term:
        """The same product with its labels rearranged."""
        weight = None if self.weight is None else move(self.weight)
        return replace(self, weight=weight, map=None if self.map is None else move(self.map))


@dataclass(frozen=True)
class Form:
    """The sum of ``terms``. ``spatial`` are the axes of height and width, ``averaged`` which of the two were averaged away.

    A label array has, on each axis, the tensor's size or 1; on the spatial axes 1.
    """

    terms: tuple[Term, ...]
    shape: Shape
    spatial: Spatial = FLAT
    averaged: tuple[bool, bool] = (False, False)

    def holds_maps(self) -> bool:
        return any(term.map is not None for term in self.terms)

    def moved(self, move: Callable[[Labels], Labels], shape: Shape, spatial: Spatial) -> Form:
        """The form after an operator that moves elements and keeps height and width in order."""
        sizes = tuple(1 if axis in self.spatial else size for axis, size in enumerate(self.shape))
        terms = tuple(term.moved(lambda labels: move(np.broadcast_to(labels, sizes))) for term in self.terms)
        return replace(self, terms=terms, shape=shape, spatial=spatial)


@dataclass(frozen=True)
class Leaf:
    """A tensor whose elements have labels of their own, from ``offset`` on."""

    value: ir.Value
    offset: int
    form: Form

    @property
    def elements(self) -> int:
        """Labels of one image."""
        return int(np.prod(self.form.shape[1:2] if self.form.spatial != FLAT else self.form.shape[1:]))


class Leaves:
    """Where all labels come from. Labels of one leaf are consecutive, image by image."""

    def __init__(self, shapes: dict[ir.Value, Shape]) -> None:
        self.shapes = shapes
        self.leaves: list[Leaf] = []
        self._known: dict[tuple[ir.Value, bool], Leaf] = {}
        self._next = 0

    def form(self, value: ir.Value, *, maps: bool) -> Form:
        """The form of a tensor of maps (N, C, H, W), or of one without height and width."""
        key = (value, maps)
        if key not in self._known:
            shape = shape_of(self.shapes, value)
            if maps and len(shape) != 4:
                raise NotAMap(f"{value.name} has rank {len(shape)}; only maps of images, (N, C, H, W), are searched")
            sizes = (*shape[:2], 1, 1) if maps else shape
            count = int(np.prod(sizes))
            labels = np.arange(self._next, self._next + count, dtype=np.int64).reshape(sizes)
            term = Term(1.0, map=labels)
            self._known[key] = Leaf(value, self._next, Form((term,), shape, (2, 3) if maps else FLAT))
            self.leaves.append(self._known[key])
            self._next += count
        return self._known[key].form

    def of(self, labels: Labels) -> tuple[Labels, Labels, Labels]:
        """For each label the number of its leaf, the image, and the element within the image."""
        numbers = np.searchsorted([leaf.offset for leaf in self.leaves], labels, side="right") - 1
        local = labels - np.array([leaf.offset for leaf in self.leaves])[numbers]
        sizes = np.array([leaf.elements for leaf in self.leaves])[numbers]
        return numbers, local // sizes, local % sizes

    def first_image(self, labels: Labels) -> Labels:
        """Labels (N, C) of which row n is the same elements of image n: the first row. Raises Unknown for any other."""
        numbers, images, elements = self.of(labels)
        for number in np.unique(numbers):
            leaf = self.leaves[number]
            if leaf.form.shape[0] != len(labels):
                raise Unknown(f"{leaf.value.name} is {list(leaf.form.shape)}; the batch is not its first axis")
        own = images == np.arange(len(labels))[:, None]
        if not (own.all() and (numbers == numbers[0]).all() and (elements == elements[0]).all()):
            raise Unknown("it mixes the images of a batch")
        first: Labels = labels[0]
        return first


def shape_of(shapes: dict[ir.Value, Shape], value: ir.Value) -> Shape:
    if value not in shapes:
        raise Unknown(f"the shape of {value.name} cannot be inferred")
    return shapes[value]


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """The value of an initializer, a Constant or an Identity of one; None for what is computed."""
    while value is not None and (producer := value.producer()) is not None and producer.op_type == "Identity":
        value = producer.inputs[0]
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def scalar(value: ir.Value) -> Form | None:
    """The form of a constant whose elements are all equal."""
    array = constant(value)
    if array is None or array.size == 0 or np.any(array != array.flat[0]):
        return None
    return Form((Term(float(array.flat[0])),), array.shape)


def evaluate(node: ir.Node, resolve: Callable[[ir.Value], Form], shapes: dict[ir.Value, Shape]) -> list[Form]:
    """The forms of a node's outputs; ``resolve`` gives those of its inputs. Raises Unknown."""
    inputs = [value for value in node.inputs if value is not None]
    op = node.op_type
    if node.domain not in ("", "ai.onnx") or op not in OPERATORS:
        raise Unknown(f"{op} is no part of a weighted sum")
    if op in ("Add", "Sub", "Mul", "Sum"):
        total = resolve(inputs[0])
        for value in inputs[1:]:
            other = resolve(value)
            total = _product(total, other) if op == "Mul" else _sum(total, other, -1.0 if op == "Sub" else 1.0)
        return [total]
    if op == "Concat":
        return [_concatenated([resolve(value) for value in inputs], node, shape_of(shapes, node.outputs[0]))]
    form = resolve(inputs[0])
    if op == "Split":
        return _split(form, node, [shape_of(shapes, value) for value in node.outputs])
    shape = shape_of(shapes, node.outputs[0])
    if op == "Expand":
        form = _padded(form, len(shape))
        return [replace(form, shape=shape)]
    if op in RESHAPES:
        return [_reshaped(form, shape)]
    if op == "Transpose":
        return [_transposed(form, node, shape)]
    if op == "Slice":
        return [_sliced(form, node, shape)]
    if op == "Gather":
        return [_gathered(form, node, shape)]
    if op == "ReduceSum":
        return [_reduced_sum(form, node, shape)]
    return [_mean(form, node, shape)]


def integers(node: ir.Node, index: int, attribute: str) -> list[int] | None:
    """A list of integers that opsets moved from an attribute to an input; None if there is neither."""
    if attribute in node.attributes:
        return list(node.attributes[attribute].as_ints())
    if index >= len(node.inputs) or node.inputs[index] is None:
        return None
    array = constant(node.inputs[index])
    if array is None:
        raise Unknown(f"{attribute} of {node.op_type} is computed")
    return [int(item) for item in np.atleast_1d(array)]


def _attribute(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _own_axis(form: Form, axis: int) -> int:
    """A non-negative axis that is neither height nor width."""
    axis %= len(form.shape)
    if axis in form.spatial:
        raise Unknown("it works along height or width")
    return axis


def _without_axis(spatial: Spatial, axis: int) -> Spatial:
    height, width = (None if place is None else place - (place > axis) for place in spatial)
    return height, width


def _reshaped(form: Form, shape: Shape) -> Form:
    if form.spatial == FLAT:
        return form.moved(lambda labels: labels.reshape(shape), shape, FLAT)
    height, width = form.spatial
    if height is None or width != height + 1:
        raise Unknown("a reshape of maps whose height and width are not adjacent")
    before, area = int(np.prod(form.shape[:height])), form.shape[height : height + 2]
    for axis in range(len(shape) - 1):
        if int(np.prod(shape[:axis])) == before and shape[axis : axis + 2] == area:
            return _with_map_axes(form, shape, axis)
    raise Unknown(f"a reshape from {list(form.shape)} to {list(shape)} mixes pixels with channels")


def _with_map_axes(form: Form, shape: Shape, height: int) -> Form:
    sizes = (*shape[:height], 1, 1, *shape[height + 2 :])
    return form.moved(lambda labels: labels.reshape(sizes), shape, (height, height + 1))


def _transposed(form: Form, node: ir.Node, shape: Shape) -> Form:
    order = integers(node, 1, "perm") or list(range(len(form.shape)))[::-1]
    height, width = (None if place is None else order.index(place) for place in form.spatial)
    return form.moved(lambda labels: labels.transpose(order), shape, (height, width))


def _sliced(form: Form, node: ir.Node, shape: Shape) -> Form:
    starts, ends = integers(node, 1, "starts"), integers(node, 2, "ends")
    if starts is None or ends is None:
        raise Unknown("a slice without bounds")
    axes = integers(node, 3, "axes") or list(range(len(starts)))
    steps = integers(node, 4, "steps") or [1] * len(starts)
    window = [slice(None)] * len(form.shape)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        window[_own_axis(form, axis)] = slice(start, end, step)
    return form.moved(lambda labels: labels[tuple(window)], shape, form.spatial)


def _gathered(form: Form, node: ir.Node, shape: Shape) -> Form:
    axis, indices = _own_axis(form, _attribute(node, "axis", 0)), constant(node.inputs[1])
    if indices is None or indices.ndim > 1:
        raise Unknown("a gather by computed or many-dimensional indices")
    spatial = form.spatial if indices.ndim else _without_axis(form.spatial, axis)
    return form.moved(lambda labels: np.take(labels, indices, axis), shape, spatial)


def _split(form: Form, node: ir.Node, shapes: list[Shape]) -> list[Form]:
    axis = _own_axis(form, _attribute(node, "axis", 0))
    ends = np.cumsum([shape[axis] for shape in shapes])

    def part(index: int) -> Form:
        span = range(int(ends[index]) - shapes[index][axis], int(ends[index]))
        return form.moved(lambda labels: np.take(labels, span, axis), shapes[index], form.spatial)

    return [part(index) for index in range(len(shapes))]


def _concatenated(forms: list[Form], node: ir.Node, shape: Shape) -> Form:
    first = forms[0]
    axis = _own_axis(first, _attribute(node, "axis", 0))
    kinds = {(len(f.terms), f.terms[0].factor, f.terms[0].weight is None, f.terms[0].map is None, f.spatial, f.averaged)
             for f in forms}  # fmt: skip
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
    height, width = (None if place is None else place + missing for place in form.spatial)
    terms = tuple(term.moved(lambda labels: labels.reshape((1,) * missing + labels.shape)) for term in form.terms)
    return replace(form, terms=terms, shape=(1,) * missing + form.shape, spatial=(height, width))


def _aligned(left: Form, right: Form) -> tuple[Form, Form]:
    rank = max(len(left.shape), len(right.shape))
    return _padded(left, rank), _padded(right, rank)


def _sum(left: Form, right: Form, sign: float) -> Form:
    left, right = _aligned(left, right)
    if left.holds_maps() != right.holds_maps():
        raise Unknown("a sum of maps and something else")
    if left.holds_maps() and (left.shape, left.spatial, left.averaged) != (right.shape, right.spatial, right.averaged):
        raise Unknown(f"the branches' shapes differ: {list(left.shape)} and {list(right.shape)}")
    shape = np.broadcast_shapes(left.shape, right.shape)
    return replace(left, terms=(*left.terms, *(replace(t, factor=sign * t.factor) for t in right.terms)), shape=shape)


def _product(left: Form, right: Form) -> Form:
    left, right = _aligned(left, right)
    if right.holds_maps():
        left, right = right, left
    if right.holds_maps():
        raise Unknown("a product of two maps")
    _check_weigh_whole_maps(right, left.spatial)
    return Form(
        tuple(_multiplied(one, other) for one in left.terms for other in right.terms),
        np.broadcast_shapes(left.shape, right.shape),
        left.spatial,
        left.averaged,
    )


def _check_weigh_whole_maps(weights: Form, spatial: Spatial) -> None:
    along = tuple(
        axis is not None and any(t.weight is not None and t.weight.shape[axis] != 1 for t in weights.terms)
        for axis in spatial
    )
    if any(along):
        place = {(True, False): "row", (False, True): "column", (True, True): "pixel"}[along]
        raise Unknown(f"its weights differ from {place} to {place}; a block has one weight for a whole channel")


def _multiplied(one: Term, other: Term) -> Term:
    if one.weight is not None and other.weight is not None:
        raise Unknown("a product of two weights")
    weight = other.weight if one.weight is None else one.weight
    return Term(one.factor * other.factor, weight, one.map)


def _reduced_axes(form: Form, node: ir.Node) -> list[int]:
    axes = integers(node, 1, "axes")
    if not axes:
        raise Unknown(f"{node.op_type} over everything")
    return sorted((axis % len(form.shape) for axis in axes), reverse=True)


def _reduced_sum(form: Form, node: ir.Node, shape: Shape) -> Form:
    keep = bool(_attribute(node, "keepdims", 1))
    for axis in _reduced_axes(form, node):
        size = form.shape[_own_axis(form, axis)]
        reduced = (*form.shape[:axis], *((1,) if keep else ()), *form.shape[axis + 1 :])
        spatial = form.spatial if keep else _without_axis(form.spatial, axis)
        parts = [_taken(form, axis, index, keep, reduced, spatial) for index in range(size)]
        form = replace(parts[0], terms=tuple(term for part in parts for term in part.terms))
    return replace(form, shape=shape)


def _taken(form: Form, axis: int, index: int, keep: bool, shape: Shape, spatial: Spatial) -> Form:
    return form.moved(lambda labels: np.take(labels, [index] if keep else index, axis), shape, spatial)


def _mean(form: Form, node: ir.Node, shape: Shape) -> Form:
    if not form.holds_maps():
        raise Unknown("a mean of weights")
    if node.op_type == "ReduceMean":
        axes, keep = _reduced_axes(form, node), bool(_attribute(node, "keepdims", 1))
    else:
        axes, keep = [3, 2], True
        if node.op_type == "AveragePool" and (
            form.spatial != (2, 3)
            or tuple(node.attributes["kernel_shape"].as_ints()) != form.shape[2:]
            or shape[2:] != (1, 1)
        ):
            raise Unknown("an average pool that is not over the whole map")
    for axis in axes:
        form = _averaged(form, axis, keep)
    return replace(form, shape=shape)


def _averaged(form: Form, axis: int, keep: bool) -> Form:
    if axis not in form.spatial:
        raise Unknown("a mean over something else than height and width")
    which = form.spatial.index(axis)
    height, width = (None if place == axis else place for place in form.spatial)
    averaged = (form.averaged[0] or which == 0, form.averaged[1] or which == 1)
    if keep:
        shape = (*form.shape[:axis], 1, *form.shape[axis + 1 :])
        return replace(form, shape=shape, spatial=(height, width), averaged=averaged)
    terms = tuple(term.moved(lambda labels: np.squeeze(labels, axis)) for term in form.terms)
    shape = (*form.shape[:axis], *form.shape[axis + 1 :])
    return replace(form, terms=terms, shape=shape, spatial=_without_axis((height, width), axis), averaged=averaged)
