"""Selective kernel blocks of graphs exported elsewhere, rewritten to the deploy form of ``zoo/fold.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from skdeploy.backends.base import Array
from skdeploy.core.errors import UsageError
from skdeploy.ir.constants import Names, named_constant
from skdeploy.ir.large import Portable, portable
from skdeploy.passes.blocks import Block, Layer, Part, Parts
from skdeploy.passes.channels_last import turn
from skdeploy.passes.find_blocks import find_blocks
from skdeploy.passes.labels import Shape
from skdeploy.passes.same_function import require_same_function

AXES_AS_INPUT: Final = 18  # the opset from which on ReduceMean takes its axes as an input
MIN_OPSET: Final = 13  # Softmax has one axis and Split takes sizes as an input from here on

STEP: Final = "rewriting the select"
ADVICE: Final = "this is a fault of skdeploy: please report the model"
# Each block is compared by itself within rounding. What is left to see in the whole network is a block put in the wrong place,
# which changes the first digit. SKNet-50 with random weights amplifies rounding to 2e-4, in any exporter's graph.
MAX_NETWORK_CHANGE: Final = 1e-2
FED: Final = ":fed"  # what is appended to the name of a branch that is fed random maps


@dataclass(frozen=True)
class SelectReport:
    """By module, or by node where there are no module names: blocks rewritten, those in deploy form already, and near misses.

    A near miss is (node or module, why it cannot be rewritten).
    """

    found: tuple[str, ...] = ()
    deployed: tuple[str, ...] = ()
    near_misses: tuple[tuple[str, str], ...] = ()


class RewriteSelect(ir.passes.InPlacePass):
    """Naive selective kernel blocks to their deploy form. ``passes/blocks.py`` says what a block is, by numbered rules.

    With s the statistics, z what the gate makes of them, and ``logits_m = A_m z + b_m`` where rule 4 finds such layers:

    * ``mean(sum_m U_m) = sum_m mean(U_m)``, because the mean is linear: the sum over branches is not materialised (rule 5).
      Statistics with a factor, as the mean over branches, keep it as one Mul of (N, C, 1, 1).
    * ``softmax(l_1, l_2) = (sigmoid(l_1 - l_2), 1 - ...)``, and ``l_1 - l_2 = (A_1 - A_2) z + (b_1 - b_2)`` is one FC (rule 4),
      subtracted in float64 and rounded once. Of another gate, the logits are subtracted instead. More than two branches keep
      their softmax, on (N, M, C, 1).
    * ``sum_m a_m U_m = U_M + sum_{m<M} a_m (U_m - U_M)``, because the weights sum to one (rule 1).

    All are exact in real arithmetic. What lies between s and z, or s and the logits, stays as it is. No tensor of rank above
    4 is left between the logits and V, and V keeps its name. ``report`` says what was found; a graph without selects is not
    touched. Selects with the channels last are turned first (``channels_last.py``). Every time, the graph before and after is
    run on the same random images, and so is each block by itself on random maps: PassError if one differs. ``sizes`` are those
    of free dimensions then, by name.
    """

    def __init__(self, sizes: Mapping[str, int] | None = None) -> None:
        super().__init__()
        self.report = SelectReport()
        self._sizes = sizes

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        opset = model.graph.opset_imports.get("", 0)
        if opset < MIN_OPSET:
            raise UsageError(
                f"rewriting the select needs opset {MIN_OPSET}, not {opset}", advice="upgrade the graph first"
            )
        finder = find_blocks(model, self._sizes)
        before = portable(model) if finder.channels_last else None
        if before is not None:
            for value in finder.channels_last:
                turn(model, value)
            RemoveUnusedNodesPass()(model)
            require_same_function(before, portable(model), STEP, ADVICE, sizes=self._sizes)
            finder = find_blocks(model, self._sizes)
        blocks = finder.blocks
        found = tuple(block.name for block in blocks)
        self.report = SelectReport(found, tuple(finder.deployed), tuple(finder.near_misses))
        if not blocks:
            return ir.passes.PassResult(model, modified=before is not None)
        branches = {value.name or "": finder.shapes[value] for block in blocks for value in block.inputs()}
        selected = [block.selected.name or "" for block in blocks]
        feeds = _random_feeds({value.name or "": value for value in model.graph.inputs}, finder.shapes, branches)
        before, before_cut = before or portable(model), _cut_out(model, branches, selected)
        writer = BlockWriter(model.graph)
        for block in blocks:
            writer.rewrite(block)
        RemoveUnusedNodesPass()(model)
        require_same_function(before_cut, _cut_out(model, branches, selected), STEP, ADVICE, feeds=feeds)
        require_same_function(before, portable(model), STEP, ADVICE, sizes=self._sizes, at_most=MAX_NETWORK_CHANGE)
        return ir.passes.PassResult(model, modified=True)


class BlockWriter:
    """Writes the deploy form of blocks into their graph; what is no longer used stays, for a later pass to remove."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.names = Names(graph)
        self._current: dict[ir.Value, ir.Value] = {}  # what stands now where a value of a block was

    def rewrite(self, block: Block) -> None:
        """Replaces ``block.statistics`` and ``block.selected`` by their deploy forms."""
        writing = _Writing(self, block)
        maps = [writing.branch(branch) for branch in block.maps]
        if not block.statistics.kept:
            statistics = writing.statistics(maps)
            self._replace(block.statistics.value, statistics, writing.nodes)
            writing = _Writing(self, block)
        selected = writing.select(maps, writing.weights())
        selected.name, block.selected.name = block.selected.name, self.names.free(f"{block.selected.name}_naive")
        self._replace(block.selected, selected, writing.nodes)

    def _replace(self, old: ir.Value, new: ir.Value, nodes: list[ir.Node]) -> None:
        producer = old.producer()
        assert producer is not None  # it is computed
        self.graph.insert_after(producer, nodes)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        self._current[old] = new

    def current(self, value: ir.Value) -> ir.Value:
        """``value``, or what replaced it: a block may start from another block's V, and its z may be its s."""
        return self._current.get(value, value)


