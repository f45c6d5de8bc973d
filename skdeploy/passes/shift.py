"""Non-negative tensors on all 256 levels of a symmetric INT8: shifted by half their range, at no cost where it matters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from skdeploy.ir.constants import array_of, constant, drop_unused, free_name
from skdeploy.ir.placement import WEIGHTED, Placement, only_one_reads, weighted_reason
from skdeploy.passes.equalize import output_axis

MEANS: Final = frozenset({"ReduceMean", "GlobalAveragePool", "AveragePool"})
ORDER_KEEPING: Final = frozenset({"MaxPool"})  # f(x - c) = f(x) - c, and it commutes with a lower bound
FLOAT32: Final = ir.DataType.FLOAT


def shiftable(model: ir.Model, placement: Placement) -> tuple[str, ...]:
    """The quantized tensors that ``ShiftTensors`` can shift, by how they are read; if they are non-negative, it can't tell.

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
        and not any(nodes[edge.node].op_type == "Conv" and _pads(nodes[edge.node]) for edge in readers)
    )


class ShiftTensors(ir.passes.InPlacePass):
    """Replaces tensors t by t - c, and makes up for it wherever they are read. FP32 to FP32, the same function.

    Why: TensorRT's INT8 has zero point 0, so of a tensor that ReLU made, 127 of 256 levels are used. t - c with c = 128 steps
    uses all: 6 dB less noise for each such tensor. How t - c is made:

    * t = Relu(y), y from a convolution, or from an addition that a convolution goes into: c is taken from that convolution's
      bias, and Relu(y) - c = max(y - c, -c), a Clip. When it is quantized, saturation at -128 steps is that very Clip, which
      then goes (``ir/qdq.py``). So no operator is added, and a Relu less is left.
    * through a max pool in between, which commutes with both.
    * else by an Add.

    How t is had again from t - c:

    * a convolution or Gemm without padding: W t = W (t - c) + c sum(W), into its bias; a MatMul, by an Add of as much;
    * a skip addition that a convolution goes into: into that convolution's bias;
    * a mean over space, a pool's without padding too: mean(t) = mean(t - c) + c, an Add of one number a channel;
    * other elementwise operators, those of select: an Add, one for all of them.

    Every other tensor keeps its values and its name, and so do nodes: a Clip has the name of the Relu that was there.
    ``offsets`` has the c of each tensor; names must be ``shiftable``.
    """

    def __init__(self, placement: Placement, offsets: Mapping[str, float]) -> None:
        super().__init__()
        self.placement = placement
        self.offsets = offsets

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        for name, offset in self.offsets.items():
            # By name, each time anew: shifting one tensor replaces nodes and outputs that the next one is made of.
            nodes = {node.name or "": node for node in graph}
            value = next(value for node in graph for value in node.outputs if value.name == name)
            shifted = self._subtract(graph, value, offset)
            restored: ir.Value | None = None
            for edge in self.placement.readers[name]:
                node = nodes[edge.node]
                if self._absorb(graph, node, edge.index, offset):
                    continue
                if restored is None:
                    restored = _added(graph, shifted, offset, f"{name}_unshifted")
                node.replace_input_with(edge.index, restored)
        drop_unused(graph)
        return ir.passes.PassResult(model, modified=bool(self.offsets))

    def _subtract(self, graph: ir.Graph, value: ir.Value, offset: float) -> ir.Value:
        """The value t - offset in place of ``value``, under its name and read where it was read."""
        clamped = value
        while (pool := clamped.producer()) is not None and pool.op_type in ORDER_KEEPING:
            source = pool.inputs[0]
            if source is None or not only_one_reads(source):
                break
            clamped = source
        relu = clamped.producer()
        if relu is not None and relu.op_type == "Relu":
            before = relu.inputs[0]
            assert before is not None  # a Relu has one
            convolution = self._convolution_of(before)
            if convolution is not None and only_one_reads(before):
                _change_bias(graph, convolution, -offset)
                clipped = _clip_for_relu(graph, relu, -offset)
                return clipped if clamped is value else value
        return _moved(graph, value, -offset, "plain")

    def _convolution_of(self, value: ir.Value) -> ir.Node | None:
        """The convolution whose bias shifts ``value``: its producer, or one that goes into the addition which makes it."""
        producer = value.producer()
        if producer is None:
            return None
        if producer.op_type == "Conv":
            return None if weighted_reason(producer) else producer
        return next(self._summands(producer), None) if producer.op_type == "Add" else None

    def _summands(self, addition: ir.Node) -> Iterator[ir.Node]:
        """Convolutions that nothing but this addition reads, and that unquantized."""
        for operand in addition.inputs:
            maker = operand.producer() if operand is not None else None
            if operand is None or maker is None or maker.op_type != "Conv" or weighted_reason(maker):
                continue
            if only_one_reads(operand) and operand.name not in self.placement.readers:
                yield maker

    def _absorb(self, graph: ir.Graph, node: ir.Node, index: int, offset: float) -> bool:
        """Makes a reader take t - offset for t without restoring t, if that can be."""
        if node.op_type in WEIGHTED and index == 0 and not weighted_reason(node):
            weight = node.inputs[1]
            assert weight is not None  # it is weighted
            array = array_of(weight)
            columns = tuple(axis for axis in range(array.ndim) if axis != output_axis(node))
            change = offset * array.sum(axis=columns)
            if node.op_type == "MatMul":
                _moved(graph, node.outputs[0], change, "shifted")
            else:
                _change_bias(graph, node, change)
            return True
        if node.op_type in MEANS and index == 0 and not (node.op_type == "AveragePool" and _pads(node)):
            _moved(graph, node.outputs[0], offset, "shifted")
            return True
        if node.op_type == "Add" and (summand := next(self._summands(node), None)) is not None:
            _change_bias(graph, summand, offset)
            return True
        return False


