"""8-bit pixels go in as 8-bit integers: the same function, and a quantization without error."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from skdeploy.core.spec import Preprocess
from skdeploy.ir.constants import constant, numbers
from skdeploy.ir.nodes import operand
from skdeploy.ir.placement import place
from skdeploy.passes.exact_input import PIXEL_STEP, PIXELS, PixelShift, PixelSteps, normalised_image
from skdeploy.passes.simplify import simplify
from skdeploy.passes.trace import trace
from skdeploy.passes.trace_options import TraceOptions
from skdeploy.zoo.cards import load_card
from tests.graphs.quantizable import LARGE_STEM, card, check, difference, graph, normal, outputs, small
from tests.zoo.tiny_networks import VARIANTS, live

Array = NDArray[Any]
op = onnx.helper.make_node
COLOUR = card(VARIANTS["sknet"]).preprocess
GREY = load_card("sknet-fashion")[0].preprocess

SLOW = "torch.export, any size"
OPTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "3 x 3 stem": (VARIANTS["sknet"], {}),
    "7 x 7 stem": (LARGE_STEM, {}),
    "any size": (VARIANTS["sknet"], {"dynamic_size": True}),
    "two images": (VARIANTS["sknet"], {"batch": 2}),
    "raw pixels": (VARIANTS["sknet"], {"embed_preprocess": True}),
    "raw pixels of any size": (VARIANTS["sknet"], {"embed_preprocess": True, "dynamic_size": True}),
    SLOW: (VARIANTS["sknet of one branch"], {"exporter": "dynamo", "dynamic_size": True}),
}
every_option = pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=[pytest.mark.slow] if name == SLOW else []) for name in OPTIONS), "grey"]
)


@cache
def _serialised(name: str) -> bytes:
    family, options = OPTIONS[name]
    chosen = TraceOptions(**({"exporter": "torchscript"} | options))
    return ir.to_proto(simplify(trace(live(family).float(), card(family), chosen))).SerializeToString()


def traced(name: str) -> tuple[ir.Model, Preprocess]:
    if name == "grey":
        return graph("sknet-fashion"), GREY
    return ir.from_proto(onnx.load_from_string(_serialised(name))), COLOUR


def photographs(name: str) -> Array:
    """8-bit images (2, H, W, C), with every value of a byte."""
    size = (2, 28, 28, 1) if name == "grey" else (2, 21, 27, 3) if "any size" in name else (2, 19, 22, 3)
    return np.random.default_rng(4).integers(0, 256, size, np.uint8)


def fed(name: str, pixels: Array, preprocess: Preprocess) -> Array:
    """As a user does: the pixels themselves, or normalised in float32."""
    if "raw" in name:
        return pixels
    mean, std = (np.asarray(values, np.float32) for values in (preprocess.mean, preprocess.std))
    normalised = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))


def centred(pixels: Array, preprocess: Preprocess, model: ir.Model) -> Array:
    """(p - 128) / 128 in float64, and around it the "zero" that the first convolution's padding means: the mean."""
    found = (pixels.transpose(0, 3, 1, 2).astype(np.float64) - 128) / 128
    node = next(node for node in model.graph if node.op_type == "Conv")
    top, left, bottom, right = node.attributes.get_ints("pads", [0, 0, 0, 0])
    border = [(255 * mean - 128) / 128 for mean in preprocess.mean]
    pads = (0, 0), (top, bottom), (left, right)
    return np.stack([np.pad(found[:, c], pads, constant_values=mean) for c, mean in enumerate(border)], axis=1)


@every_option
def test_the_function_stays_the_same(name: str) -> None:
    """One convolution's weights and inputs are rounded anew, and what the shift adds, |sum(W)|, is taken off again: some ten
    roundings of 2^-24 of numbers of the same size, which gates amplify tenfold."""
    model, preprocess = traced(name)
    feed = fed(name, photographs(name), preprocess)
    before = outputs(model, feed)
    steps = PixelSteps(preprocess)
    assert steps(model).modified
    assert steps.declined == ""
    assert difference(outputs(model, feed), before) < 2e-5
    assert PixelShift(preprocess)(model).modified
    assert difference(outputs(model, feed), before) < 2e-5
    check(model)


