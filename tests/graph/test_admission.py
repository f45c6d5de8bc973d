"""What may not leave: each refusal names the node, and what is sound is admitted."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from skdeploy.errors import PassError
from skdeploy.graph.admission import admit
from skdeploy.options import TraceOptions
from tests.conftest import TinySpec
from tests.graph.networks import card, traced


def graph(*nodes: onnx.NodeProto, shape: tuple[int, ...] = (2, 3, 4, 5), infer: bool = True) -> ir.Model:
    made = helper.make_model(
        helper.make_graph(
            nodes,
            "admission",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [helper.make_tensor("axes", TensorProto.INT64, [1], [0])],
        ),
        opset_imports=[helper.make_opsetid("", 19)],
        ir_version=9,
    )
    return ir.from_proto(onnx.shape_inference.infer_shapes(made) if infer else made)


def node(operator: str, inputs: str, output: str, name: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), [output], name=name, **attributes)


def test_a_traced_network_is_admitted(tiny_spec: TinySpec) -> None:
    admit(traced(card(tiny_spec(3)), TraceOptions(exporter="torchscript")))


def test_a_tensor_of_rank_four_is_admitted() -> None:
    admit(graph(node("Relu", "x", "y", "unit/Relu")))


def test_a_tensor_of_rank_five_is_refused() -> None:
    wide = graph(node("Unsqueeze", "x axes", "w", "unit/Unsqueeze"), node("Squeeze", "w axes", "y", "unit/Squeeze"))
    with pytest.raises(PassError, match="node unit/Unsqueeze: w has rank 5, and 4 is the limit"):
        admit(wide)


def test_float64_inside_is_refused() -> None:
    double = graph(
        node("Cast", "x", "d", "unit/Cast", to=TensorProto.DOUBLE),
        node("Cast", "d", "y", "unit/Cast_2", to=TensorProto.FLOAT),
    )
    with pytest.raises(PassError, match="node unit/Cast: d is DOUBLE, which TensorRT does not take"):
        admit(double)


def test_an_unknown_type_is_refused() -> None:
    unknown = graph(node("Relu", "x", "h", "unit/Relu"), node("Relu", "h", "y", "unit/Relu_2"), infer=False)
    with pytest.raises(PassError, match="node unit/Relu: the type or rank of h is unknown"):
        admit(unknown)


def test_an_unknown_rank_is_refused() -> None:
    model = graph(node("Relu", "x", "h", "unit/Relu"), node("Relu", "h", "y", "unit/Relu_2"))
    model.graph[0].outputs[0].shape = None
    with pytest.raises(PassError, match="node unit/Relu: the type or rank of h is unknown"):
        admit(model)


def test_invalid_onnx_is_refused() -> None:
    model = graph(node("Relu", "x", "y", "unit/Relu"))
    model.graph[0].op_type = "Rleu"
    with pytest.raises(PassError, match=r"(?s)not valid ONNX: .*Rleu.*unit/Relu"):
        admit(model)


def test_a_node_without_an_input_is_refused() -> None:
    model = graph(node("Conv", "x x", "y", "unit/Conv"))
    model.graph[0].resize_inputs(1)
    with pytest.raises(PassError, match=r"(?s)not valid ONNX: .*unit/Conv"):
        admit(model)
