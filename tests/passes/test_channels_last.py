"""Selects with the channels last, as tf2onnx writes those of Keras: rewritten with the file's function, or told why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from skdeploy.passes.find_blocks import LAST
from skdeploy.passes.foreign import foreign_notes, read_foreign
from skdeploy.passes.read_options import ReadOptions
from skdeploy.passes.select import RewriteSelect
from tests.graphs.networks import FLOAT32_ERROR, images, relative_error, run
from tests.graphs.small_files import node

CHANNELS, SIDE = 8, 8
TO_FIRST, TO_LAST = [0, 3, 1, 2], [0, 2, 3, 1]


def after(reader: str) -> list[onnx.NodeProto]:
    """What reads the select "v" (n, h, w, c), and makes "mean" (n, c) of it."""
    mean = node("ReduceMean", "v", "pixels", "mean", keepdims=0)
    turned = [node("Transpose", "v", "first", perm=TO_FIRST), node("Conv", "first", "kernel", "conv")]
    return {
        "mean": [mean],
        "transpose": [*turned, node("GlobalAveragePool", "conv", "pool"), node("Flatten", "pool", "mean")],
        "activation": [node("Softplus", "v", "active"), node("ReduceMean", "active", "pixels", "mean", keepdims=0)],
        "both": [
            node("ReduceMean", "v", "pixels", "own", keepdims=0),
            *turned,
            node("GlobalAveragePool", "conv", "pool"),
            node("Flatten", "pool", "other"),
            node("Add", "own", "other", "mean"),
        ],
    }[reader]


def keras(branches: int, reader: str, *, is_nchw: bool = False) -> ModelProto:
    """A Keras network of one block as tf2onnx 1.17 writes it: maps stacked last, weights (n, 1, 1, c, m), V (n, h, w, c)."""
    generator = np.random.default_rng(branches)

    def weights(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return generator.uniform(-1, 1, shape).astype(np.float32)

    constants = {"last": np.array([4], np.int64), "sum": np.array([-1], np.int64), "pixels": np.array([1, 2], np.int64),
                 "shape": np.array([-1, 1, 1, CHANNELS, branches], np.int64), "spatial": np.array([2, 3], np.int64),
                 "reduce": weights(CHANNELS, 4), "expand": weights(4, CHANNELS * branches), "fc": weights(CHANNELS, 10),
                 "kernel": weights(CHANNELS, CHANNELS, 1, 1)}  # fmt: skip
    nodes = [] if is_nchw else [node("Transpose", "x", "nchw", perm=TO_FIRST)]
    for m in range(branches):
        constants[f"kernel{m}"] = weights(CHANNELS, 3, 2 * m + 1, 2 * m + 1)
        nodes += [
            node("Conv", "x" if is_nchw else "nchw", f"kernel{m}", f"conv{m}", pads=[m] * 4),
            node("Relu", f"conv{m}", f"u{m}"),
            node("Unsqueeze", f"u{m}", "last", f"part{m}"),
        ]
    nodes += [
        node("Concat", *(f"part{m}" for m in range(branches)), "stack", axis=4),
        node("Transpose", "stack", "stacked", perm=[0, 2, 3, 1, 4]),
        node("Sum", *(f"u{m}" for m in range(branches)), "u"),
        node("GlobalAveragePool", "u", "s"),
        node("Squeeze", "s", "spatial", "flat"),
        node("MatMul", "flat", "reduce", "narrow"),
        node("Relu", "narrow", "z"),
        node("MatMul", "z", "expand", "wide"),
        node("Reshape", "wide", "shape", "logits_of_maps"),
        node("Softmax", "logits_of_maps", "a", axis=-1),
        node("Mul", "stacked", "a", "products"),
        node("ReduceSum", "products", "sum", "v", keepdims=0),
        *(after(reader) if reader != "output" else []),
        *([node("MatMul", "mean", "fc", "y")] if reader != "output" else []),
    ]
    shape = ["n", 3, SIDE, SIDE] if is_nchw else ["n", SIDE, SIDE, 3]
    outputs = [("y", ["n", 10])] if reader != "output" else [("v", ["n", SIDE, SIDE, CHANNELS])]
    graph = helper.make_graph(
        nodes,
        "keras",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8, producer_name="tf2onnx")


@pytest.mark.parametrize(
    ("reader", "branches", "nhwc"),
    [("mean", 2, False), ("mean", 3, True), ("transpose", 2, False), ("activation", 2, False), ("both", 2, False)],
)
def test_selects_of_keras_are_rewritten(reader: str, branches: int, nhwc: bool, tmp_path: Path) -> None:
    path, inputs = tmp_path / "m.onnx", images(3, SIDE, SIDE)
    onnx.save(keras(branches, reader), path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    expected = np.asarray(session.run(None, {"x": inputs.transpose(0, 2, 3, 1)})[0])
    model, rewrite = read_foreign(path, options=ReadOptions(nhwc=nhwc)), RewriteSelect()
    assert foreign_notes(model).interface == ("the input x was NHWC; the graph takes NCHW",)
    rewrite(model)
    assert len(rewrite.report.found) == 1
    assert not rewrite.report.near_misses
    kinds = [each.op_type for each in model.graph]
    assert "Softmax" not in kinds or branches > 2
    assert kinds.count("Transpose") == (reader == "activation")  # of the rest nothing reads (n, h, w, c) any more
    assert all(len(value.shape or ()) <= 4 for each in model.graph for value in each.outputs)
    assert relative_error(run(model, inputs)["logits"], expected) < FLOAT32_ERROR


def test_a_select_that_is_an_output_with_the_channels_last_is_a_near_miss() -> None:
    """Of networks that take arrays; maps of an NHWC image come out NCHW."""
    model = ir.from_proto(onnx.shape_inference.infer_shapes(keras(2, "output", is_nchw=True)))
    rewrite = RewriteSelect()
    assert not rewrite(model).modified
    assert rewrite.report.near_misses == (("the_v", LAST),)
