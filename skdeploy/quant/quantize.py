"""An FP32 graph and its ranges to an INT8 graph: the order of the passes, and what each is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from skdeploy.errors import CalibrationError
from skdeploy.graph.constants import array_of, constant
from skdeploy.graph.equalize import equalize, rows_first
from skdeploy.graph.exact_input import PIXEL_STEP, PIXELS, PixelShift, PixelSteps, normalised_image, pixel_slope
from skdeploy.graph.naming import module_of
from skdeploy.graph.placement import Placement, place
from skdeploy.graph.qdq import INT8_MIN, InsertQDQ, QuantizedWeight
from skdeploy.graph.shift import ShiftTensors, shiftable
from skdeploy.quant.ranges import CALIBRATE, Algorithm, Ranges
from skdeploy.quant.thresholds import SHIFTED, SYMMETRIC
from skdeploy.quant.weights import dequantized, half_scale, mean_change, quantize_weight
from skdeploy.spec import ModelSpec

IMAGE: Final = "input"  # what a ranges file calls the normalised image, whether or not the graph makes it itself
CORRECTED: Final = frozenset({"Conv", "Gemm"})  # operators with a bias to correct
LARGEST_SCALE: Final = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Quantized:
    """An INT8 graph, its other numbers still FP32, and what was done. ``offsets`` are those of the shifted tensors."""

    model: ir.Model
    placement: Placement
    scales: dict[str, float]
    offsets: dict[str, float] = field(default_factory=dict)


def prepare(
    model: ir.Model,
    spec: ModelSpec,
    algorithm: Algorithm,
    channel_maxima: Mapping[str, NDArray[np.float32]] | None = None,
) -> ir.Model:
    """A copy of the FP32 graph with the same function and better ranges: what is calibrated, and then quantized.

    ``channel_maxima``, by the names of a ranges file, are needed to equalize.
    """
    prepared = model.clone()
    if algorithm.equalize and channel_maxima is not None:
        equalize(prepared, {_in_graph(prepared, name): maxima for name, maxima in channel_maxima.items()})
    if algorithm.exact_input:
        PixelSteps(spec.preprocess)(prepared)
    return prepared


def ranged_tensors(model: ir.Model, placement: Placement) -> dict[str, str]:
    """The tensors of a placement by the names of a ranges file, each with its name in the graph; pixels need no range."""
    image = normalised_image(model.graph).name
    return {IMAGE if name == image else name: name for name in placement.tensors if name != PIXELS}


def quantize(
    model: ir.Model, spec: ModelSpec, ranges: Ranges, keep: tuple[str, ...] = (), *, keep_grouped: bool = False
) -> Quantized:
    """The INT8 graph of an FP32 graph. ``keep`` and ``keep_grouped``: see ``place``.

    Raises CalibrationError for ranges of another network or preprocessing, or without a tensor that is to be quantized;
    UsageError for a pattern that matches no module.
    """
    algorithm = ranges.algorithm
    ranges.check_belongs(model, spec)
    prepared = prepare(model, spec, algorithm, _maxima(ranges, model) if algorithm.equalize else None)
    placement = place(prepared, keep, keep_grouped=keep_grouped)
    if (
        algorithm.exact_input and PIXELS not in placement.readers
    ):  # the first convolution is kept: its input stays as it was
        algorithm = algorithm.model_copy(update={"exact_input": False})
        prepared = prepare(model, spec, algorithm, _maxima(ranges, model) if algorithm.equalize else None)
        placement = place(prepared, keep, keep_grouped=keep_grouped)
    names = ranged_tensors(prepared, placement)
    ranges.check_covers(names)
    if not placement.weighted:
        raise CalibrationError(
            "nothing is left to be INT8: every convolution and the classifier stay in the fallback",
            advice="keep fewer modules, or export with --fp16",
        )
    shifted = set(shiftable(prepared, placement)) if algorithm.shift else set()
    scales: dict[str, float] = {PIXELS: PIXEL_STEP} if PIXELS in placement.readers else {}
    offsets: dict[str, float] = {}
    for key, name in names.items():
        found = ranges.tensors[key]
        if name in shifted and found.shifted_threshold is not None:
            scales[name] = _half(found.shifted_threshold / SHIFTED, key)
            offsets[name] = -INT8_MIN * scales[name]
        else:
            scales[name] = _half(found.threshold / SYMMETRIC, key)
    weights = _round_weights(prepared, placement, ranges, spec)
    PixelShift(spec.preprocess)(prepared)
    ShiftTensors(placement, offsets)(prepared)
    InsertQDQ(placement, scales, weights)(prepared)
    return Quantized(prepared, placement, scales, offsets)


def _round_weights(
    model: ir.Model, placement: Placement, ranges: Ranges, spec: ModelSpec
) -> dict[str, QuantizedWeight]:
    """Rounds the weights in the graph, corrects the biases, and gives the integers."""
    nodes = {node.name or "": node for node in model.graph}
    weights: dict[str, QuantizedWeight] = {}
    for name in placement.weighted:
        node = nodes[name]
        old = node.inputs[1]
        assert old is not None  # placed
        weight = weights[name] = quantize_weight(node, least_error=ranges.algorithm.weight_scales == "mse")
        rounded = dequantized(weight)
        error = array_of(old) - rounded
        shared = len(old.uses()) > 1  # a constant of the same name would take the place of the first reader's
        node.replace_input_with(
            1, constant(model.graph, f"{old.name}_rounded" + (f"_of_{name}" if shared else ""), rounded)
        )
        if ranges.algorithm.bias_correction and node.op_type in CORRECTED:
            correction = mean_change(node, error, _input_mean(node, ranges, spec))
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            corrected = (0.0 if bias is None else array_of(bias)) + correction
            node.resize_inputs(3)
            node.replace_input_with(2, constant(model.graph, f"{name}_bias", corrected.astype(np.float32)))
    return weights


def corrected_tensors(model: ir.Model) -> dict[str, str]:
    """The tensors of a prepared graph whose channel means correct biases: by the names of a ranges file, as in the graph."""
    image = normalised_image(model.graph).name or ""
    nodes = {node.name or "": node for node in model.graph}
    found: dict[str, str] = {}
    for name in place(model).weighted:
        read = nodes[name].inputs[0]
        assert read is not None  # placed
        if nodes[name].op_type in CORRECTED:
            source = read.name or ""
            found.update({IMAGE: image} if source in (PIXELS, image) else {source: source})
    return found


def _input_mean(node: ir.Node, ranges: Ranges, spec: ModelSpec) -> NDArray[np.float32]:
    """The mean of each input channel, (I,), in the graph as prepared. Raises CalibrationError if it is not in the file."""
    assert node.inputs[0] is not None  # placed
    assert isinstance(node.graph, ir.Graph)  # no function
    name = node.inputs[0].name or ""
    key = IMAGE if name in (PIXELS, normalised_image(node.graph).name) else name
    weight = node.inputs[1]
    assert weight is not None  # placed
    assert weight.shape is not None  # an initializer
    groups = node.attributes.get_int("group", 1) if node.op_type == "Conv" else 1
    channels = rows_first(node, array_of(weight)).shape[1] * groups
    found = ranges.channel_means.get(key, ())
    if len(found) != channels:
        raise CalibrationError(
            f"the ranges have {len(found)} channel means for {key!r}, and {node.name} reads {channels} channels",
            advice=CALIBRATE,
        )
    mean = np.asarray(found, np.float32)
    return (mean / pixel_slope(spec.preprocess)).astype(np.float32) if name == PIXELS else mean


def _maxima(ranges: Ranges, model: ir.Model) -> dict[str, NDArray[np.float32]]:
    """The channels' maxima as arrays. Raises CalibrationError unless they are those of the graph's tensors and channels."""
    values = {value.name: value for node in model.graph for value in node.outputs}
    values[IMAGE] = normalised_image(model.graph)
    wanted = ranged_tensors(model, place(model))
    for key in {**wanted, **ranges.channel_maxima}:
        shape = values[key].shape if key in values else None
        channels = shape[1] if shape is not None and key in wanted else 0
        found = len(ranges.channel_maxima.get(key, ()))
        if found != channels:
            raise CalibrationError(
                f"the ranges have {found} channel maxima for {key!r}, and the graph of {ranges.model} "
                f"quantizes {channels} channels of it",
                advice=CALIBRATE,
            )
    return {key: np.asarray(maxima, np.float32) for key, maxima in ranges.channel_maxima.items()}


def _in_graph(model: ir.Model, name: str) -> str:
    return normalised_image(model.graph).name or "" if name == IMAGE else name


def _half(scale: float, tensor: str) -> float:
    if scale > LARGEST_SCALE:
        raise CalibrationError(
            f"{tensor} has values up to {127 * scale:.3g}: its INT8 step of {scale:.3g} is above FP16's largest number",
            advice=f"keep the modules that read it out of INT8: --int8-keep {module_of(tensor)!r}",
        )
    return float(half_scale(np.asarray(scale)))


def equalized(model: ir.Model, spec: ModelSpec, ranges: Ranges) -> ir.Model:
    """The FP32 graph that the symmetric ranges are those of, and nothing else changed: for weakly typed builds."""
    maxima = {name: np.asarray(values, np.float32) for name, values in ranges.channel_maxima.items()}
    ranges.check_belongs(model, spec, ())
    return prepare(model, spec, ranges.algorithm.model_copy(update={"exact_input": False}), maxima)


def scales_in_graph(model: ir.Model, ranges: Ranges) -> dict[str, float]:
    """The symmetric scales by the graph's own names."""
    return {_in_graph(model, name): scale for name, scale in ranges.scales.items()}
