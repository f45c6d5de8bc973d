"""Describe a tensor without running it: for each element a sum of products of one weight and one feature map.

The select of a selective kernel block is written in many ways, but between the branches and the result nothing happens except
that maps are stacked, moved, multiplied by weights and added. So labels describe each tensor there: arrays of its own shape
that name, element by element, which weight and which map it holds. Operators that move elements move the labels, with numpy,
and the layout (stacked or concatenated, branch-major or channel-major, transposed or not) needs no case of its own.

Height and width (of sequences time, of volumes depth too) are carried along and not told apart: label arrays have size 1
there. Batches are distinguished: a graph that mixes images is seen. Sizes are those of one example (``shapes``), with three
images where the batch is free.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from string import ascii_lowercase
from typing import Final

import numpy as np
import onnx_ir as ir

from skdeploy.ir.nodes import operands
from skdeploy.passes.labels import FLAT, AlongAnotherAxis, Form, Labels, Shape, Spatial, Term, Unknown, shape_of
from skdeploy.passes.moves import (
    MOVED,
    MOVES,
    aligned,
    concatenated,
    fixed,
    flattened,
    in_order,
    own_axis,
    placed,
    reshaped,
    split,
    without_axis,
)

MEANS: Final = frozenset({"GlobalAveragePool", "AveragePool", "ReduceMean"})
SUMS: Final = frozenset({"Add", "Sub", "Sum", "ReduceSum"})
SCALES: Final = frozenset({"Mul", "Div", "Neg"})
PRODUCTS: Final = frozenset({"Einsum", "MatMul"})
OPERATORS: Final = MOVES | MEANS | SUMS | SCALES | PRODUCTS
ELLIPSIS: Final = "STUVWXYZ"  # letters for its axes: exporters give axes small ones
MAX_SUMMANDS: Final = 64  # a sum over a longer axis is not one over branches


def evaluate(node: ir.Node, resolve: Callable[[ir.Value], Form], shapes: dict[ir.Value, Shape]) -> list[Form]:
    """The forms of a node's outputs; ``resolve`` gives those of its inputs. Raises Unknown."""
    inputs = operands(node)
    op = node.op_type
    if node.domain not in ("", "ai.onnx") or op not in OPERATORS:
        raise Unknown(f"{op} is not a part of a weighted sum")
    if op == "Div":
        return [_quotient(resolve(inputs[0]), resolve(inputs[1]), inputs[1])]
    if op == "Neg":
        return [_scaled(resolve(inputs[0]), -1.0)]
    if op in PRODUCTS:
        if len(inputs) != 2:
            raise Unknown(f"an {op} of {len(inputs)} tensors")
        return [_contracted(node, resolve(inputs[0]), resolve(inputs[1]))]
    if op in ("Add", "Sub", "Mul", "Sum"):
        total = resolve(inputs[0])
        for value in inputs[1:]:
            other = resolve(value)
            total = _product(total, other) if op == "Mul" else _sum(total, other, -1.0 if op == "Sub" else 1.0)
        return [total]
    if op == "Concat":
        return [concatenated([resolve(value) for value in inputs], node, shape_of(shapes, node.outputs[0]))]
    form = resolve(inputs[0])
    if op == "Split":
        return split(form, node, [shape_of(shapes, value) for value in node.outputs])
    shape = shape_of(shapes, node.outputs[0])
    return [ONE_INPUT.get(op, reshaped)(form, node, shape)]


def _sum(left: Form, right: Form, sign: float) -> Form:
    left, right = aligned(left, right)
    if left.holds_maps() != right.holds_maps():
        raise Unknown("a sum of maps and something else")
    alike = (left.shape, left.spatial, left.averaged) == (right.shape, right.spatial, right.averaged)
    if left.holds_maps() and not alike and not _adds_one_number(left, right):
        raise Unknown(f"the branches' shapes differ: {list(left.shape)} and {list(right.shape)}")
    if flattened(left.spatial) and left.pixels != right.pixels:
        raise Unknown(f"the branches' maps differ: {left.pixels} and {right.pixels} pixels")
    shape = np.broadcast_shapes(left.shape, right.shape)
    return replace(left, terms=(*left.terms, *(replace(t, factor=sign * t.factor) for t in right.terms)), shape=shape)


