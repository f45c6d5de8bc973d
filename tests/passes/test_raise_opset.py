"""The opset that BF16 needs: asked of ONNX's definitions, never more than needed, and refused where a node would change."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from skdeploy.core.errors import PassError, PrecisionError, UsageError
from skdeploy.core.precision import PRECISIONS
from skdeploy.ir.nodes import BFLOAT16, FLOAT32
from skdeploy.passes.half import HalfPrecision
from skdeploy.passes.raise_opset import NEWEST, RaiseOpset, first_opset_with
from tests.refused import refused

BF16 = PRECISIONS["bf16"]


def graph(*nodes: onnx.NodeProto, opset: int = 19, constants: dict[str, Any] | None = None) -> ir.Model:
    made = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


CONV = helper.make_node("Conv", ["x", "w"], ["y"], name="net.conv/Conv")
WEIGHT = {"w": np.ones((3, 4, 1, 1), np.float32)}


@pytest.mark.parametrize(
    ("operator", "first"), [("Conv", 22), ("MaxPool", 22), ("GlobalAveragePool", 22), ("MatMul", 13), ("Add", 13)]
)
def test_the_first_opset_is_that_of_the_specification(operator: str, first: int) -> None:
    assert first_opset_with(operator, BFLOAT16) == first
    assert first_opset_with("Shape", BFLOAT16) == 13
    assert first_opset_with("NoSuchOperator", BFLOAT16) is None


def test_a_convolution_needs_22_and_the_graph_is_valid_there() -> None:
    model = graph(CONV, constants=WEIGHT)
    result = RaiseOpset(BFLOAT16)(model)
    assert result.modified
    assert result.model.graph.opset_imports[""] == NEWEST == 22
    narrow = HalfPrecision(precision=BF16)(result.model).model
    assert {value.dtype for node in narrow.graph if node.op_type == "Conv" for value in node.inputs if value} == {
        BFLOAT16
    }
    assert narrow.graph.inputs[0].dtype == narrow.graph.outputs[0].dtype == FLOAT32
    onnx.checker.check_model(ir.to_proto(narrow), full_check=True)
    narrow.graph.opset_imports[""] = 20  # the check can fail: convolutions of opset 20 take no BF16
    with pytest.raises(Exception, match="bfloat16"):
        onnx.checker.check_model(ir.to_proto(narrow), full_check=True)


def test_a_graph_that_has_bf16_already_keeps_its_opset() -> None:
    model = graph(helper.make_node("Add", ["x", "x"], ["y"], name="net/Add"))
    result = RaiseOpset(BFLOAT16)(model)
    assert not result.modified
    assert result.model.graph.opset_imports[""] == 19
    narrow = HalfPrecision(precision=BF16)(result.model).model
    onnx.checker.check_model(ir.to_proto(narrow), full_check=True)


def test_an_operator_without_it_stays_fp32_with_the_reason() -> None:
    """Einsum takes BF16 from opset 28 on, which no TensorRT parses."""
    nodes = [
        helper.make_node("Einsum", ["x"], ["e"], name="net.e/Einsum", equation="nchw->nchw"),
        helper.make_node("Conv", ["e", "w"], ["y"], name="net.conv/Conv"),
    ]
    lowering = HalfPrecision(precision=BF16)
    lowering(RaiseOpset(BFLOAT16)(graph(*nodes, constants=WEIGHT)).model)
    assert lowering.kept == {"net.e/Einsum": "Einsum does not support BF16 in ONNX's schema"}
    alone = graph(helper.make_node("Einsum", ["x"], ["y"], name="net.e/Einsum", equation="nchw->nchw"))
    with refused(UsageError, "nothing in this graph can be BF16: Einsum", advice="--bf16"):
        HalfPrecision(precision=BF16)(alone)


def test_a_node_that_would_mean_something_else_is_refused() -> None:
    """GroupNormalization of opset 18 has a scale a group, that of 21 a scale a channel."""
    scale = np.ones(2, np.float32)
    nodes = [
        helper.make_node(
            "GroupNormalization", ["x", "s", "s"], ["n"], name="net.norm/GroupNormalization", num_groups=2
        ),
        helper.make_node("Conv", ["n", "w"], ["y"], name="net.conv/Conv"),
    ]
    with refused(PassError, "net.norm/GroupNormalization .* does not mean the same in opset 22", advice="--fp16"):
        RaiseOpset(BFLOAT16)(graph(*nodes, constants=WEIGHT | {"s": scale}))


def test_numbers_that_fp16_does_not_hold_are_bf16s() -> None:
    huge = {"w": np.full((3, 4, 1, 1), 1e30, np.float32)}
    lowering = HalfPrecision(precision=BF16)
    narrow = lowering(RaiseOpset(BFLOAT16)(graph(CONV, constants=huge)).model).model
    (weight,) = narrow.graph.initializers.values()
    assert weight.dtype == BFLOAT16
    assert weight.const_value is not None
    assert float(weight.const_value.numpy().astype(np.float32).max()) == pytest.approx(1e30, rel=2**-8)
    assert not lowering.flushed
    # FP32's largest numbers are above BF16's: 3.4028e38 and 3.3895e38.
    above = {"w": np.full((3, 4, 1, 1), np.finfo(np.float32).max, np.float32)}
    with refused(PrecisionError, "BF16 ends at 3.39e", advice="--keep-fp32"):
        HalfPrecision(precision=BF16)(RaiseOpset(BFLOAT16)(graph(CONV, constants=above)).model)
