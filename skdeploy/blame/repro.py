"""Parts of a graph as graphs of their own: to run a large one piece by piece, and to hand somebody the smallest that fails."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from skdeploy.backends.base import Array
from skdeploy.backends.onnxruntime import OnnxRuntimeSession
from skdeploy.core.errors import UsageError
from skdeploy.core.files import write_text, written_whole
from skdeploy.ir.large import Portable, portable

SLICE_NODES: Final = 32  # whose outputs are held at once: about 60 MB of a 224 x 224 image
MODEL, INPUTS, EXPECTED, README = "repro.onnx", "inputs.npz", "expected.npz", "README.txt"


@dataclass(frozen=True)
class Segment:
    """The nodes, by their place in the graph, that make one tensor of others: ``inputs``, in the graph's order of use."""

    target: str
    nodes: tuple[int, ...]
    inputs: tuple[str, ...]


class Parts:
    """A graph that parts are cut from. Raises UsageError for nodes with graphs inside, which read what they do not list."""

    def __init__(self, model: ir.Model) -> None:
        whole = portable(model)
        proto, self._beside = whole.proto, whole.weights
        self.nodes = list(proto.graph.node)
        self.outputs = [value.name for value in proto.graph.output]
        self.inputs = {value.name for value in proto.graph.input}
        self.constants = {constant.name: constant for constant in proto.graph.initializer}
        self.maker = {name: place for place, node in enumerate(self.nodes) for name in node.output if name}
        self._opsets, self._ir_version = list(proto.opset_import), proto.ir_version
        made = [value for node in model.graph for value in node.outputs]
        self._types = {value.name: int(value.dtype) for value in made if value.dtype is not None}
        self._ranks = {value.name: len(value.shape) for value in made if value.shape is not None}
        for node in self.nodes:
            if any(attribute.type == onnx.AttributeProto.GRAPH for attribute in node.attribute):
                raise UsageError(
                    f"{node.name} ({node.op_type}) has a graph inside it, so its tensors cannot be compared one by one",
                    advice="export without control flow",
                )

    def read_by(self, place: int) -> list[str]:
        """The tensors, no constants, that a node reads."""
        return [name for name in self.nodes[place].input if name and name not in self.constants]

    def segment(self, target: str, known: Collection[str]) -> Segment:
        """The fewest nodes that make ``target`` of tensors in ``known`` and the graph's inputs."""
        chosen: set[int] = set()
        inputs: dict[str, None] = {}
        pending = [target]
        while pending:
            name = pending.pop()
            if name != target and (name in known or name not in self.maker):
                inputs[name] = None
                continue
            place = self.maker[name]
            if place not in chosen:
                chosen.add(place)
                pending.extend(reversed(self.read_by(place)))
        return Segment(target, tuple(sorted(chosen)), tuple(inputs))

    def cut(self, nodes: Sequence[int], feeds: Mapping[str, Array], outputs: Sequence[str]) -> onnx.ModelProto:
        """A graph of these nodes that takes ``feeds``, with their types and shapes, and gives ``outputs``."""
        proto = self._cut(nodes, feeds, outputs)
        for tensor in proto.graph.initializer:
            if tensor.name in self._beside:
                tensor.CopyFrom(numpy_helper.from_array(self._beside[tensor.name], tensor.name))
        return proto

    def _cut(self, nodes: Sequence[int], feeds: Mapping[str, Array], outputs: Sequence[str]) -> onnx.ModelProto:
        chosen = [self.nodes[place] for place in nodes]
        read = {name for node in chosen for name in node.input}
        graph = onnx.helper.make_graph(
            chosen,
            "part",
            [
                onnx.helper.make_tensor_value_info(name, _element_type(array), array.shape)
                for name, array in feeds.items()
            ],
            [
                onnx.helper.make_tensor_value_info(
                    name,
                    self._types.get(name, onnx.TensorProto.UNDEFINED),
                    [None] * self._ranks[name] if name in self._ranks else None,
                )
                for name in outputs
            ],
            [constant for name, constant in self.constants.items() if name in read],
        )
        return onnx.helper.make_model(graph, opset_imports=self._opsets, ir_version=self._ir_version)

    def run(
        self, nodes: Sequence[int], feeds: Mapping[str, Array], outputs: Sequence[str], shown: str
    ) -> dict[str, Array]:
        """Runs these nodes in ONNX Runtime, Q/DQ as the graph says. ``shown``: what errors call the graph."""
        with OnnxRuntimeSession(self._part(nodes, feeds, outputs), "cpu", None, shown=shown) as part:
            return part.run(feeds)

    def _part(self, nodes: Sequence[int], feeds: Mapping[str, Array], outputs: Sequence[str]) -> Portable:
        proto = self._cut(nodes, feeds, outputs)
        read = {tensor.name for tensor in proto.graph.initializer}
        return Portable(
            proto.SerializeToString(), {name: array for name, array in self._beside.items() if name in read}
        )

    def run_in_slices(
        self, feeds: Mapping[str, Array], wanted: Collection[str], shown: str
    ) -> Iterator[tuple[str, Array]]:
        """Runs the whole graph, some nodes at a time, and gives the wanted tensors in order; each node runs once."""
        last_use = {name: place for place in range(len(self.nodes)) for name in self.read_by(place)}
        live = dict(feeds)
        for start in range(0, len(self.nodes), SLICE_NODES):
            end = min(start + SLICE_NODES, len(self.nodes))
            places = range(start, end)
            made = [name for place in places for name in self.nodes[place].output if name]
            read = {name for place in places for name in self.read_by(place)} - set(made)
            outputs = [name for name in made if name in wanted or last_use.get(name, -1) >= end]
            if outputs:
                found = self.run(places, {name: live[name] for name in read}, outputs, shown)
                yield from ((name, found[name]) for name in outputs if name in wanted)
                live |= found
            live = {name: array for name, array in live.items() if last_use.get(name, -1) >= end}


def save_repro(
    folder: Path, model: onnx.ModelProto, inputs: Mapping[str, Array], expected: Mapping[str, Array], story: str
) -> None:
    """Writes ``repro.onnx``, ``inputs.npz``, ``expected.npz`` and ``README.txt``, each whole or not at all.

    ``expected`` may be shorter by name than the outputs: it is compared where it has the output's name.
    """
    with written_whole(folder / MODEL) as partial:
        partial.write_bytes(model.SerializeToString())
    for name, arrays in ((INPUTS, inputs), (EXPECTED, expected)):
        with written_whole(folder / name) as partial, partial.open("wb") as file:
            whole = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
            np.savez_compressed(file, **whole)  # type: ignore[arg-type]  # numpy's stub takes a name for its own option
    write_text(folder / README, f"{story}\n\n{HOW_TO_RUN}")


# Names of tensors have slashes and dots, which .npz takes as they are. ONNX Runtime's own INT8 kernels would differ by more
# than the graph says on CPUs without VNNI: the option keeps Q/DQ as arithmetic of their own.
HOW_TO_RUN: Final = f"""\
Run it here, with numpy and onnxruntime alone:

import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.add_session_config_entry("session.disable_quant_qdq", "1")
session = ort.InferenceSession("{MODEL}", options, providers=["CPUExecutionProvider"])
expected = np.load("{EXPECTED}")
outputs = [value.name for value in session.get_outputs()]
for name, found in zip(outputs, session.run(outputs, dict(np.load("{INPUTS}")))):
    print(name, "largest difference", np.abs(found - expected[name]).max(), "of", np.abs(expected[name]).max())
"""


def _element_type(array: Array) -> int:
    return int(onnx.helper.np_dtype_to_tensor_dtype(array.dtype))
