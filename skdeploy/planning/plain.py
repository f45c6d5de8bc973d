"""A graph as the planner reads it: every shape known, without Q/DQ and casts, and with what they said kept beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnx_ir as ir

from skdeploy.core.errors import ExportError, UsageError
from skdeploy.core.precision import PRECISIONS, Precision
from skdeploy.engines.options import MAX_BATCH
from skdeploy.ir.nodes import operand
from skdeploy.ir.onnx_file import graph_of, inferred
from skdeploy.ir.placement import Edge
from skdeploy.ir.rows import WEIGHTED
from skdeploy.quant.macs import Size

FLOATS: Final = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})


@dataclass(frozen=True)
class Plain:
    """``model`` has no QuantizeLinear, DequantizeLinear or Cast between floats, and unique names.

    ``scales`` has, for each input that is read as INT8, the name of its scale; ``int8_weights`` are the nodes whose weight is.
    ``dynamic`` tells whether the graph left a size open. ``precision`` is that of the graph as it was.
    """

    model: ir.Model
    batch: int
    scales: Mapping[Edge, str]
    int8_weights: frozenset[str]
    dynamic: bool
    precision: Precision

    @property
    def quantized(self) -> bool:
        return bool(self.scales)


def read_plain(model: ir.Model, shown: Path | str, batch: int | None = None, size: Size | None = None) -> Plain:
    """Changes ``model``. ``batch`` and ``size`` (height, width in pixels) are used where the graph leaves them open; None is 1
    for the batch.

    Raises UsageError for a batch below 1 or one that the graph does not take, and ExportError, naming the tensor, where a shape
    stays unknown.
    """
    if batch is not None and batch < 1:
        raise UsageError(f"--batch {batch}: must be at least 1")
    types = {value.dtype.name for node in model.graph for value in node.outputs if value.dtype is not None}
    dynamic = any(not isinstance(dim, int) for value in model.graph.inputs for dim in value.shape or ())
    model, used = _with_shapes(model, shown, batch, size)
    _name_uniquely(model)
    _drop_casts(model)
    scales, int8_weights = _drop_quantization(model)
    _widen(model)
    precision = _precision_of(types, quantized=bool(scales), weights=bool(int8_weights))
    return Plain(model, used, scales, int8_weights, dynamic, precision)


def _precision_of(types: Set[str], *, quantized: bool, weights: bool) -> Precision:
    """The precision of a graph whose tensors have these types; the last registered one that a floor is estimated of.

    ``quantized``: it has INT8 activations. ``weights``: it has INT8 weights.
    """

    def is_it(each: Precision) -> bool:
        if each.integer:
            return quantized
        return weights if each.weights_only else each.onnx_type in types - {Precision.FP32.onnx_type}

    return next((each for each in reversed(PRECISIONS.values()) if each.peak and is_it(each)), Precision.FP32)


def require_size(model: ir.Model, shown: Path | str, size: Size) -> None:
    """Raises UsageError for a size (height, width) in pixels that the graph's images cannot have, as theirs is fixed."""
    for value in model.graph.inputs:
        if value.shape is None or len(value.shape) != 4:
            continue
        own = tuple(value.shape[axis] for axis in _image_axes(value))
        if any(isinstance(dim, int) and dim != pixels for dim, pixels in zip(own, size, strict=True)):
            fixed = "x".join(str(dim) for dim in own)
            raise UsageError(
                f"{shown} is fixed to images of {fixed}, not {'x'.join(map(str, size))}",
                advice="leave --imgsz out, or export with that --imgsz",
            )


def dims(value: ir.Value) -> tuple[int, ...]:
    """The shape of a tensor of a plain graph."""
    assert value.shape is not None  # read_plain
    return tuple(int(dim) for dim in value.shape)  # type: ignore[arg-type]  # read_plain left no symbols


