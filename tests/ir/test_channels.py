"""Which channels are one number line: residual streams and blocks are, and what an unknown operator touches is fixed."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from skdeploy.ir.channels import ChannelClasses, channel_classes
from tests.graphs.quantizable import graph, normal, small

op = onnx.helper.make_node
WEIGHTS = {
    "w": normal(4, 4, 1, 1),
    "v": normal(4, 4, 1, 1),
    "one": normal(1, 4, 1, 1),
    "matrix": normal(5, 4),
    "space": np.array([2, 3]),
    "channels": np.array([1]),
    "axis": np.array([1]),
    "from": np.array([0]),
    "to": np.array([2]),
}
CONV = op("Conv", ["input", "w"], ["a"], name="first")


def same(classes: ChannelClasses, *names: str) -> bool:
    return all(np.array_equal(classes.of[name], classes.of[names[0]]) for name in names)


def free(classes: ChannelClasses, name: str) -> bool:
    return not classes.fixed[classes.of[name]].any()


@pytest.mark.parametrize("branches", [2, 3])
def test_a_stream_and_a_block_are_classes_and_a_gate_is_fixed(branches: int) -> None:
    classes = channel_classes(graph("sknet" if branches == 2 else "sknet of three branches"))
    sk = "stages.0.0.sk"
    maps = [f"{sk}.branches.{m}.relu/Relu" for m in range(branches)]
    means = [f"{sk}/GlobalAveragePool{'' if m == 0 else f'_{m + 1}'}" for m in range(branches)]
    assert same(classes, *maps, *means, f"{sk}/Sub", f"{sk}/Mul", f"{sk}/Add_2")
    stream = ["stages.0.0/Add", "stages.0.0.relu/Relu", "stages.0.0.shortcut.conv/Conv", "stages.0.1/Add"]
    assert same(classes, *stream, "stages.0.1.expand.conv/Conv")
    assert not same(classes, maps[0], "stages.0.1.sk.branches.0.relu/Relu")
    assert not set(classes.of[maps[0]]) & set(classes.of[stream[0]])
    assert free(classes, maps[0])
    assert free(classes, stream[0])
    assert free(classes, f"{sk}.gate.fc1/Conv")  # its Relu commutes, so the squeezed channels are free too
    for fixed in ("input", "logits", f"{sk}.gate.fc2/Conv"):
        assert classes.fixed[classes.of[fixed]].all()


def test_the_stream_of_a_network_that_slices_it_is_fixed() -> None:
    classes = channel_classes(graph("resnet of basic blocks"))
    assert classes.fixed[classes.of["stages.0.0.relu/Relu"]].all()
    assert free(classes, "stages.0.0.sk.branches.0.relu/Relu")


@pytest.mark.parametrize(
    ("nodes", "tied"),
    [
        ([op("Relu", ["a"], ["b"])], True),
        ([op("MaxPool", ["a"], ["b"], kernel_shape=[2, 2])], True),
        ([op("AveragePool", ["a"], ["b"], kernel_shape=[2, 2])], True),
        ([op("ReduceMean", ["a", "space"], ["b"], keepdims=0)], True),
        ([op("Add", ["a", "a"], ["b"])], True),
        ([op("Sigmoid", ["a"], ["b"])], False),
        ([op("Mul", ["a", "a"], ["b"])], False),
        ([op("Add", ["a", "one"], ["b"])], False),
        ([op("Slice", ["a", "from", "to", "axis"], ["b"])], False),
        # (N, 4, 4), and these 4 are rows of the map.
        ([op("ReduceMean", ["a", "channels"], ["b"], keepdims=0)], False),
        # (4, 4, 4, 4) + (4, 4, 4): the 4 channels of the one meet the rows of the other.
        ([op("ReduceMax", ["input", "channels"], ["r"], keepdims=0), op("Add", ["a", "r"], ["b"])], False),
        # (N, 1, 4, 4) weighs places, not channels.
        ([op("ReduceMean", ["a", "channels"], ["r"]), op("Mul", ["a", "r"], ["b"])], False),
    ],
)  # fmt: skip
def test_what_hands_channels_on_and_what_fixes_them(nodes: list[onnx.NodeProto], tied: bool) -> None:
    for number, node in enumerate(nodes):
        node.name = f"n{number}"
    last = (
        op("GlobalAveragePool", ["b"], ["y"]) if tied and nodes[0].op_type != "ReduceMean" else op("Abs", ["b"], ["y"])
    )
    extra = (
        [op("Conv", ["b", "v"], ["c"]), op("Abs", ["c"], ["y"])] if tied and last.op_type == "GlobalAveragePool" else []
    )
    extra = extra or ([op("Gemm", ["b", "matrix"], ["y"], transB=1)] if tied else [last])
    classes = channel_classes(small([CONV, *nodes, *extra], (4, 4, 4, 4), WEIGHTS))
    assert free(classes, "a") == tied
    assert ("b" in classes.of and same(classes, "a", "b")) == tied


def test_a_product_of_stacked_rows_fixes_what_is_along_axis_one() -> None:
    """(N, T, C) @ (C, 5): axis 1 is T."""
    weights = {"m": normal(4, 4), "k": normal(4, 5)}
    nodes = [op("MatMul", ["input", "m"], ["a"], name="one"), op("MatMul", ["a", "k"], ["y"], name="two")]
    stacked = channel_classes(small(nodes, (2, 4, 4), weights))
    assert stacked.fixed.all()
    flat = channel_classes(small(nodes, (2, 4), weights))
    assert free(flat, "a")


def test_what_weighs_maps_is_fixed_even_if_a_convolution_makes_it() -> None:
    nodes = [
        CONV,
        op("GlobalAveragePool", ["a"], ["mean"]),
        op("Conv", ["mean", "v"], ["weight"], name="second"),
        op("Mul", ["a", "weight"], ["m"]),
        op("Conv", ["m", "w"], ["y"], name="third"),
    ]
    classes = channel_classes(small(nodes, (4, 4, 4, 4), WEIGHTS))
    assert classes.fixed[classes.of["weight"]].all()
    assert same(classes, "a", "mean", "m")
    assert free(classes, "a")
