"""8-bit pixels as 8-bit integers: the network's input is quantized without any error."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from skdeploy.core.patterns import module_of
from skdeploy.core.spec import Preprocess
from skdeploy.ir.constants import add_to_bias, constant, drop_unused, free_name, numbers, weight_of
from skdeploy.ir.nodes import new_node, operand
from skdeploy.ir.placement import weighted_reason
from skdeploy.ir.rows import WEIGHTED
from skdeploy.passes.preprocess import MODULE as PREPROCESS

MODULE: Final = "pixels"  # of the nodes that this makes
PIXELS: Final = f"{MODULE}/centred"
PIXEL_STEP: Final = 2.0**-7  # a power of two, so FP16 holds it and every multiple of it up to 256 exactly
MIDDLE: Final = 128


class PixelSteps(ir.passes.InPlacePass):
    """Feeds the first convolution (p / 255 - mean) * 255 / 128 instead of the normalised image: FP32 to FP32, same function.

    The first of two halves. A normalised image x = (p / 255 - mean) / std takes 256 values, for some 200 of which symmetric
    INT8 around the mean has levels. (p - 128) / 128 has exactly the 256 levels of INT8 at a step of 2^-7. Here x is scaled to
    that step, channel by channel, and the weight takes the inverse up; ``PixelShift`` does the rest once weights are rounded.
    The zeros of the convolution's padding are zeros of x, and a shift would change them: so x is padded before, and the
    convolution pads no more.

    For inputs that are no 8-bit pixels, the levels are as good as any for the range of pixels.

    Others than layers, such as the sum of a network that corrects its input, go on reading the image as it is.

    Declines, and ``declined`` says why, where the layers that read the input are not one plain convolution, or the card's
    preprocessing has another number of channels.
    """

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.declined = ""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        value = normalised_image(graph)
        self.declined = _reason_to_decline(graph, value, len(self.preprocess.std))
        if self.declined:
            return ir.passes.PassResult(model, modified=False)
        (node,) = _layers_of(value)
        slope = pixel_slope(self.preprocess)
        assert value.shape is not None  # of an admitted graph
        shape = list(value.shape)
        top, left, bottom, right = node.attributes.get_ints("pads", [0, 0, 0, 0])
        if top or left or bottom or right:
            amounts = constant(graph, f"{PIXELS}_pads", np.array([0, 0, top, left, 0, 0, bottom, right], np.int64))
            for axis, added in ((2, top + bottom), (3, left + right)):
                size = shape[axis]
                if added:
                    shape[axis] = size + added if isinstance(size, int) else _padded(size, added)
            value = _inserted(graph, node, "Pad", [value, amounts], f"{MODULE}/pad", shape)
        scale = constant(graph, f"{PIXELS}_slope", (1 / slope).astype(np.float32).reshape(1, -1, 1, 1))
        pixels = _inserted(graph, node, "Mul", [value, scale], PIXELS, shape)
        weight = weight_of(node) * slope[None, :, None, None]
        node.replace_input_with(1, constant(graph, f"{node.name}_weight", weight.astype(np.float32)))
        node.replace_input_with(0, pixels)
        node.attributes["pads"] = ir.AttrInt64s("pads", [0, 0, 0, 0])
        drop_unused(graph)
        return ir.passes.PassResult(model, modified=True)


class PixelShift(ir.passes.InPlacePass):
    """Makes (p - 128) / 128 of what ``PixelSteps`` left, and the bias make up for it. FP32 to FP32, the same function.

    With v the scaled pixels and o = (128 - 255 mean) / 128, channel by channel: W v = W (v - o) + sum(W o). It comes after the
    weights have been rounded, so that the sum is over the weights that multiply: their error then meets v, as before, and not
    the larger v - o.
    """

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.preprocess = preprocess

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        value = ir.convenience.create_value_mapping(graph, include_subgraphs=False).get(PIXELS)
        if value is None:
            return ir.passes.PassResult(model, modified=False)
        node, scaling = value.consumers()[0], value.producer()
        assert value.shape is not None  # PixelSteps gave it one
        assert scaling is not None  # PixelSteps' own
        offset = (MIDDLE - 255 * np.asarray(self.preprocess.mean, np.float64)) / MIDDLE
        value.name = scaling.name = free_name(graph, f"{MODULE}/steps")
        change = constant(graph, f"{PIXELS}_offset", (-offset).astype(np.float32).reshape(1, -1, 1, 1))
        node.replace_input_with(0, _inserted(graph, node, "Add", [value, change], PIXELS, list(value.shape)))
        add_to_bias(graph, node, np.einsum("oikl,i->o", weight_of(node), offset))
        drop_unused(graph)
        return ir.passes.PassResult(model, modified=True)


def _reason_to_decline(graph: ir.Graph, value: ir.Value, channels: int) -> str:
    layers = _layers_of(value)
    node = layers[0] if len(layers) == 1 else None
    if node is None or node.op_type != "Conv" or weighted_reason(node) or list(node.inputs).index(value) != 0:
        return "the layers that read the input are not one convolution with constant weights"
    shape = numbers(operand(node, 1)).shape
    if len(shape) != 4 or shape[1] != channels:
        return f"the first convolution is not one of images of {channels} channels"
    if PIXELS in ir.convenience.create_value_mapping(graph, include_subgraphs=False):
        return f"the graph already has a tensor {PIXELS}"
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET" or node.attributes.get_int("group", 1) != 1:
        return "the first convolution is grouped, or chooses its own padding"
    return ""


def _layers_of(value: ir.Value) -> list[ir.Node]:
    """The layers among a tensor's readers."""
    return [node for node in value.consumers() if node.op_type in WEIGHTED]


def pixel_slope(preprocess: Preprocess) -> NDArray[np.float64]:
    """The divisor, (C,), that turns a normalised image into steps of 2^-7 of a pixel."""
    return MIDDLE / (255 * np.asarray(preprocess.std, np.float64))


def normalised_image(graph: ir.Graph) -> ir.Value:
    """The normalised image: the input, or what embedded preprocessing makes of it."""
    value = graph.inputs[0]
    if value.dtype != ir.DataType.UINT8:
        return value  # nothing is embedded, and a module of the network's own may be called as ours is
    while len(value.uses()) == 1 and module_of((node := value.consumers()[0]).name) == PREPROCESS:
        value = node.outputs[0]
    return value


def _padded(size: ir.SymbolicDim, added: int) -> ir.SymbolicDim:
    return ir.SymbolicDim(None if size.value is None else f"{size.value} + {added}")


def _inserted(
    graph: ir.Graph,
    before: ir.Node,
    operator: str,
    inputs: list[ir.Value],
    name: str,
    shape: list[int | ir.SymbolicDim],
) -> ir.Value:
    node = new_node(operator, inputs, name if name == PIXELS else free_name(graph, name), shape)
    graph.insert_before(before, [node])
    return node.outputs[0]
