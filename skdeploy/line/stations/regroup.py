"""The groups of grouped convolutions, merged into wider ones: the same function for hardware that likes it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from skdeploy.bundle.station_facts import GraphFacts, RegroupFacts
from skdeploy.core.errors import UsageError
from skdeploy.core.options import Flag
from skdeploy.line.station import GRAPH_TOOLS, Inputs, RewriteOptions, Station
from skdeploy.line.written import has_any_rank, write_graph


class RegroupOptions(RewriteOptions):
    regroup: Annotated[
        int | None,
        Flag(
            "Merge the groups of grouped convolutions into N. Same result; can be faster: measure with bench.",
            metavar="N",
        ),
    ] = None

    def check(self) -> None:
        """Raises UsageError for what cannot be."""
        if self.regroup is not None and self.regroup < 1:
            raise UsageError(f"--regroup {self.regroup}: must be at least 1 group")


class Regrouped(Station[RegroupOptions, RegroupFacts]):
    """On the lowered graph, which stays in the bundle to be compared with."""

    name, words, format, facts = "regroup", "regroup", "onnx", RegroupFacts
    flags = (RegroupOptions,)
    tools = (*GRAPH_TOOLS, "numpy")

    def output(self, inputs: Inputs) -> str:
        return f"{inputs.artifacts['graph'].path.removesuffix('.onnx')}.regrouped.onnx"

    def make(self, inputs: Inputs, options: RegroupOptions, out: Path) -> RegroupFacts:
        from skdeploy.passes.regroup import Regroup

        assert options.regroup is not None  # it was asked for
        regroup = Regroup(options.regroup)
        graph = regroup(inputs.load()).model
        facts = RegroupFacts(
            regrouped={merged.node: merged.factor for merged in regroup.merged},
            weight_bytes_before=sum(merged.weight_bytes for merged in regroup.merged),
            weight_bytes_after=sum(merged.weight_bytes * merged.factor for merged in regroup.merged),
            not_regrouped=dict(regroup.declined),
            fallback=inputs.artifacts["graph"].facts_as(GraphFacts).fallback,
        )
        return write_graph(graph, out, facts, any_rank=has_any_rank(inputs.spec))

    def notes(self, facts: RegroupFacts) -> tuple[str, ...]:
        counts = ", ".join(sorted({f"{factor}x" for factor in facts.regrouped.values()}))
        said = (
            f"regrouped: {len(facts.regrouped)} convolutions, each with {counts} the weights and multiply-accumulates: "
            f"{facts.weight_bytes_before:,} bytes of weights became {facts.weight_bytes_after:,}"
        )
        return (said, *(f"not regrouped, {node}: {reason}" for node, reason in facts.not_regrouped.items()))
