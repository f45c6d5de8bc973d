"""FP32 graph to one whose weights are INT8, and whose arithmetic is in the fallback precision. It takes no images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from skdeploy.bundle import contents
from skdeploy.bundle.station_facts import WeightOnlyFacts
from skdeploy.core.precision import PRECISIONS, Precision
from skdeploy.line.fallback_options import FallbackOptions
from skdeploy.line.station import GRAPH_TOOLS, Inputs, Station
from skdeploy.line.stations.half import HalfOptions
from skdeploy.line.stations.int8 import raised_note
from skdeploy.line.written import has_any_rank, write_graph


class WeightOnly(Station[FallbackOptions, WeightOnlyFacts]):
    name, words, format, facts = "weight-only int8", "weights to INT8", "onnx", WeightOnlyFacts
    flags = (FallbackOptions, HalfOptions)
    tools = (*GRAPH_TOOLS, "numpy")
    precision = PRECISIONS["weight-only-int8"]

    def output(self, inputs: Inputs) -> str:
        return contents.WEIGHT_ONLY

    def settings(self, inputs: Inputs, options: FallbackOptions) -> Mapping[str, JsonValue]:
        return {
            "keep": list(options.keep),
            "fallback": options.fallback,
            "keep_fp32": list(options.half.keep_fp32),
        }

    def make(self, inputs: Inputs, options: FallbackOptions, out: Path) -> WeightOnlyFacts:
        from skdeploy.passes.half import HalfPrecision
        from skdeploy.quant.weight_only import narrow_weights

        half = options.fallback == Precision.FP16
        done = narrow_weights(inputs.load(), options.keep, options.half.keep_fp32, half=half)
        halving = HalfPrecision(options.half.keep_fp32)
        result = halving(done.model).model if half else done.model
        facts = WeightOnlyFacts(
            int8_weights=done.weighted,
            kept=done.kept,
            raised_steps=done.raised,
            weight_bytes_before=done.bytes_before,
            weight_bytes_after=done.bytes_after,
            fallback=PRECISIONS[options.fallback],
            fp16_tensors=tuple(halving.halved) if half else (),
            kept_fp32=dict(halving.kept) if half else {},
        )
        return write_graph(result, out, facts, any_rank=has_any_rank(inputs.spec))

    def notes(self, facts: WeightOnlyFacts) -> tuple[str, ...]:
        return (*raised_note(facts.raised_steps), *plan_note(facts))


def plan_note(facts: WeightOnlyFacts) -> tuple[str, ...]:
    """Where kernels take more of a plan than INT8 weights save."""
    from skdeploy.quant.weight_only import growth_note

    if facts.fallback != Precision.FP16:
        return ()
    return growth_note(len(facts.int8_weights), facts.weight_bytes_before - facts.weight_bytes_after)
