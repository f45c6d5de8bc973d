"""Labels for the elements of a tensor: which weight and which feature map each of them holds.

``passes/weighted_sums.py`` moves them; here is what is moved, and where it begins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from skdeploy.ir.constants import known

Labels = NDArray[np.int64]
Shape = tuple[int, ...]
Spatial = tuple[int | None, ...]

FLAT: Final[Spatial] = ()
MAP_RANKS: Final = (3, 4, 5)  # of a sequence (N, C, T), an image (N, C, H, W) and a volume (N, C, D, H, W)


class Unknown(Exception):  # noqa: N818  (an answer to a question, not an error)
    """This tensor is not a weighted sum of maps; the message says why."""


class NotAMap(Unknown):
    """This tensor does not have the rank of a map."""


class AlongAnotherAxis(Unknown):
    """The weights differ along ``axis`` of the maps and along no other axis behind the channels."""

    def __init__(self, message: str, axis: int) -> None:
        super().__init__(message)
        self.axis = axis


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
    """The sum of ``terms``. ``spatial`` are the axes of a map's height and width, ``averaged`` which of them are averaged away.

    Maps of sequences have one such axis, time; those of volumes have three, with depth. An axis that is gone is None.
    A label array has, on each axis, the tensor's size or 1; on the spatial axes 1. Where all of them are the same axis,
    that axis has the pixels of a map row by row, and ``pixels`` is the map's height and width. ``sized`` tells whether the
    graph fixes the size of the maps, or it is that of the example only.
    """

    terms: tuple[Term, ...]
    shape: Shape
    spatial: Spatial = FLAT
    averaged: tuple[bool, ...] = ()
    pixels: Shape = ()
    sized: bool = False

    def holds_maps(self) -> bool:
        return any(term.map is not None for term in self.terms)

    def number(self) -> float | None:
        """The value of a tensor of one constant number; None for others."""
        numbers = [term.factor for term in self.terms if term.weight is None and term.map is None]
        return numbers[0] if len(self.terms) == len(numbers) == 1 else None

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
        labels = self.form.terms[0].map
        assert labels is not None  # a leaf has labels
        return int(np.prod(labels.shape[1:]))


class Leaves:
    """Where all labels come from. Labels of one leaf are consecutive, image by image.

    Maps have one label for each index of ``axis``, which is that of the channels or, of blocks that have a weight for each row
    or column, a later one. The other axes behind the batch are then what is called height and width.
    """

    def __init__(self, shapes: dict[ir.Value, Shape], axis: int = 1) -> None:
        self.shapes, self.axis = shapes, axis
        self.leaves: list[Leaf] = []
        self._known: dict[tuple[ir.Value, bool], Leaf] = {}
        self._next = 0

    def form(self, value: ir.Value, *, maps: bool) -> Form:
        """The form of a tensor of maps (N, C, T), (N, C, H, W) or (N, C, D, H, W), or of one without height and width."""
        key = (value, maps)
        if key not in self._known:
            shape = shape_of(self.shapes, value)
            if maps and len(shape) not in MAP_RANKS:
                raise NotAMap(f"{value.name} has rank {len(shape)}; maps have 3, 4 or 5: (N, C, T) to (N, C, D, H, W)")
            across = self.spatial(len(shape))
            spatial = across if maps else FLAT
            sizes = self.sizes(shape) if maps else shape
            count = int(np.prod(sizes))
            labels = np.arange(self._next, self._next + count, dtype=np.int64).reshape(sizes)
            sized = maps and value.shape is not None and all(isinstance(value.shape[axis], int) for axis in across)
            form = Form((Term(1.0, map=labels),), shape, spatial, (False,) * len(spatial), sized=sized)
            self._known[key] = Leaf(value, self._next, form)
            self.leaves.append(self._known[key])
            self._next += count
        return self._known[key].form

    def spatial(self, rank: int) -> tuple[int, ...]:
        """The axes of a map over which it has one label."""
        return tuple(axis for axis in range(1, rank) if axis != self.axis)

    def sizes(self, shape: Shape) -> Shape:
        """The shape of what has one number for each label of a map: (N, C, 1, 1) for images."""
        return tuple(1 if axis in self.spatial(len(shape)) else size for axis, size in enumerate(shape))

    def of(self, labels: Labels) -> tuple[Labels, Labels, Labels]:
        """For each label the number of its leaf, the image, and the element within the image."""
        offsets = np.array([leaf.offset for leaf in self.leaves])
        numbers = np.searchsorted(offsets, labels, side="right") - 1
        local = labels - offsets[numbers]
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


def scalar(value: ir.Value) -> Form | None:
    """The form of a constant whose elements are all equal."""
    array = known(value)
    if array is None or array.size == 0 or np.any(array != array.flat[0]):
        return None
    return Form((Term(float(array.flat[0])),), array.shape)
