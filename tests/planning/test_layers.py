"""Fusions against lists written by hand, and counts of known networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from skdeploy.passes.trace import trace
from skdeploy.planning.layers import ONNXRUNTIME, Layer, fuse
from skdeploy.planning.plain import read_plain
from skdeploy.quant.macs import macs_of
from skdeploy.zoo.build import build
from skdeploy.zoo.cards import load_card
from tests.conftest import FAST, TinySpec
from tests.graphs import unets
from tests.graphs.networks import (
    card,
    traced,
)
from tests.planning.graphs import conv, graph, node, plain, residual, weight


def names(layers: list[Layer]) -> list[list[str]]:
    return [[each.name for each in layer.nodes] for layer in layers]


def test_a_convolution_takes_relu_and_the_skip() -> None:
    layers = fuse(plain(residual()).model)
    assert names(layers) == [["net.a/Conv", "net.r/Relu"], ["net.b/Conv", "net/Add", "net/Relu"]]
    assert [layer.module for layer in layers] == ["net.a", "net.b"]


@pytest.mark.parametrize(
    ("nodes", "tensorrt", "onnxruntime"),
    [
        (  # of two convolutions that are added, the later takes the sum
            [conv("a", "x", "w"), conv("b", "x", "w"), node("Add", "sum", "a_y", "b_y"), node("Relu", "r", "sum_y")],
            [["a"], ["b", "sum", "r"]],
            [["a"], ["b", "sum", "r"]],
        ),
        (  # a value with two readers ends a layer
            [conv("a", "x", "w"), node("Relu", "r", "a_y"), node("Sub", "s", "a_y", "r_y")],
            [["a"], ["r", "s"]],
            [["a"], ["r"], ["s"]],
        ),
        (  # nothing is taken after the activation
            [conv("a", "x", "w"), node("Relu", "r", "a_y"), node("Mul", "m", "r_y", "c")],
            [["a", "r"], ["m"]],
            [["a", "r"], ["m"]],
        ),
        (  # pointwise operators run as one in TensorRT
            [node("Sub", "s", "x", "x"), node("Mul", "m", "s_y", "x"), node("Add", "a", "x", "m_y")],
            [["s", "m", "a"]],
            [["s"], ["m"], ["a"]],
        ),
        (  # two chains that meet are one
            [node("Exp", "p", "x"), node("Neg", "q", "x"), node("Add", "a", "p_y", "q_y")],
            [["p", "q", "a"]],
            [["p"], ["q"], ["a"]],
        ),
        ([conv("a", "x", "w"), node("Flatten", "f", "a_y")], [["a"]], [["a"]]),  # views cost nothing
        ([node("Concat", "c", "x", "x", axis=1)], [], [["c"]]),  # free in TensorRT, a copy in ONNX Runtime
    ],
)
def test_what_runs_as_one_layer(nodes: list[Any], tensorrt: list[list[str]], onnxruntime: list[list[str]]) -> None:
    weights = {"w": weight(8, 8), "c": np.float32(2)}
    used = {name: array for name, array in weights.items() if any(name in each.input for each in nodes)}
    model = plain(graph(nodes, used, (1, 8, 4, 4), nodes[-1].output[0])).model
    assert [sorted(layer) for layer in names(fuse(model))] == list(map(sorted, tensorrt))
    assert names(fuse(model, ONNXRUNTIME)) == onnxruntime


def test_every_node_that_costs_is_in_one_layer_and_after_its_inputs(tiny_spec: TinySpec) -> None:
    model = plain(traced(card(tiny_spec(branches=3)))).model
    layers = fuse(model)
    inside = [each for layer in layers for each in layer.nodes]
    assert len(inside) == len(set(inside))
    place = {value: index for index, layer in enumerate(layers) for each in layer.nodes for value in each.outputs}
    for index, layer in enumerate(layers):
        assert all(place.get(value, -1) < index for _, _, value in layer.reads())


def test_macs_are_those_that_quantization_counts(tiny_spec: TinySpec) -> None:
    expected = macs_of(traced(card(tiny_spec())))
    assert {layer.name: layer.macs for layer in fuse(plain(traced(card(tiny_spec()))).model) if layer.macs} == expected


def test_macs_of_a_batch_are_those_of_its_images(tiny_spec: TinySpec) -> None:
    one, three = (sum(layer.macs for layer in fuse(plain(traced(card(tiny_spec())), batch).model)) for batch in (1, 3))
    assert three == 3 * one


def test_a_network_has_its_cards_macs() -> None:
    """The card's figure is of the training form, whose gates have a second layer of twice the size."""
    spec, _ = load_card("sknet-fashion")
    layers = fuse(plain(trace(build(spec).eval(), spec, FAST)).model)
    saved = sum(layer.macs for layer in layers if ".fc2/" in layer.name)
    assert sum(layer.macs for layer in layers) + saved == spec.reference.macs == 10_181_248


@pytest.mark.slow
def test_sknet50_has_the_papers_macs() -> None:
    """SKNet, table 1: 4.47 G. The deploy form saves half of each gate's second layer: 0.2 %."""
    spec, _ = load_card("sknet50")
    layers = fuse(plain(trace(build(spec).eval(), spec, FAST)).model)
    assert sum(layer.macs for layer in layers) == pytest.approx(spec.reference.macs, rel=0.01)
    grouped = [layer for layer in layers if layer.groups > 1]
    assert len(grouped) == 32
    assert {layer.into_group for layer in grouped} == {4, 8, 16, 32}


@pytest.mark.parametrize(
    ("up", "skip", "dims"), [("transposed", "concat", 1), ("shuffle", "add", 2), ("transposed", "add", 3)]
)
def test_work_of_a_u_is_what_the_graph_says_in_any_dimension(up: Any, skip: Any, dims: int) -> None:
    """The planner's own count of each layer, for one image, against the counter that torch's agrees with."""
    model = unets.graph(up, skip, dims)
    macs = macs_of(model)
    layers = fuse(read_plain(model, "u.onnx").model)
    assert {layer.name: layer.macs for layer in layers if layer.macs} == macs
    kinds = [layer.kind for layer in layers if layer.main.op_type == "ConvTranspose"]
    assert kinds == (["x".join(["2"] * dims) + " deconv"] * 2 if up == "transposed" else [])
