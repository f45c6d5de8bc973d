"""FP32 graph and ranges to an explicit Q/DQ graph, the rest in the fallback precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from skdeploy.bundle import contents
from skdeploy.bundle.station_facts import Int8Facts
from skdeploy.core.precision import PRECISIONS, Precision
from skdeploy.line.int8_options import Int8Options
from skdeploy.line.station import GRAPH_TOOLS, Inputs, Station
from skdeploy.line.stations.half import HalfOptions
from skdeploy.line.written import has_any_rank, write_graph
from skdeploy.quant.ranges import load_ranges

ONNX_RUNTIME_HALF: Final = (
    "INT8 with an FP16 fallback is for TensorRT: ONNX Runtime's default optimiser rounds the FP16 biases of "
    "such a graph away (seen in 1.32). To run model.int8.onnx there yourself, set session.disable_quant_qdq "
    "to 1, or export with --int8-fallback fp32"
)


@dataclass(frozen=True)
class Int8(Station[Int8Options, Int8Facts]):
    """``keep`` are the patterns of the modules that stay in the fallback, ``keep_fp32`` of those that stay FP32 in it."""

    keep: tuple[str, ...]
    keep_fp32: tuple[str, ...]

    name, words, format, facts = "int8", "to INT8", "onnx", Int8Facts
    flags = (Int8Options, HalfOptions)
    tools = (*GRAPH_TOOLS, "numpy")
    precision = Precision.INT8

    def output(self, inputs: Inputs) -> str:
        return contents.INT8

    def settings(self, inputs: Inputs, options: Int8Options) -> Mapping[str, JsonValue]:
        return {
            "keep": list(self.keep),
            "keep_grouped": options.keep_grouped,
            "fallback": options.fallback,
            "keep_fp32": list(self.keep_fp32),
        }

    def make(self, inputs: Inputs, options: Int8Options, out: Path) -> Int8Facts:
        from skdeploy.passes.half import HalfPrecision
        from skdeploy.quant.macs import share_of_macs
        from skdeploy.quant.quantize import quantize

        spec, half = inputs.spec, options.fallback == Precision.FP16
        graph, ranges = inputs.load(), load_ranges(inputs.paths["ranges"])
        done = quantize(graph, spec, ranges, self.keep, keep_grouped=options.keep_grouped, half=half)
        halving = HalfPrecision(self.keep_fp32)
        result = halving(done.model).model if half else done.model
        facts = Int8Facts(
            int8_tensors=len(done.placement.tensors),
            shifted_tensors=len(done.offsets),
            int8_weights=tuple(done.placement.weighted),
            int8_macs=share_of_macs(graph, done.placement.weighted, spec.one_size),
            kept=dict(done.placement.kept),
            raised_steps=dict(done.raised),
            fallback=PRECISIONS[options.fallback],
            fp16_tensors=tuple(halving.halved) if half else (),
            kept_fp32=dict(halving.kept) if half else {},
        )
        return write_graph(result, out, facts, any_rank=has_any_rank(spec))

    def notes(self, facts: Int8Facts) -> tuple[str, ...]:
        return raised_note(facts.raised_steps)


def raised_note(raised: Mapping[str, int]) -> tuple[str, ...]:
    """Where FP16's range made INT8 worse than FP32 beside it would. ``raised``: output channels by weight."""
    if not raised:
        return ()
    name, channels = next(iter(raised.items()))
    more = f", and in {len(raised) - 1} more" if len(raised) > 1 else ""
    said = (
        f"{channels} output channel(s) of {name}{more} have weights so small that FP16 cannot hold their "
        "INT8 step; they get the smallest FP16 step and lose precision. Use --int8-fallback fp32 or "
        "--int8-keep to avoid that"
    )
    return (said,)