class _Writing:
    """New nodes of one block, in order, named after its module."""

    def __init__(self, writer: BlockWriter, block: Block) -> None:
        self.writer, self.block = writer, block
        self.nodes: list[ir.Node] = []
        self.branches = len(block.maps)
        self.channels = sum(len(part.rows) for part in block.maps[0])
        self.dtype = block.selected.dtype or ir.DataType.FLOAT
        dims = [None] * block.rank if block.selected.shape is None else list(block.selected.shape)
        self.dims = (*dims[: block.axis], self.channels, *dims[block.axis + 1 :])
        self.one = tuple(
            self.channels if axis == block.axis else 1 for axis in range(1, block.rank)
        )  # for each channel

    def branch(self, parts: Parts) -> ir.Value:
        """U_m: a tensor that is there, or channels of one or several."""
        runs = [self._run(part) for part in parts]
        return runs[0] if len(runs) == 1 else self._node("Concat", runs, self.dims, axis=self.block.axis)

    def _run(self, part: Part) -> ir.Value:
        value, count = self.writer.current(part.value), len(part.rows)
        if count == part.count and part.rows[0] == 0:
            return value
        start, step = int(part.rows[0]), int(part.rows[1] - part.rows[0]) if count > 1 else 1
        bounds = (start, start + step * (count - 1) + 1, self.block.axis, step)
        constants = [self._constant(np.array([bound]), "bound") for bound in (bounds if step > 1 else bounds[:3])]
        axis = self.block.axis
        return self._node("Slice", [value, *constants], (*self.dims[:axis], count, *self.dims[axis + 1 :]))

    def statistics(self, maps: Sequence[ir.Value]) -> ir.Value:
        """The sum of the branches' means, in the shape that the gate takes."""
        shape = (self.dims[0], *self.one)
        total = self._mean(maps[0])
        for value in maps[1:]:
            total = self._node("Add", [total, self._mean(value)], shape)
        factor = self.block.statistics.factor
        if factor != 1:
            total = self._node("Mul", [total, self._constant(np.array(factor), "factor", self.dtype)], shape)
        wanted = self.block.statistics.shape
        return total if wanted == self.one else self._reshape(total, wanted)

    def _mean(self, value: ir.Value) -> ir.Value:
        shape = (self.dims[0], *self.one)
        if self.block.axis == 1:
            return self._node("GlobalAveragePool", [value], shape)
        axes = [axis for axis in range(1, self.block.rank) if axis != self.block.axis]
        if self.writer.graph.opset_imports[""] < AXES_AS_INPUT:
            return self._node("ReduceMean", [value], shape, axes=axes)
        return self._node("ReduceMean", [value, self._constant(np.array(axes), "axes")], shape)

    def weights(self) -> list[ir.Value]:
        """The weights of all branches but the last, (N, C, 1, 1) each for images."""
        shape = (self.dims[0], *self.one)
        logits = self.block.logits
        if self.block.kind == "shares":
            assert not isinstance(logits, Layer)  # they are no logits of a softmax
            return self._shares(logits)
        if self.branches == 2:
            return [self._node("Sigmoid", [self._difference(logits)], shape)]
        rows = self._stacked(logits)
        weights = self._node("Softmax", [rows], (self.dims[0], self.branches, self.channels, 1), axis=1)
        sizes = self._constant(np.ones(self.branches), "sizes")
        parts = self._nodes("Split", [weights, sizes], (self.dims[0], 1, self.channels, 1), self.branches, axis=1)
        return [self._reshape(part, self.one) for part in parts[:-1]]

    def _shares(self, numbers: Sequence[Parts]) -> list[ir.Value]:
        """Numbers divided by their sum."""
        shape = (self.dims[0], *self.one)
        parts = [self._elements(own, self.one) for own in numbers]
        total = parts[0]
        for part in parts[1:]:
            total = self._node("Add", [total, part], shape)
        return [self._node("Div", [part, total], shape) for part in parts[:-1]]

    def _difference(self, logits: Layer | Sequence[Parts]) -> ir.Value:
        """The first branch's logits minus the second's, by one layer where there are layers; a sigmoid has no second."""
        if isinstance(logits, Layer):
            weight = logits.weight[0] - logits.weight[1]
            logit = self._layer(logits, weight, logits.bias[0] - logits.bias[1], logits.groups)
            return logit if self.block.axis == 1 else self._reshape(logit, self.one)
        parts = [self._elements(own, self.one) for own in logits]
        return parts[0] if len(parts) == 1 else self._node("Sub", parts, (self.dims[0], *self.one))

    def _stacked(self, logits: Layer | Sequence[Parts]) -> ir.Value:
        """The logits of all branches, (N, M, C, 1), by one layer where there are layers."""
        if isinstance(logits, Layer):
            weight = logits.weight.reshape(-1, logits.weight.shape[2])
            one = self._layer(logits, weight, logits.bias.reshape(-1))
            return self._reshape(one, (self.branches, self.channels, 1))
        parts = [self._elements(own, (1, self.channels, 1)) for own in logits]
        return self._node("Concat", parts, (self.dims[0], self.branches, self.channels, 1), axis=1)

    def _elements(self, parts: Parts, shape: Shape) -> ir.Value:
        """One branch's logits in ``shape``."""
        taken = [self._taken(part) for part in parts]
        value = taken[0] if len(taken) == 1 else self._node("Concat", taken, (self.dims[0], self.channels), axis=1)
        return self._reshape(value, shape)

    def _taken(self, part: Part) -> ir.Value:
        value = self._reshape(self.writer.current(part.value), (part.count,))
        if np.array_equal(part.rows, np.arange(part.count)):
            return value
        return self._node("Gather", [value, self._constant(part.rows, "rows")], (self.dims[0], len(part.rows)), axis=1)

    def select(self, maps: Sequence[ir.Value], weights: Sequence[ir.Value]) -> ir.Value:
        """V, with its factor and what is added to it."""
        last = selected = maps[-1]
        for value, weight in zip(maps[:-1], weights, strict=True):
            difference = self._node("Sub", [value, last], self.dims)
            selected = self._node("Add", [selected, self._node("Mul", [weight, difference], self.dims)], self.dims)
        selected = self._times(selected, self.block.factor)
        for factor, parts in self.block.added:
            selected = self._node("Add", [selected, self._times(self.branch(parts), factor)], self.dims)
        return selected

    def _times(self, value: ir.Value, factor: float) -> ir.Value:
        if factor == 1:
            return value
        return self._node("Mul", [value, self._constant(np.array(factor), "factor", self.dtype)], self.dims)

    def _layer(self, layer: Layer, weight: NDArray[Any], bias: NDArray[Any], groups: int = 1) -> ir.Value:
        """A layer of z with other numbers: ``weight`` (K, d), or the blocks on its diagonal, and ``bias`` (K)."""
        z, kernel = self.writer.current(layer.z), (1,) * (self.block.rank - 2)
        wanted = (weight.shape[1], *kernel)
        inputs = [z if layer.z_shape == wanted else self._reshape(z, wanted)]
        if groups > 1:
            blocks = weight.reshape(groups, -1, groups, weight.shape[1] // groups)
            weight = np.concatenate([blocks[group, :, group] for group in range(groups)])
        inputs.append(self._constant(weight.reshape(*weight.shape, *kernel), "weight", self.dtype))
        if np.any(bias):
            inputs.append(self._constant(bias, "bias", self.dtype))
        return self._node("Conv", inputs, (self.dims[0], len(weight), *kernel), kernel_shape=kernel, group=groups)

    def _reshape(self, value: ir.Value, shape: Shape) -> ir.Value:
        """``shape`` is that of one image; the batch is inferred, so none is baked in."""
        return self._node("Reshape", [value, self._constant(np.array([-1, *shape]), "shape")], (self.dims[0], *shape))

    def _node(self, op: str, inputs: Sequence[ir.Value], shape: Sequence[Any], **attributes: Any) -> ir.Value:
        return self._nodes(op, inputs, shape, 1, **attributes)[0]

    def _nodes(
        self, op: str, inputs: Sequence[ir.Value], shape: Sequence[Any], count: int, **attributes: Any
    ) -> Sequence[ir.Value]:
        name = self.writer.names.free(f"{self.block.name}/{op}")
        names = [name, *(self.writer.names.free(f"{name}.{index}") for index in range(1, count))]
        outputs = [ir.val(output, self.dtype, ir.Shape(shape)) for output in names]
        self.nodes.append(ir.node(op, inputs, attributes, outputs=outputs, name=name))
        return outputs

    def _constant(self, array: Array, what: str, dtype: ir.DataType = ir.DataType.INT64) -> ir.Value:
        name = self.writer.names.free(f"{self.block.name}/{what}")
        return named_constant(self.writer.graph, name, array.astype(dtype.numpy()))


def _random_feeds(
    inputs: Mapping[str, ir.Value], shapes: Mapping[ir.Value, Shape], branches: dict[str, Shape]
) -> dict[str, Array]:
    """Random inputs, and for each branch random maps whose means differ from channel to channel, so that gates decide."""
    generator = np.random.default_rng(0)
    feeds: dict[str, Array] = {
        name: generator.standard_normal(shapes[value], dtype=np.float32)
        if value.dtype == ir.DataType.FLOAT
        else generator.integers(0, 2, shapes[value]).astype(value.dtype.numpy() if value.dtype else np.int64)
        for name, value in inputs.items()
    }
    for name, shape in branches.items():
        means = generator.uniform(0, 2, (*shape[:2], *[1] * len(shape[2:]))).astype(np.float32)
        feeds[f"{name}{FED}"] = np.abs(generator.standard_normal(shape, dtype=np.float32)) * means
    return feeds


def _cut_out(model: ir.Model, branches: dict[str, Shape], selected: Sequence[str]) -> Portable:
    """The blocks by themselves: their branches are inputs, and each V is an output.

    In a deep network the rounding of the first blocks would be the error of the last ones, and small errors of a block would
    not reach the logits.
    """
    cut = model.clone()
    graph = cut.graph
    values = ir.convenience.create_value_mapping(graph)
    outputs = [values[name] for name in selected]
    for name, shape in branches.items():
        fed = ir.val(f"{name}{FED}", ir.DataType.FLOAT, shape)
        values[name].replace_all_uses_with(fed)
        graph.inputs.append(fed)
    del graph.outputs[:]
    graph.outputs.extend(outputs)
    RemoveUnusedNodesPass()(cut)
    return portable(cut)
