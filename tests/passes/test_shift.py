"""Tensors moved to use all of INT8: the same function, and saturation in place of the Clip."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from skdeploy.ir import qdq
from skdeploy.ir.placement import Placement, place
from skdeploy.ir.qdq import INT8_MIN, InsertQDQ
from skdeploy.passes.exact_input import PixelShift, PixelSteps
from skdeploy.passes.shift import ShiftTensors, shiftable, shiftable_groups
from tests.graphs.quantizable import (
    MAKERS,
    VARIED,
    card,
    check,
    difference,
    graph,
    images,
    normal,
    outputs,
    placed,
    scales_of,
    small,
    weights_of,
)
from tests.zoo.tiny_networks import VARIANTS

Array = NDArray[Any]
op = onnx.helper.make_node
every_graph = pytest.mark.parametrize("name", MAKERS)

# A shift adds c sum(W) and takes it off again: the numbers in between are a few times larger than the sums were, and so is
# their rounding, 2^-24. Twenty layers of it, in networks whose gates are steep (logits up to 30): measured up to 1.1e-4.
SHIFTED = 5e-4


def some_offsets(model: ir.Model, placement: Placement) -> dict[str, float]:
    """Of the size of the tensors, and of both signs."""
    names = shiftable(model, placement, padded=True)
    found = outputs(model, images(model), names)
    generator = np.random.default_rng(7)
    return {
        name: float(generator.choice([-1, 1]) * generator.uniform(0.3, 1) * max(np.abs(found[name]).max(), 0.01))
        for name in names
    }


@every_graph
def test_shifting_keeps_the_function_and_moves_the_tensors(name: str) -> None:
    model, placement = placed(name)
    offsets = some_offsets(model, placement)
    assert offsets
    before = outputs(model, images(model), placement.tensors)
    assert ShiftTensors(placement, offsets)(model).modified
    check(model)
    after = outputs(model, images(model), placement.tensors)
    for tensor, expected in before.items():
        moved = expected - np.float32(offsets.get(tensor, 0))
        scale = max(np.abs(expected).max(), abs(offsets.get(tensor, 0)))
        assert np.abs(after[tensor] - moved).max() < SHIFTED * scale, tensor


@pytest.mark.parametrize("name", ["sknet of three branches", "sknet as a plain sum of three", "foreign timm"])
def test_shifting_after_the_pixels_is_the_same_function_too(name: str) -> None:
    model = graph(name)
    preprocess = card(VARIANTS["sknet"]).preprocess
    feed = images(model)
    before = outputs(model, feed)
    PixelSteps(preprocess)(model)
    placement = place(model)
    offsets = some_offsets(model, placement)
    PixelShift(preprocess)(model)
    ShiftTensors(placement, offsets)(model)
    assert difference(outputs(model, feed), before) < SHIFTED


@pytest.mark.parametrize("method", ["_absorb", "_subtract"])
def test_a_shift_that_is_not_made_up_for_is_seen(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, placement = placed("sknet")
    before = outputs(model, images(model))
    forgotten = (lambda *_: True) if method == "_absorb" else (lambda _self, _graph, value, _offset: value)
    monkeypatch.setattr(ShiftTensors, method, forgotten)
    ShiftTensors(placement, some_offsets(model, placement))(model)
    assert difference(outputs(model, images(model)), before) > 20 * SHIFTED


# ------------------------------------------------------------------------------------------------------------------ which ones


@every_graph
def test_what_can_be_shifted_has_no_padded_convolution_and_no_raw_reader(name: str) -> None:
    model, placement = placed(name)
    found = set(shiftable(model, placement, padded=False))
    nodes = {node.name: node for node in model.graph}
    for tensor, readers in placement.readers.items():
        padded = any(
            nodes[edge.node].op_type == "Conv" and any(nodes[edge.node].attributes.get_ints("pads", [0]))
            for edge in readers
        )
        one_scale = any(
            tensor in group for group in placement.tied
        )  # with what is moved out of it, for a padded convolution
        excluded = padded or one_scale or tensor in placement.raw or tensor == model.graph.inputs[0].name
        assert (tensor in found) == (not excluded)


CONV = {"w": normal(4, 4, 1, 1), "wide": normal(4, 4, 3, 3)}


@pytest.mark.parametrize(
    ("reader", "can"),
    [
        (op("Conv", ["r", "w"], ["y"], name="last"), True),
        (op("Conv", ["r", "wide"], ["y"], name="last"), True),
        (op("Conv", ["r", "wide"], ["y"], name="last", pads=[0, 0, 0, 1]), False),
        (op("Conv", ["r", "wide"], ["y"], name="last", auto_pad="SAME_UPPER"), False),
        (op("Conv", ["r", "wide"], ["y"], name="last", auto_pad="VALID"), True),
    ],
)
def test_any_padding_counts(reader: onnx.NodeProto, can: bool) -> None:
    nodes = [op("Conv", ["input", "w"], ["a"], name="first"), op("Relu", ["a"], ["r"]), reader]
    model = small(nodes, (2, 4, 6, 6), CONV)
    assert ("r" in shiftable(model, place(model), padded=False)) == can


def test_an_output_of_the_network_is_not_shifted_and_neither_is_what_feeds_one() -> None:
    nodes = [
        op("Conv", ["input", "w"], ["a"], name="first"),
        op("Relu", ["a"], ["r"]),
        op("GlobalAveragePool", ["r"], ["mean"]),
        op("Conv", ["r", "w"], ["b"], name="second"),
        op("Relu", ["b"], ["s"], name="n/Relu"),
        op("Conv", ["s", "w"], ["y"], name="third"),
    ]
    for result in [("a", "y"), ("r", "y"), ("mean", "y"), ("b", "y"), ("s", "y")]:
        used = [node for node in nodes if "mean" not in node.output or "mean" in result]
        model = small(used, (2, 4, 6, 6), CONV, result)
        placement = place(model)
        names = shiftable(model, placement, padded=True)
        read_as_it_is = {"r"} if "mean" in result else set()  # by what makes an output, and no layer after it
        assert set(names) == {"r", "s"} - set(result) - read_as_it_is
        feed = normal(2, 4, 6, 6)
        before = outputs(model, feed)
        ShiftTensors(placement, dict.fromkeys(names, 0.7))(model)
        check(model)
        after = outputs(model, feed)
        assert set(after) == set(before)
        assert difference(after, before) < 1e-5  # two layers


# --------------------------------------------------------------------------------------------------------- ways of being read

WEIGHTS = CONV | {
    "rows": normal(5, 4),
    "columns": normal(4, 5),
    "b": normal(4),
    "axes": np.array([2, 3]),
    "from": np.array([0]),
    "to": np.array([4]),
    "axis": np.array([1]),
}
FIRST = [op("Conv", ["input", "w", "b"], ["a"], name="first"), op("Relu", ["a"], ["r"], name="first/Relu")]
MEAN = op("ReduceMean", ["r", "axes"], ["mean"], keepdims=0)


@pytest.mark.parametrize(
    "nodes",
    [
        [op("Conv", ["r", "w"], ["y"], name="no bias")],
        [op("Conv", ["r", "w", "b"], ["y"], name="bias")],
        [op("Conv", ["r", "w"], ["c"], name="n"), op("Add", ["c", "r"], ["y"])],
        [op("Conv", ["r", "w"], ["c"], name="n"), op("Add", ["r", "c"], ["y"])],
        [op("Conv", ["r", "w"], ["c"], name="n"), op("Add", ["c", "c"], ["d"]), op("Sub", ["d", "r"], ["y"])],
        [op("Conv", ["r", "w"], ["c"], name="n"), op("Relu", ["r"], ["s"]), op("Add", ["c", "s"], ["y"])],
        [op("Conv", ["r", "w"], ["c"], name="n"), op("Add", ["r", "r"], ["d"], name="d"), op("Add", ["c", "d"], ["y"])],
        [op("Conv", ["r", "w"], ["c"], name="n"), op("AveragePool", ["r"], ["d"], kernel_shape=[2, 2], strides=[2, 2]),
         op("Conv", ["d", "w"], ["e"], name="o"), op("GlobalAveragePool", ["c"], ["f"]), op("Add", ["e", "f"], ["y"])],
        [op("Conv", ["r", "w"], ["c"], name="n"),
         op("AveragePool", ["r"], ["d"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
         op("Add", ["c", "d"], ["y"])],
        [op("Conv", ["r", "w"], ["c"], name="n"), op("MaxPool", ["r"], ["d"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
         op("Add", ["c", "d"], ["y"])],
        [MEAN, op("Gemm", ["mean", "rows"], ["y"], name="n", transB=1), op("Conv", ["r", "w"], ["z"], name="o")],
        [MEAN, op("Gemm", ["mean", "columns"], ["y"], name="n"), op("Conv", ["r", "w"], ["z"], name="o")],
        [MEAN, op("MatMul", ["mean", "columns"], ["y"], name="n"), op("Conv", ["r", "w"], ["z"], name="o")],
        [op("Conv", ["r", "w"], ["c"], name="n"), op("Slice", ["r", "from", "to", "axis"], ["d"]),
         op("Add", ["c", "d"], ["y"])],
        [op("MaxPool", ["r"], ["p"], kernel_shape=[2, 2]), op("Conv", ["p", "w"], ["y"], name="n")],
        [op("MaxPool", ["r"], ["p"], kernel_shape=[2, 2]), op("Conv", ["p", "w"], ["c"], name="n"),
         op("Relu", ["c"], ["s"], name="second/Relu"), op("Conv", ["s", "w"], ["y"], name="o")],
        [op("Conv", ["r", "input"], ["y"], name="computed weight"), op("Conv", ["r", "w"], ["z"], name="o")],
    ],
)  # fmt: skip
def test_every_way_of_reading_a_shifted_tensor_gets_the_same_numbers(nodes: list[onnx.NodeProto]) -> None:
    """After the last layer nothing is read as INT8: a layer follows each map."""
    of_the_mean = any(node.op_type == "ReduceMean" for node in nodes)
    if not of_the_mean:
        nodes = [*nodes, op("Conv", ["y", "w"], ["end"], name="end")]
    used = {name for node in [*FIRST, *nodes] for name in node.input}
    result = ("y" if of_the_mean else "end", *(["z"] if any("z" in node.output for node in nodes) else []))
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in [*FIRST, *nodes]]
    model = small(copies, (4, 4, 6, 6), {name: array for name, array in WEIGHTS.items() if name in used}, result)
    placement = place(model)
    names = shiftable(model, placement, padded=True)
    assert names
    feed = normal(4, 4, 6, 6)
    before = outputs(model, feed, placement.tensors)
    ShiftTensors(placement, {name: 0.3 + index for index, name in enumerate(names)})(model)
    check(model)
    after = outputs(model, feed, placement.tensors)
    for name, expected in before.items():
        moved = expected - (0.3 + names.index(name)) if name in names else expected
        assert np.abs(after[name] - moved).max() < 1e-5 * max(np.abs(expected).max(), 3), name  # a handful of roundings


# ---------------------------------------------------------------------------------------------------------- the Clip that goes


def quantized(name: str, keep_clips: bool, monkeypatch: pytest.MonkeyPatch) -> ir.Model:
    model, placement = placed(name)
    scales = scales_of(model, placement)
    values = outputs(model, images(model, 4, seed=6), placement.tensors)
    positive = [tensor for tensor in shiftable(model, placement, padded=True) if values[tensor].min() >= 0]
    weights = weights_of(model, placement)
    ShiftTensors(placement, {tensor: -INT8_MIN * scales[tensor] for tensor in positive})(model)
    with monkeypatch.context() as patch:
        if keep_clips:
            patch.setattr(qdq, "_drop_clip", lambda *_: None)
        InsertQDQ(placement, scales, weights)(model)
    return model


def clips(model: ir.Model) -> int:
    return sum(node.op_type == "Clip" for node in model.graph)


@pytest.mark.parametrize("name", [name for name in VARIED if name != "shufflenet_v2"])  # its ReLUs are not read as INT8
def test_saturation_does_what_the_clip_did(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: both bounds are the same number, -128 steps."""
    kept, dropped = quantized(name, True, monkeypatch), quantized(name, False, monkeypatch)
    assert clips(kept) > 0
    assert clips(dropped) == 0
    expected = outputs(kept, images(kept))
    for output, values in outputs(dropped, images(dropped)).items():
        np.testing.assert_array_equal(values, expected[output])


