"""ONNX to a smaller ONNX of the same function."""

from __future__ import annotations

from pathlib import Path

from skdeploy.bundle import contents
from skdeploy.bundle.station_facts import SimplifyFacts
from skdeploy.core.listing import some
from skdeploy.core.options import NoOptions
from skdeploy.core.spec import Precision
from skdeploy.line.station import GRAPH_TOOLS, Inputs, Station
from skdeploy.line.written import has_any_rank, write_graph


class Simplify(Station[NoOptions, SimplifyFacts]):
    name, words, format, facts = "simplify", "simplify", "onnx", SimplifyFacts
    tools = (*GRAPH_TOOLS, "onnxsim")
    precision = Precision.FP32

    def output(self, inputs: Inputs) -> str:
        return contents.MODEL

    def make(self, inputs: Inputs, options: NoOptions, out: Path) -> SimplifyFacts:
        from skdeploy.ir.large import beside
        from skdeploy.passes.simplify import simplify

        given = inputs.load()
        unfolded = tuple(sorted(beside(given.graph)))
        graph = simplify(given, inputs.spec.usual_sizes, spent=True)
        return write_graph(graph, out, SimplifyFacts(unfolded=unfolded), any_rank=has_any_rank(inputs.spec), spent=True)

    def notes(self, facts: SimplifyFacts) -> tuple[str, ...]:
        """Weights that nothing was folded into."""
        if not facts.unfolded:
            return ()
        count = len(facts.unfolded)
        said = (
            f"the graph has more than 2 GB of weights, so onnx-simplifier did not see the {count} largest "
            f"({some(facts.unfolded)}): nothing is folded into them"
        )
        return (said,)
