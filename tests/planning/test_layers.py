"""Fusions against lists written by hand, and counts of known networks."""

from __future__ import annotations

import numpy as np
import pytest

from skdeploy.passes.trace import trace
from skdeploy.planning.layers import ONNXRUNTIME, fuse
from skdeploy.quant.macs import macs_of
from skdeploy.zoo.build import build
from skdeploy.zoo.cards import load_card
from tests.conftest import FAST, TinySpec
from tests.graphs.networks import (
    card,
    traced,
)
from tests.planning.graphs import conv, graph, node, plain, residual, weight


def names(layers: list[object]) -> list[list[str]]:
    return [[each.name for each in layer.nodes] for layer in layers]  # type: ignore[attr-defined]


def test_a_convolution_takes_relu_and_the_skip() -> None:
    layers = fuse(plain(residual()).model)
    assert names(layers) == [["net.a/Conv", "net.r/Relu"], ["net.b/Conv", "net/Add", "net/Relu"]]
    assert [layer.module for layer in layers] == ["net.a", "net.b"]


def test_of_two_convolutions_that_are_added_the_later_takes_the_sum() -> None:
    nodes = [conv("a", "x", "w"), conv("b", "x", "w"), node("Add", "sum", "a_y", "b_y"), node("Relu", "r", "sum_y")]
    layers = fuse(plain(graph(nodes, {"w": weight(8, 8)}, (1, 8, 4, 4), "r_y")).model)
    assert names(layers) == [["a"], ["b", "sum", "r"]]


def test_a_value_with_two_readers_ends_a_layer() -> None:
    nodes = [conv("a", "x", "w"), node("Relu", "r", "a_y"), node("Sub", "s", "a_y", "r_y")]
    layers = fuse(plain(graph(nodes, {"w": weight(8, 8)}, (1, 8, 4, 4), "s_y")).model)
    assert names(layers)[0] == ["a"]


def test_nothing_is_taken_after_the_activation() -> None:
    nodes = [conv("a", "x", "w"), node("Relu", "r", "a_y"), node("Mul", "m", "r_y", "c")]
    layers = fuse(plain(graph(nodes, {"w": weight(8, 8), "c": np.float32(2)}, (1, 8, 4, 4), "m_y")).model)
    assert names(layers) == [["a", "r"], ["m"]]


def test_pointwise_operators_run_as_one_in_tensorrt_and_one_by_one_in_onnxruntime() -> None:
    nodes = [node("Sub", "s", "x", "x"), node("Mul", "m", "s_y", "x"), node("Add", "a", "x", "m_y")]
    model = plain(graph(nodes, {}, (1, 8, 4, 4), "a_y")).model
    assert names(fuse(model)) == [["s", "m", "a"]]
    assert names(fuse(model, ONNXRUNTIME)) == [["s"], ["m"], ["a"]]


def test_two_chains_that_meet_are_one() -> None:
    nodes = [node("Exp", "p", "x"), node("Neg", "q", "x"), node("Add", "a", "p_y", "q_y")]
    layers = fuse(plain(graph(nodes, {}, (1, 8, 4, 4), "a_y")).model)
    assert [sorted(each) for each in names(layers)] == [["a", "p", "q"]]


def test_views_cost_nothing() -> None:
    nodes = [conv("a", "x", "w"), node("Flatten", "f", "a_y")]
    assert names(fuse(plain(graph(nodes, {"w": weight(8, 8)}, (1, 8, 4, 4), "f_y")).model)) == [["a"]]


def test_a_concatenation_is_free_in_tensorrt_and_a_copy_in_onnxruntime() -> None:
    model = plain(graph([node("Concat", "c", "x", "x", axis=1)], {}, (1, 8, 4, 4), "c_y")).model
    assert names(fuse(model)) == []
    assert names(fuse(model, ONNXRUNTIME)) == [["c"]]


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
