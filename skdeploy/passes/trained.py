"""Graphs that carry Q/DQ of their own, from training with quantization: as TensorRT takes them, and without them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from skdeploy.core.errors import ExportError, PassError
from skdeploy.ir.constants import constant, drop_unused, known, named_constant, numbers
from skdeploy.ir.nodes import maker, new_node, operand, optional
from skdeploy.ir.qdq import DEQUANTIZE, QUANTIZE, is_qdq, qdq_nodes
from skdeploy.ir.qdq_constants import INT8, UINT8, along_axis, dequantized, is_constant, kind_of, numbers_of
from skdeploy.ir.rows import WEIGHTED, output_axis
from skdeploy.passes.zero_points import MIDDLE, CentreQDQ, can_be_centred

BIAS: Final = 2
ANEW: Final = "or give the network without Q/DQ and let skdeploy quantize it: --int8 --calib"
# What makes the tool at hand write symmetric int8. The names of nodes tell the tool, in the releases of 2026: of the file's
# metadata only ONNX Runtime leaves any. Each was tried, with the release in brackets.
TORCH: Final = (
    "quantize with symmetric int8: QuantizationSpec(dtype=torch.int8, qscheme=torch.per_tensor_symmetric, quant_min=-128, "
    "quant_max=127) of torchao's pt2e, or FakeQuantize with dtype=torch.qint8 and that qscheme"
)  # [torchao 0.18, torch 2.13]
ONNX_RUNTIME: Final = (
    "quantize_static(..., activation_type=QuantType.QInt8, weight_type=QuantType.QInt8, "
    'extra_options={"ActivationSymmetric": True, "WeightSymmetric": True})'
)  # [1.32]
NNCF: Final = "quantize with nncf.quantize(model, dataset) and no other type: its uint8 and int8 are taken"  # [3.4]


class SymmetricQDQ(ir.passes.InPlacePass):
    """Brings the Q/DQ of a file to the form that TensorRT takes, with the same numbers. What is legal, and what is refused:

    1. int8 with zero point 0 stays. A zero point that is left out, of int8 integers, is written down.
    2. uint8 with zero point 128 becomes int8 with zero point 0: all integers are 128 less, and so is the range.
    3. A bias that is dequantized, from int32 or int8, becomes the float constant that it stands for: kernels add biases in
       float or int32, and TensorRT's parser refuses int32 in a DequantizeLinear.
    4. An activation with another zero point is shifted, so that int8 with zero point 0 has the same integers less a constant
       (``zero_points.py``). ``centred``: which.
    5. All else is refused, with the node: other zero points of weights, other types, scales that are computed, not positive, or
       many for an activation.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.centred: tuple[str, ...] = ()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        for node in list(graph):
            if node.op_type == DEQUANTIZE and _is_bias(node) and is_constant(operand(node, 0)):
                _replace(graph, node, dequantized(node))
        centring = CentreQDQ()
        centring(model)
        self.centred = tuple(centring.centred)
        for node in list(graph):
            if is_qdq(node):
                _check(node, self.path)
                _make_symmetric(graph, node)
        drop_unused(graph)
        return ir.passes.PassResult(model, modified=True)


class IntegerWeights(ir.passes.InPlacePass):
    """A float constant that is quantized becomes its integers: the QuantizeLinear is computed here, as ONNX defines it."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph, before = model.graph, len(model.graph)
        for node in list(graph):
            if node.op_type == QUANTIZE and is_constant(operand(node, 0)):
                scale = along_axis(node, numbers(operand(node, 1)), numbers(operand(node, 0)).ndim)
                steps = np.rint(numbers(operand(node, 0)).astype(np.float32) / scale)
                _replace(graph, node, np.clip(steps, -128, 127).astype(np.int8))
        drop_unused(graph)
        return ir.passes.PassResult(model, modified=len(graph) != before)


class WithoutQDQ(ir.passes.InPlacePass):
    """The float network that was trained: what is quantized and dequantized passes as it is."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        for node in list(graph):
            if node.op_type != DEQUANTIZE:
                continue
            source = operand(node, 0)
            if is_constant(source):
                _replace(graph, node, dequantized(node))
                continue
            quantized = maker(source)
            if quantized is None or quantized.op_type != QUANTIZE:
                raise PassError(
                    f"the node {node.name} dequantizes what {quantized.name if quantized else 'the input'} makes, which is not "
                    "a QuantizeLinear: there is no network without them",
                    advice="export each QuantizeLinear with its DequantizeLinear right behind it",
                )
            _bypass(graph, node, operand(quantized, 0))
        for node in list(graph):
            if node.op_type == QUANTIZE and not node.outputs[0].uses():
                graph.remove(node, safe=True)
        drop_unused(graph)
        return ir.passes.PassResult(model, modified=True)


