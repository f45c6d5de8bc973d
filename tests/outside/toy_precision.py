"""A precision and a pass with a flag as somebody else's package would bring them: what layers read in BF16, Relu as Max."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import onnx_ir as ir

from skdeploy.bundle.station_facts import GraphFacts
from skdeploy.core.errors import UsageError
from skdeploy.core.options import Flag, StationOptions
from skdeploy.core.precision import Precision, Tolerance
from skdeploy.ir.constants import constant
from skdeploy.line.formats import Format
from skdeploy.line.rewrites import Rewrite
from skdeploy.line.station import GRAPH_TOOLS, Inputs, RewriteOptions, Station
from skdeploy.line.written import write_graph
from skdeploy.passes.trace_options import TraceOptions

COARSE = Precision(
    "coarse",
    # BF16 rounds by 2^-9. Some twenty roundings of weights and activations in a row, all one way, are 20 * 2^-9 = 4 %.
    Tolerance(max_rel_error=0.04, min_cosine=0.999, min_sqnr_db=28.0),
    width_bytes=2,
    onnx_type="BFLOAT16",
    peak="fp16_tflops",
    tile=16,
)


class CoarseOptions(StationOptions):
    spare: Annotated[str | None, Flag("The operator that stays FP32 under --coarse.", ("--coarse-spare",))] = None


class CoarseFacts(GraphFacts):
    station: Literal["coarse"] = "coarse"
    rounded: int = 0


class Coarse(Station[CoarseOptions, CoarseFacts]):
    name, words, format, facts = "coarse", "to coarse", "onnx", CoarseFacts
    flags = (CoarseOptions,)
    tools = GRAPH_TOOLS
    precision = COARSE

    def output(self, inputs: Inputs) -> str:
        return f"{Path(inputs.artifacts['graph'].path).stem}.coarse.onnx"

    def make(self, inputs: Inputs, options: CoarseOptions, out: Path) -> CoarseFacts:
        model, rounded = inputs.load(), 0
        for node in list(model.graph):
            if node.op_type in ("Conv", "Gemm", "MatMul") and node.op_type != options.spare:
                for index in (0, 1):
                    _round(model.graph, node, index)
                    rounded += 1
        return write_graph(model, out, CoarseFacts(rounded=rounded), any_rank=False)


def _round(graph: ir.Graph, node: ir.Node, index: int) -> None:
    value = node.inputs[index]
    assert value is not None
    for kind in (ir.DataType.BFLOAT16, ir.DataType.FLOAT):
        cast = ir.node("Cast", [value], {"to": kind}, name=f"{node.name}_{index}_{kind.name.lower()}")
        cast.outputs[0].name, cast.outputs[0].shape = cast.name, value.shape
        cast.outputs[0].type = ir.TensorType(kind)
        graph.insert_before(node, cast)
        value = cast.outputs[0]
    node.replace_input_with(index, value)


class CoarseFormat(Format):
    precision, help = COARSE, "What layers read, in BF16."
    stations, options = (Coarse,), CoarseOptions


class MaxOptions(RewriteOptions):
    relu: Annotated[Literal["max"] | None, Flag("Relu as Max with zero.")] = None

    def check_trace(self, trace: TraceOptions) -> None:
        if self.relu is not None and trace.attention:
            raise UsageError("--relu max with --attention: of this toy, one of them")


class MaxFacts(GraphFacts):
    station: Literal["relu as max"] = "relu as max"


class Max(Station[MaxOptions, MaxFacts]):
    name, words, format, facts = "relu as max", "Max in place of Relu", "onnx", MaxFacts
    flags = (MaxOptions,)
    tools = GRAPH_TOOLS

    def output(self, inputs: Inputs) -> str:
        return f"{inputs.artifacts['graph'].path.removesuffix('.onnx')}.max.onnx"

    def make(self, inputs: Inputs, options: MaxOptions, out: Path) -> MaxFacts:
        assert options.relu == "max"
        model = inputs.load()
        zero = constant(model.graph, "zero_of_max", np.float32(0))
        for node in model.graph:
            if node.op_type == "Relu":
                node.op_type = "Max"
                node.resize_inputs(2)
                node.replace_input_with(1, zero)
        return write_graph(model, out, MaxFacts(), any_rank=False)


MAX = Rewrite(Max, MaxOptions)
