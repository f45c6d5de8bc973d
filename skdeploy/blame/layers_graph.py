"""Looking into an ONNX graph: its tensors by name, and which tensor of the stage before each of them is."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import onnx_ir as ir

from skdeploy.backends.base import Array
from skdeploy.backends.logits import joined, run_batches
from skdeploy.backends.onnxruntime import open_model
from skdeploy.backends.rounding import RoundNarrow
from skdeploy.blame.layers import Own, Pair, Recording, Visit, VisitOwn
from skdeploy.blame.layers_torch import INPUT, TorchStage
from skdeploy.blame.repro import Parts, Segment
from skdeploy.core.patterns import module_of
from skdeploy.core.spec import Precision
from skdeploy.images.dataset import Inputs, Pixels
from skdeploy.images.feeds import RUN_BATCH
from skdeploy.ir.nodes import maker, operand
from skdeploy.ir.qdq import DEQUANTIZE, QUANTIZE
from skdeploy.passes.exact_input import normalised_image
from skdeploy.passes.preprocess import MODULE as PREPROCESS

PASSING: Final = frozenset({"Cast", QUANTIZE, DEQUANTIZE})  # nodes of a precision, not of the network
# In a graph with shifted INT8 tensors, what additions and convolutions give may be off by a constant until it is quantized.
# What these operators give is not: ``passes/shift.py`` shifts through none of them, and gives them what they had.
UNSHIFTED: Final = frozenset({"Relu", "Sigmoid", "Softmax", "Sub", "Mul"})
ROUNDED: Final = "_round16_rounded"  # what ``RoundNarrow`` adds to the name of a tensor that it rounds
FLOATS: Final = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16})


@dataclass(frozen=True)
class GraphStage:
    """An ONNX graph of the line. ``load`` reads it anew.

    ``feed`` gives what a graph without preprocessing of its own is fed with: normalised crops, float32 (N, C, H, W). Samples of
    a network that takes arrays go in as they are.
    ``twin`` and ``offsets``, of an INT8 graph: the FP32 graph whose tensors it quantizes, and what is taken from which of them.
    """

    name: str
    load: Callable[[], ir.Model]
    precision: Precision
    feed: Callable[[Pixels], Inputs]
    before: str | None = None
    twin: GraphStage | None = None
    offsets: Callable[[], Mapping[str, float]] | None = None

    @cached_property
    def model(self) -> ir.Model:
        """The graph, to be read and not changed."""
        return self.load()

    @property
    def input(self) -> ir.Value:
        """The image."""
        return self.model.graph.inputs[0]

    @property
    def takes_pixels(self) -> bool:
        """Whether the graph normalises by itself."""
        return self.input.dtype == ir.DataType.UINT8

    @property
    def fixed_batch(self) -> int | None:
        """The batch that the graph insists on."""
        batch = self.input.shape[0] if self.input.shape is not None else None
        return batch if isinstance(batch, int) else None

    def outputs(self, pixels: Pixels) -> dict[str, Array]:
        """All outputs of the graph by name, (N, ...) each."""
        size = self.fixed_batch or RUN_BATCH
        chunks = [pixels[start : start + size] for start in range(0, len(pixels), size)]
        sizes = [(self.fixed_batch or len(chunk), *chunk.shape[1:]) for chunk in chunks]
        batches = ((self._feeds(np.resize(chunk, s)), len(chunk)) for chunk, s in zip(chunks, sizes, strict=True))
        with open_model(self.load(), self.name) as session:
            return joined(outputs for outputs, _ in run_batches(session, batches))

    @cached_property
    def parts(self) -> Parts:
        """The graph as it is run on the CPU: with every FP16 rounding as nodes (``backends/rounding.py``)."""
        model = self.load()
        if any(value.dtype == ir.DataType.FLOAT16 for node in model.graph for value in node.outputs):
            RoundNarrow()(model)
        return Parts(model)

    def stream(self, pixels: Pixels, names: frozenset[str], visit: Visit) -> None:
        """Shows the tensors of these names, a slice of the graph at a time."""
        feeds = self._feeds(pixels)
        for name in feeds.keys() & names:
            visit(name, feeds[name])
        for name, array in self.parts.run_in_slices(feeds, names, self.name):
            visit(name, array)

    def stream_own(self, pixels: Pixels, pairs: tuple[Pair, ...], recording: Recording, visit: VisitOwn) -> None:
        """Each tensor as the nodes between it and the tensors before it make it of the recorded ones."""
        known = {pair.found: pair for pair in pairs}
        for pair in pairs:
            if pair.found not in self.parts.maker:
                continue  # the input itself
            segment = self.parts.segment(pair.found, known.keys())
            feeds = self.segment_feeds(segment, known, recording, pixels)
            value = self.parts.run(segment.nodes, feeds, [pair.found], self.name)[pair.found]
            visit(Own(pair, value.astype(np.float64) + pair.offset if pair.offset else value, segment.inputs))

    def segment_feeds(
        self, segment: Segment, known: Mapping[str, Pair], recording: Recording, pixels: Pixels
    ) -> dict[str, Array]:
        """The inputs of a segment: the recorded tensors, and the network's own input where it reads that."""
        own = self._feeds(pixels)
        return {name: own[name] if name in own else recording.feed(known[name]) for name in segment.inputs}

    def rounded(self, tensor: str) -> str:
        """Find the tensor that holds a tensor of the graph after rounding to FP16."""
        name = f"{tensor}{ROUNDED}"
        return name if name in self.parts.maker else tensor

    def _feeds(self, pixels: Pixels) -> dict[str, Array]:
        if pixels.dtype.names is not None:
            return {name: np.ascontiguousarray(pixels[name]) for name in pixels.dtype.names}
        return {self.input.name or "": pixels if self.takes_pixels else self.feed(pixels)}


