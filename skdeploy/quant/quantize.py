"""An FP32 graph and its ranges to an INT8 graph: the order of the passes, and what each is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from skdeploy.core import cpu
from skdeploy.core.errors import CalibrationError
from skdeploy.core.patterns import module_of, modules_pattern
from skdeploy.core.spec import ModelSpec
from skdeploy.images.reading import ahead
from skdeploy.ir.channels import channel_classes
from skdeploy.ir.constants import add_to_bias, collected_names, tensor_constant, weight_of
from skdeploy.ir.nodes import operand
from skdeploy.ir.placement import Placement, place
from skdeploy.ir.qdq import INT8_MIN, InsertQDQ, QuantizedWeight, qdq_nodes
from skdeploy.ir.rows import groups_of, rows_first
from skdeploy.passes.equalize import equalize
from skdeploy.passes.exact_input import PIXEL_STEP, PIXELS, PixelShift, PixelSteps, normalised_image, pixel_slope
from skdeploy.passes.shift import ShiftTensors, shiftable, shiftable_groups
from skdeploy.quant.identity import IMAGE, range_names
from skdeploy.quant.methods import Rounding
from skdeploy.quant.observe import MOST_WORKERS
from skdeploy.quant.ranges import CALIBRATE, Algorithm, Ranges, TensorRange
from skdeploy.quant.rounding import with_rounding
from skdeploy.quant.steps import LARGEST_HALF, SILENT, SMALLEST_HALF, rounded_step
from skdeploy.quant.thresholds import SHIFTED, SYMMETRIC, steps_below
from skdeploy.quant.weights import (
    BESIDE_FP32,
    FP32_FALLBACK,
    dequantized,
    mean_change,
    quantize_weight,
    raised_rows,
    weight_not_held,
)

CORRECTED: Final = frozenset({"Conv", "ConvTranspose", "Gemm"})  # operators with a bias to correct


@dataclass(frozen=True)
class Quantized:
    """An INT8 graph, its other numbers still FP32, and what was done. ``offsets`` are those of the shifted tensors.

    ``raised``: for each weight with output channels whose steps FP16 does not hold, how many: they got FP16's smallest.
    """

    model: ir.Model
    placement: Placement
    scales: dict[str, float]
    offsets: dict[str, float] = field(default_factory=dict)
    raised: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundedWeight:
    """A layer's weight as INT8, and the change of each output channel's mean (O,) that its bias makes up for, if it does."""

    weight: QuantizedWeight
    change: NDArray[np.float64] | None


@dataclass
class Shared:
    """The parts that INT8 graphs share whose ranges differ in nothing but the tensors and the rounding of weights.

    ``prepared`` is the graph that all of them quantize, ``nearest`` the weights rounded to nearest, and ``rounded`` the weights
    by the rounding that the ranges ask for. The first graph that needs one makes it.
    """

    prepared: ir.Model
    nearest: Mapping[str, QuantizedWeight] = field(default_factory=dict)
    rounded: dict[Rounding, Mapping[str, RoundedWeight]] = field(default_factory=dict)


def prepare(
    model: ir.Model,
    spec: ModelSpec,
    algorithm: Algorithm,
    channel_maxima: Mapping[str, NDArray[np.float32]] | None = None,
    channel_reach: Mapping[str, Iterable[float]] | None = None,
) -> ir.Model:
    """A copy of the FP32 graph with the same function and better ranges: what is calibrated, and then quantized.

    ``channel_maxima``, by the names of a ranges file, are needed to equalize, and ``channel_reach`` to bound it.
    """
    prepared = model.clone()
    if algorithm.equalize and channel_maxima is not None:
        in_graph = {stable: name for name, stable in range_names(prepared).items()}
        reach = {in_graph[key]: np.asarray(values, np.float32) for key, values in (channel_reach or {}).items()}
        equalize(prepared, {in_graph[key]: maxima for key, maxima in channel_maxima.items()}, reach)
    if algorithm.exact_input and spec.takes_images:
        PixelSteps(spec.preprocess)(prepared)
    return prepared


def prepared_by(model: ir.Model, spec: ModelSpec, ranges: Ranges, algorithm: Algorithm) -> ir.Model:
    """``prepare`` with what a ranges file has for it. Raises CalibrationError where that does not fit the graph."""
    maxima = _maxima(ranges, model) if algorithm.equalize else None
    return prepare(model, spec, algorithm, maxima, _reach(ranges, model))


def placed_by(
    model: ir.Model, algorithm: Algorithm, keep: Iterable[str] = (), *, keep_grouped: bool = False
) -> Placement:
    """``place`` as an algorithm has it."""
    return place(model, keep, keep_grouped=keep_grouped, float_skips=algorithm.float_skips)


def require_no_scales(model: ir.Model) -> None:
    """Raises CalibrationError for a graph that is quantized already."""
    if (node := next(qdq_nodes(model), None)) is not None:
        raise CalibrationError(
            f"the graph is quantized already, with scales of its own: the first is that of {node.name}",
            advice="`skdeploy export --int8` keeps them and needs no calibration; to quantize anew, export it without Q/DQ",
        )


def ranged_tensors(model: ir.Model, placement: Placement) -> dict[str, str]:
    """The tensors of a placement by the names of a ranges file, each with its name in the graph; pixels need no range."""
    names = range_names(model)
    return {names[name]: name for name in placement.tensors if name != PIXELS}


def quantize(
    model: ir.Model,
    spec: ModelSpec,
    ranges: Ranges,
    keep: tuple[str, ...] = (),
    *,
    keep_grouped: bool = False,
    half: bool = True,
    shared: Shared | None = None,
) -> Quantized:
    """The INT8 graph of an FP32 graph. ``keep`` and ``keep_grouped``: see ``place``. ``half``: the rest will be FP16, and so
    must the steps be (``steps.py``). ``shared``: of other ranges that were measured on this graph; nothing is kept out of INT8.

    Raises CalibrationError for ranges of another network or preprocessing, or without a tensor that is to be quantized, or
    with one whose step FP16 does not hold; UsageError for a pattern that matches no module.
    """
    require_no_scales(model)
    algorithm = ranges.algorithm
    if shared is None:
        ranges.check_belongs(model, spec)
    prepared = prepared_by(model, spec, ranges, algorithm) if shared is None else shared.prepared.clone()
    placement = placed_by(prepared, algorithm, keep, keep_grouped=keep_grouped)
    if (
        algorithm.exact_input and PIXELS not in placement.readers
    ):  # the first convolution is kept: its input stays as it was
        algorithm = algorithm.model_copy(update={"exact_input": False})
        prepared = prepared_by(model, spec, ranges, algorithm)
        placement = placed_by(prepared, algorithm, keep, keep_grouped=keep_grouped)
    names = ranged_tensors(prepared, placement)
    ranges.check_covers(names)
    if not placement.weighted:
        raise CalibrationError(
            "nothing is left to be INT8: every convolution and the classifier stay in the fallback",
            advice="keep fewer modules, or export with --fp16",
        )
    shifted = shifts(prepared, placement, ranges) if algorithm.shift else {}
    joint = _shared_thresholds(placement, {name: ranges.tensors[key].threshold for key, name in names.items()})
    scales: dict[str, float] = {PIXELS: PIXEL_STEP} if PIXELS in placement.readers else {}
    offsets: dict[str, float] = {}
    problems: list[tuple[str, list[str]]] = []  # what FP16 does not hold, and the nodes that would read it
    for key, name in names.items():
        found = ranges.tensors[key]
        _check_floor(found, key)
        step = shifted[name].step if name in shifted else joint.get(name, found.threshold) / SYMMETRIC
        if half and (problem := _not_held(found, step, key)):
            problems.append((problem, [edge.node for edge in placement.readers[name]]))
            continue
        scales[name] = float(rounded_step(np.asarray(step), half=half))
        if name in shifted:
            offsets[name] = shifted[name].offset * scales[name]
    _require_held(prepared, placement, problems, half=half)
    raised = _raised(prepared, placement) if half else {}
    shared = shared or Shared(prepared)
    rounded = _rounded(prepared, placement, ranges, spec, shared, half=half)
    with collected_names(prepared.graph):
        _put_weights(prepared, rounded)
        if spec.takes_images:
            PixelShift(spec.preprocess)(prepared)
        ShiftTensors(placement, offsets)(prepared)
        InsertQDQ(placement, scales, {name: each.weight for name, each in rounded.items()})(prepared)
    return Quantized(prepared, placement, scales, offsets, raised)


@dataclass(frozen=True)
class Shift:
    """The step of a shifted tensor, before it is rounded, and its offset in steps."""

    step: float
    offset: int


def shifts(model: ir.Model, placement: Placement, ranges: Ranges) -> dict[str, Shift]:
    """The tensors that are shifted. Their negative values are small, if any, and their readers allow it.

    A group of tensors with one scale has the largest magnitude and the least value of them all.
    """
    measured = {name: ranges.tensors.get(key) for key, name in ranged_tensors(model, placement).items()}
    found: dict[str, Shift] = {}
    padded = ranges.algorithm.shift_padded
    single = ((name,) for name in shiftable(model, placement, padded=padded))
    for group in (*single, *shiftable_groups(model, placement, padded=padded)):
        held = [each for name in group if (each := measured.get(name)) is not None]
        thresholds = [each.shifted_threshold for each in held if each.shifted_threshold is not None]
        if len(thresholds) == len(group):
            last = max(thresholds)
            below = steps_below(min(each.minimum for each in held), last)
            found |= dict.fromkeys(group, Shift(last / (SHIFTED - below), -INT8_MIN - below))
    return found


def _shared_thresholds(placement: Placement, thresholds: Mapping[str, float]) -> dict[str, float]:
    """The largest of each group of tensors with one scale, for all of them."""
    return {name: max(thresholds[each] for each in group) for group in placement.tied for name in group}


def _rounded(
    model: ir.Model, placement: Placement, ranges: Ranges, spec: ModelSpec, shared: Shared, *, half: bool
) -> Mapping[str, RoundedWeight]:
    """The weights by the rounding that the ranges ask for, kept in ``shared``. Layers are rounded in threads."""
    wanted = ranges.algorithm.weight_rounding
    if wanted in shared.rounded:
        return shared.rounded[wanted]
    nodes = {node.name or "": node for node in model.graph}
    names, workers = range_names(model), min(cpu.cores(), MOST_WORKERS)
    least = ranges.algorithm.weight_scales == "mse"

    def nearest(name: str) -> tuple[str, QuantizedWeight]:
        return name, quantize_weight(nodes[name], least_error=least, half=half)

    def rounded(name: str) -> tuple[str, RoundedWeight]:
        node, weight = nodes[name], shared.nearest[name]
        if wanted == "gptq":
            weight = with_rounding(node, weight, ranges.rounding)
        if not (ranges.algorithm.bias_correction and node.op_type in CORRECTED):
            return name, RoundedWeight(weight, None)
        error = weight_of(node) - dequantized(weight)
        return name, RoundedWeight(weight, mean_change(node, error, _input_mean(node, names, ranges, spec)))

    shared.nearest = shared.nearest or dict(ahead(nearest, placement.weighted, workers, workers))
    shared.rounded[wanted] = dict(ahead(rounded, placement.weighted, workers, workers))
    return shared.rounded[wanted]


def _put_weights(model: ir.Model, rounded: Mapping[str, RoundedWeight]) -> None:
    """Puts the rounded weights into the graph, and corrects the biases."""
    nodes = {node.name or "": node for node in model.graph}
    for name, each in rounded.items():
        node, old = nodes[name], operand(nodes[name], 1)
        # Made when it is looked at: all of them together take as much memory as the graph.
        made = ir.LazyTensor(partial(_tensor, each.weight), ir.DataType.FLOAT, ir.Shape(each.weight.values.shape))
        node.replace_input_with(1, tensor_constant(model.graph, f"{old.name}_rounded", made))
        if each.change is not None:
            add_to_bias(model.graph, node, each.change)


def _tensor(weight: QuantizedWeight) -> ir.TensorProtocol:
    return ir.Tensor(dequantized(weight))


def corrected_tensors(model: ir.Model) -> dict[str, str]:
    """The tensors of a prepared graph whose channel means correct biases: by the names of a ranges file, as in the graph."""
    nodes = {node.name or "": node for node in model.graph}
    read = [_read(nodes[name]) for name in place(model).weighted if nodes[name].op_type in CORRECTED]
    image = normalised_image(model.graph).name or ""
    names = range_names(model)
    return {names[name]: name for name in (image if name == PIXELS else name for name in read)}


def _read(node: ir.Node) -> str:
    return operand(node, 0).name or ""


def _input_mean(node: ir.Node, names: Mapping[str, str], ranges: Ranges, spec: ModelSpec) -> NDArray[np.float32]:
    """The mean of each input channel, (I,), in the graph as prepared. Raises CalibrationError if it is not in the file."""
    name = _read(node)
    key = IMAGE if name == PIXELS else names[name]
    channels = rows_first(node, weight_of(node)).shape[1] * groups_of(node)
    found = ranges.channel_means.get(key, ())
    if len(found) != channels:
        raise CalibrationError(
            f"the ranges have {len(found)} channel means for {key!r}, but {node.name} reads {channels} channels",
            advice=CALIBRATE,
        )
    mean = np.asarray(found, np.float32)
    return (mean / pixel_slope(spec.preprocess)).astype(np.float32) if name == PIXELS else mean


def _maxima(ranges: Ranges, model: ir.Model) -> dict[str, NDArray[np.float32]]:
    """The channels' maxima as arrays. Raises CalibrationError unless they are those of the graph's tensors and channels."""
    values = {value.name: value for value in (*model.graph.inputs, *(v for node in model.graph for v in node.outputs))}
    wanted = ranged_tensors(model, placed_by(model, ranges.algorithm))
    for key in {**wanted, **ranges.channel_maxima}:
        shape = values[wanted[key]].shape if key in wanted else None
        channels = 0 if key not in wanted else shape[1] if shape is not None and len(shape) > 1 else None
        found = len(ranges.channel_maxima.get(key, ()))
        if not found or (isinstance(channels, int) and found != channels):
            raise CalibrationError(
                f"the ranges have {found} channel maxima for {key!r}, but the graph of {ranges.model} "
                f"quantizes {channels} channels of it",
                advice=CALIBRATE,
            )
    return {key: np.asarray(maxima, np.float32) for key, maxima in ranges.channel_maxima.items()}


def _reach(ranges: Ranges, model: ir.Model) -> Mapping[str, tuple[float, ...]]:
    """The bounds of equalization. Raises CalibrationError unless they fit the graph's tensors and channels."""
    of = channel_classes(model).of
    in_graph = {stable: name for name, stable in range_names(model).items()}
    for key, reach in ranges.channel_reach.items():
        ids = of.get(in_graph.get(key, ""))
        if ids is None or len(ids) != len(reach):
            raise CalibrationError(
                f"the ranges have {len(reach)} channels that reach far in {key!r}, but the graph of "
                f"{ranges.model} has {'no such tensor' if ids is None else f'{len(ids)} channels there'}",
                advice=CALIBRATE,
            )
    return ranges.channel_reach


