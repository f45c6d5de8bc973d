"""Small FP16 graphs, rounded and run."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import TensorProto, helper

from skdeploy.backends.rounding import RoundNarrow
from tests.graphs.networks import Array
from tests.graphs.small_files import model_of

LEVELS = [
    ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
]

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


def graph(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int],
    *,
    outputs: Sequence[str] = ("y",),
    kind: int = FLOAT,
    result: int = FLOAT,
    **constants: Array,
) -> ir.Model:
    """A graph of one input ``x``; by default FP32 outside, so that the nodes begin and end with casts."""
    made = model_of(nodes, {"x": shape}, dict.fromkeys(outputs), constants, dtype=kind, result=result)
    return ir.from_proto(onnx.shape_inference.infer_shapes(made, strict_mode=True))


def node(operator: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), [output], **attributes)


TO_HALF, TO_FLOAT = node("Cast", "x", "h", to=HALF), node("Cast", "r", "y", to=FLOAT)


def execute(model: ir.Model, x: Array, level: ort.GraphOptimizationLevel = LEVELS[-1]) -> list[Array]:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": x}))


def rounded(model: ir.Model) -> ir.Model:
    result = RoundNarrow()(model)
    assert result.modified
    onnx.checker.check_model(ir.to_proto(result.model), full_check=True)
    return result.model