def pairs_of_graphs(found: GraphStage, reference: GraphStage) -> tuple[Pair, ...]:
    """The floating-point tensors that two graphs have in common, by name, in the order of ``found``."""
    offsets = found.offsets() if found.offsets is not None else {}
    model = found.model
    wanted = {value.name or "" for node in reference.model.graph for value in node.outputs if value.dtype in FLOATS}
    pairs: dict[str, Pair] = {}
    for node in model.graph:
        if node.op_type == DEQUANTIZE and _is_weight(node):  # it may be regrouped: what is made with it is the same
            continue
        if node.op_type == DEQUANTIZE and node.outputs[0].name not in wanted:  # the reference is not INT8
            tensor = _quantized_tensor(node, wanted)
            if tensor is not None:
                # behind a Pad of ``passes/shift.py`` it is larger than the reference's: then as it was before
                name = tensor if _is_padded(node, tensor) else node.outputs[0].name or ""
                pairs[tensor] = Pair(found.rounded(name), tensor, offsets.get(tensor, 0.0))
            continue
        for value in node.outputs:
            name = value.name or ""
            if name not in wanted or value.dtype not in FLOATS or name in offsets:
                continue
            final = value.is_graph_output() or module_of(name) == PREPROCESS
            if not offsets or final or node.op_type in UNSHIFTED:
                pairs[name] = Pair(found.rounded(name), reference.rounded(name))
    return tuple(pairs.values())


def pairs_with_torch(found: GraphStage, reference: TorchStage) -> tuple[Pair, ...]:
    """The outputs of modules, by the modules that nodes are named after, in the order of the graph.

    A module's output is what its last node gives, if that comes after all nodes of the modules inside it: of a residual unit,
    say, that ends in a module of its own, the output is that module's.
    """
    model = found.model
    own: dict[str, tuple[int, ir.Node]] = {}
    inside: dict[str, int] = {}
    for place, node in enumerate(model.graph):
        module = module_of(node.name)
        if node.op_type not in PASSING:
            own[module] = (place, node)
        while "." in module:
            module = module.rpartition(".")[0]
            inside[module] = place
    same = reference.names_of_folded()
    pairs = []
    image = normalised_image(model.graph)
    if image is not model.graph.inputs[0]:
        pairs.append(Pair(found.rounded(image.name or ""), INPUT))
    for module, (place, node) in sorted(own.items(), key=lambda item: item[1][0]):
        if module in same and place > inside.get(module, -1):
            pairs.append(Pair(found.rounded(node.outputs[0].name or ""), same[module]))
    return tuple(pairs)


def named_node(found: GraphStage, target: str) -> ir.Node:
    """The node of the network that makes a tensor: before the casts and Q/DQ that its precision adds."""
    model = found.model
    makers = {value.name: node for node in model.graph for value in node.outputs}
    node = makers.get(target) or makers[target.removesuffix(ROUNDED)]
    while node.op_type in PASSING:
        value = node.inputs[0]
        producer = value.producer() if value is not None else None
        if producer is None:
            break
        node = producer
    return node


def _is_weight(dequantize: ir.Node) -> bool:
    value = dequantize.inputs[0]
    return value is not None and value.is_initializer()


def _is_padded(dequantize: ir.Node, tensor: str) -> bool:
    """Whether a Pad is between a tensor and its Q/DQ pair."""
    quantize = maker(dequantize.inputs[0])
    pad = maker(quantize.inputs[0]) if quantize is not None else None
    return pad is not None and pad.op_type == "Pad" and operand(pad, 0).name == tensor


def _quantized_tensor(dequantize: ir.Node, names: set[str]) -> str | None:
    """The tensor, by its name in the FP32 graph, that a Q/DQ pair quantizes; None for weights and the network's input."""
    value = dequantize.inputs[0]
    quantize = value.producer() if value is not None else None
    if quantize is None or quantize.op_type != QUANTIZE:
        return None
    tensor = re.sub(r"_quantized(_\d+)?$", "", quantize.name or "")
    return tensor if tensor in names else None
