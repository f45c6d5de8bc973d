"""Tensors that padded convolutions read, shifted behind a Pad that writes the shifted zero: which, and the same function."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from skdeploy.ir.placement import place
from skdeploy.ir.qdq import DEQUANTIZE, INT8_MIN, QUANTIZE, InsertQDQ
from skdeploy.passes.shift import ShiftTensors, shiftable, shiftable_groups
from tests.graphs.quantizable import check, normal, outputs, small, weights_of

op = onnx.helper.make_node
PADS = [1, 2, 0, 1]  # all four sides differ: top 1, left 2, bottom 0, right 1
WIDE = {"pads": PADS, "dilations": [2, 1], "strides": [1, 2]}
WEIGHTS = {"w": normal(4, 4, 1, 1), "k": normal(4, 4, 3, 3), "l": normal(4, 4, 3, 3, seed=1), "h": normal(4, 2, 3, 3)}
HALVES = {"half": np.array([2, 2])}
FIRST = [op("Conv", ["input", "w"], ["a"], name="first"), op("Relu", ["a"], ["r"], name="first/Relu")]
OTHER = [op("Conv", ["input", "w"], ["b"], name="other"), op("Relu", ["b"], ["s"], name="other/Relu")]
# A product of two maps that others read too, as in a select: an elementwise kernel of its own.
PRODUCT = [*FIRST, *OTHER, op("Mul", ["r", "s"], ["v"], name="product")]
END = [
    op("GlobalAveragePool", ["y"], ["mean"], name="pool"),
    op("Conv", ["mean", "w"], ["end"], name="end"),
]
SLICES = [
    *FIRST,
    op("Split", ["r", "half"], ["p", "q"], axis=1, name="split"),
    op("Conv", ["p", "h"], ["c"], name="c", **WIDE),
    op("Conv", ["q", "h"], ["d"], name="d", pads=[1, 1, 1, 1], strides=[1, 2]),
    op("Conv", ["r", "w"], ["e"], name="e", strides=[1, 2]),
    op("GlobalAveragePool", ["c"], ["f"], name="pool c"),
    op("GlobalAveragePool", ["d"], ["i"], name="pool d"),
    op("Add", ["f", "i"], ["j"], name="sum"),
    op("Add", ["e", "j"], ["y"], name="last"),
    *END,
]


def made(nodes: list[onnx.NodeProto], shape: tuple[int | str, ...] = (3, 4, 7, 6)) -> ir.Model:
    used = {name for node in nodes for name in node.input}
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    constants: dict[str, Any] = {name: array for name, array in (WEIGHTS | HALVES).items() if name in used}
    return small(copies, shape, constants, ("end",))


def behind(**attributes: Any) -> list[onnx.NodeProto]:
    return [*PRODUCT, op("Conv", ["v", "k"], ["y"], name="padded", **attributes), *END]


def in_float64(model: ir.Model, feed: Any) -> Any:
    """ONNX's own reference, with every float constant and the input in float64: 2^-53 a rounding."""
    proto = ir.to_proto(model)
    for tensor in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float64), tensor.name))
    return ReferenceEvaluator(proto).run(None, {"input": feed.astype(np.float64)})[0]


@pytest.mark.parametrize(
    "nodes",
    [
        behind(pads=[1, 1, 1, 1]),
        behind(**WIDE),
        [*PRODUCT, op("Relu", ["v"], ["u"], name="product/Relu"), op("Conv", ["u", "k"], ["y"], name="padded", **WIDE),
         *END],
        [*PRODUCT, op("Conv", ["v", "k"], ["x"], name="one", **WIDE), op("Conv", ["v", "l"], ["z"], name="two", **WIDE),
         op("Sub", ["x", "z"], ["y0"], name="difference"), op("Conv", ["y0", "w"], ["y"], name="after"), *END],
        SLICES,
    ],
    ids=["same on all sides", "other on each side", "behind an activation", "two readers", "slices"],
)  # fmt: skip
def test_a_border_of_the_shifted_zero_is_the_same_function(nodes: list[onnx.NodeProto]) -> None:
    model = made(nodes)
    placement = place(model)
    names = {*shiftable(model, placement, padded=True)}.union(*shiftable_groups(model, placement, padded=True))
    without = {*shiftable(model, placement, padded=False)}.union(*shiftable_groups(model, placement, padded=False))
    assert names > without
    feed = normal(3, 4, 7, 6)
    before, exact = outputs(model, feed, placement.tensors), in_float64(model, feed)
    ShiftTensors(placement, {name: 0.75 for name in placement.tensors if name in names})(model)
    check(model)
    after = outputs(model, feed, placement.tensors)
    for name, expected in before.items():
        moved = expected - 0.75 if name in names else expected
        # under its own name a tensor has no border; a handful of roundings, 2^-24 each
        assert np.abs(after[name] - moved).max() < 1e-5 * max(np.abs(expected).max(), 3), name
    assert all(not any(node.attributes.get_ints("pads", [0])) for node in model.graph if node.op_type == "Conv")
    # Biases are stored in float32, and so are c and the sums of weights that they get: 2^-24 of numbers of about 10.
    assert np.abs(in_float64(model, feed) - exact).max() < 3e-6 * np.abs(exact).max()


