"""INT8 of networks that are not classifiers: U-shaped, in one to three dimensions, with every way up and both kinds of skip."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

from skdeploy import engines
from skdeploy.core.spec import CalibrationMethod, ModelSpec
from skdeploy.engines._build import BatchProfile, BuildOptions
from skdeploy.engines.proof import graph_layers
from skdeploy.ir import one_scale, placement
from skdeploy.ir.placement import Edge, Placement, place
from skdeploy.ir.qdq import InsertQDQ
from skdeploy.passes.half import HalfPrecision
from skdeploy.quant.quantize import Quantized, quantize
from skdeploy.quant.weights import dequantized, quantize_weight
from tests import tiny
from tests.graphs import unets
from tests.graphs.networks import MEAN, STD, Array, sqnr_db
from tests.graphs.quantizable import check, normal, small
from tests.networks import lsk
from tests.quant.noise import calibrated, dataset, normalised, pixels

op = onnx.helper.make_node
FRESH = normalised(pixels(16, seed=1))
# Of 37 to 41 dB that the noise of a dozen tensors with 127 steps to a range leaves, 6 less: a wrong scale, axis or bias costs
# far more.
LEAST_DB = 26.0
KINDS = [
    ("transposed", "concat", False),
    ("shuffle", "concat", True),
    ("nearest", "add", False),
    ("linear", "add", False),
]
every_kind = pytest.mark.parametrize(("up", "skip", "residual"), KINDS)


def spec() -> ModelSpec:
    return tiny.spec_of(height=20, width=24, resize=24, mean=MEAN, std=STD)


def quantized(model: ir.Model, **algorithm: Any) -> Quantized:
    ranges = calibrated(model, spec(), dataset(16), method=CalibrationMethod.MSE, **algorithm)
    return quantize(model, spec(), ranges)


def run(model: ir.Model, feed: Array) -> Array:
    """In ONNX Runtime, Q/DQ one by one."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": feed})[0])


def exact(network: nn.Module, feed: Array) -> Array:
    with torch.no_grad():
        return network.double()(torch.from_numpy(feed).double()).numpy()


@every_kind
def test_int8_computes_the_network_but_for_the_noise_of_its_tensors(up: Any, skip: Any, residual: bool) -> None:
    found = quantized(unets.graph(up, skip, residual=residual))
    check(found.model)
    assert found.placement.kept == {}
    expected = exact(unets.unet(up, skip, residual=residual), FRESH)
    assert sqnr_db(run(found.model, FRESH), expected) > LEAST_DB
    # What the graph says, by ONNX's own reference. Sums in another order put some values beside the middle of two steps on the
    # other one: that is 48 dB here, and any other fault is below what the noise leaves.
    reference = ReferenceEvaluator(ir.to_proto(found.model)).run(None, {"input": FRESH[:2]})[0]
    assert sqnr_db(run(found.model, FRESH[:2]), reference) > 40


