"""Scaling channels changes nothing that comes out; equalizing gives what it promises, whatever the scaling was before."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from skdeploy.ir.channels import ChannelClasses, channel_classes
from skdeploy.ir.constants import array_of
from skdeploy.ir.placement import place
from skdeploy.passes.equalize import MOST, ScaleChannels, equalize
from tests.graphs import unets
from tests.graphs.quantizable import (
    MAKERS,
    VARIED,
    channel_maxima,
    check,
    difference,
    graph,
    images,
    normal,
    outputs,
    small,
)

op = onnx.helper.make_node
every_varied = pytest.mark.parametrize("name", VARIED)
every_graph = pytest.mark.parametrize("name", MAKERS)


def powers_of_two(classes: ChannelClasses, seed: int = 3) -> NDArray[np.float64]:
    return 2.0 ** np.random.default_rng(seed).integers(-4, 5, classes.count)


@every_graph
def test_scaling_by_powers_of_two_changes_no_bit_of_any_output(name: str) -> None:
    """Factors of two change exponents alone: every product and partial sum in the network is rounded as before, then scaled.
    The factors of what leaves the network are 1, so nothing may differ at all."""
    model = graph(name)
    classes = channel_classes(model)
    assert not classes.fixed.all()
    before = outputs(model, images(model))
    assert ScaleChannels(classes, powers_of_two(classes))(model).modified
    after = outputs(model, images(model))
    for output, expected in before.items():
        np.testing.assert_array_equal(after[output], expected)


@pytest.mark.parametrize(
    ("up", "skip", "dims", "groups"),
    [
        ("transposed", "concat", 2, 1),
        ("transposed", "concat", 2, 4),
        ("shuffle", "concat", 2, 1),
        ("nearest", "add", 1, 1),
        ("transposed", "concat", 3, 2),
    ],
)
def test_channels_go_through_the_ways_up_and_the_skips_of_a_u(up: Any, skip: Any, dims: int, groups: int) -> None:
    """Of what is not the image or the result, every channel may be scaled, and by powers of two it changes no bit."""
    model = unets.graph(up, skip, dims, groups=groups)
    classes = channel_classes(model)
    inner = [node.outputs[0].name for node in model.graph if node.outputs[0].name != "restored"]
    assert not any(classes.fixed[classes.of[name]].any() for name in inner if name in classes.of)
    assert {node.outputs[0].name for node in model.graph if node.op_type in ("Concat", "Conv")} <= set(classes.of)
    feed = unets.noise(dims, 2)
    before = outputs(model, feed)["restored"]
    assert ScaleChannels(classes, powers_of_two(classes))(model).modified
    np.testing.assert_array_equal(outputs(model, feed)["restored"], before)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_channels_that_become_one_map_have_one_factor(mode: str) -> None:
    nodes = [
        op("Conv", ["input", "w"], ["a"], name="one"),
        op("DepthToSpace", ["a"], ["b"], blocksize=2, mode=mode),
        op("Conv", ["b", "v"], ["y"], name="two"),
    ]
    model = small(nodes, (2, 4, 6, 6), {"w": normal(12, 4, 3, 3), "v": normal(2, 3, 3, 3)})
    classes = channel_classes(model)
    assert len(set(classes.of["b"])) == 3
    assert not classes.fixed[classes.of["b"]].any()
    before = outputs(model, normal(2, 4, 6, 6))["y"]
    ScaleChannels(classes, powers_of_two(classes))(model)
    np.testing.assert_array_equal(outputs(model, normal(2, 4, 6, 6))["y"], before)


def test_scaled_channels_have_their_factors() -> None:
    model = graph("sknet of three branches")
    tensors = place(model).tensors
    classes = channel_classes(model)
    factors = np.where(classes.fixed, 1.0, powers_of_two(classes))
    before = outputs(model, images(model), tensors)
    ScaleChannels(classes, factors)(model)
    after = outputs(model, images(model), tensors)
    for tensor in tensors:
        a_channel = factors[classes.of[tensor]].reshape(1, -1, *[1] * (before[tensor].ndim - 2))
        np.testing.assert_array_equal(after[tensor], before[tensor] * a_channel.astype(np.float32))


@pytest.mark.parametrize(
    "forgotten",
    [
        ("stages.0.0.sk.gate.fc1/Conv", 1),
        ("stages.0.1.reduce.conv/Conv", 1),
        ("stages.1.1.sk.branches.1.conv/Conv", 1),
        ("stages.0.0.expand.conv/Conv", 2),
        ("classifier/Gemm", 1),
    ],
)
def test_one_forgotten_compensation_is_seen(forgotten: tuple[str, int]) -> None:
    name, index = forgotten
    model = graph("sknet")
    expected = outputs(model, images(model))
    classes = channel_classes(model)
    before = array_of(model.graph.node(name).inputs[index])
    ScaleChannels(classes, powers_of_two(classes))(model)
    value = model.graph.node(name).inputs[index]
    value.const_value = ir.tensor(before.astype(np.float32), name=value.name)
    # The exact test above has no tolerance at all; this is a thousand roundings away from it.
    assert difference(outputs(model, images(model)), expected) > 1e-4


def test_convolutions_that_share_a_weight_are_scaled_each_for_itself() -> None:
    nodes = [
        op("Conv", ["input", "w", "b"], ["a"], name="one"),
        op("Relu", ["a"], ["r"]),
        op("Conv", ["r", "w", "b"], ["c"], name="two"),
        op("Conv", ["c", "w", "b"], ["y"], name="three"),
    ]
    model = small(nodes, (2, 4, 5, 5), {"w": normal(4, 4, 1, 1), "b": normal(4)})
    feed = normal(2, 4, 5, 5, seed=1)
    before = outputs(model, feed)
    classes = channel_classes(model)
    ScaleChannels(classes, powers_of_two(classes))(model)
    check(model)
    np.testing.assert_array_equal(outputs(model, feed)["y"], before["y"])
    assert len(model.graph.initializers) == 6


@pytest.mark.parametrize("bias", [(1,), (5,), (1, 5)])
@pytest.mark.parametrize("transposed", [0, 1])
def test_a_gemm_is_scaled_along_the_right_axes_with_any_shape_of_bias(bias: tuple[int, ...], transposed: int) -> None:
    weight = normal(5, 4) if transposed else normal(4, 5)
    nodes = [
        op("Gemm", ["input", "w", "b"], ["a"], transB=transposed),
        op("Relu", ["a"], ["r"]),
        op("MatMul", ["r", "m"], ["y"]),
    ]
    model = small(nodes, (2, 4), {"w": weight, "b": normal(*bias), "m": normal(5, 3)})
    before = outputs(model, normal(2, 4, seed=1))
    classes = channel_classes(model)
    assert ScaleChannels(classes, powers_of_two(classes))(model).modified
    check(model)
    np.testing.assert_array_equal(outputs(model, normal(2, 4, seed=1))["y"], before["y"])


# ------------------------------------------------------------------------------------------------------------------ equalize


def equalized(model: ir.Model) -> tuple[ir.Model, dict[str, NDArray[np.float32]]]:
    """The equalized copy, and the channel maxima that it has then, relative to the largest of their tensor."""
    copy = model.clone()
    tensors = place(copy).tensors
    equalize(copy, channel_maxima(copy, tensors))
    return copy, {name: maxima / maxima.max() for name, maxima in channel_maxima(copy, tensors).items()}


@every_varied
def test_equalizing_keeps_the_function(name: str) -> None:
    """Every weight is rounded anew, to 2^-24 of itself; some fifty such roundings in a row, in networks whose gates and sums
    amplify them tenfold (``tests/graphs/networks.py``: 2e-5 for float32 at large)."""
    model = graph(name)
    changed, _ = equalized(model)
    assert difference(outputs(changed, images(model)), outputs(model, images(model))) < 1e-4


@pytest.mark.parametrize("name", ["sknet", "sknet of three branches", "sknet-fashion", "linear_sknet"])
def test_channels_are_as_equal_as_they_can_be(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing given back to the activations, a free channel that was not silent reaches its tensor's maximum in one of
    the tensors that it is in."""
    model = graph(name)
    monkeypatch.setattr("skdeploy.passes.equalize.WEIGHT_SHARE", 0.0)
    classes = channel_classes(model)
    tensors = [tensor for tensor in place(model).tensors if tensor in classes.of]
    first = channel_maxima(model, tuple(tensors))
    _, relative = equalized(model)
    most, alive = np.zeros(classes.count), np.zeros(classes.count, np.bool_)
    for tensor in tensors:
        np.maximum.at(most, classes.of[tensor], relative[tensor])
        np.logical_or.at(alive, classes.of[tensor], first[tensor] > first[tensor].max() / MOST)
    free = alive & ~classes.fixed
    assert free.any()
    # Streams are in several tensors, whose loudest channel need not be the one that sets the class: then up to 1 only.
    single = np.bincount(np.concatenate([classes.of[tensor] for tensor in tensors]), minlength=classes.count) == 1
    # Rounded weights shift a quiet channel by up to 2^-24 of the larger numbers that it is a difference of.
    np.testing.assert_allclose(most[free & single], 1, rtol=1e-3)