def test_the_clip_before_a_max_pool_goes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantized("sknet", False, monkeypatch)
    pool = next(node for node in model.graph if node.op_type == "MaxPool")
    assert pool.inputs[0].producer().op_type == "Conv"
    assert next(iter(pool.outputs[0].uses())).node.op_type == "QuantizeLinear"


@pytest.mark.parametrize(
    ("low", "high", "second_reader", "goes"),
    [
        (-1.28, None, False, True),
        (-1.27, None, False, False),
        (0.0, None, False, False),
        (-1.28, 1.27, False, False),
        (-1.28, None, True, False),
    ],
)
def test_a_clip_that_does_more_than_saturation_stays(
    low: float, high: float | None, second_reader: bool, goes: bool
) -> None:
    bounds = {"low": np.float32(low)} | ({} if high is None else {"high": np.float32(high)})
    nodes = [
        op("Conv", ["input", "w"], ["a"], name="first"),
        op("Clip", ["a", *bounds], ["c"]),
        op("MaxPool", ["c"], ["p"], kernel_shape=[2, 2]),
        op("Conv", ["p", "w"], ["y"], name="second"),
        op("Abs", ["c"], ["z"]),
    ]
    weights = {"w": CONV["w"]} | bounds
    model = small(
        nodes if second_reader else nodes[:-1], (2, 4, 6, 6), weights, ("y", "z") if second_reader else ("y",)
    )
    placement = place(model)
    InsertQDQ(placement, dict.fromkeys(placement.tensors, 0.01), weights_of(model, placement))(model)
    assert clips(model) == (0 if goes else 1)