def scales_in(model: ir.Model) -> frozenset[tuple[float, ...]]:
    """The scales of all Q/DQ, exactly."""
    scales = [numbers(operand(node, 1)).astype(np.float64) for node in qdq_nodes(model)]
    return frozenset(tuple(scale.reshape(-1).tolist()) for scale in scales)


def require_same_scales(before: ir.Model, after: ir.Model) -> None:
    """Raises PassError unless both graphs have the same scales, to the last bit."""
    lost, new = scales_in(before) - scales_in(after), scales_in(after) - scales_in(before)
    if lost or new:
        raise PassError(
            f"{len(lost)} scales of the file are gone and {len(new)} are new: the first is {next(iter(lost or new))[0]:.9g}",
            advice="please report the model",
        )


def _bypass(graph: ir.Graph, node: ir.Node, source: ir.Value) -> None:
    """Let the node's consumers read ``source``; an output of the graph keeps its name."""
    made = node.outputs[0]
    if made.is_graph_output():
        name, made.name = made.name or "", f"{made.name}_dequantized"
        output = new_node("Identity", [source], name, made.shape)
        graph.insert_before(node, [output])
        graph.outputs[graph.outputs.index(made)] = output.outputs[0]
    made.replace_all_uses_with(source)
    graph.remove(node, safe=True)


def check_known(model: ir.Model, path: Path) -> None:
    """Raises ExportError for Q/DQ that ``SymmetricQDQ`` refuses, by the names of the file, where nothing must be computed."""
    for node in qdq_nodes(model):
        constants = [known(value) for value in node.inputs[1:] if value is not None]
        if all(array is not None for array in constants) and kind_of(node) is not None and not _is_bias(node):
            _check(node, path)


def _check(node: ir.Node, path: Path) -> None:
    """Raises ExportError for a node that TensorRT does not take, and that ``CentreQDQ`` does not shift."""
    shown = f"{path}: the node {node.name or node.outputs[0].name} ({node.op_type})"
    scale = known(node.inputs[1])
    if scale is None:
        raise ExportError(
            f"{shown} computes its scale {operand(node, 1).name}", advice="export it with constant scales"
        )
    if node.attributes.get_int("block_size", 0):
        raise ExportError(
            f"{shown} has a scale a block; skdeploy deploys INT8 per tensor and per channel", advice=_symmetric(node)
        )
    if not bool((np.isfinite(scale) & (scale > 0)).all()):
        raise ExportError(
            f"{shown} has a scale of {scale.min():.4g}: TensorRT takes positive ones",
            advice="calibrate or train longer: a channel that is always zero has no range; any positive scale suits it",
        )
    if scale.dtype != np.float32:
        raise ExportError(
            f"{shown} has scales of {scale.dtype}", advice="export the network in float32: --int8 makes FP16 of it"
        )
    if scale.size > 1 and node.op_type == QUANTIZE and not is_constant(operand(node, 0)):
        raise ExportError(
            f"{shown} has {scale.size} scales for the activation {operand(node, 0).name}: TensorRT takes one",
            advice="train with one scale per activation tensor; weights may have one a channel",
        )
    _check_axis(node, scale, shown)
    kind, zero = kind_of(node), optional(node, 2)
    points = np.zeros(1, np.int8) if zero is None else known(zero)
    if points is None:
        raise ExportError(f"{shown} computes its zero point", advice="export it with constant zero points")
    if kind not in (INT8, UINT8):
        raise ExportError(
            f"{shown} has type {kind.name if kind else 'unknown'}; skdeploy deploys int8", advice=_symmetric(node)
        )
    if can_be_centred(node):
        return
    wanted = MIDDLE if kind == UINT8 else 0
    if bool((points != wanted).any()):
        found = int(points.reshape(-1)[int(np.argmax(points.reshape(-1) != wanted))])
        raise ExportError(
            f"{shown} has zero point {found} of {kind.name.lower()}, which TensorRT refuses: it takes int8 with zero point 0, "
            "and uint8 with 128 is the same",
            advice=_symmetric(node),
        )


