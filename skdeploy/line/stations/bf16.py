"""FP32 graph to a strongly typed BF16 graph: the range of FP32, with 8 bits of precision."""

from __future__ import annotations

from pathlib import Path

from skdeploy.bundle import contents
from skdeploy.bundle.station_facts import BF16Facts
from skdeploy.core.precision import PRECISIONS
from skdeploy.line.station import GRAPH_TOOLS, Inputs, Station
from skdeploy.line.stations.half import HalfOptions
from skdeploy.line.written import has_any_rank, write_graph


class BF16(Station[HalfOptions, BF16Facts]):
    name, words, format, facts = "bf16", "to BF16", "onnx", BF16Facts
    flags = (HalfOptions,)
    tools = GRAPH_TOOLS
    precision = PRECISIONS["bf16"]

    def output(self, inputs: Inputs) -> str:
        return contents.BF16

    def make(self, inputs: Inputs, options: HalfOptions, out: Path) -> BF16Facts:
        import onnx_ir as ir

        from skdeploy.passes.half import HalfPrecision
        from skdeploy.passes.raise_opset import RaiseOpset

        model = RaiseOpset(ir.DataType[self.precision.onnx_type])(inputs.load()).model
        narrowing = HalfPrecision(options.keep_fp32, self.precision)
        graph = narrowing(model).model
        facts = BF16Facts(
            opset=graph.graph.opset_imports[""],
            bf16_tensors=tuple(narrowing.halved),
            kept_fp32=dict(narrowing.kept),
        )
        return write_graph(graph, out, facts, any_rank=has_any_rank(inputs.spec))