# ------------------------------------------------------------------------------------------------ tensors with one scale

RELU = [op("Conv", ["input", "w"], ["a"], name="first"), op("Relu", ["a"], ["r"], name="first/Relu")]
OTHER = [op("Conv", ["input", "w"], ["b"], name="other"), op("Relu", ["b"], ["s"], name="other/Relu")]
END = op("Conv", ["y", "w"], ["end"], name="end")
HALVES = {"half": np.array([2, 2])}
GROUPS: dict[str, tuple[list[onnx.NodeProto], int, bool]] = {
    # the nodes, the size of the group, and whether it can be shifted
    "a slice beside the whole": (
        [*RELU, op("Split", ["r", "half"], ["p", "q"], axis=1), op("Conv", ["p", "n"], ["c"], name="c"),
         op("Conv", ["q", "n"], ["d"], name="d"), op("Add", ["c", "d"], ["e"], name="sum"),
         op("Conv", ["r", "w"], ["f"], name="f"), op("Add", ["e", "f"], ["y"], name="last"), END], 3, True,
    ),
    "a slice behind padding": (
        [*RELU, op("Split", ["r", "half"], ["p", "q"], axis=1), op("Conv", ["p", "k"], ["c"], name="c", pads=[1, 1, 1, 1]),
         op("Conv", ["q", "n"], ["d"], name="d"), op("Add", ["c", "d"], ["e"], name="sum"),
         op("Conv", ["r", "w"], ["f"], name="f"), op("Add", ["e", "f"], ["y"], name="last"), END], 3, False,
    ),
    "joined": (
        [*RELU, *OTHER, op("Concat", ["r", "s"], ["j"], axis=1, name="join"), op("Conv", ["j", "m"], ["y"], name="c"), END], 3,
        True,
    ),
    "joined, and one read elsewhere": (
        [*RELU, *OTHER, op("Concat", ["r", "s"], ["j"], axis=1, name="join"), op("Conv", ["j", "m"], ["c"], name="c"),
         op("Add", ["c", "r"], ["y"], name="skip"), END], 3, True,
    ),
    "pooled and joined": (
        [*RELU, op("MaxPool", ["r"], ["o"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]), *OTHER,
         op("Concat", ["o", "s"], ["j"], axis=1, name="join"), op("Conv", ["j", "m"], ["y"], name="c"), END], 3, True,
    ),
    "zeros around": (
        [*RELU, op("Pad", ["r", "around"], ["o"]), op("Conv", ["o", "w"], ["c"], name="c"),
         op("Conv", ["r", "w"], ["d"], name="d"),
         op("ReduceMean", ["c"], ["e"], axes=[2, 3]), op("Add", ["d", "e"], ["y"], name="sum"), END], 2, False,
    ),
}  # fmt: skip


