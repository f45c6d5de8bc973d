"""Files whose activations have zero points: the same integers as int8 with zero point 0, and the same outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from skdeploy.core.errors import ExportError, PassError
from skdeploy.ir.qdq import int8_layers, layers, qdq_nodes
from skdeploy.ir.qdq_constants import numbers_of
from skdeploy.passes import zero_points
from skdeploy.passes.foreign import foreign_notes, read_foreign
from skdeploy.passes.half import HalfPrecision
from skdeploy.passes.simplify import simplify
from skdeploy.passes.trained import IntegerWeights
from tests.graphs.quantizable import Array, normal
from tests.passes.test_trained import FEED, file, run

op = helper.make_node
# No value of these files lies within 1e-5 steps of a half: the integers are the same, and outputs differ by float32's rounding
# of sums in another order, 100 terms of 2^-24.
SAME = 1e-5
ZEROS: list[tuple[Any, int | None]] = [
    (np.uint8, 0), (np.uint8, 37), (np.uint8, 255), (np.int8, 3), (np.int8, -128), (np.int8, 127), (None, None),
]  # fmt: skip


def integers(proto: onnx.ModelProto, name: str) -> Array:
    """What a QuantizeLinear gives."""
    shown = onnx.ModelProto()
    shown.CopyFrom(proto)
    node = next(node for node in shown.graph.node if node.name == name or node.output[0] == name)
    cast = op("Cast", [node.output[0]], ["shown"], to=1)
    shown.graph.node.append(cast)
    del shown.graph.output[:]
    shown.graph.output.append(helper.make_tensor_value_info("shown", 1, None))
    return run(shown)


@pytest.mark.parametrize(("kind", "zero"), ZEROS)
@pytest.mark.parametrize("weights", ["int8", "float"])
def test_any_zero_point_is_read_as_the_same_integers(kind: Any, zero: int | None, weights: str, tmp_path: Path) -> None:
    path = file(tmp_path, **({"zero": None} if kind is None else {"kind": kind, "zero": zero}), weights=weights)
    before = onnx.load(path)
    model = read_foreign(path)
    after = ir.to_proto(model)
    expected = run(before)
    assert np.abs(run(after) - expected).max() <= SAME * np.abs(expected).max()
    (quantizer,) = (
        node for node in after.graph.node if node.op_type == "QuantizeLinear" and node.input[0].endswith("_clipped")
    )
    middle = 128 if kind is not np.int8 else 0
    np.testing.assert_array_equal(integers(after, quantizer.output[0]) + middle, integers(before, "hidden_quantizer"))
    points = {
        (value.dtype, int(np.abs(numbers_of(value)).max())) for node in qdq_nodes(model) for value in node.inputs[2:]
    }
    assert points == {(ir.DataType.INT8, 0)}
    assert len(int8_layers(IntegerWeights()(model).model)) == 1


def every_reader(folder: Path, between: str = "", weight_zero: int = 0) -> Path:
    """One quantized map that two convolutions of other padding read, a skip, a pool, a transposed convolution and layers."""
    constants: dict[str, Any] = {
        "scale": np.float32(0.02), "zero": np.array(30, np.uint8), "w_scale": np.full(4, 0.01, np.float32),
        "w_zero": np.full(4, weight_zero, np.int8), "transposed": normal(4, 4, 1, 1), "rows": normal(4, 6),
        "dense": normal(6, 5), "bias": normal(5), "shape": np.array([0, 4, 10, 12]),
    }  # fmt: skip
    for index, size in enumerate((3, 3, 1)):
        constants[f"w{index}"] = np.rint(normal(4, 3 if index == 0 else 4, size, size, seed=index) * 40).astype(np.int8)
    pair = ["scale", "zero"]
    nodes = [
        op("DequantizeLinear", [f"w{n}", "w_scale", "w_zero"], [f"v{n}"], name=f"weight{n}", axis=0) for n in range(3)
    ]
    moved = [op("Reshape", ["q", "shape"], ["m"], name="between")] if between else []
    nodes += [
        op("Conv", ["x", "v0"], ["c"], pads=[1, 1, 1, 1], name="stem"),
        op("QuantizeLinear", ["c", *pair], ["q"], name="quantizer"),
        *moved,
        op("DequantizeLinear", ["m" if moved else "q", *pair], ["d"], name="dequantizer"),
        op("Conv", ["d", "v1"], ["near"], pads=[1, 1, 1, 1], name="near"),
        op("Conv", ["d", "v1"], ["far"], pads=[2, 2, 2, 2], dilations=[2, 2], name="far"),
        op("Conv", ["d", "v2"], ["point"], name="point"),
        op("ConvTranspose", ["d", "transposed"], ["wide"], name="wide"),
        op("Sum", ["near", "far", "point", "wide", "d"], ["s"], name="sum"),
        op("GlobalAveragePool", ["s"], ["p"], name="pool"),
        op("Flatten", ["p"], ["f"], name="flatten"),
        op("QuantizeLinear", ["f", *pair], ["fq"], name="flat_quantizer"),
        op("DequantizeLinear", ["fq", *pair], ["fd"], name="flat_dequantizer"),
        op("MatMul", ["fd", "rows"], ["r"], name="rows_product"),
        op("QuantizeLinear", ["r", *pair], ["rq"], name="rows_quantizer"),
        op("DequantizeLinear", ["rq", *pair], ["rd"], name="rows_dequantizer"),
        op("Gemm", ["rd", "dense", "bias"], ["g"], name="head"),
        op("QuantizeLinear", ["g", *pair], ["gq"], name="last_quantizer"),
        op("DequantizeLinear", ["gq", *pair], ["scores"], name="last_dequantizer"),
    ]
    graph = helper.make_graph(
        nodes, "readers", [helper.make_tensor_value_info("x", 1, ["n", 3, 10, 12])],
        [helper.make_tensor_value_info("scores", 1, ["n", 5])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )  # fmt: skip
    path = folder / "readers.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), path)
    return path


def test_every_reader_has_the_activation_again(tmp_path: Path) -> None:
    path = every_reader(tmp_path)
    expected = run(onnx.load(path))
    assert len(np.unique(expected)) > 5  # the last Q does not saturate everywhere
    model = read_foreign(path)
    assert np.abs(run(ir.to_proto(model)) - expected).max() <= SAME * np.abs(expected).max()
    assert model.graph.outputs[0].name == "logits"
    pads = [node for node in model.graph if node.op_type == "Pad"]
    assert len(pads) == 2  # one for each padding
    (note,) = [note for note in foreign_notes(model).interface if "zero point" in note]
    assert note.startswith("4 activations have a zero point")


def test_tensorrt_rtx_builds_the_shifted_graph_with_every_quantized_layer_in_int8(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs skdeploy[rtx]")
    from skdeploy.engines.parsing import parser_refusal

    model = IntegerWeights()(simplify(read_foreign(every_reader(tmp_path)))).model
    assert len(int8_layers(model)) == 3  # near, far and point
    assert len(layers(model)) == 7
    ir.save(HalfPrecision()(model).model, tmp_path / "half.onnx")
    assert parser_refusal(tmp_path / "half.onnx") == ""


def test_integers_that_another_operator_reads_are_refused_with_the_node(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"quantizer.* has zero point 30 of uint8"):
        read_foreign(every_reader(tmp_path, between="Reshape"))


def test_weights_with_a_zero_point_are_refused_with_the_node(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"the node weight0 .* has zero point 5 of int8"):
        read_foreign(every_reader(tmp_path, weight_zero=5))


@pytest.mark.parametrize("wrong", [0.5, 0.9, 1.1])
def test_a_wrong_shift_is_seen(wrong: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = zero_points._Centring._behind

    def behind(self: Any, node: ir.Node, value: ir.Value, change: Any, what: str = "restored") -> ir.Node:
        return right(self, node, value, wrong * change, what)

    monkeypatch.setattr(zero_points._Centring, "_behind", behind)
    with pytest.raises(PassError, match="changed the function"):
        read_foreign(file(tmp_path, kind=np.uint8, zero=0))


def test_the_same_images_run_in_any_batch(tmp_path: Path) -> None:
    model = ir.to_proto(read_foreign(every_reader(tmp_path)))
    whole = run(model)
    from onnx.reference import ReferenceEvaluator

    ran: Any = ReferenceEvaluator(model).run(None, {model.graph.input[0].name: FEED[:1]})
    assert np.abs(ran[0] - whole[:1]).max() <= 0.02 + SAME  # one step of the last Q, which rounds