def _pads(node: ir.Node) -> bool:
    """Whether the node reads values beside the map's edge; any way of padding that is not known to be none counts."""
    attributes = node.attributes
    chosen = attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    return any(attributes.get_ints("pads", [0])) or chosen or attributes.get_int("ceil_mode", 0) != 0


def _change_bias(graph: ir.Graph, node: ir.Node, change: float | NDArray[np.float64]) -> None:
    weight = node.inputs[1]
    assert weight is not None  # it is weighted
    assert weight.shape is not None  # an initializer
    rows = int(weight.shape[output_axis(node)])  # type: ignore[arg-type]
    old = node.inputs[2] if len(node.inputs) > 2 else None
    bias = (np.zeros(rows) if old is None else array_of(old)) + change
    node.resize_inputs(3)
    node.replace_input_with(2, constant(graph, f"{node.name}_bias", bias.astype(np.float32)))


def _clip_for_relu(graph: ir.Graph, relu: ir.Node, low: float) -> ir.Value:
    """max(y, low) for Relu(y), under its name."""
    old = relu.outputs[0]
    bound = constant(graph, f"{old.name}_low", np.float32(low))
    clip = ir.node("Clip", [relu.inputs[0], bound], name=relu.name)
    output = clip.outputs[0]
    output.shape, output.type = old.shape, old.type
    graph.insert_before(relu, [clip])
    old.replace_all_uses_with(output)
    graph.remove(relu, safe=True)  # a removed node goes on reading its input otherwise
    output.name = old.name
    return output


def _moved(graph: ir.Graph, value: ir.Value, change: float | NDArray[np.float64], old: str) -> ir.Value:
    """``value`` + ``change`` in place of ``value``, under its name and read where it was read, by those outside too."""
    name, readers = value.name or "", tuple(value.uses())
    outputs = [index for index, output in enumerate(graph.outputs) if output is value]
    value.name = free_name(graph, f"{name}_{old}")
    moved = _added(graph, value, change, f"{name}_moved")
    moved.name = name
    for use in readers:
        use.node.replace_input_with(use.idx, moved)
    for index in outputs:
        graph.outputs[index] = moved
    return moved


def _added(graph: ir.Graph, value: ir.Value, change: float | NDArray[np.float64], name: str) -> ir.Value:
    amount = constant(graph, f"{name}_offset", np.asarray(change, np.float32))
    node = ir.node("Add", [value, amount], name=free_name(graph, name))
    output = node.outputs[0]
    output.name, output.shape, output.type = node.name, value.shape, ir.TensorType(FLOAT32)
    producer = value.producer()
    assert producer is not None  # made by a node of the graph
    graph.insert_after(producer, [node])
    return output
