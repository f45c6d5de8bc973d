"""Where INT8 goes around a depthwise convolution, whose output reaches a select with or without an activation."""

from __future__ import annotations

import onnx
import pytest

from skdeploy.ir.placement import Edge, place
from tests.graphs.quantizable import normal, small

op = onnx.helper.make_node
ACTIVATIONS = {
    "none": [],
    "relu": [op("Relu", ["d"], ["r"])],
    "silu": [op("Sigmoid", ["d"], ["g"], name="g"), op("Mul", ["d", "g"], ["r"], name="silu")],
    "hard-swish": [op("HardSwish", ["d"], ["r"])],
    "gelu": [op("Gelu", ["d"], ["r"])],
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("groups", [2, 8])
def test_a_branch_that_a_depthwise_convolution_made_goes_into_select_as_it_is(activation: str, groups: int) -> None:
    """One that a convolution of two groups made is INT8, and so is the result for the next layer."""
    made = "r" if ACTIVATIONS[activation] else "d"
    nodes = [
        op("Conv", ["input", "first"], ["a"], name="first"),
        op("Conv", ["a", "w"], ["d"], name="grouped", group=groups),
        *(onnx.NodeProto.FromString(node.SerializeToString()) for node in ACTIVATIONS[activation]),
        op("Sub", [made, "a"], ["b"], name="select"),
        op("Add", ["b", made], ["s"], name="sum"),
        op("Conv", ["s", "last"], ["m"], name="last"),
        op("GlobalAveragePool", ["m"], ["y"], name="mean"),
    ]
    weights = {"first": normal(8, 3, 1, 1), "w": normal(8, 8 // groups, 1, 1), "last": normal(4, 8, 1, 1)}
    found = place(small(nodes, ("N", 3, 6, 6), weights, opset=20))
    assert (made in found.readers) == (groups == 2)
    assert Edge("select", 1) in found.readers["a"]
    assert found.readers["s"] == (Edge("last", 0),)
