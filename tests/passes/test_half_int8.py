"""INT8 graphs whose rest is FP16: which type each tensor gets, and that pixels, scales and integers stay exact."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from skdeploy.core.architecture import NetworkSpec
from skdeploy.core.errors import PassError, PrecisionError
from skdeploy.core.patterns import module_of
from skdeploy.ir.constants import numbers as array
from skdeploy.ir.nodes import maker as source
from skdeploy.ir.qdq import int8_layers
from skdeploy.passes.exact_input import PIXELS
from skdeploy.passes.half import SINGLE_SCALE, HalfPrecision
from skdeploy.passes.trace_options import TraceOptions
from skdeploy.passes.trained import require_same_scales, scales_in
from tests.conftest import TinySpec
from tests.graphs.int8_networks import THREE, TORCHSCRIPT, TWO, int8, pixels, quantized
from tests.graphs.networks import card, run, traced
from tests.passes.float_types import check_types, float_types
from tests.zoo.tiny_networks import K3, K5, VARIANTS, network

FLOAT32, FLOAT16, INT8 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT8
EMBEDDED = TraceOptions(exporter="torchscript", embed_preprocess=True, attention=True)
SUM = network("sknet", K3, K5, fuse="sum")
Q, DQ = "QuantizeLinear", "DequantizeLinear"

# ONNX Runtime says on stderr that it has no FP16 Mul to fold the scales of biases with; it still checks the types.


def nodes(model: ir.Model, *operators: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type in operators]


@pytest.mark.parametrize(
    ("structure", "options"),
    [
        (TWO, TORCHSCRIPT),
        (TWO, EMBEDDED),
        (THREE, EMBEDDED),
        (SUM, TORCHSCRIPT),
        (VARIANTS["shufflenet_v2"], TORCHSCRIPT),
    ],
    ids=["two", "two-embedded", "three-embedded", "sum", "shufflenet"],
)
def test_the_graph_is_strongly_typed(structure: NetworkSpec, options: TraceOptions) -> None:
    model = int8(structure, options, half=True)
    check_types(model)
    assert {value.dtype for value in model.graph.outputs} == {FLOAT32}
    assert all(value.uses() for value in model.graph.initializers.values())
    for node in nodes(model, Q, DQ):
        data, scale, zero = node.inputs
        assert zero.dtype == INT8
        assert scale.dtype == (data.dtype if node.op_type == Q else node.outputs[0].dtype)


def test_a_cast_in_front_of_a_weight_is_seen() -> None:
    """The check above and the ones below look at a graph that could be otherwise: FP32 weights in an FP16 convolution."""
    model = int8(TWO, half=True)
    weight = next(node for node in nodes(model, DQ) if node.name == "stem.conv/weight_dequantized")
    weight.outputs[0].dtype = FLOAT32
    with pytest.raises(AssertionError):
        check_types(model)


@pytest.mark.parametrize("structure", [TWO, THREE], ids=["two", "three"])
def test_weights_feed_their_layers_without_a_cast(structure: NetworkSpec) -> None:
    before, model = int8(structure), int8(structure, half=True)
    integers = {
        name: array(v) for name, v in before.graph.initializers.items() if v.dtype == INT8 and array(v).ndim > 1
    }
    layers = [node for node in nodes(model, "Conv", "Gemm") if not module_of(node.name).endswith(("fc1", "fc2"))]
    assert len(layers) == len(integers) > 10
    for node in layers:
        dequantizers = [source(value) for value in node.inputs[:2]]
        assert [node.op_type for node in dequantizers] == [DQ, DQ]
        assert float_types(node) == {FLOAT16}
        values = dequantizers[1].inputs[0]
        np.testing.assert_array_equal(array(values), integers[values.name or ""])


def test_every_tensor_is_quantized_in_the_type_it_has() -> None:
    model = int8(THREE, half=True)
    assert all(source(node.inputs[0]).op_type != "Cast" for node in nodes(model, Q))
    types = {node.inputs[0].name: node.inputs[0].dtype for node in nodes(model, Q)}
    assert types.pop(PIXELS) == FLOAT32
    assert set(types.values()) == {FLOAT16}


def test_scales_keep_their_numbers() -> None:
    before, after = int8(TWO), int8(TWO, half=True)
    scales = {node.name: array(node.inputs[1]) for node in nodes(before, Q, DQ)}
    halved = {node.name: array(node.inputs[1]) for node in nodes(after, Q, DQ)}
    assert scales.keys() == halved.keys()
    for name, scale in halved.items():
        np.testing.assert_array_equal(scale.astype(np.float32), scales[name])
        assert (scale > 0).all()


def test_pixels_stay_float32_until_they_are_integers() -> None:
    model = int8(TWO, EMBEDDED, half=True)
    inside = [node for node in model.graph if module_of(node.name) in ("pixels", "preprocess") and node.op_type != DQ]
    assert [node.op_type for node in inside] == ["Cast", "Transpose", "Mul", "Add", "Pad", "Mul", "Add", Q]
    assert all(float_types(node) == {FLOAT32} for node in inside)
    quantizer = inside[-1]
    model.graph.outputs.append(quantizer.outputs[0])
    raw = pixels(2)
    found = run(model, raw)[quantizer.outputs[0].name or ""]
    # A pixel p is (p - 128) / 128 at a step of 2^-7: the very integer p - 128; the padding is the mean, in levels.
    np.testing.assert_array_equal(found[:, :, 1:-1, 1:-1], raw.transpose(0, 3, 1, 2).astype(np.int16) - 128)


@pytest.mark.parametrize("structure", [TWO, THREE], ids=["two", "three"])
def test_means_and_what_unshifts_them_stay_float32(structure: NetworkSpec) -> None:
    model = int8(structure, half=True)
    means = nodes(model, "GlobalAveragePool", "ReduceMean")
    readers = [use.node for mean in means for use in mean.outputs[0].uses()]
    unshifting = [
        node for node in readers if node.op_type == "Add" and any(v.is_initializer() for v in node.inputs if v)
    ]
    assert len(unshifting) == len(means) - 1  # all but the mean in front of the classifier read a shifted tensor
    assert all(float_types(node) == {FLOAT32} for node in (*means, *unshifting))


def test_what_is_measured_is_what_is_half_and_no_integer_or_weight() -> None:
    model = int8(TWO)
    halving = HalfPrecision()
    halving(model)
    values = {value.name: value for node in model.graph for value in node.outputs}
    integers = {node.outputs[0].name for node in nodes(model, Q)}
    weights = {node.outputs[0].name for node in nodes(model, DQ) if node.inputs[0].is_initializer()}
    halves = {name for name, value in values.items() if value.dtype == FLOAT16} - weights
    assert integers
    assert weights
    assert not (integers | weights | {"input", PIXELS}) & set(halving.halved)
    made = {name: source(values[name]) for name in halves}
    cast = {name: node.inputs[0].name for name, node in made.items() if node.op_type == "Cast" and node.inputs[0]}
    names = {cast.get(name, name) for name in halves}
    assert set(halving.halved) == {"logits" if name == "logits_fp16" else name for name in names}
    assert len(halving.halved) == len(set(halving.halved))


def test_a_kept_module_reads_the_integers_in_float32() -> None:
    model = int8(TWO)
    halving = HalfPrecision([r"^stages\.1\.0\.reduce\.conv$"])
    halving(model)
    check_types(model)
    (conv,) = (node for node in nodes(model, "Conv") if node.name == "stages.1.0.reduce.conv/Conv")
    assert float_types(conv) == {FLOAT32}
    assert source(conv.inputs[1]).op_type == DQ  # its weight is INT8, dequantized to FP32 at once
    assert halving.kept["stages.1.0.reduce.conv/weight_dequantized"] == "read in FP32 only"


def test_a_pattern_may_name_a_module_of_which_only_the_saturation_is_left() -> None:
    """The Relu of a shifted tensor goes (passes/shift.py), and its module with it, but for the Q/DQ pair."""
    model = int8(TWO)
    assert {node.op_type for node in model.graph if module_of(node.name) == "stages.0.0.relu"} == {Q, DQ}
    HalfPrecision([r"^stages\.0\.0\.relu$"])(model)


def replaced(model: ir.Model, ending: str, change: np.ndarray | float) -> str:
    name, value = next((n, v) for n, v in model.graph.initializers.items() if n.endswith(ending))
    value.const_value = ir.tensor((array(value) * change).astype(np.float32), name=name)
    return name


@pytest.mark.parametrize("ending", ["stem.conv/Conv_weight_rounded_scale", "pool/MaxPool_scale"])
def test_a_scale_that_is_no_half_number_stays_with_the_kernel_around_it(ending: str) -> None:
    """Not a bit of any scale changes, no Cast comes between a layer and its Q/DQ, and the rest is FP16 as before."""
    model, plain = int8(TWO), int8(TWO)
    replaced(model, ending, 1 + 2.0**-13)
    before, half = scales_in(model), HalfPrecision()
    half(model)
    assert scales_in(model) == before
    HalfPrecision()(plain)
    assert int8_layers(model) == int8_layers(plain)
    assert SINGLE_SCALE in half.kept.values()
    assert len(half.halved) > 0


def test_without_that_rule_the_scales_would_change(monkeypatch: pytest.MonkeyPatch) -> None:
    model = int8(TWO)
    replaced(model, "pool/MaxPool_scale", 1 + 2.0**-13)
    given = model.clone()
    monkeypatch.setattr("skdeploy.passes.half.beside_single_scales", lambda _: frozenset())
    HalfPrecision()(model)
    with pytest.raises(PassError, match="scales of the file are gone"):
        require_same_scales(given, model)


def test_a_dequantized_weight_beyond_the_range_is_named_with_its_module() -> None:
    model = int8(TWO)
    replaced(model, "stem.conv/Conv_weight_rounded_scale", 2.0**18)  # scales still fit, 127 of them do not
    with pytest.raises(
        PrecisionError, match=r"stem\.conv/Conv_weight_rounded_int8, which node stem\.conv/Conv .* holds"
    ) as failure:
        HalfPrecision()(model)
    assert r"stem\.conv" in failure.value.advice


@pytest.mark.parametrize("choices", [{"shift": False}, {"exact_input": False}, {"equalize": False}], ids=str)
def test_every_part_of_the_algorithm_may_be_left_out(choices: dict[str, bool]) -> None:
    model = quantized(TWO, TORCHSCRIPT, **choices).model
    check_types(HalfPrecision()(model).model)
    if "exact_input" in choices:
        (quantizer,) = (node for node in nodes(model, Q) if node.inputs[0] in model.graph.inputs)
        assert float_types(quantizer) == {FLOAT32}  # the image itself is quantized as it comes in


def test_a_clone_can_become_fp16_while_the_original_stays_as_it_was(tiny_spec: TinySpec) -> None:
    """onnx-ir's clones share their type objects: whoever changes a type in place changes both."""
    original = traced(card(tiny_spec()))
    HalfPrecision()(original.clone())
    assert ir.DataType.FLOAT16 not in {value.dtype for node in original.graph for value in node.outputs}