def grouped(name: str) -> tuple[ir.Model, Placement]:
    nodes, _, _ = GROUPS[name]
    constants: dict[str, Any] = {
        "w": normal(4, 4, 1, 1), "n": normal(4, 2, 1, 1), "m": normal(4, 8, 1, 1), "k": normal(4, 2, 3, 3),
        "around": np.array([0, 0, 1, 1, 0, 0, 1, 1]), **HALVES,
    }  # fmt: skip
    used = {each for node in nodes for each in node.input}
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    model = small(copies, (4, 4, 6, 6), {each: array for each, array in constants.items() if each in used}, ("end",))
    return model, place(model)


@pytest.mark.parametrize("name", GROUPS)
def test_tensors_with_one_scale_are_shifted_together_or_not_at_all(name: str) -> None:
    _, size, can = GROUPS[name]
    model, placement = grouped(name)
    (group,) = placement.tied
    assert len(group) == size
    groups = shiftable_groups(model, placement, padded=False)
    assert groups == ((group,) if can else ())
    if not can:
        return
    feed = normal(4, 4, 6, 6)
    before = outputs(model, feed, placement.tensors)
    ShiftTensors(placement, dict.fromkeys(group, 0.7))(model)
    check(model)
    after = outputs(model, feed, placement.tensors)
    for each, expected in before.items():
        moved = expected - 0.7 if each in group else expected
        assert np.abs(after[each] - moved).max() < 1e-5 * max(np.abs(expected).max(), 3), each  # a handful of roundings


def test_slices_that_use_all_levels_have_half_of_the_noise() -> None:
    """The scale is that of 255 steps in place of 127: 6 dB less noise where the slices alone make it."""
    model, placement = grouped("a slice beside the whole")
    feed = normal(4, 4, 6, 6)
    exact = outputs(model, feed, ["end", *placement.tensors])
    (group,) = placement.tied
    largest = max(float(exact[each].max()) for each in group)
    noise = {}
    for levels in (127, 255):
        copy, _ = grouped("a slice beside the whole")
        step = largest / levels
        if levels == 255:
            ShiftTensors(placement, dict.fromkeys(group, -INT8_MIN * step))(copy)
        scales = dict.fromkeys(placement.tensors, 0.0001) | dict.fromkeys(group, step)  # the others: hardly any noise
        only = Placement({each: placement.readers[each] for each in group}, {}, (), {}, placement.tied)
        InsertQDQ(only, scales, {})(copy)
        noise[levels] = float(((outputs(copy, feed, ["end"])["end"] - exact["end"]) ** 2).mean())
    assert 10 * np.log10(noise[127] / noise[255]) == pytest.approx(6.0, abs=1.0)  # 20 log10(255 / 127), on 576 numbers
