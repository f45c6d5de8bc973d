"""A graph with Q/DQ of its own to the INT8 graph that is deployed: its scales to the last bit, the rest in the fallback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import JsonValue

from skdeploy.bundle import contents
from skdeploy.bundle.station_facts import TrainedInt8Facts
from skdeploy.core.precision import PRECISIONS, Precision
from skdeploy.core.spec import TensorSpec
from skdeploy.line.int8_options import Int8Options
from skdeploy.line.station import GRAPH_TOOLS, RUN_TOOLS, Inputs, Station
from skdeploy.line.stations.half import HalfOptions
from skdeploy.line.written import has_any_rank, write_graph

if TYPE_CHECKING:
    import onnx_ir as ir

    from skdeploy.images.dataset import Dataset

COMPARED: Final = 16  # images on which the file is compared with itself without Q/DQ: for context, it decides nothing
BATCH: Final = 4


@dataclass(frozen=True)
class TrainedInt8(Station[Int8Options, TrainedInt8Facts]):
    """``dataset``: images on which the network is compared with itself without Q/DQ."""

    dataset: Dataset

    name, words, format, facts = "trained int8", "trained INT8", "onnx", TrainedInt8Facts
    flags = (Int8Options, HalfOptions)
    tools = (*dict.fromkeys((*GRAPH_TOOLS, *RUN_TOOLS)), "numpy")
    precision = Precision.INT8

    def output(self, inputs: Inputs) -> str:
        return contents.INT8

    def sources(self, inputs: Inputs) -> Mapping[str, str]:
        return {"images": self.dataset.digest}

    def settings(self, inputs: Inputs, options: Int8Options) -> Mapping[str, JsonValue]:
        return {"fallback": options.fallback, "keep_fp32": list(options.half.keep_fp32)}

    def make(self, inputs: Inputs, options: Int8Options, out: Path) -> TrainedInt8Facts:
        from skdeploy.ir.qdq import QUANTIZE, int8_layers, layers, qdq_nodes
        from skdeploy.passes.half import HalfPrecision
        from skdeploy.passes.trained import IntegerWeights, WithoutQDQ, require_same_scales
        from skdeploy.quant.macs import share_of_macs

        given, half = inputs.load(), options.fallback == Precision.FP16
        graph = IntegerWeights()(given.clone()).model
        single = WithoutQDQ()(given.clone()).model
        integers = int8_layers(graph)
        halving = HalfPrecision(options.half.keep_fp32)
        result = halving(graph).model if half else graph
        require_same_scales(given, result)
        facts = TrainedInt8Facts(
            int8_tensors=sum(node.op_type == QUANTIZE for node in qdq_nodes(result)),
            int8_weights=integers,
            int8_macs=share_of_macs(single, integers, inputs.spec.one_size),
            kept={name: "not quantized in the file" for name in layers(graph) if name not in integers},
            fallback=PRECISIONS[options.fallback],
            fp16_tensors=tuple(halving.halved) if half else (),
            kept_fp32=dict(halving.kept) if half else {},
            sqnr_to_float_db=self._sqnr_db(single, inputs),
        )
        return write_graph(result, out, facts, any_rank=has_any_rank(inputs.spec))

    def _sqnr_db(self, single: ir.Model, inputs: Inputs) -> float:
        """How far the file is from itself without Q/DQ: the least over its outputs, over all images together."""
        from skdeploy.backends.metrics import sqnr_db
        from skdeploy.backends.onnxruntime import OnnxRuntimeSession
        from skdeploy.images.feeds import batches_of
        from skdeploy.ir.large import portable

        specs: tuple[TensorSpec, ...] = inputs.artifacts["graph"].inputs
        signal: dict[str, float] = {}
        noise: dict[str, float] = {}
        images = self.dataset.spread(COMPARED, inputs.spec)
        with (
            OnnxRuntimeSession(inputs.paths["graph"], "cpu", None) as file,
            OnnxRuntimeSession(portable(single), "cpu", None) as without,
        ):
            for feeds, count in batches_of(images.load(inputs.spec), inputs.spec, specs, BATCH):
                expected = without.run(feeds)
                for name, found in file.run(feeds).items():
                    exact = expected[name][:count].astype("float64")
                    signal[name] = signal.get(name, 0.0) + float((exact**2).sum())
                    noise[name] = noise.get(name, 0.0) + float(((found[:count] - exact) ** 2).sum())
        return min(sqnr_db(signal[name], noise[name]) for name in signal)

    def notes(self, facts: TrainedInt8Facts) -> tuple[str, ...]:
        """The scales are the file's, and what they cost there."""
        said = (
            f"INT8 by the file's own scales, kept to the last bit: {facts.int8_tensors} tensors and "
            f"{len(facts.int8_weights)} weights. Without Q/DQ the same network differs by {facts.sqnr_to_float_db:.1f} dB "
            "SQNR; parity is judged against the file as it is"
        )
        return (said,)