def _raised(model: ir.Model, placement: Placement) -> dict[str, int]:
    nodes = {node.name or "": node for node in model.graph}
    rows = {name: raised_rows(nodes[name], weight_of(nodes[name])) for name in placement.weighted}
    return {name: count for name, count in rows.items() if count}


def _check_floor(found: TensorRange, tensor: str) -> None:
    """Raises CalibrationError for a range that skdeploy raised to a step of 2^-16 before it kept small ones as they are."""
    largest = max(-found.minimum, found.maximum)
    if 0 < largest < found.threshold and np.isclose(
        found.threshold, SYMMETRIC * SILENT, rtol=1e-8, atol=0
    ):  # nine digits
        raise CalibrationError(
            f"an older skdeploy measured the range of {tensor} and raised small ranges: its values are at most "
            f"{largest:.3g}, but the threshold is {found.threshold:.3g}",
            advice=CALIBRATE,
        )


def _not_held(found: TensorRange, step: float, tensor: str) -> str:
    """Why FP16 does not hold a tensor's step; empty where it does."""
    silent = found.minimum == found.maximum == 0
    if step <= LARGEST_HALF and (step >= SMALLEST_HALF or silent):
        return ""
    end = "above FP16's largest number" if step > LARGEST_HALF else "too small for FP16"
    return f"{tensor} has values up to {max(-found.minimum, found.maximum):.3g}: its INT8 step of {step:.3g} is {end}"