@pytest.mark.parametrize(("index", "compensation"), [(1, "weight"), (2, "bias")])
def test_a_forgotten_compensation_is_seen(index: int, compensation: str) -> None:
    model, preprocess = traced("3 x 3 stem")
    feed = fed("", photographs(""), preprocess)
    before = outputs(model, feed)
    node = next(node for node in model.graph if node.op_type == "Conv")
    array = numbers(operand(node, index)).copy()
    PixelShift(preprocess)(PixelSteps(preprocess)(model))
    node.replace_input_with(index, constant(model.graph, f"old_{compensation}", array))
    assert difference(outputs(model, feed), before) > 1e-2


@every_option
def test_pixels_are_integers_of_steps_and_their_quantization_is_exact(name: str) -> None:
    model, preprocess = traced(name)
    pixels = photographs(name)
    expected = centred(pixels, preprocess, model)
    PixelShift(preprocess)(PixelSteps(preprocess)(model))
    found = outputs(model, fed(name, pixels, preprocess), (PIXELS,))[PIXELS]
    # Normalising and scaling back round five times, 2^-24 of numbers up to 4 each: 2^-18 at most, and half a step is 2^-8.
    assert np.abs(found - expected).max() < 2.0**-18
    quantized = np.clip(np.rint(found / np.float32(PIXEL_STEP)), -128, 127)
    inside = np.abs(expected * 128 - np.rint(expected * 128)) < 1e-9
    assert inside.mean() > 0.5  # of 25 x 28 padded numbers, 19 x 22 are pixels
    np.testing.assert_array_equal(quantized[inside], (expected * 128)[inside])
    middle = quantized[:, :, 3:-3, 3:-3]
    assert (middle.min(), middle.max()) == (-128, 127)


@pytest.mark.parametrize("wrong", ["mean", "std"])
def test_pixels_of_another_preprocessing_are_seen(wrong: str) -> None:
    model, preprocess = traced("3 x 3 stem")
    expected = centred(photographs(""), preprocess, model)
    other = preprocess.model_copy(update={wrong: tuple(value * 1.01 for value in getattr(preprocess, wrong))})
    PixelShift(other)(PixelSteps(other)(model))
    found = outputs(model, fed("", photographs(""), preprocess), (PIXELS,))[PIXELS]
    assert np.abs(found - expected).max() > 2.0**-9


@pytest.mark.parametrize("name", ["3 x 3 stem", "raw pixels", "grey"])
def test_the_pixels_are_what_is_quantized(name: str) -> None:
    model, preprocess = traced(name)
    image = normalised_image(model.graph).name
    assert image == ("preprocess/Add" if name == "raw pixels" else "input")
    assert image in place(model).readers
    PixelSteps(preprocess)(model)
    placement = place(model)
    assert PIXELS in placement.readers
    assert image not in placement.readers


CONV = op("Conv", ["input", "w"], ["a"], pads=[1, 1, 1, 1])
WEIGHTS = {
    "w": normal(4, 3, 3, 3),
    "grouped": normal(6, 1, 3, 3),
    "row": normal(4, 3, 3),
    "four": normal(4, 4, 3, 3),
} | {"other": normal(1, 3, 8, 8)}