def _adds_one_number(left: Form, right: Form) -> bool:
    """Whether one of two tensors is a single number, which goes to all elements of the other. Neither has height and width."""
    flat = left.spatial == right.spatial == FLAT and not any((*left.averaged, *right.averaged))
    return flat and 1 in (np.prod(left.shape), np.prod(right.shape))


def _product(left: Form, right: Form) -> Form:
    left, right = aligned(left, right)
    if right.holds_maps():
        left, right = right, left
    if right.holds_maps():
        raise Unknown("a product of two maps")
    right = _without_repeats(right, left.spatial)
    _check_weigh_whole_maps(right, left.spatial)
    terms = tuple(_multiplied(one, other) for one in left.terms for other in right.terms)
    return replace(left, terms=terms, shape=np.broadcast_shapes(left.shape, right.shape))


def _quotient(form: Form, divisor: Form, value: ir.Value) -> Form:
    number = divisor.number()
    if not number:
        raise Unknown(f"it divides by {value.name}, which is not a single constant number")
    return _divided(_product(form, replace(divisor, terms=(Term(1.0),))), number)


def _contracted(node: ir.Node, left: Form, right: Form) -> Form:
    """Einsum or MatMul of two tensors: their product, added up over the axes that the result has not."""
    if node.op_type == "MatMul":
        if min(len(left.shape), len(right.shape)) < 2:
            raise Unknown("a MatMul of vectors")
        left, right = aligned(left, right)
        batch = ascii_lowercase[: len(left.shape) - 2]
        names, result = [f"{batch}yz", f"{batch}zx"], f"{batch}yx"
    else:
        equation = node.attributes["equation"].as_string().replace(" ", "")
        operands, _, result = equation.partition("->")
        names = operands.split(",")
        *names, result = _without_ellipses([*names, result], [len(left.shape), len(right.shape)])
        if "->" not in equation or any("." in n or len(set(n)) != len(n) for n in (*names, result)):
            raise Unknown(f"the equation {equation}")
    summed = sorted(set("".join(names)) - set(result))
    order = [*result, *summed]
    total = _product(*(_with_named_axes(form, name, order) for form, name in zip((left, right), names, strict=True)))
    for _ in summed:
        total = _added_up(total, len(total.shape) - 1, keep=False)
    return total


def _without_ellipses(names: list[str], ranks: list[int]) -> list[str]:
    """With letters for the axes that each "..." stands for, those of the result as many as the operands have at most."""
    counts = [rank - len(name) + 3 if "..." in name else 0 for name, rank in zip(names[:-1], ranks, strict=True)]
    counts.append(max(counts))
    return [name.replace("...", ELLIPSIS[-count:] if count else "") for name, count in zip(names, counts, strict=True)]


def _with_named_axes(form: Form, names: str, order: list[str]) -> Form:
    """With the axes in ``order``, those that ``names`` has not with size 1."""
    own = [names.index(name) for name in order if name in names]
    form = in_order(form, own, tuple(form.shape[axis] for axis in own))
    for axis, name in enumerate(order):
        if name not in names:
            form = _with_axis(form, axis)
    return form


def _with_axis(form: Form, axis: int) -> Form:
    shape = (*form.shape[:axis], 1, *form.shape[axis:])
    spatial = placed(form.spatial, lambda place: place + (place >= axis))
    return form.moved(lambda labels: np.expand_dims(labels, axis), shape, spatial)


def _without_repeats(weights: Form, spatial: Spatial) -> Form:
    """With one weight for each map where the same is repeated over height and width."""

    def first(labels: Labels) -> Labels:
        for axis in (axis for axis in spatial if axis is not None):
            one = labels.take([0], axis)
            labels = one if (labels == one).all() else labels
        return labels

    return replace(weights, terms=tuple(term.moved(first) for term in weights.terms))


def _check_weigh_whole_maps(weights: Form, spatial: Spatial) -> None:
    several = [
        axis is not None and any(t.weight is not None and t.weight.shape[axis] != 1 for t in weights.terms)
        for axis in spatial
    ]
    if any(several):
        names = {1: ("step",), 2: ("row", "column"), 3: ("slice", "row", "column")}[len(spatial)]
        one = sum(several) == 1
        place = names[several.index(True)] if one else "pixel"
        said = f"its weights differ from {place} to {place}; a block has one weight for a whole channel"
        raise AlongAnotherAxis(said, 2 + several.index(True)) if one else Unknown(said)


