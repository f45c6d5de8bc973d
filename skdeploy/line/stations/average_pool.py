"""Means over the map as average pools, which a DLA has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from skdeploy.bundle.station_facts import GraphFacts, PoolFacts
from skdeploy.core.errors import UsageError
from skdeploy.core.options import Flag
from skdeploy.core.spec import Precision
from skdeploy.line.station import GRAPH_TOOLS, Inputs, RewriteOptions, Station
from skdeploy.line.written import has_any_rank, write_graph
from skdeploy.passes.trace_options import TraceOptions


class PoolOptions(RewriteOptions):
    gap: Annotated[
        Literal["average-pool"] | None,
        Flag("Replace means over the feature map by average pools, which a DLA can run; see docs/how-to/docker.md."),
    ] = None

    def check_trace(self, trace: TraceOptions) -> None:
        """Raises UsageError for a graph that takes images of any size."""
        if self.gap is not None and trace.dynamic_size:
            raise UsageError(
                "--gap average-pool cannot be used with --dynamic-size: a pool over the whole map needs a fixed size",
                advice="leave one of them out; --imgsz sets a fixed size",
            )


class AveragePool(Station[PoolOptions, PoolFacts]):
    """On the lowered graph, which stays in the bundle to be compared with."""

    name, words, format, facts = "average pool", "average pools", "onnx", PoolFacts
    flags = (PoolOptions,)
    tools = (*GRAPH_TOOLS, "numpy")

    def output(self, inputs: Inputs) -> str:
        return f"{inputs.artifacts['graph'].path.removesuffix('.onnx')}.pooled.onnx"

    def make(self, inputs: Inputs, options: PoolOptions, out: Path) -> PoolFacts:
        from skdeploy.passes.average_pool import AveragePoolForMean

        pools = AveragePoolForMean()
        graph = pools(inputs.load()).model
        facts = PoolFacts(
            average_pools={name: tuple(row) for name, row in pools.windows.items()},
            fp32_pools=tuple(pools.single),
            lowered=inputs.artifacts["graph"].precision is not Precision.FP32,
            means_left=dict(pools.declined),
            fallback=inputs.artifacts["graph"].facts_as(GraphFacts).fallback,
        )
        return write_graph(graph, out, facts, any_rank=has_any_rank(inputs.spec))

    def notes(self, facts: PoolFacts) -> tuple[str, ...]:
        notes = [f"average pools: replace {len(facts.average_pools)} means over the map, {_windows(facts)}"]
        notes += [f"mean left as it is, {node}: {reason}" for node, reason in facts.means_left.items()]
        if facts.fp32_pools and facts.lowered:
            notes.append(
                f"the pools of {len(facts.fp32_pools)} means stay FP32 for the accuracy of the gates; a DLA "
                "leaves them to the GPU"
            )
        return tuple(notes)


def _windows(facts: PoolFacts) -> str:
    """The distinct windows, and whether one is too large for a DLA."""
    from skdeploy.passes.average_pool import LARGEST

    rows = dict.fromkeys(facts.average_pools.values())
    shown = ", ".join(" then ".join(f"{height}x{width}" for height, width in row) for row in rows)
    large = any(size > LARGEST for row in rows for window in row for size in window)
    return f"{shown}; a DLA has none above {LARGEST}" if large else shown