@pytest.mark.parametrize(
    "name", ["sknet", "sknet of three branches", "sknet as a plain sum", "sknet-fashion", "linear_sknet"]
)
def test_equalizing_does_not_depend_on_how_channels_were_scaled_before(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The bound is from the loudest channel, so it does depend on it: it has its own test. Silent channels too, and here they
    # are given a maximum as if they were not.
    monkeypatch.setattr("skdeploy.passes.equalize.MOST", 2.0**30)
    original = graph(name)
    classes = channel_classes(original)
    tensors = place(original).tensors
    observed = np.isin(np.arange(classes.count), np.concatenate([classes.of[tensor] for tensor in tensors]))
    factors = np.where(observed & ~classes.fixed, powers_of_two(classes, seed=11), 1.0)
    rescaled = original.clone()
    ScaleChannels(classes, factors)(rescaled)
    maxima = channel_maxima(original, tensors)
    ids = {tensor: classes.of[tensor] for tensor in tensors}
    loud = {tensor: np.where(maxima[tensor] > 0, maxima[tensor], 0.1).astype(np.float32) for tensor in tensors}
    equalize(original, loud)
    equalize(rescaled, {tensor: (loud[tensor] * factors[ids[tensor]]).astype(np.float32) for tensor in tensors})
    expected, found = channel_maxima(original, tensors), channel_maxima(rescaled, tensors)
    for tensor in tensors:
        assert expected[tensor].max() > 0
        relative = [maxima[tensor] / maxima[tensor].max() for maxima in (found, expected)]
        np.testing.assert_allclose(*relative, rtol=1e-3, atol=1e-6, err_msg=tensor)
    nodes = {node.name: node for node in rescaled.graph}
    for node in original.graph:
        if node.name in place(original).weighted:
            values = node.inputs[1], nodes[node.name].inputs[1]
            normalised = [array_of(value) / np.abs(array_of(value)).max() for value in values]
            np.testing.assert_allclose(normalised[1], normalised[0], rtol=1e-4, atol=1e-7, err_msg=str(node.name))


def silenced() -> ir.Model:
    """``sknet`` with a dead channel in the stem and in a branch, and a nearly silent one in each."""
    model = graph("sknet")
    for node in model.graph:
        if node.name in ("stem.conv/Conv", "stages.1.0.sk.branches.0.conv/Conv"):
            for index, dead in ((1, 0.0), (2, -1.0)):
                value = node.inputs[index]
                array = array_of(value)
                array[0] = dead
                array[1] *= 1e-8
                value.const_value = ir.tensor(array.astype(np.float32), name=value.name)
    return model


def test_silent_channels_are_raised_by_no_more_than_the_bound() -> None:
    model = silenced()
    first = channel_maxima(model, place(model).tensors)
    assert first["pool/MaxPool"][0] == 0
    assert 0 < first["pool/MaxPool"][1] < first["pool/MaxPool"].max() / MOST
    changed, _ = equalized(model)
    assert difference(outputs(changed, images(model)), outputs(model, images(model))) < 1e-4
    nodes = {node.name: node for node in changed.graph}
    for node in model.graph:
        if node.name == "stem.conv/Conv":
            values = node.inputs[1], nodes[node.name].inputs[1]
            before, after = (np.abs(array_of(value)).sum(axis=(1, 2, 3)) for value in values)
            assert np.isfinite(after).all()
            raised = after / np.maximum(before, 1e-30)
            assert raised[0] == 0
            assert MOST / 8 < raised[1] <= MOST  # what weights are given back is at most MOST ** 0.25


def test_nothing_but_silence_changes_nothing() -> None:
    model = graph("sknet")
    before = outputs(model, images(model))
    silent = {name: np.zeros_like(maxima) for name, maxima in channel_maxima(model, place(model).tensors).items()}
    equalize(model, silent)
    assert difference(outputs(model, images(model)), before) < 1e-4
    for value in model.graph.initializers.values():
        assert np.isfinite(array_of(value)).all()


@every_varied
def test_equalized_weights_fit_fp16(name: str) -> None:
    """The fallback of INT8 graphs is FP16: no weight overflows, and no row falls to where FP16 has fewer bits, unless it was
    about there before (these networks have rows of no weight to speak of)."""
    model = graph(name)
    changed, _ = equalized(model)
    originals = {node.name: node.inputs[1] for node in model.graph if node.op_type in ("Conv", "Gemm")}
    for node in changed.graph:
        if node.op_type in ("Conv", "Gemm") and node.inputs[1].is_initializer():
            weight = array_of(node.inputs[1])
            assert np.abs(weight).max() < np.finfo(np.float16).max / 4
            arrays = weight, array_of(originals[node.name])
            rows, before = (np.abs(array).reshape(len(array), -1).max(axis=1) for array in arrays)
            assert (rows >= np.minimum(before, 2 * np.finfo(np.float16).smallest_normal) / 2).all()