def _multiplied(one: Term, other: Term) -> Term:
    if one.weight is not None and other.weight is not None:
        raise Unknown("a product of two weights")
    weight = other.weight if one.weight is None else one.weight
    return Term(one.factor * other.factor, weight, one.map)


def _reduced_axes(form: Form, node: ir.Node) -> list[int]:
    axes = fixed(node, 1, "axes")
    if not axes:
        raise Unknown(f"{node.op_type} over everything")
    return sorted((axis % len(form.shape) for axis in axes), reverse=True)


def reduced_sum(form: Form, node: ir.Node, shape: Shape) -> Form:
    """The form of a ReduceSum, or of another operator with its axes that adds up, of a tensor of that form."""
    keep = bool(node.attributes.get_int("keepdims", 1))
    for axis in _reduced_axes(form, node):
        if axis not in form.spatial:
            form = _added_up(form, axis, keep)
            continue
        if not form.sized:
            raise Unknown("it adds up maps whose size is not fixed")
        form = _scaled(_averaged(form, axis, keep), form.shape[axis])
    return replace(form, shape=shape)


def _added_up(form: Form, axis: int, keep: bool) -> Form:
    size = form.shape[own_axis(form, axis)]
    if size > MAX_SUMMANDS:
        raise Unknown(f"a sum over {size} elements, which is not one over branches")
    reduced = (*form.shape[:axis], *((1,) if keep else ()), *form.shape[axis + 1 :])
    spatial = form.spatial if keep else without_axis(form.spatial, axis)
    taken = [partial(np.take, indices=[index] if keep else index, axis=axis) for index in range(size)]
    parts = [form.moved(take, reduced, spatial) for take in taken]
    return replace(parts[0], terms=tuple(term for part in parts for term in part.terms))


def _scaled(form: Form, number: float) -> Form:
    return replace(form, terms=tuple(replace(term, factor=term.factor * number) for term in form.terms))


def _divided(form: Form, number: float) -> Form:
    return replace(form, terms=tuple(replace(term, factor=term.factor / number) for term in form.terms))


def _mean(form: Form, node: ir.Node, shape: Shape) -> Form:
    if not form.holds_maps():
        raise Unknown("a mean of weights")
    if node.op_type == "ReduceMean":
        axes, keep = _reduced_axes(form, node), bool(node.attributes.get_int("keepdims", 1))
    else:
        axes, keep = list(range(len(form.shape)))[:1:-1], True
        if node.op_type == "AveragePool" and not form.sized:
            raise Unknown("an average pool of one size over maps whose size is not fixed")
        if node.op_type == "AveragePool" and (
            form.spatial != tuple(range(2, len(form.shape)))
            or tuple(node.attributes["kernel_shape"].as_ints()) != form.shape[2:]
            or any(size != 1 for size in shape[2:])
            or any(node.attributes.get_ints("pads", []))
        ):
            raise Unknown("an average pool that is not over the whole map")
    for axis in axes:
        over_branches = axis not in form.spatial
        form = _divided(_added_up(form, axis, keep), form.shape[axis]) if over_branches else _averaged(form, axis, keep)
    return replace(form, shape=shape)


def _averaged(form: Form, axis: int, keep: bool) -> Form:
    averaged = tuple(done or place == axis for done, place in zip(form.averaged, form.spatial, strict=True))
    spatial = tuple(None if place == axis else place for place in form.spatial)
    if keep:
        shape = (*form.shape[:axis], 1, *form.shape[axis + 1 :])
        return replace(form, shape=shape, spatial=spatial, averaged=averaged)
    terms = tuple(term.moved(lambda labels: np.squeeze(labels, axis)) for term in form.terms)
    shape = (*form.shape[:axis], *form.shape[axis + 1 :])
    return replace(form, terms=terms, shape=shape, spatial=without_axis(spatial, axis), averaged=averaged)


ONE_INPUT: Final[dict[str, Callable[[Form, ir.Node, Shape], Form]]] = {
    **MOVED, "ReduceSum": reduced_sum, **dict.fromkeys(MEANS, _mean),
}  # fmt: skip
