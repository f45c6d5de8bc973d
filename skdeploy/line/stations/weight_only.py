"""FP32 graph to one whose weights are INT8, and whose arithmetic is in the fallback precision. It takes no images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from skdeploy.bundle import contents
from skdeploy.bundle.station_facts import WeightOnlyFacts
from skdeploy.core.precision import PRECISIONS, Precision
from skdeploy.line.fallback_options import FallbackOptions
from skdeploy.line.station import GRAPH_TOOLS, Inputs, Station
from skdeploy.line.stations.half import HalfOptions
from skdeploy.line.stations.int8 import raised_note
from skdeploy.line.written import has_any_rank, write_graph

# A plan of TensorRT-RTX 1.7.1 grows by that, beside its weights, for each layer that reads INT8 weights: its kernels are
# larger. Measured: 64 kB for sknet-fashion's 41 layers, 73 kB for skresnet-digits' 29. Layers of every kind cost it: 66 kB in a
# gate, 34 kB in a branch, 79 kB for a 1x1 convolution. SKNet-50 saves 27 MB of weights, and its plan shrinks by 23 MB.
KERNEL_BYTES: Final = 65_000


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
    layers, saved = len(facts.int8_weights), facts.weight_bytes_before - facts.weight_bytes_after
    if facts.fallback != Precision.FP16 or saved >= layers * KERNEL_BYTES:
        return ()
    said = (
        f"INT8 weights save {saved / 1e6:.2f} MB, but in a plan of TensorRT-RTX the kernels that read them take about "
        f"{layers * KERNEL_BYTES / 1e6:.2f} MB more ({KERNEL_BYTES / 1e3:g} kB a layer): the plan is probably larger than that "
        "of --fp16, and only the weights in memory are smaller"
    )
    return (said,)
