"""Activations that a file quantizes around any zero point, quantized around zero: the same integers, less 128."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from skdeploy.ir.constants import Names, add_to_bias, known, named_constant, numbers
from skdeploy.ir.nodes import maker, new_node, only_one_reads, operand, optional
from skdeploy.ir.qdq import DEQUANTIZE, QUANTIZE
from skdeploy.ir.qdq_constants import INT8, UINT8, along_axis, dequantized, is_constant, kind_of, numbers_of
from skdeploy.ir.rows import output_axis

MIDDLE: Final = 128  # of uint8: with this zero point it is int8 with 0
# Rounding of x - c may go the other way where x / scale lies within 1e-5 of a half: that value is one of 255 steps off, and so
# may be what is made of it. A wrong offset changes the first digit.
ONE_STEP: Final = 2e-2


class CentreQDQ(ir.passes.InPlacePass):
    """Replaces activations x between Q and DQ by x - c, so that int8 with zero point 0 holds the same integers.

    Of uint8, ``q = round(x / scale) + z``, so ``q - 128 = round((x - c) / scale)`` with ``c = (128 - z) scale``, and both
    saturate at the same x; of int8, ``c = -z scale``. How x - c is made: in the bias of the convolution that makes x, a Relu
    between becoming a Clip at -c, or by an Add. How x is had again from x - c:

    * a convolution or Gemm: ``W x = W (x - c) + c sum(W)``, into its bias. Zeros around x are -c around x - c: a padded
      convolution reads a copy of its own, padded with -c before it is quantized;
    * a MatMul: an Add of as much to what it makes; all else: an Add behind the DQ.

    Legal for one scale and zero point, constants, where the integers go to DequantizeLinear nodes with both alone. Others stay.
    ``centred`` are the activations, by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.centred: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph, names = model.graph, Names(model.graph)
        for node in [node for node in graph if node.op_type == QUANTIZE and can_be_centred(node)]:
            self.centred.append(operand(node, 0).name or "")
            _Centring(graph, names, node, offset_of(node)).rewrite()
        if self.centred:
            RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=bool(self.centred))


def centred_note(centred: Sequence[str]) -> tuple[str, ...]:
    """A note on activations that were shifted; none where there are none."""
    if not centred:
        return ()
    count = f"{len(centred)} activations have" if len(centred) > 1 else "1 activation has"
    said = "zero point that TensorRT does not take: shifted, so that int8 with zero point 0 holds the same integers"
    return (f"{count} a {said}; a padded convolution reads a padded copy, which costs time: measure with bench",)


def offset_of(node: ir.Node) -> float:
    """The c of a Q or DQ node of an activation; 0 where it is centred or cannot be."""
    scale, zero, kind = known(node.inputs[1]), optional(node, 2), kind_of(node)
    points = np.zeros(1) if zero is None else known(zero)
    if scale is None or points is None or scale.size != 1 or points.size != 1 or scale.dtype != np.float32:
        return 0.0
    if kind not in (INT8, UINT8) or not (np.isfinite(scale).all() and (scale > 0).all()):
        return 0.0
    middle = MIDDLE if kind == UINT8 else 0
    return (middle - int(points.reshape(-1)[0])) * float(scale.reshape(-1)[0])


def can_be_centred(node: ir.Node) -> bool:
    """Whether an activation's Q or DQ has a zero point that the pass takes away."""
    quantize = node if node.op_type == QUANTIZE else maker(operand(node, 0))
    if quantize is None or quantize.op_type != QUANTIZE or is_constant(operand(quantize, 0)) or not offset_of(quantize):
        return False
    made = quantize.outputs[0]
    return not made.is_graph_output() and all(_undoes(reader, index, quantize) for reader, index in made.uses())


def _undoes(reader: ir.Node, index: int, quantize: ir.Node) -> bool:
    if reader.op_type != DEQUANTIZE or index != 0:
        return False
    return all(_alike(optional(reader, place), optional(quantize, place)) for place in (1, 2))


