"""Non-negative tensors on all 256 levels of a symmetric INT8: shifted by half their range, at no cost where it matters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from skdeploy.graph.constants import array_of, constant
from skdeploy.graph.equalize import output_axis
from skdeploy.graph.naming import module_of
from skdeploy.graph.placement import Placement

MEANS: Final = frozenset({"ReduceMean", "GlobalAveragePool"})
ORDER_KEEPING: Final = frozenset({"MaxPool"})  # f(x - c) = f(x) - c, and it commutes with a lower bound
FLOAT32: Final = ir.DataType.FLOAT


def shiftable(model: ir.Model, placement: Placement) -> tuple[str, ...]:
    """The quantized tensors that ``ShiftTensors`` can shift, by how they are read; whether they are non-negative, it can't tell.

    Not so a tensor that a padded convolution reads: its padding is a zero of the unshifted tensor. Not so one that a reader
    takes unquantized, or the network's own input or output.
    """
    nodes = {node.name or "": node for node in model.graph}
    values = {value.name or "": value for node in model.graph for value in node.outputs}
    return tuple(
        name
        for name, readers in placement.readers.items()
        if (value := values.get(name)) is not None
        and not value.is_graph_output()
        and len(readers) == len(value.uses())
        and not any(_pads(nodes[edge.node]) for edge in readers)
    )


class ShiftTensors(ir.passes.InPlacePass):
    """Replaces tensors t by t - c, and makes up for it wherever they are read. FP32 to FP32, the same function.

    Why: TensorRT's INT8 has zero point 0, so of a tensor that ReLU made, 127 of 256 levels are used. t - c with c = 128 steps
    uses all: 6 dB less noise for each such tensor. How t - c is made:

    * t = Relu(y), y from a convolution, or from an addition that a convolution goes into: c is taken from that convolution's
      bias, and Relu(y) - c = max(y - c, -c), a Clip. When it is quantized, saturation at -128 steps is that very Clip, which
      then goes (``graph/qdq.py``). So no operator is added, and a Relu less is left.
    * through a max pool in between, which commutes with both.
    * else by an Add.

    How t is had again from t - c:

    * a convolution or Gemm without padding: W t = W (t - c) + c sum(W), into its bias;
    * a skip addition that a convolution goes into: into that convolution's bias;
    * a mean over space: mean(t) = mean(t - c) + c, an Add of one number a channel;
    * other elementwise operators, those of select: an Add, one for all of them.

    ``offsets`` has the c of each tensor; names must be ``shiftable``.
    """

    def __init__(self, placement: Placement, offsets: Mapping[str, float]) -> None:
        super().__init__()
        self.placement = placement
        self.offsets = offsets

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        nodes = {node.name or "": node for node in graph}
        values = {value.name or "": value for node in graph for value in node.outputs}
        for name, offset in self.offsets.items():
            shifted = self._subtract(graph, values[name], offset)
            restored: ir.Value | None = None
            for edge in self.placement.readers[name]:
                node = nodes[edge.node]
                if self._absorb(graph, node, edge.index, offset):
                    continue
                if node.op_type in MEANS:
                    _add_after(graph, node.outputs[0], offset)
                    continue
                restored = restored or _added(graph, shifted, offset, "unshifted")
                node.replace_input_with(edge.index, restored)
        return ir.passes.PassResult(model, modified=bool(self.offsets))

    def _subtract(self, graph: ir.Graph, value: ir.Value, offset: float) -> ir.Value:
        """The value t - offset in place of ``value``, under its name and read where it was read."""
        clamped = value
        while (pool := clamped.producer()) is not None and pool.op_type in ORDER_KEEPING:
            source = pool.inputs[0]
            if source is None or len(source.uses()) != 1:
                break
            clamped = source
        relu = clamped.producer()
        if relu is not None and relu.op_type == "Relu":
            before = relu.inputs[0]
            assert before is not None  # a Relu has one
            convolution = self._convolution_of(before)
            if convolution is not None and len(before.uses()) == 1:
                _change_bias(graph, convolution, -offset)
                clipped = _clip_for_relu(graph, relu, -offset)
                return clipped if clamped is value else value
        return _subtracted(graph, value, offset)

    def _convolution_of(self, value: ir.Value) -> ir.Node | None:
        """The convolution whose bias shifts ``value``: its producer, or one that goes into the addition which makes it."""
        producer = value.producer()
        if producer is None:
            return None
        if producer.op_type == "Conv":
            return producer
        return next(self._summands(producer), None) if producer.op_type == "Add" else None

    def _summands(self, addition: ir.Node) -> Iterator[ir.Node]:
        """Convolutions that nothing but this addition reads, and that unquantized."""
        for operand in addition.inputs:
            maker = operand.producer() if operand is not None else None
            if operand is None or maker is None or maker.op_type != "Conv":
                continue
            if len(operand.uses()) == 1 and operand.name not in self.placement.readers:
                yield maker

    def _absorb(self, graph: ir.Graph, node: ir.Node, index: int, offset: float) -> bool:
        """Makes a reader take t - offset for t by a bias, if there is one."""
        if node.op_type in ("Conv", "Gemm") and index == 0:
            weight = node.inputs[1]
            assert weight is not None  # it is weighted
            array = array_of(weight)
            columns = tuple(axis for axis in range(array.ndim) if axis != output_axis(node))
            _change_bias(graph, node, offset * array.sum(axis=columns))
            return True
        if node.op_type == "Add" and (summand := next(self._summands(node), None)) is not None:
            _change_bias(graph, summand, offset)
            return True
        return False


def _pads(node: ir.Node) -> bool:
    """Whether the node reads values beside the map's edge; any way of padding that is not known to be none counts."""
    if node.op_type != "Conv":
        return False
    padding = node.attributes.get_ints("pads", [0])
    return any(padding) or node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")


