"""Types by the operators' schemas: each graph is valid as it lies on disk, and FP16 means in it what our emulation says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx.helper import make_node as node
from onnx.reference import ReferenceEvaluator

from skdeploy.backends.rounding import RoundNarrow, WithoutRange
from skdeploy.core.errors import PrecisionError, UsageError
from skdeploy.passes.half import HalfPrecision
from tests.graphs.schema_graphs import CHANNELS, FOURTH, MIDDLES, Array, Middle, classifier, pixels
from tests.graphs.small_files import model_of

# The reference evaluator rounds each sum of a convolution in FP16, we round it once: 27 products, so up to 27 half steps
# of 2^-11 at first, three such layers after one another, errors that mostly cancel: 16 half steps of the largest number.
TOLERANCE = 16 * 2.0**-11


def halved(middle: Middle) -> tuple[HalfPrecision, ir.Model]:
    proto = onnx.shape_inference.infer_shapes(classifier(middle), strict_mode=True, data_prop=True)
    halving = HalfPrecision()
    return halving, halving(ir.from_proto(proto)).model


def run(proto: onnx.ModelProto) -> Array:
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    result: Array = session.run(None, {"input": pixels()})[0]
    return result


@pytest.mark.parametrize("name", MIDDLES)
def test_the_file_is_valid_and_means_what_the_emulation_says(name: str, tmp_path: Path) -> None:
    middle = MIDDLES[name]
    _, model = halved(middle)
    proto = ir.to_proto(model)
    path = tmp_path / "half.onnx"
    path.write_bytes(proto.SerializeToString())
    onnx.checker.check_model(str(path), full_check=True)
    ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    exact = run(classifier(middle))
    scale = float(np.abs(exact).max())
    independent = ReferenceEvaluator(proto).run(None, {"input": pixels()})[0]
    emulated = run(ir.to_proto(RoundNarrow()(model).model))
    assert np.abs(emulated - independent).max() <= TOLERANCE * scale
    assert np.abs(emulated - exact).max() > 0  # it is FP16
    wide = run(ir.to_proto(WithoutRange()(ir.from_proto(proto)).model))
    # Constants and whole numbers stay those of FP16; 2^-11 of 0.1 is all that they differ by.
    assert np.abs(wide - exact).max() <= 2.0**-10 * scale


@pytest.mark.parametrize(
    ("name", "operator", "reason"),
    [
        ("celu", "Celu", "does not support FP16"),
        ("range", "Range", "does not support FP16"),
        ("infinities", "IsInf", "does not support FP16"),
        ("identity matrix", "EyeLike", "in an attribute"),
        ("branches", "If", "has a graph inside"),
        ("loop", "Loop", "has a graph inside"),
    ],
)
def test_what_cannot_be_half_stays_single_and_is_listed(name: str, operator: str, reason: str) -> None:
    halving, _ = halved(MIDDLES[name])
    kept = {where: why for where, why in halving.kept.items() if f"/{operator}" in where}
    assert len(kept) == 1
    assert reason in next(iter(kept.values()))


@pytest.mark.parametrize(
    "name",
    ["comparison", "zeros of a shape", "cast to float", "resize", "infinities of opset 21", "mask that is added"],
)
def test_what_can_be_half_is(name: str) -> None:
    halving, model = halved(MIDDLES[name])
    assert not [where for where in halving.kept if where.startswith("middle/")]
    z = next(value for one in model.graph for value in one.outputs if value.name == "z")
    assert z.dtype == ir.DataType.FLOAT16


def test_an_indicator_of_one_tensor_gets_no_cast() -> None:
    _, model = halved(MIDDLES["zeros of a shape"])
    assert sum(one.op_type == "Cast" for one in model.graph) == 4  # at the input, around the mean, and at the output


def test_a_number_that_takes_part_in_sums_is_not_clamped() -> None:
    """Only comparing and clamping may take infinity for what lies beyond FP16: here the constant is added as well."""
    middle = Middle(node("Min", ["b", "top"], ["c"]), node("Add", ["c", "top"], ["z"]), top=np.float32(1e6))
    with pytest.raises(PrecisionError, match=r"constant top, which node middle/Add_1 \(Add\) reads, holds 1e"):
        halved(middle)


def test_a_number_of_a_shape_beyond_the_range_stays_single() -> None:
    value = onnx.helper.make_tensor("huge", onnx.TensorProto.FLOAT, [1], [1e6])
    nodes = [
        node("Shape", ["b"], ["s"]),
        node("ConstantOfShape", ["s"], ["o"], value=value),
        node("Min", ["b", "o"], ["z"]),
    ]
    halving, _ = halved(Middle(*nodes))
    assert "does not fit FP16" in halving.kept["middle/ConstantOfShape_1"]


def test_a_name_that_is_taken_is_not_taken_again() -> None:
    middle = Middle(
        node("Add", ["b", "t"], ["input_fp16"]),
        node("Add", ["input_fp16", "t_fp16"], ["z"]),
        t=FOURTH,
        t_fp16=np.ones(CHANNELS, np.float32).reshape(1, CHANNELS, 1, 1),
    )
    _, model = halved(middle)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_a_graph_that_has_nothing_to_halve_says_why() -> None:
    made = model_of([node("Celu", ["x"], ["y"], name="unit/Celu")], {"x": [2]}, {"y": [2]})
    with pytest.raises(UsageError, match="Celu does not support FP16"):
        HalfPrecision()(ir.from_proto(made))


def test_half_tensors_inside_a_loop_are_refused_by_the_emulation() -> None:
    _, model = halved(MIDDLES["branches"])
    inside = next(iter(model.graph.subgraphs()))
    inside[0].outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
    with pytest.raises(PrecisionError, match="has FP16 tensors in its graph"):
        RoundNarrow()(model)
