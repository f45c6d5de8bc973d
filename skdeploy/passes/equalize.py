"""Channels of equal size before INT8: one scale a tensor then fits them all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from skdeploy.ir.channels import ChannelClasses, channel_classes, makes_channels
from skdeploy.ir.constants import array_of, constant, weight_of
from skdeploy.ir.nodes import only_one_reads, operand, optional
from skdeploy.ir.rows import along_inputs, along_outputs, groups_of, rows_first
from skdeploy.ir.statistics import gate_nodes

Factors = NDArray[np.float64]

# How much of the difference between a channel's weights is taken over by its activations. From 0 (activations all equal) to 1
# (weights all equal); of 0, 1/4 and 1/2 the second was best on sknet-fashion: 37.1, 37.8 and 37.2 dB.
WEIGHT_SHARE: Final = 0.25

# A channel that is silent on the calibration images is not raised to the loudest: it may not be silent elsewhere.
MOST: Final = 2.0**10

# No channel is raised so far that one of its tensors leaves FP16: a ReLU may silence what is large before it. ``headroom.py``
# wants twice the largest value below 65504, and other images than those measured may reach twice as far.
FARTHEST: Final = 65504.0 / 4


class ScaleChannels(ir.passes.InPlacePass):
    """Multiplies each channel class by a positive factor and divides it out again where the channels are read. FP32 to FP32.

    The algebra, for a factor s_c > 0 of channel c:

    * A convolution that makes channel c has row c of its weight, and its bias, multiplied by s_c; one that reads it has column
      c divided. Both are exact but for float32's rounding.
    * Between them, only operators with f(s x) = s f(x) for s > 0, on each channel alone: ReLU, max and average pooling, means
      over space; x + y and x - y if both have the same factor.
    * Select commutes too: with U_m scaled alike for all branches m, sum_m a_m s_c U_m = s_c sum_m a_m U_m. The gate must see
      what it saw before: s = mean(sum_m U_m) is scaled by s_c, and column c of its first FC divided. So a is unchanged.

    ``channel_classes`` finds which channels must have one factor; a class that it declares fixed has factor 1 here.
    """

    def __init__(self, classes: ChannelClasses, factors: Factors) -> None:
        super().__init__()
        self.classes = classes
        self.factors = np.where(classes.fixed, 1.0, factors)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for node in model.graph:
            if not makes_channels(node):
                continue
            weight, bias = weight_of(node), optional(node, 2)
            rows, columns = rows_first(node, weight).shape[:2]
            made = self._factors(node.outputs[0], rows)
            read = self._factors(operand(node, 0), columns * groups_of(node))
            scaled = weight / along_inputs(node, weight.shape, read) * along_outputs(node, weight.shape, made)
            _replace(node, 1, scaled)
            if bias is not None:
                _replace(node, 2, array_of(bias) * made)
        return ir.passes.PassResult(model, modified=bool((self.factors != 1).any()))

    def _factors(self, value: ir.Value, channels: int) -> Factors:
        ids = self.classes.of.get(value.name or "")
        return np.ones(channels) if ids is None else self.factors[ids]


def equalize(
    model: ir.Model,
    channel_maxima: Mapping[str, NDArray[np.float32]],
    channel_reach: Mapping[str, NDArray[np.float32]] | None = None,
) -> None:
    """Cross-layer equalization, in place (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
    Correction", ICCV 2019, section 4.1, with the activations' ranges measured on images instead of derived from the weights).

    ``channel_maxima``: the largest magnitude of each channel (C,), for the tensors that will be quantized. First every channel
    is scaled so that its maximum is the usual one of its tensor; a class in several tensors follows the one where it is
    largest. How channels then compare does not depend on how the network's channels were scaled before, but for those that are
    silent or more than ``MOST`` below the usual. Then a quarter of what the weights differ by (in log terms) is given back to
    the activations, since the weights must fit one scale a row too.

    ``channel_reach``: the same as ``channel_maxima`` of the tensors beside, such as those before a ReLU. No channel is raised
    beyond ``FARTHEST`` in any of them; one that is there already is not raised.
    """
    classes = channel_classes(model)
    factors = _to_equal_maxima(classes, channel_maxima)
    ScaleChannels(classes, np.minimum(factors, _most(classes, {**channel_maxima, **(channel_reach or {})})))(model)
    ScaleChannels(classes, _weight_strength(model, classes) ** WEIGHT_SHARE)(model)


def _to_equal_maxima(classes: ChannelClasses, channel_maxima: Mapping[str, NDArray[np.float32]]) -> Factors:
    """The inverse of each class's size: its largest magnitude, relative to the usual one of the tensor where that is most.

    Relative to the geometric mean over the tensor's channels: a factor on any one of them moves all by the same, in every
    tensor with these channels, so what is largest stays largest. Most, and not some mean over tensors: a channel that ReLU
    all but silences in one tensor may be as large as the others in another, and would set the range of that one if raised.
    """
    size = np.zeros(classes.count)
    for name, maxima in channel_maxima.items():
        alive = maxima > 0
        if name in classes.of and alive.any():
            usual = np.exp(np.log(maxima[alive].astype(np.float64)).mean())
            np.maximum.at(size, classes.of[name], maxima.astype(np.float64) / usual)
    return np.where(size > 0, 1 / np.maximum(size, 1 / MOST), 1.0)


def bounding(
    model: ir.Model,
    channel_maxima: Mapping[str, NDArray[np.float32]],
    channel_reach: Mapping[str, NDArray[np.float32]],
) -> frozenset[str]:
    """The tensors of ``channel_reach`` that keep some channel from being raised: all others need not be remembered."""
    classes = channel_classes(model)
    factors = np.where(classes.fixed, 1.0, _to_equal_maxima(classes, channel_maxima))
    return frozenset(
        name
        for name, reach in channel_reach.items()
        if name in classes.of and (factors > np.maximum(1.0, _most(classes, {name: reach}))).any()
    )


def _most(classes: ChannelClasses, channel_reach: Mapping[str, NDArray[np.float32]]) -> Factors:
    """The largest factor of each class, at least 1: lowering a channel is never wrong for FP16's upper end."""
    reach = np.zeros(classes.count)
    for name, maxima in channel_reach.items():
        if name in classes.of:
            np.maximum.at(reach, classes.of[name], maxima.astype(np.float64))
    return np.maximum(1.0, FARTHEST / np.maximum(reach, FARTHEST / np.finfo(np.float32).max))


def _weight_strength(model: ir.Model, classes: ChannelClasses) -> Factors:
    """For each class, the largest weight that reads it, relative to the largest in its row; 1 where nothing does."""
    strength = np.zeros(classes.count)
    gates = gate_nodes(model)
    for node in model.graph:
        name = operand(node, 0).name if makes_channels(node) else None
        if name not in classes.of or node.name in gates:
            continue
        by_row = np.abs(rows_first(node, weight_of(node)))
        taps = by_row.reshape(*by_row.shape[:2], -1).max(axis=2)
        relative = taps / np.maximum(taps.max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
        columns = relative.reshape(groups_of(node), -1, relative.shape[1]).max(axis=1).reshape(-1)
        np.maximum.at(strength, classes.of[name], columns)
    return np.where(strength > 0, np.maximum(strength, 1 / MOST), 1.0)


def _replace(node: ir.Node, index: int, array: NDArray[np.float64]) -> None:
    """Another constant as an input, for this node alone: others may share the old one."""
    old = operand(node, index)
    if only_one_reads(old):
        old.const_value = ir.Tensor(array.astype(np.float32), name=old.name)
        old.shape = ir.Shape(array.shape)
        return
    assert isinstance(node.graph, ir.Graph)  # a function of a model has no constants of its own
    node.replace_input_with(index, constant(node.graph, f"{old.name}_of_{node.name}", array.astype(np.float32)))
