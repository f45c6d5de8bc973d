"""Files for weakly typed TensorRT builds and DLA: a calibration cache, and the FP32 graph that it belongs to."""

from __future__ import annotations

from pathlib import Path

from skdeploy.bundle import contents
from skdeploy.bundle.station_facts import LegacyCacheFacts, LegacyGraphFacts
from skdeploy.core.options import NoOptions, StationOptions
from skdeploy.core.spec import Precision
from skdeploy.line.station import GRAPH_TOOLS, Inputs, Station
from skdeploy.line.written import has_any_rank, write_graph
from skdeploy.quant.ranges import load_ranges


class LegacyGraph(Station[NoOptions, LegacyGraphFacts]):
    """The FP32 graph with its channels equalized as the ranges were measured."""

    name, words, format, facts = "legacy graph", "legacy graph", "onnx", LegacyGraphFacts
    tools = GRAPH_TOOLS
    precision = Precision.FP32

    def output(self, inputs: Inputs) -> str:
        return contents.LEGACY_GRAPH

    def make(self, inputs: Inputs, options: NoOptions, out: Path) -> LegacyGraphFacts:
        from skdeploy.quant.quantize import equalized

        graph = equalized(inputs.load(), inputs.spec, load_ranges(inputs.paths["ranges"]))
        return write_graph(graph, out, LegacyGraphFacts(), any_rank=has_any_rank(inputs.spec))


class LegacyCacheOptions(StationOptions):
    version: str  # of the TensorRT that reads it


class LegacyCache(Station[LegacyCacheOptions, LegacyCacheFacts]):
    """The scales of the graph's tensors, as TensorRT's own calibration would have written them."""

    name, words, format, facts = "legacy cache", "legacy cache", "cache", LegacyCacheFacts
    tools = ("skdeploy",)

    def output(self, inputs: Inputs) -> str:
        return contents.LEGACY_CACHE

    def make(self, inputs: Inputs, options: LegacyCacheOptions, out: Path) -> LegacyCacheFacts:
        from skdeploy.quant.legacy_cache import spread_scales, write_legacy_cache
        from skdeploy.quant.quantize import scales_in_graph

        network = inputs.load()
        scales = spread_scales(network, scales_in_graph(network, load_ranges(inputs.paths["ranges"])))
        out.write_text(write_legacy_cache(scales, options.version), encoding="ascii")
        return LegacyCacheFacts(tensorrt=options.version, tensors=len(scales))
