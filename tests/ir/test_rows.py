"""Weights by their output channels, against what a layer makes of one input alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from skdeploy.ir.rows import along_inputs, along_outputs, output_axis, rows_first, taps_at_a_place
from tests.graphs.quantizable import Array, normal, outputs, small

op = onnx.helper.make_node
LAYERS: dict[str, tuple[dict[str, Any], Array, tuple[int, ...]]] = {
    "Conv": ({}, normal(6, 4, 3, 3), (1, 4, 5, 5)),
    "Conv in groups": ({"group": 2}, normal(6, 2, 3, 3), (1, 4, 5, 5)),
    "Conv of one dimension": ({}, normal(6, 4, 3), (1, 4, 7)),
    "ConvTranspose": ({"strides": [2, 2]}, normal(4, 6, 2, 2), (1, 4, 5, 5)),
    "ConvTranspose in groups": ({"group": 2, "strides": [2, 2]}, normal(4, 3, 3, 3), (1, 4, 5, 5)),
    "ConvTranspose of three dimensions": ({"group": 2, "strides": [2, 2, 2]}, normal(4, 3, 2, 2, 2), (1, 4, 3, 3, 3)),
    "Gemm": ({}, normal(4, 6), (1, 4)),
    "Gemm of rows": ({"transB": 1}, normal(6, 4), (1, 4)),
    "MatMul": ({}, normal(4, 6), (1, 4)),
}


def layer(name: str) -> tuple[ir.Model, ir.Node, Array]:
    attributes, weight, shape = LAYERS[name]
    model = small([op(name.partition(" ")[0], ["input", "w"], ["y"], **attributes)], shape, {"w": weight})
    return model, model.graph[0], weight


def run(model: ir.Model, feed: Array) -> Array:
    """In ONNX Runtime: ONNX's reference has no groups of transposed convolutions."""
    return outputs(model, feed)["y"]


@pytest.mark.parametrize("name", LAYERS)
def test_a_row_is_all_that_an_output_channel_is_made_with(name: str) -> None:
    """Without one row of the weight, that channel of the output is zero, and the others are as they were."""
    model, node, weight = layer(name)
    feed = normal(*LAYERS[name][2], seed=1)
    before = run(model, feed)
    numbers = np.arange(weight.size).reshape(weight.shape)
    for channel, row in enumerate(rows_first(node, numbers)):
        changed = weight.copy().reshape(-1)
        changed[row.reshape(-1)] = 0
        model.graph.initializers["w"].const_value = ir.tensor(changed.reshape(weight.shape), name="w")
        after = run(model, feed)
        assert not after[:, channel].any()
        others = [each for each in range(after.shape[1]) if each != channel]
        np.testing.assert_array_equal(after[:, others], before[:, others])


@pytest.mark.parametrize("name", LAYERS)
def test_factors_of_channels_go_from_the_weight_to_what_the_layer_reads_and_makes(name: str) -> None:
    model, node, weight = layer(name)
    feed = normal(*LAYERS[name][2], seed=1)
    before = run(model, feed)
    # Powers of two: products are exact, so all sums are the same but for the scale.
    read = 2.0 ** np.arange(feed.shape[1])
    made = 2.0 ** -np.arange(before.shape[1])
    scaled = weight / along_inputs(node, weight.shape, read) * along_outputs(node, weight.shape, made)
    model.graph.initializers["w"].const_value = ir.tensor(scaled.astype(np.float32), name="w")

    def broadcast(factors: Array, array: Array) -> Array:
        return factors.reshape(-1, *[1] * (array.ndim - 2)).astype(np.float32)

    after = run(model, feed * broadcast(read, feed))
    np.testing.assert_allclose(after, before * broadcast(made, before), rtol=1e-5, atol=1e-6)  # sums in float32


def test_a_transposed_convolution_gives_each_place_a_share_of_its_taps() -> None:
    """Of a constant input, the mean of the output is the sum of the taps, divided by the number of places an input reaches."""
    _, node, weight = layer("ConvTranspose")
    model, _, _ = layer("ConvTranspose")
    found = run(model, np.ones((1, 4, 5, 5), np.float32)).mean(axis=(0, 2, 3))
    np.testing.assert_allclose(found, weight.sum(axis=(0, 2, 3)) / taps_at_a_place(node), rtol=1e-5)
    assert taps_at_a_place(node) == 4
    assert taps_at_a_place(layer("Conv")[1]) == 1


def test_the_axis_of_output_channels_is_where_onnx_has_them() -> None:
    axes = {name: output_axis(layer(name)[1]) for name in LAYERS}
    assert {name for name, axis in axes.items() if axis == 1} == {
        "ConvTranspose", "ConvTranspose in groups", "ConvTranspose of three dimensions", "Gemm", "MatMul",
    }  # fmt: skip