@pytest.mark.parametrize(
    ("nodes", "shape", "reason"),
    [
        ([CONV, op("Conv", ["input", "w"], ["b"]), op("Abs", ["a"], ["y"])], ("N", 3, 8, 8), "not one convolution"),
        ([op("Relu", ["input"], ["y"])], ("N", 3, 8, 8), "not one convolution"),
        ([op("Abs", ["input"], ["b"]), op("Conv", ["b", "w"], ["y"])], ("N", 3, 8, 8), "not one convolution"),
        ([op("ReduceMax", ["input"], ["y"])], ("N", 3, 8, 8), "not one convolution"),
        ([op("Conv", ["input", "grouped"], ["y"], group=3)], ("N", 3, 8, 8), "not one of images of 3 channels"),
        ([op("Conv", ["input", "four"], ["y"])], ("N", 4, 8, 8), "not one of images of 3 channels"),
        ([op("Conv", ["input", "row"], ["y"])], ("N", 3, 8), "not one of images of 3 channels"),
        ([op("Conv", ["input", "w"], ["y"], auto_pad="SAME_UPPER")], ("N", 3, 8, 8), "chooses its own padding"),
        ([op("Conv", ["input", "w"], ["y"], group=2)], ("N", 6, 8, 8), "grouped"),
        ([op("Conv", ["other", "w"], ["y"])], ("N", 3, 8, 8), "not one convolution"),  # nobody reads the input
        ([op("Conv", ["input", "w"], [PIXELS]), op("Abs", [PIXELS], ["y"])], ("N", 3, 8, 8), "already"),
    ],
)
def test_what_cannot_be_done_is_declined_and_the_graph_untouched(
    nodes: list[onnx.NodeProto], shape: tuple[int | str, ...], reason: str
) -> None:
    model = small(nodes, shape, WEIGHTS)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    steps = PixelSteps(COLOUR)
    assert not steps(model).modified
    assert reason in steps.declined
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    if PIXELS not in reason and "already" not in reason:
        assert not PixelShift(COLOUR)(model).modified


@pytest.mark.parametrize(
    ("more", "last"),
    [
        (
            [op("Conv", ["a", "back"], ["b"], name="back/Conv")],
            op("Add", ["input", "b"], ["y"]),
        ),  # the input, corrected
        ([], op("Concat", ["input", "a"], ["y"], axis=1)),
        ([op("Relu", ["input"], ["r"])], op("Concat", ["r", "a"], ["y"], axis=1)),
    ],
)
def test_others_that_read_the_image_go_on_doing_so(more: list[onnx.NodeProto], last: onnx.NodeProto) -> None:
    model = small([CONV, *more, last], ("N", 3, 8, 8), WEIGHTS | {"back": normal(3, 4, 1, 1)})
    feed = normal(2, 3, 8, 8)
    before = outputs(model, feed)
    others = {node.name for node in model.graph.inputs[0].consumers() if node.op_type != "Conv"}
    assert PixelSteps(COLOUR)(model).modified
    assert PIXELS in place(model).readers
    assert others < {node.name for node in model.graph.inputs[0].consumers()}
    assert difference(outputs(model, feed), before) < 1e-5
    PixelShift(COLOUR)(model)
    assert difference(outputs(model, feed), before) < 1e-5
    check(model)


def test_a_users_module_called_preprocess_is_not_taken_for_ours() -> None:
    nodes = [
        op("Conv", ["input", "w"], ["a"], name="preprocess/Conv"),
        op("Relu", ["a"], ["y"], name="preprocess/Relu"),
    ]
    model = small(nodes, ("N", 3, 8, 8), WEIGHTS)
    assert normalised_image(model.graph) is model.graph.inputs[0]
    assert PixelSteps(COLOUR)(model).modified


def test_sizes_of_one_name_that_are_padded_differently_get_names_of_their_own() -> None:
    node = op("Conv", ["input", "w"], ["y"], pads=[1, 0, 1, 1])
    model = small([node], ("N", 3, "s", "s"), WEIGHTS)
    feed = normal(2, 3, 8, 8)
    before = outputs(model, feed)
    PixelSteps(COLOUR)(model)
    shape = next(value.shape for node in model.graph for value in node.outputs if value.name == PIXELS)
    assert [str(dim) for dim in shape or ()] == ["N", "3", "s + 2", "s + 1"]
    assert difference(outputs(model, feed), before) < 1e-5
