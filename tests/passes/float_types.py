"""The types of a strongly typed graph."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import onnxruntime as ort

FLOAT32, FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16

FLOATS = (FLOAT32, FLOAT16)


def float_types(node: ir.Node) -> set[ir.DataType]:
    values = [*node.inputs, *node.outputs]
    return {value.dtype for value in values if value is not None and value.dtype in FLOATS}


def check_types(model: ir.Model) -> None:
    """Strong typing: one floating-point type in a node, recorded types as inferred ones, and ONNX Runtime's own type check."""
    for node in model.graph:
        assert node.op_type == "Cast" or len(float_types(node)) <= 1, node
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    for node in model.graph:
        for value in node.outputs:
            assert types.get(value.name or "", value.dtype) == value.dtype, value
    ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
