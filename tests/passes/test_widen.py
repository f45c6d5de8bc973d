"""Files in FP16 or BF16 are read as FP32: no constant changes, and what they round in between is not rounded."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from skdeploy.ir.onnx_file import inside
from skdeploy.passes.foreign import foreign_notes, read_foreign
from skdeploy.passes.widen import widen
from tests.graphs.quantizable import normal
from tests.passes.test_trained import FEED, run

op = helper.make_node
TYPES = {TensorProto.FLOAT16: np.float16, TensorProto.BFLOAT16: ml_dtypes.bfloat16}
WEIGHT, DENSE = normal(8, 3, 3, 3), normal(8, 5)


def narrow_file(folder: Path, kind: int, *, ends: bool, scales: bool) -> Path:
    """Convolution, ReLU, mean, dense layer, all of it in a narrow type. ``ends``: the input and output too, else Casts
    stand there, as Model Optimizer writes them. ``scales``: with Q/DQ before the convolution, whose scales are narrow too.
    """
    narrow = TYPES[kind]
    weights: dict[str, NDArray[np.generic]] = {"w": WEIGHT.astype(narrow), "dense": DENSE.astype(narrow)}
    nodes = [] if ends else [op("Cast", ["pixels"], ["x"], to=kind)]
    given, last = ("pixels" if ends else "x"), ("scores" if ends else "y")
    if scales:
        weights |= {"s": np.asarray(0.031, narrow), "z": np.int8(0)}
        nodes += [op("QuantizeLinear", [given, "s", "z"], ["q"]), op("DequantizeLinear", ["q", "s", "z"], ["d"])]
        given = "d"
    nodes += [
        op("Conv", [given, "w"], ["c"]),
        op("Relu", ["c"], ["r"]),
        op("GlobalAveragePool", ["r"], ["p"]),
        op("Flatten", ["p"], ["f"]),
        op("MatMul", ["f", "dense"], [last]),
        *([] if ends else [op("Cast", ["y"], ["scores"], to=TensorProto.FLOAT)]),
    ]
    outer = kind if ends else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "narrow",
        [helper.make_tensor_value_info("pixels", outer, ["n", 3, 10, 12])],
        [helper.make_tensor_value_info("scores", outer, ["n", 5])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    path = folder / "narrow.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10), path)
    return path


def exact(kind: int, *, scales: bool) -> NDArray[np.float64]:
    """The network with the narrow constants, by numpy in float64."""
    narrow = TYPES[kind]
    x, w, dense = (array.astype(np.float64) for array in (FEED, WEIGHT.astype(narrow), DENSE.astype(narrow)))
    if scales:
        step = float(np.asarray(0.031, narrow))
        x = np.clip(np.rint(x / step), -128, 127) * step
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    maps = np.maximum(np.einsum("ncyxij,ocij->noyx", windows, w), 0)
    scores: NDArray[np.float64] = maps.mean(axis=(2, 3)) @ dense
    return scores


@pytest.mark.parametrize("kind", TYPES, ids=["FP16", "BF16"])
@pytest.mark.parametrize("ends", [True, False], ids=["ends too", "Casts at the ends"])
@pytest.mark.parametrize("scales", [True, False], ids=["Q/DQ", "float"])
def test_a_narrow_file_is_read_as_the_fp32_network_with_its_numbers(
    kind: int, ends: bool, scales: bool, tmp_path: Path
) -> None:
    model = read_foreign(narrow_file(tmp_path, kind, ends=ends, scales=scales))
    expected = exact(kind, scales=scales)
    # Float32 sums of 27 and 72 products. A narrow type between the nodes would differ by 2^-11, or 2^-8, of the largest.
    assert np.abs(run(ir.to_proto(model)) - expected).max() < 1e-6 * np.abs(expected).max()
    types = {value.dtype for node in model.graph for value in (*node.inputs, *node.outputs) if value is not None}
    assert not types & {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
    name = "FP16" if kind == TensorProto.FLOAT16 else "BF16"
    assert any(f"is in {name}: read as FP32" in note for note in foreign_notes(model).in_words(tmp_path))


def test_a_file_without_narrow_types_is_left_as_it_is(tmp_path: Path) -> None:
    proto = onnx.load(narrow_file(tmp_path, TensorProto.FLOAT16, ends=False, scales=True))
    assert widen(proto, Path("m.onnx")) == "FP16"
    assert {tensor.data_type for tensor in inside(proto, TensorProto)} == {TensorProto.FLOAT, TensorProto.INT8}
    before = proto.SerializeToString()
    assert widen(proto, Path("m.onnx")) == ""
    assert proto.SerializeToString() == before