def _require_held(model: ir.Model, placement: Placement, problems: list[tuple[str, list[str]]], *, half: bool) -> None:
    """Raises CalibrationError for steps that FP16 does not hold, with every module that must be FP32 in one pattern."""
    nodes = {node.name or "": node for node in model.graph}
    found = list(problems)
    if half:
        found += [(text, [name]) for name in placement.weighted if (text := weight_not_held(nodes[name]))]
    if not found:
        return
    more = f"; {len(found) - 1} more are beyond it" if len(found) > 1 else ""
    modules = {module_of(name) for _, names in found for name in names}
    if all(module_of(name) in modules for name in placement.weighted):
        raise CalibrationError(f"{found[0][0]}{more}", advice=f"export with {FP32_FALLBACK}")
    raise CalibrationError(f"{found[0][0]}{more}", advice=f"{BESIDE_FP32}{modules_pattern(modules)}'")


def equalized(model: ir.Model, spec: ModelSpec, ranges: Ranges) -> ir.Model:
    """The FP32 graph that the symmetric ranges are those of, and nothing else changed: for weakly typed builds."""
    ranges.check_belongs(model, spec)
    return prepared_by(model, spec, ranges, ranges.algorithm.model_copy(update={"exact_input": False}))


def scales_in_graph(model: ir.Model, ranges: Ranges) -> dict[str, float]:
    """The symmetric scales by the graph's own names."""
    in_graph = {stable: name for name, stable in range_names(model).items()}
    return {in_graph[key]: scale for key, scale in ranges.scales.items()}
