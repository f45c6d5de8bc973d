"""Naive selective kernel blocks, of somebody else's making, to their deploy form."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from skdeploy.bundle import contents
from skdeploy.bundle.station_facts import SelectFacts
from skdeploy.core.options import NoOptions
from skdeploy.core.spec import Precision
from skdeploy.line.station import GRAPH_TOOLS, Inputs, Station
from skdeploy.line.written import write_graph


@dataclass(frozen=True)
class Select(Station[NoOptions, SelectFacts]):
    """``last``: whether the graph is not simplified afterwards."""

    last: bool = False

    name, words, format, facts = "select", "find SK blocks", "onnx", SelectFacts
    tools = (*GRAPH_TOOLS, "onnxruntime", "onnxruntime-gpu")
    precision = Precision.FP32

    def output(self, inputs: Inputs) -> str:
        return contents.MODEL if self.last else contents.TRACED

    def make(self, inputs: Inputs, options: NoOptions, out: Path) -> SelectFacts:
        from skdeploy.passes.select import RewriteSelect

        rewrite = RewriteSelect(inputs.spec.usual_sizes)
        graph = rewrite(inputs.load()).model
        report = rewrite.report
        facts = SelectFacts(
            rewritten=tuple(report.found),
            in_deploy_form=tuple(report.deployed),
            near_misses=tuple(f"{where}: {why}" for where, why in report.near_misses),
        )
        return write_graph(graph, out, facts, any_rank=True)

    def notes(self, facts: SelectFacts) -> tuple[str, ...]:
        found, deployed = len(facts.rewritten), len(facts.in_deploy_form)
        said = f"selective kernel blocks: {found} rewritten to the deploy form, {deployed} already in it"
        if not found and not deployed:
            said = "no selective kernel blocks found: the graph is deployed as it is"
        return (said, *(f"left as it is, {miss}" for miss in facts.near_misses))
