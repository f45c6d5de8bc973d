"""FP32 graph to a strongly typed FP16 graph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from skdeploy.bundle import contents
from skdeploy.bundle.station_facts import HalfFacts
from skdeploy.core.options import Flag, StationOptions
from skdeploy.core.panel import Panel
from skdeploy.core.patterns import check_ends
from skdeploy.core.spec import Precision
from skdeploy.line.station import GRAPH_TOOLS, Inputs, Station
from skdeploy.line.written import has_any_rank, write_graph


class HalfOptions(StationOptions):
    panel = Panel.PRECISION
    keep_fp32: Annotated[
        tuple[str, ...], Flag("Modules that stay FP32 in an FP16 or BF16 graph; repeatable.", metavar="REGEX")
    ] = ()

    def check(self) -> None:
        for pattern in self.keep_fp32:
            check_ends(pattern, (), "--keep-fp32 ")


class Half(Station[HalfOptions, HalfFacts]):
    name, words, format, facts = "half", "to FP16", "onnx", HalfFacts
    flags = (HalfOptions,)
    tools = GRAPH_TOOLS
    precision = Precision.FP16

    def output(self, inputs: Inputs) -> str:
        return contents.HALF

    def make(self, inputs: Inputs, options: HalfOptions, out: Path) -> HalfFacts:
        from skdeploy.passes.half import HalfPrecision

        halving = HalfPrecision(options.keep_fp32)
        graph = halving(inputs.load()).model
        facts = HalfFacts(
            fp16_tensors=tuple(halving.halved),
            kept_fp32=dict(halving.kept),
            constants_flushed_to_zero=dict(halving.flushed),
        )
        return write_graph(graph, out, facts, any_rank=has_any_rank(inputs.spec))