@pytest.mark.parametrize("rule", ["tied", "_after_layers"])
def test_without_a_rule_the_graph_is_another(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rule acts here: the tests below would pass on graphs that none of them changes."""
    model = unets.graph("shuffle", "concat", residual=True)
    before = place(model)
    monkeypatch.setattr(placement, rule, lambda *_: () if rule == "tied" else frozenset())
    assert place(model) != before


# ------------------------------------------------------------------------------------------------------------ one scale


def groups_that_need_one_scale(model: ir.Model) -> Iterator[set[str]]:
    """By what the operators do, not by how ``tied`` finds it: a Concat with all that it joins, a pool with what it reads."""
    for node in model.graph:
        if node.op_type in ("Concat", "MaxPool"):
            yield {value.name or "" for value in (*node.inputs, *node.outputs) if value is not None}


@every_kind
def test_what_is_joined_or_pooled_has_one_scale(up: Any, skip: Any, residual: bool) -> None:
    model = unets.graph(up, skip, residual=residual)
    found = quantized(model)
    groups = [set(group) for group in groups_that_need_one_scale(model)]
    assert len(groups) == (4 if skip == "concat" else 2)
    for group in groups:
        assert group <= set(found.scales)
        assert len({found.scales[name] for name in group}) == 1
    # A group has one constant, so that nobody can change one of them alone.
    read = {node.inputs[1].name for node in found.model.graph if node.op_type == "QuantizeLinear"}
    shared = sum(len(group) - 1 for group in found.placement.tied)
    assert len(read) == len(found.scales) - shared
    # And nothing else was made alike: a group is connected by pools and joins.
    assert len({found.scales[name] for name in found.scales}) > len(found.placement.tied)


def test_a_scale_that_is_shared_serves_the_largest_of_its_tensors() -> None:
    model = unets.graph("transposed", "concat")
    ranges = calibrated(model, spec(), dataset(16), equalize=False, shift=False, exact_input=False)
    found = quantize(model, spec(), ranges)
    for group in found.placement.tied:
        largest = max(ranges.tensors[name].threshold for name in group)
        assert found.scales[group[0]] == pytest.approx(largest / 127, rel=2**-11)


SIZES = np.array([1, 4, 12, 12], np.int64)
PADS = np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
MOVES = [
    ([op("Transpose", ["a"], ["b"], perm=[0, 1, 3, 2])], True),
    ([op("DepthToSpace", ["a"], ["b"], blocksize=2)], True),
    ([op("Resize", ["a", "", "", "sizes"], ["b"])], True),
    ([op("Resize", ["a", "", "", "sizes"], ["b"], mode="linear")], False),
    ([op("Pad", ["a", "pads"], ["b"])], True),
    ([op("Pad", ["a", "pads"], ["b"], mode="reflect")], True),
    ([op("Pad", ["a", "pads", "half"], ["b"])], False),
    ([op("Relu", ["a"], ["b"])], False),
    ([op("AveragePool", ["a"], ["b"], kernel_shape=[2, 2])], False),
    # Through something that no layer reads itself.
    ([op("Transpose", ["a"], ["t"], perm=[0, 1, 3, 2], name="one"), op("MaxPool", ["t"], ["b"], kernel_shape=[2, 2])], True),
]  # fmt: skip


@pytest.mark.parametrize(("nodes", "one"), MOVES)
def test_what_only_moves_has_the_scale_of_what_it_comes_from(nodes: list[onnx.NodeProto], one: bool) -> None:
    weights = {"w": normal(4, 4, 1, 1), "v": normal(4, 4, 1, 1), "sizes": SIZES, "pads": PADS, "half": np.float32(0.5)}
    folded = nodes[0].op_type == "DepthToSpace"
    first = [op("Conv", ["input", "w"], ["x"], name="first"), op("Abs", ["x"], ["a"], name="abs")]
    readers = [op("Conv", ["a", "v"], ["p"], name="second"), op("GlobalMaxPool", ["p"], ["q"], name="pool")]
    after = [op("Conv", ["b", "u"], ["c"], name="third"), op("GlobalMaxPool", ["c"], ["d"], name="pool2")]
    used = {name for node in nodes for name in node.input}
    weights = {name: each for name, each in weights.items() if name in used or name in ("w", "v")}
    weights["u"] = normal(4, 1 if folded else 4, 1, 1)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    last = [op("Add", ["q", "d"], ["y"], name="last")]
    model = small([*first, *readers, *copies, *after, *last], (1, 4, 8, 8), weights)
    assert place(model).tied == ((("a", "b"),) if one else ())


def test_a_kept_module_and_a_constant_are_not_joined() -> None:
    model = unets.graph("transposed", "concat")
    joins = [node.name or "" for node in model.graph if node.op_type == "Concat"]
    assert all(any(name in group for group in place(model).tied) for name in outputs_of(model, joins))
    weights = {"w": normal(4, 4, 1, 1), "v": normal(4, 8, 1, 1), "constant": normal(1, 4, 6, 6)}
    nodes = [
        op("Conv", ["input", "w"], ["a"], name="one"),
        op("Concat", ["a", "constant"], ["b"], axis=1),
        op("Conv", ["b", "v"], ["y"], name="two"),
    ]
    found = place(small(nodes, (1, 4, 6, 6), weights))
    assert found.tied == ()
    assert set(found.readers) == {"input", "b"}


def outputs_of(model: ir.Model, names: list[str]) -> list[str]:
    return [node.outputs[0].name or "" for node in model.graph if node.name in names]


# ------------------------------------------------------------------------------------------------------------ the output


def test_what_is_added_to_make_the_output_is_not_rounded() -> None:
    """The image itself and the last convolution: INT8 there would be an error of 2^-8 in the result."""
    model = unets.graph("shuffle", "concat", residual=True)
    found = place(model)
    last = model.graph.outputs[0].producer()
    assert last.op_type == "Add"
    assert last.name in {edge.node for edge in found.raw["input"]}
    assert last.name not in {edge.node for edge in chain.from_iterable(found.readers.values())}
    skips = [node for node in unets.graph("nearest", "add").graph if node.op_type == "Add"]
    inner = {edge.node for edge in chain.from_iterable(place(unets.graph("nearest", "add")).readers.values())}
    assert {node.name for node in skips} <= inner


# ------------------------------------------------------------------------------------------------ statistics of places


AXIS = {"one": np.array([1])}
NORM = [
    op("ReduceMean", ["a", "one"], ["mean"], name="mean"),
    op("Sub", ["a", "mean"], ["centred"], name="sub"),
    op("Mul", ["centred", "centred"], ["square"], name="square"),
    op("ReduceMean", ["square", "one"], ["variance"], name="variance"),
    op("Sqrt", ["variance"], ["deviation"], name="sqrt"),
    op("Div", ["centred", "deviation"], ["b"], name="div"),
]


def test_a_normalisation_over_channels_reads_nothing_as_int8() -> None:
    nodes = [
        op("Conv", ["input", "w"], ["a"], name="one"),
        *[onnx.NodeProto.FromString(node.SerializeToString()) for node in NORM],
        op("Conv", ["b", "v"], ["y"], name="two"),
    ]
    weights = {"w": normal(8, 4, 1, 1), "v": normal(4, 8, 1, 1), **AXIS}
    assert set(place(small(nodes, (1, 4, 6, 6), weights)).readers) == {"input", "b"}


def test_a_network_that_begins_with_the_mean_of_the_colours_has_maps() -> None:
    """One channel a place, and then many: these are maps, and what a skip adds is read as INT8."""
    nodes = [
        op("ReduceMean", ["input", "one"], ["grey"], name="grey"),
        op("Conv", ["grey", "w"], ["a"], name="first"),
        op("Relu", ["a"], ["r"], name="relu"),
        op("Tanh", ["a"], ["t"], name="tanh"),
        op("Conv", ["r", "u"], ["b"], name="second"),
        op("Add", ["b", "t"], ["s"], name="skip"),
        op("Conv", ["s", "v"], ["y"], name="third"),
    ]
    weights = {"w": normal(8, 1, 1, 1), "u": normal(8, 8, 1, 1), "v": normal(4, 8, 1, 1), **AXIS}
    found = place(small(nodes, (1, 3, 6, 6), weights), float_skips=False)
    assert found.kept == {}
    assert found.readers["t"] == (Edge("skip", 1),)


def test_the_selection_of_places_stays_and_the_layers_around_it_do_not() -> None:
    model = unets.exported(lsk.backbone(), unets.noise(2, 2), lsk.OUTPUTS)
    found = place(model)
    why = {name.rpartition("/")[0].rpartition(".")[2].rpartition("/")[2]: reason for name, reason in found.kept.items()}
    assert why.pop("decide") == "part of a gate"
    assert all("1 -> 1 channels a group" in reason for reason in why.values())  # the depthwise ones
    read = {edge.node for edge in chain.from_iterable(found.readers.values())}
    inside = [
        node for node in model.graph if re.search(r"select/(Mul|Mul_1|Add|Concat|Concat_1|Sigmoid)$", str(node.name))
    ]
    assert len(inside) == 12
    assert not read & {node.name for node in inside}
    assert sum(bool(re.search(r"select/(squeeze_near|squeeze_far|restore)/", name)) for name in found.weighted) == 6


ACTIVATIONS: dict[str, nn.Module] = {
    "SiLU": nn.SiLU(),
    "GELU": nn.GELU(),
    "tanh": nn.GELU(approximate="tanh"),
    "Mish": nn.Mish(),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_reads_nothing_as_int8_though_it_is_a_product_of_maps(name: str) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), ACTIVATIONS[name], nn.Conv2d(8, 4, 3)).eval()
    model = unets.exported(layers, unets.noise(2, 2))
    assert any(node.op_type == "Mul" for node in model.graph)
    first, second = (node for node in model.graph if node.op_type == "Conv")
    assert set(place(model).readers) == {"input", second.inputs[0].name}
    assert first.outputs[0].name not in place(model).readers


# ------------------------------------------------------------------------------------------- transposed convolutions


@pytest.mark.parametrize("groups", [1, 4])
def test_a_transposed_convolution_has_one_scale_and_its_weights_are_near(groups: int) -> None:
    weight = normal(16, 32 // groups, 2, 2)
    nodes = [op("ConvTranspose", ["input", "w"], ["y"], group=groups, strides=[2, 2])]
    model = small(nodes, (1, 16, 4, 4), {"w": weight})
    found = quantize_weight(model.graph[0])
    assert found.scales.shape == ()
    assert found.axis is None
    step = float(found.scales)
    inside = np.abs(weight) <= 127 * step  # what is clipped was worth it
    assert inside.mean() > 0.99
    assert np.abs(dequantized(found) - weight)[inside].max() <= step / 2 * 1.0001  # float32
    assert place(model).weighted == ("m/ConvTranspose",)


def test_a_transposed_convolution_of_three_channels_a_group_stays() -> None:
    nodes = [op("ConvTranspose", ["input", "w"], ["y"], group=4)]
    reason = place(small(nodes, (1, 16, 4, 4), {"w": normal(16, 3, 2, 2)})).kept["m/ConvTranspose"]
    assert "4 -> 3 channels a group" in reason


def test_bias_correction_of_a_transposed_convolution_removes_the_mean_shift_of_rounding() -> None:
    """All weights but one lie between two levels, so that each is rounded up: the mean of the output moves."""
    array = np.full((8, 8, 2, 2), 0.45, np.float32)
    array[0, 0, 0, 0] = 127.0
    nodes = [
        op("Conv", ["input", "w"], ["a"], name="first"),
        op("Relu", ["a"], ["r"], name="relu"),
        op("ConvTranspose", ["r", "t"], ["y"], strides=[2, 2], name="up"),
    ]
    model = small(nodes, ("N", 3, 20, 24), {"w": normal(8, 3, 3, 3), "t": array / 127})
    expected = run(model, FRESH)
    shift = {}
    for corrected in (False, True):
        off = {"equalize": False, "weight_scales": "max", "bias_correction": corrected}
        shift[corrected] = np.abs((run(quantized(model, **off).model, FRESH) - expected).mean(axis=(0, 2, 3)))[1:].max()
    assert shift[True] < shift[False] / 3


# ------------------------------------------------------------------------------------------------------ one and three


def inserted(model: ir.Model, dims: int) -> tuple[ir.Model, Placement]:
    """Q/DQ by the largest values, where no image can calibrate."""
    found = place(model)
    proto = ir.to_proto(model)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in found.tensors if name != "input")
    feed = unets.noise(dims, 8, seed=4)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    values = {"input": feed, **dict(zip(names, session.run(names, {"input": feed}), strict=True))}
    scales = {name: float(np.abs(values[name]).max()) / 127 for name in found.tensors}
    for group in found.tied:
        scales |= dict.fromkeys(group, max(scales[name] for name in group))
    nodes = {node.name: node for node in model.graph}
    weights = {name: quantize_weight(nodes[name]) for name in found.weighted}
    InsertQDQ(found, {name: float(np.float16(scale)) for name, scale in scales.items()}, weights)(model)
    return model, found


@pytest.mark.parametrize(
    ("up", "skip", "dims"),
    [("transposed", "concat", 1), ("nearest", "add", 1), ("transposed", "add", 3), ("linear", "concat", 3)],
)
def test_maps_of_one_and_three_dimensions_are_maps(up: Any, skip: Any, dims: int) -> None:
    model, found = inserted(unets.graph(up, skip, dims), dims)
    check(model)
    assert found.kept == {}
    assert len(found.weighted) == 8
    if skip == "add":
        skips = {node.name for node in model.graph if node.op_type == "Add"}
        assert skips <= {edge.node for edge in chain.from_iterable(found.readers.values())}
    feed = unets.noise(dims, 2, seed=5)
    assert sqnr_db(run(model, feed), exact(unets.unet(up, skip, dims), feed)) > LEAST_DB - 6  # no MSE, no equalization


# --------------------------------------------------------------------------------------------------------- TensorRT


def built(model: ir.Model, folder: Path) -> None:
    expected = {layer.node: layer.precision for layer in graph_layers(model)}
    ir.save(model, folder / "model.onnx")
    report = engines.build(
        "tensorrt_rtx",
        folder / "model.onnx",
        folder / "model.plan",
        BuildOptions(BatchProfile(1, 2, 4)),
        lambda *_: None,
    )
    assert report.plan_bytes > 0
    assert report.layer_types["int8"] >= sum(node.op_type == "QuantizeLinear" for node in model.graph)
    assert set(expected.values()) == {"int8"}


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("up", "skip", "dims"),
    [
        ("transposed", "concat", 2),
        *(
            pytest.param(*each, marks=slow)
            for each in (
                ("shuffle", "concat", 2), ("nearest", "add", 2), ("linear", "add", 2), ("transposed", "add", 1),
                ("nearest", "concat", 1), ("transposed", "concat", 3), ("nearest", "add", 3),
            )
        ),
    ],
)  # fmt: skip
def test_tensorrt_rtx_builds_it_with_every_layer_in_int8(up: Any, skip: Any, dims: int, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs skdeploy[rtx]")
    model, _ = inserted(unets.graph(up, skip, dims, groups=2 if up == "transposed" else 1), dims)
    built(HalfPrecision()(model).model, tmp_path)


def test_moves_says_no_for_what_it_does_not_know() -> None:
    assert not one_scale.moves(ir.node("Custom", []))