def _symmetric(node: ir.Node) -> str:
    """Say what to do about Q/DQ of another kind, by the tool that wrote the node."""
    name = node.name or ""
    if name.startswith(("QuantizeLinear_", "DequantizeLinear_")):
        return f"{NNCF}, {ANEW}"
    ours = name.endswith(("_QuantizeLinear", "_DequantizeLinear", "_QuantizeLinear_Q"))
    return f"{ONNX_RUNTIME if ours else TORCH}; {ANEW}"


def _check_axis(node: ir.Node, scale: NDArray[Any], shown: str) -> None:
    """A weight's scales go with its output channels, which a sum of products has one of: no INT8 kernel takes others. Of a
    transposed convolution NVIDIA's own tools write one an input channel (``quant/weights.py``): what it runs as is TensorRT's.
    """
    if scale.size == 1:
        return
    for reader, index in node.outputs[0].uses():
        if index != 1 or reader.op_type not in WEIGHTED or reader.op_type == "ConvTranspose":
            continue
        shape = operand(node, 0).shape
        axis = node.attributes.get_int("axis", 1) % (len(shape) if shape is not None else 2)
        if axis != output_axis(reader):
            raise ExportError(
                f"{shown} has scales along axis {axis} of the weight of {reader.name or reader.outputs[0].name}, whose output "
                f"channels are along axis {output_axis(reader)}: no INT8 kernel takes that",
                advice="train with one scale per output channel of a weight, or one for all of it",
            )


def _make_symmetric(graph: ir.Graph, node: ir.Node) -> None:
    data, scale = operand(node, 0), numbers_of(node.inputs[1])
    if scale.size == 1:
        scale = scale.reshape(())
    unsigned = kind_of(node) == UINT8
    node.resize_inputs(3)
    node.replace_input_with(1, constant(graph, f"{node.name}_scale", scale))
    node.replace_input_with(2, constant(graph, f"{node.name}_zero_point", np.zeros(scale.shape, np.int8)))
    if "output_dtype" in node.attributes:
        del node.attributes["output_dtype"]
    if node.op_type == QUANTIZE:
        node.outputs[0].type = ir.TensorType(INT8)
    elif unsigned and is_constant(data):
        shifted = (numbers_of(data).astype(np.int16) - MIDDLE).astype(np.int8)
        node.replace_input_with(0, constant(graph, f"{node.name}_int8", shifted))
    elif unsigned and data.dtype == UINT8:  # moved in between by an operator that gives what it reads
        _retype(data)


def _retype(value: ir.Value) -> None:
    node = maker(value)
    while node is not None and not is_qdq(node) and value.dtype == UINT8:
        value.type = ir.TensorType(INT8)
        value = operand(node, 0)
        node = maker(value)


def _is_bias(node: ir.Node) -> bool:
    uses = node.outputs[0].uses()
    return bool(uses) and all(use.node.op_type in WEIGHTED and use.idx == BIAS for use in uses)


def _replace(graph: ir.Graph, node: ir.Node, array: NDArray[Any]) -> None:
    """A constant in place of a node that makes one."""
    old = node.outputs[0]
    name = old.name or ""
    old.name = f"{name}_computed"
    made = named_constant(graph, name, array)
    old.replace_all_uses_with(made)
    graph.remove(node, safe=True)
