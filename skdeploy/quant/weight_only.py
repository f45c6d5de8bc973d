"""Weights alone as INT8: a DequantizeLinear before each layer, which goes on computing in the precision beside it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import prod
from typing import Final

import onnx_ir as ir

from skdeploy.core.errors import UsageError
from skdeploy.core.patterns import module_of, modules_matched
from skdeploy.ir.constants import drop_unused, weight_of
from skdeploy.ir.nodes import FLOAT32, operand
from skdeploy.ir.qdq import QuantizedWeight, dequantize_weight
from skdeploy.ir.rows import CONVOLUTIONS, output_axis
from skdeploy.quant.macs import is_layer
from skdeploy.quant.quantize import require_no_scales
from skdeploy.quant.weights import quantize_weight, raised_rows

# A channel has a scale of two bytes and a zero point of one: with three weights or fewer, INT8 would be larger than FP16.
FEWEST: Final = 4
SCALE_BYTES: Final = 3

# A plan of TensorRT-RTX 1.7.1 grows by that, beside its weights, for each layer that reads INT8 weights: its kernels are
# larger. Measured: 64 kB for sknet-fashion's 41 layers, 73 kB for skresnet-digits' 29. Layers of every kind cost it: 66 kB in a
# gate, 34 kB in a branch, 79 kB for a 1x1 convolution. SKNet-50 saves 27 MB of weights, and its plan shrinks by 23 MB.
KERNEL_BYTES: Final = 65_000


@dataclass(frozen=True)
class NarrowWeights:
    """A graph whose weights are INT8, its other numbers still FP32.

    ``weighted`` are the layers that read INT8 weights, ``kept`` those that do not, each with the reason. ``raised``: for each
    layer with output channels whose steps FP16 does not hold, how many. Bytes are those of the weights, as they would be in
    the precision beside INT8 and as they are, scales and zero points included.
    """

    model: ir.Model
    weighted: tuple[str, ...]
    kept: dict[str, str]
    raised: dict[str, int]
    bytes_before: int
    bytes_after: int


def narrow_weights(
    model: ir.Model, keep: Collection[str] = (), keep_fp32: Collection[str] = (), *, half: bool = True
) -> NarrowWeights:
    """A copy of an FP32 graph with INT8 weights: of every convolution, transposed convolution, Gemm and MatMul whose weight is
    a constant, with one scale an output channel. Only weights are rounded, so no images are needed.

    A transposed convolution has its scales along axis 1 too, its output channels of a group. Its INT8 kernels would want
    another axis (``weights.py``), but none runs here: the weight is FP16 or FP32 again before it is multiplied.

    ``keep``: modules whose weights stay. ``half``: the graph will be FP16, and so must the scales be, but for the modules of
    ``keep_fp32``.

    Raises UsageError for a pattern that matches no module, and for a graph without any weight to store in INT8;
    CalibrationError for a graph with scales of its own, and for a weight that FP16 has no scale for.
    """
    require_no_scales(model)
    done = model.clone()
    modules = {module_of(node.name) for node in done.graph}
    patterns = modules_matched(keep, modules, "--int8-keep ")
    single = modules_matched(keep_fp32, modules, "--keep-fp32 ")
    made: dict[tuple[ir.Value, int, bool], ir.Value] = {}  # several layers may share a weight
    weighted, kept, raised = [], dict[str, str](), dict[str, int]()
    before = after = 0
    for node in list(done.graph):
        if not is_layer(node):
            continue
        name, module = node.name or "", module_of(node.name)
        reason = f"kept by {patterns[module]!r}" if module in patterns else _reason(node)
        if reason:
            kept[name] = reason
            continue
        narrow = half and module not in single
        key = (operand(node, 1), output_axis(node), narrow)
        if key not in made:
            weight = quantize_weight(node, half=narrow, by_channel=True)
            if narrow and (rows := raised_rows(node, weight_of(node), by_channel=True)):
                raised[name] = rows
            made[key] = dequantize_weight(done.graph, node, weight)
            before += weight.values.size * (2 if narrow else 4)
            after += _size(weight, narrow=narrow)
        node.replace_input_with(1, made[key])
        weighted.append(name)
    if not weighted:
        raise UsageError(_nothing(kept), advice="export without --weight-only, or keep fewer modules")
    drop_unused(done.graph)
    return NarrowWeights(done, tuple(weighted), kept, raised, before, after)


def _reason(node: ir.Node) -> str:
    """Why a layer's weight cannot be INT8, or would be larger; empty if it can."""
    weight = operand(node, 1)
    if weight.dtype != FLOAT32:
        return f"its weight is {weight.dtype}, not float32"
    if node.op_type not in CONVOLUTIONS and len(_shape(node)) != 2:
        return "its weight is not a matrix"
    if (a_channel := _a_channel(node)) < FEWEST:
        return f"{a_channel} weight{'' if a_channel == 1 else 's'} per output channel, so scales would outweigh them"
    return ""


def _a_channel(node: ir.Node) -> int:
    """Weights for each output channel."""
    shape = _shape(node)
    return prod(shape) // max(shape[output_axis(node)], 1)


def _shape(node: ir.Node) -> list[int]:
    weight = operand(node, 1)
    assert weight.shape is not None  # a constant has a shape
    return [int(size) for size in weight.shape]  # type: ignore[arg-type]  # and no open size


def _size(weight: QuantizedWeight, *, narrow: bool) -> int:
    return int(weight.values.size + weight.scales.size * (SCALE_BYTES if narrow else 5))


def saving(model: ir.Model, layers: Collection[str]) -> tuple[int, int]:
    """How many of these layers have weights that are smaller as INT8, and how many bytes less than in FP16 these take."""
    nodes = [node for node in model.graph if node.name in layers and _a_channel(node) >= FEWEST]
    weights = {operand(node, 1): node for node in nodes}
    saved = sum(prod(shape := _shape(node)) - SCALE_BYTES * shape[output_axis(node)] for node in weights.values())
    return len(nodes), saved


def growth_note(layers: int, saved: int) -> tuple[str, ...]:
    """Where the kernels of ``layers`` layers take more of a plan than INT8 weights save, in bytes."""
    if saved >= layers * KERNEL_BYTES:
        return ()
    said = (
        f"INT8 weights save {saved / 1e6:.2f} MB, but in a plan of TensorRT-RTX the kernels that read them take about "
        f"{layers * KERNEL_BYTES / 1e6:.2f} MB more ({KERNEL_BYTES / 1e3:g} kB a layer): the plan is probably larger than that "
        "of --fp16, and only the weights in memory are smaller"
    )
    return (said,)


def _nothing(kept: dict[str, str]) -> str:
    if not kept:
        return "this graph has no convolution or matrix product with constant weights, so nothing can be stored in INT8"
    return f"no weight of this graph would be INT8: {'; '.join(dict.fromkeys(kept.values()))}"