def _alike(one: ir.Value | None, other: ir.Value | None) -> bool:
    """Whether two scales or zero points are equal constants, or both left out."""
    if one is None or other is None:
        return one is other
    first, second = known(one), known(other)
    return first is not None and second is not None and first.dtype == second.dtype and np.array_equal(first, second)


class _Centring:
    """One activation, its Q and its DQ nodes."""

    def __init__(self, graph: ir.Graph, names: Names, quantize: ir.Node, offset: float) -> None:
        self.graph, self.names, self.quantize, self.offset = graph, names, quantize, offset
        self.stem = operand(quantize, 0).name or ""
        self.source = operand(quantize, 0)
        self.pair = [
            self._constant("scale", numbers_of(quantize.inputs[1]).reshape(())),
            self._constant("zero_point", np.int8(0)),
        ]
        self.padded: dict[tuple[int, ...], ir.Value] = {}

    def _name(self, what: str) -> str:
        return self.names.free(f"{self.stem}_{what}")

    def _constant(self, what: str, array: NDArray[Any] | np.generic) -> ir.Value:
        return named_constant(self.graph, self._name(what), array)

    def _plus(self, value: ir.Value, change: float | NDArray[np.float64], what: str) -> ir.Node:
        amount = self._constant(f"{what}_offset", np.asarray(change, np.float32))
        return new_node("Add", [value, amount], self._name(what), value.shape, value.dtype)

    def rewrite(self) -> None:
        quantize = self.quantize
        dequantizers = [use.node for use in quantize.outputs[0].uses()]
        self.source = self._less()
        quantize.replace_input_with(0, self.source)
        for node in (quantize, *dequantizers):
            node.resize_inputs(3)
            for index, value in enumerate(self.pair, 1):
                node.replace_input_with(index, value)
        quantize.attributes.pop("output_dtype", None)
        quantize.outputs[0].type = ir.TensorType(INT8)
        for node in dequantizers:
            self._restore(node)

    def _less(self) -> ir.Value:
        """The value x - c.

        Where no integer is below that of zero, tools leave the Relu before it out: the Clip says what saturation does.
        """
        value = operand(self.quantize, 0)
        relu, made = None, value
        if (node := maker(value)) is not None and node.op_type == "Relu" and only_one_reads(value):
            relu, made = node, operand(node, 0)
        convolution = maker(made)
        if (
            convolution is not None
            and only_one_reads(made)
            and convolution.op_type == "Conv"
            and _has_constants(convolution)
        ):
            rows = numbers_of_weight(convolution).shape[0]
            add_to_bias(self.graph, convolution, np.full(rows, -self.offset))
            less = made
        else:
            addition = self._plus(value, -self.offset, "centred")
            self.graph.insert_before(self.quantize, [addition])
            relu, less = None, addition.outputs[0]
        never_negative = self.offset == MIDDLE * float(numbers(self.pair[0])) and node is not None
        if relu is None and not never_negative:
            return less
        low = self._constant("low", np.float32(-self.offset))
        clip = new_node("Clip", [less, low], self._name("clipped"), value.shape, value.dtype)
        self.graph.insert_before(self.quantize, [clip])
        return clip.outputs[0]

    def _restore(self, dequantize: ir.Node) -> None:
        """Makes all that reads a DQ take x - c for x."""
        made = dequantize.outputs[0]
        restored: ir.Value | None = None
        for reader, index in list(made.uses()):
            if index == 0 and reader.op_type in ("Conv", "Gemm", "MatMul") and _has_constants(reader):
                self._absorb(reader, made)
                continue
            restored = restored or self._behind(dequantize, made, self.offset).outputs[0]
            reader.replace_input_with(index, restored)
        if made.is_graph_output():
            restored = restored or self._behind(dequantize, made, self.offset).outputs[0]
            name, made.name = made.name, self._name("less")
            self.graph.outputs[self.graph.outputs.index(made)] = restored
            restored.name = name

    def _behind(
        self, node: ir.Node, value: ir.Value, change: float | NDArray[np.float64], what: str = "restored"
    ) -> ir.Node:
        addition = self._plus(value, change, what)
        self.graph.insert_after(node, [addition])
        return addition

    def _absorb(self, reader: ir.Node, made: ir.Value) -> None:
        weight, rows = numbers_of_weight(reader).astype(np.float64), output_axis(reader)
        change = self.offset * weight.sum(axis=tuple(axis for axis in range(weight.ndim) if axis != rows))
        if reader.op_type == "MatMul":
            output = reader.outputs[0]
            addition = self._behind(reader, output, change, "product_restored")
            output.replace_all_uses_with(addition.outputs[0], replace_graph_outputs=True)
            addition.replace_input_with(0, output)
            output.name, addition.outputs[0].name = self._name("product"), output.name
            return
        pads = tuple(reader.attributes.get_ints("pads", []))
        if any(pads):
            reader.replace_input_with(0, self._with_border(pads, made))
            reader.attributes["pads"] = ir.AttrInt64s("pads", [0] * len(pads))
        add_to_bias(self.graph, reader, change)

    def _with_border(self, pads: tuple[int, ...], made: ir.Value) -> ir.Value:
        """A copy that is padded before it is quantized, for the convolutions with these pads."""
        if pads in self.padded:
            return self.padded[pads]
        axes = len(pads) // 2
        sizes = self._constant("border", np.array([0, 0, *pads[:axes], 0, 0, *pads[axes:]], np.int64))
        fill = self._constant("outside", np.float32(-self.offset))
        shape = None if made.shape is None else [*made.shape[:2], *_larger(made.shape[2:], pads)]
        pad = new_node("Pad", [self.source, sizes, fill], self._name("padded"), shape)
        quantize = new_node(QUANTIZE, [pad.outputs[0], *self.pair], self._name("padded_quantized"), shape, INT8)
        back = new_node(DEQUANTIZE, [quantize.outputs[0], *self.pair], self._name("padded_dequantized"), shape)
        self.graph.insert_after(self.quantize, [pad, quantize, back])
        self.padded[pads] = back.outputs[0]
        return self.padded[pads]