def test_a_border_of_zeros_is_seen() -> None:
    """The check above can fail: the padding of the convolution, left as it was, is another function."""
    model = made(behind(**WIDE))
    placement = place(model)
    feed = normal(3, 4, 7, 6)
    before = outputs(model, feed)["end"]
    ShiftTensors(placement, {"v": 0.75})(model)
    pad = next(node for node in model.graph if node.op_type == "Pad")
    pad.replace_input_with(2, None)
    assert np.abs(outputs(model, feed)["end"] - before).max() > 0.01 * np.abs(before).max()


@pytest.mark.parametrize(
    ("nodes", "name"),
    [
        # a convolution writes r, and the Relu is in its kernel: a padded one would be a copy
        ([*FIRST, op("Conv", ["r", "k"], ["y"], name="padded", pads=[1, 1, 1, 1]), *END], "r"),
        # an addition is fused into the convolution that it alone reads
        (
            [*FIRST, op("Conv", ["r", "w"], ["c"], name="c"), op("Add", ["c", "r"], ["v"], name="skip"),
             op("Relu", ["v"], ["u"], name="skip/Relu"), op("Conv", ["u", "k"], ["y"], name="padded", pads=[1, 1, 1, 1]), *END],
            "u",
        ),
        ([*FIRST, op("MaxPool", ["r"], ["v"], name="max", kernel_shape=[2, 2]),
          op("Conv", ["v", "k"], ["y"], name="padded", pads=[1, 1, 1, 1]), *END], "v"),
        # two readers that want other borders, or one of them none
        ([*PRODUCT, op("Conv", ["v", "k"], ["x"], name="one", pads=[1, 1, 1, 1]),
          op("Conv", ["v", "k"], ["z"], name="two", pads=[2, 2, 2, 2], dilations=[2, 2]),
          op("Add", ["x", "z"], ["y0"], name="sum"), op("Conv", ["y0", "w"], ["y"], name="after"), *END], "v"),
        ([*PRODUCT, op("Conv", ["v", "k"], ["x"], name="one", pads=[1, 1, 1, 1]), op("Conv", ["v", "w"], ["z"], name="two"),
          op("Add", ["x", "z"], ["y0"], name="sum"), op("Conv", ["y0", "w"], ["y"], name="after"), *END], "v"),
        (behind(auto_pad="SAME_UPPER"), "v"),
    ],
    ids=["of a convolution", "of a fused addition", "of a pool", "two borders", "one unpadded", "padding by size"],
)  # fmt: skip
def test_what_would_have_to_be_copied_is_not_shifted(nodes: list[onnx.NodeProto], name: str) -> None:
    model = made(nodes)
    placement = place(model)
    assert name in placement.readers
    assert name not in shiftable(model, placement, padded=True)


@pytest.mark.parametrize("size", [(3, 4, 7, 6), ("n", 4, "h", "w")], ids=["fixed", "any size"])
@pytest.mark.parametrize("nodes", [behind(**WIDE), SLICES], ids=["product", "slices"])
def test_layers_read_int8_right_behind_the_border(nodes: list[onnx.NodeProto], size: tuple[int | str, ...]) -> None:
    """TensorRT makes an INT8 layer of Q, DQ and the convolution in this order; the border is a number that INT8 has."""
    model = made(nodes, size)
    placement = place(model)
    group = {*shiftable(model, placement, padded=True)}.union(*shiftable_groups(model, placement, padded=True))
    scales = dict.fromkeys(placement.tensors, 2.0 ** (-6))
    weights = weights_of(model, placement)
    ShiftTensors(placement, {name: -INT8_MIN * scales[name] for name in placement.tensors if name in group})(model)
    InsertQDQ(placement, scales, weights)(model)
    check(model)
    pads = [node for node in model.graph if node.op_type == "Pad"]
    assert pads
    for pad in pads:
        (reader,) = (use.node for use in pad.outputs[0].uses())
        assert reader.op_type == QUANTIZE
        (dequantize,) = (use.node for use in reader.outputs[0].uses())
        assert dequantize.op_type == DEQUANTIZE
        assert {use.node.op_type for use in dequantize.outputs[0].uses()} == {"Conv"}
        integers = outputs(model, normal(3, 4, 7, 6), (reader.outputs[0].name or "",))[reader.outputs[0].name or ""]
        assert (integers[:, :, 0] == INT8_MIN).all()  # the row above, of the only padding that both networks have there
        assert (integers[:, :, 1:, 2:] > INT8_MIN).any()
