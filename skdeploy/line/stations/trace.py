"""Network to ONNX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from skdeploy.bundle import contents
from skdeploy.bundle.station_facts import TraceFacts
from skdeploy.checkpoints.load import Network, OwnNetwork
from skdeploy.core.files import digest_json
from skdeploy.core.spec import INTERFACE, Precision
from skdeploy.line.station import GRAPH_TOOLS, Inputs, Station
from skdeploy.line.written import admitted, has_any_rank, save_graph
from skdeploy.passes.trace_options import TraceOptions

if TYPE_CHECKING:
    import onnx_ir as ir

    from skdeploy.line.apart import Apart


@dataclass(frozen=True)
class Trace(Station[TraceOptions, TraceFacts]):
    """``digest``: of the weights of a module of the user's own, which is traced anew each time: nothing tells whether its code
    has changed. ``last``: whether the graph is not simplified afterwards. ``apart``: the process that traces, and then ends, if
    this one does not.
    """

    network: Network | OwnNetwork
    digest: str = ""
    last: bool = False
    apart: Apart | None = None

    name, words, format, facts = "trace", "PyTorch to ONNX", "onnx", TraceFacts
    flags = (TraceOptions,)
    tools = (*GRAPH_TOOLS, "torch", "onnxscript")
    precision = Precision.FP32

    def is_reusable(self) -> bool:
        return isinstance(self.network, Network)

    def output(self, inputs: Inputs) -> str:
        if isinstance(self.network, OwnNetwork):
            return contents.READ
        return contents.MODEL if self.last else contents.TRACED

    def sources(self, inputs: Inputs) -> Mapping[str, str]:
        spec = self.network.spec
        card = digest_json(spec.model_dump(mode="json", by_alias=True, include={"network", *INTERFACE}))
        return {"card": card} | ({"weights": self.digest} if isinstance(self.network, OwnNetwork) else {})

    def make(self, inputs: Inputs, options: TraceOptions, out: Path) -> TraceFacts:
        return admitted(out, self._saved(inputs, options, out))

    def _saved(self, inputs: Inputs, options: TraceOptions, out: Path) -> TraceFacts:
        if self.apart is None or not isinstance(self.network, Network):
            return self.save(options, out)
        weights = str(self.network.weights.absolute())
        facts = self.apart.make(
            TraceFacts, self.name, self.network.spec, out, weights=weights, options=options.record()
        )
        self.apart.close()
        return facts

    def save(self, options: TraceOptions, out: Path, *, last_use: bool = False) -> TraceFacts:
        """Traces here, and writes the graph; whoever reads the file has not yet been asked.

        ``last_use``: nobody else needs the network's module, so it is freed before the graph is copied for writing.
        """
        from skdeploy.core.memory import give_back
        from skdeploy.passes.trace import trace

        spec = self.network.spec
        graph = trace(self.network.module, spec, options)
        if isinstance(self.network, OwnNetwork):
            graph = _folded(graph, spec.name)
        elif last_use:
            self.network.forget()
            give_back()  # the exporter's objects, which refer to each other and to the weights
        return save_graph(graph, out, TraceFacts(), any_rank=has_any_rank(spec), spent=True)


def _folded(graph: ir.Model, name: str) -> ir.Model:
    """A graph of the user's code without the shapes that it computes, as ``read_foreign`` has it."""
    from onnx_ir.passes.common import LiftConstantsToInitializersPass

    from skdeploy.ir.identities import DropIdentities
    from skdeploy.passes.fold_shapes import folded

    shapes = [value.shape for value in graph.graph.outputs]
    graph = folded(graph, name)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph)
    DropIdentities()(graph)
    for value, shape in zip(graph.graph.outputs, shapes, strict=True):
        value.shape = shape  # with the exporter's names of free sizes
    return graph