def _larger(sizes: Sequence[int | ir.SymbolicDim], pads: Sequence[int]) -> list[int | None]:
    before, after = pads[: len(sizes)], pads[len(sizes) :]
    return [
        size + first + last if isinstance(size, int) else None
        for size, first, last in zip(sizes, before, after, strict=True)
    ]


def _has_constants(node: ir.Node) -> bool:
    """Whether its weight is a constant, dequantized or not, its bias too, and it computes y = W x + b."""
    weight, bias = operand(node, 1), optional(node, 2)
    made = maker(weight)
    source = operand(made, 0) if made is not None and made.op_type == DEQUANTIZE else weight
    if not is_constant(source) or (bias is not None and not bias.is_initializer()):
        return False
    if node.op_type == "MatMul" and len(numbers_of_weight(node).shape) != 2:
        return False
    scales = [node.attributes.get_float(key, 1.0) for key in ("alpha", "beta")]
    plain = node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    forward = all(size >= 0 for size in node.attributes.get_ints("pads", []))
    return plain and forward and not node.attributes.get_int("transA", 0) and scales == [1.0, 1.0]


def numbers_of_weight(node: ir.Node) -> NDArray[Any]:
    """The weight of a layer as it multiplies: rounded, where it is quantized."""
    weight = operand(node, 1)
    made = maker(weight)
    if made is None or made.op_type != DEQUANTIZE:
        return numbers_of(weight)
    quantized = maker(operand(made, 0))
    if quantized is None or quantized.op_type != QUANTIZE:
        return dequantized(made)
    array = numbers(operand(quantized, 0)).astype(np.float32)
    scale = along_axis(quantized, numbers_of(quantized.inputs[1]), array.ndim)
    zero = optional(quantized, 2)
    points = np.zeros(1) if zero is None else numbers_of(zero).astype(np.int64)
    points = along_axis(quantized, points, array.ndim)
    low, high = (0, 255) if kind_of(quantized) == UINT8 else (-128, 127)
    steps = np.clip(np.rint(array / scale) + points, low, high) - points
    made_of: NDArray[Any] = (steps * scale).astype(np.float32)
    return made_of