def _with_shapes(
    model: ir.Model, shown: Path | str, batch: int | None, size: Size | Mapping[str, int] | None
) -> tuple[ir.Model, int]:
    symbols: dict[str | None, int] = {}
    used = 0
    for value in model.graph.inputs:
        if value.shape is None or not len(value.shape):
            raise ExportError(f"{shown}: the input {value.name} has no shape", advice="export it again with one")
        first = value.shape[0]
        if isinstance(first, int):
            if batch not in (None, first):
                raise UsageError(f"{shown} is fixed to a batch of {first}, not {batch}", advice="leave --batch out")
            used = first
        else:
            used = batch or 1
            symbols[first.value] = used
        if isinstance(size, Mapping):
            symbols.update(size)
        elif size is not None and len(value.shape) == 4:
            named = zip(_image_axes(value), size, strict=True)
            symbols |= {dim.value: pixels for axis, pixels in named if not isinstance(dim := value.shape[axis], int)}
    symbols.pop(None, None)
    inputs = list(model.graph.inputs)
    given = {value.name: value.shape for value in inputs}
    outputs = [value for node in model.graph for value in node.outputs]
    for value in (*inputs, *outputs):
        if value.shape is not None:
            value.shape = ir.Shape([dim if isinstance(dim, int) else symbols.get(dim.value) for dim in value.shape])
    if not all(map(_is_known, inputs)):
        opened = next(value for value in inputs if not _is_known(value))
        shape = given[opened.name] or ()
        free = next((str(dim) for dim in shape if not isinstance(dim, int) and symbols.get(dim.value) is None), "")
        is_image = len(shape) == 4 and not isinstance(size, Mapping)
        wanted = "--imgsz" if is_image else f"--size {free}=N" if free not in ("", "None") else "sizes names"
        raise ExportError(
            f"{shown}: the size of the input {opened.name}, {shape}, is open, so its cost cannot be counted",
            advice=f"give {wanted}, or export with a fixed size",
        )
    for value in inputs:
        if max(dims(value)) > MAX_BATCH:
            raise UsageError(
                f"{shown}: {value.name} of {'x'.join(map(str, dims(value)))} has a dimension above {MAX_BATCH:,}",
                advice="give a smaller --batch or size",
            )
    if not all(map(_is_known, outputs)):
        model = graph_of(inferred(ir.to_proto(model), shown), shown)
    for node in model.graph:
        for value in node.outputs:
            if value.name and not _is_known(value):
                raise ExportError(
                    f"{shown}: the shape of {value.name}, an output of the {node.op_type} {node.name}, is unknown "
                    f"({value.shape})",
                    advice="export with fixed sizes, or simplify the graph",
                )
    return model, used


def _image_axes(value: ir.Value) -> tuple[int, int]:
    """Of height and width: raw pixels come as (N, H, W, C), planes as (N, C, H, W)."""
    return (1, 2) if value.dtype == ir.DataType.UINT8 else (2, 3)


def _is_known(value: ir.Value) -> bool:
    return value.shape is not None and all(isinstance(dim, int) for dim in value.shape)


def _name_uniquely(model: ir.Model) -> None:
    seen: Counter[str] = Counter()
    for node in model.graph:
        name = node.name or f"{node.op_type}"
        seen[name] += 1
        node.name = name if seen[name] == 1 else f"{name}#{seen[name]}"


def _drop_casts(model: ir.Model) -> None:
    for node in list(model.graph):
        source, output = node.inputs[0] if node.inputs else None, node.outputs[0]
        floats = source is not None and source.dtype in FLOATS and output.dtype in FLOATS
        if node.op_type == "Cast" and floats and not output.is_graph_output():
            assert source is not None  # floats
            output.replace_all_uses_with(source)
            model.graph.remove(node, safe=True)


def _widen(model: ir.Model) -> None:
    """Every number inside is FP32, as placement expects it: the types have been read. Inputs and outputs keep theirs."""
    ends = {*model.graph.inputs, *model.graph.outputs}
    inner = [value for node in model.graph for value in node.outputs if value.dtype in FLOATS and value not in ends]
    weights = [use for node in model.graph if node.op_type in WEIGHTED for use in node.inputs[1:2] if use is not None]
    constants = [value for value in model.graph.initializers.values() if value.dtype in FLOATS]
    for value in (*inner, *constants, *(weight for weight in weights if weight.is_initializer())):
        value.type = ir.TensorType(ir.DataType.FLOAT)


def _drop_quantization(model: ir.Model) -> tuple[dict[Edge, str], frozenset[str]]:
    scales: dict[Edge, str] = {}
    weights: set[str] = set()
    for node in list(model.graph):
        if node.op_type != "DequantizeLinear":
            continue
        stored, scale, output = operand(node, 0), operand(node, 1), node.outputs[0]
        producer = stored.producer()
        if producer is not None and producer.op_type == "QuantizeLinear":
            source = operand(producer, 0)
            scales |= {Edge(use.node.name or "", use.idx): scale.name or "" for use in output.uses()}
        else:
            source = stored
            weights |= {use.node.name or "" for use in output.uses() if use.idx == 1}
        if not output.is_graph_output():
            output.replace_all_uses_with(source)
            model.graph.remove(node, safe=True)
    for node in list(model.graph):
        if node.op_type == "QuantizeLinear" and not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            model.graph.remove(node, safe=True)
    return scales, frozenset(weights)