def _change_bias(graph: ir.Graph, node: ir.Node, change: float | NDArray[np.float64]) -> None:
    weight = node.inputs[1]
    assert weight is not None  # it is weighted
    assert weight.shape is not None  # an initializer
    rows = int(weight.shape[output_axis(node)])  # type: ignore[arg-type]
    old = node.inputs[2] if len(node.inputs) > 2 else None
    bias = (np.zeros(rows) if old is None else array_of(old)) + change
    name = f"{node.name}_bias"
    value = constant(graph, name, bias.astype(np.float32))
    if len(node.inputs) < 3:
        node.resize_inputs(3)
    node.replace_input_with(2, value)


def _clip_for_relu(graph: ir.Graph, relu: ir.Node, low: float) -> ir.Value:
    """max(y, low) for Relu(y), under its name."""
    old = relu.outputs[0]
    bound = constant(graph, f"{old.name}_low", np.float32(low))
    clip = ir.node("Clip", [relu.inputs[0], bound], name=f"{module_of(relu.name)}/Clip")
    output = clip.outputs[0]
    output.shape, output.type = old.shape, old.type
    graph.insert_before(relu, [clip])
    old.replace_all_uses_with(output)
    graph.remove(relu)
    output.name = old.name
    return output


def _subtracted(graph: ir.Graph, value: ir.Value, offset: float) -> ir.Value:
    name = value.name or ""
    value.name = f"{name}_plain"
    readers = list(value.uses())
    shifted = _added(graph, value, -offset, "shifted")
    for use in readers:
        use.node.replace_input_with(use.idx, shifted)
    shifted.name = name
    return shifted


def _add_after(graph: ir.Graph, value: ir.Value, offset: float) -> None:
    """An Add of offset after ``value``, which all its readers take instead."""
    readers = list(value.uses())
    output = _added(graph, value, offset, "mean")
    for use in readers:
        use.node.replace_input_with(use.idx, output)


def _added(graph: ir.Graph, value: ir.Value, offset: float, what: str) -> ir.Value:
    name = f"{value.name}_{what}"
    amount = constant(graph, f"{name}_offset", np.float32(offset))
    node = ir.node("Add", [value, amount], name=name)
    output = node.outputs[0]
    output.name, output.shape, output.type = name, value.shape, ir.TensorType(FLOAT32)
    producer = value.producer()
    assert producer is not None  # made by a node of the graph
    graph.insert_after(producer, [node])
    return output
