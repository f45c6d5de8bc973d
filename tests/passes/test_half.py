"""FP16 graphs: every tensor has the type that the rules give it, and the values are those of FP16 arithmetic."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper

from skdeploy.backends.rounding import RoundNarrow
from skdeploy.core.errors import PrecisionError, UsageError
from skdeploy.core.patterns import module_of
from skdeploy.core.spec import ModelSpec
from skdeploy.ir.constants import numbers
from skdeploy.passes.half import HalfPrecision
from skdeploy.passes.simplify import simplify
from skdeploy.passes.trace_options import TraceOptions
from skdeploy.zoo.fold import fold
from tests.conftest import TinySpec
from tests.graphs.networks import card, images, live, relative_error, run, sqnr_db, torch_logits, traced
from tests.graphs.small_files import model_of
from tests.passes.float_types import FLOAT16, FLOAT32, check_types, float_types

TORCHSCRIPT = TraceOptions(exporter="torchscript")
interfaces = pytest.mark.parametrize(("exporter", "branches"), [("dynamo", 2), ("torchscript", 2), ("torchscript", 3)])
FP16_TINY = 2.0**-24  # the smallest positive FP16 number

# One rounding to FP16's 11 bits leaves 73 dB (6.02 * 11 + 1.8 + what a spread of exponents adds); some forty of them follow one
# another in these networks, which takes 16 dB; gates whose softmax is steep and sums that cancel take up to 15 dB more.
FP16_DB = 42.0
# torch keeps the gate's statistics in FP16 too, which our rules avoid. With two branches that costs it 4 dB: it has 40.4, and
# 44.3, as ours, with its statistics in FP32 (the gates' logits reach 28 there, so the softmax is steep).
TORCH_DB = FP16_DB - 4


@pytest.fixture
def tiny(tiny_spec: TinySpec) -> ModelSpec:
    return card(tiny_spec(2))


def everything(exporter: str) -> TraceOptions:
    return TraceOptions(exporter=exporter, attention=True, embed_preprocess=True, dynamic_size=True)


def halved(model: ir.Model, *keep: str) -> ir.Model:
    return HalfPrecision(keep)(model).model


@interfaces
@pytest.mark.parametrize("simplified", [False, True])
def test_the_graph_is_strongly_typed(tiny_spec: TinySpec, exporter: str, simplified: bool, branches: int) -> None:
    graph = traced(card(tiny_spec(branches)), everything(exporter))
    model = halved(simplify(graph) if simplified else graph)
    check_types(model)
    assert model.graph.inputs[0].dtype == ir.DataType.UINT8
    assert {value.dtype for value in model.graph.outputs} == {FLOAT32}
    unused = [name for name, value in model.graph.initializers.items() if not value.uses()]
    assert not unused


def test_the_type_check_sees_one_wrong_constant(tiny: ModelSpec) -> None:
    model = halved(traced(tiny, TORCHSCRIPT))
    check_types(model)
    weight = next(value for name, value in model.graph.initializers.items() if name.endswith("stem.conv.weight_fp16"))
    weight.const_value, weight.dtype = ir.tensor(numbers(weight).astype(np.float32), name=weight.name), FLOAT32
    with pytest.raises(AssertionError):
        check_types(model)


@pytest.mark.parametrize(("branches", "fuse"), [(1, "attention"), (2, "attention"), (3, "attention"), (3, "sum")])
def test_means_and_their_sums_stay_float32_and_all_else_becomes_half(
    tiny_spec: TinySpec, branches: int, fuse: str
) -> None:
    model = halved(traced(card(tiny_spec(branches, fuse=fuse)), TORCHSCRIPT))
    found = {node.name or "": float_types(node) for node in model.graph if node.op_type not in ("Cast", "Constant")}
    gated = fuse == "attention" and branches > 1
    statistics = {"/GlobalAveragePool"}
    for unit in ("stages.0.0", "stages.1.0", "stages.1.1") if gated else ():
        for operator, count in (("GlobalAveragePool", branches), ("Add", branches - 1)):
            statistics |= {f"{unit}.sk/{operator}{f'_{index + 1}' if index else ''}" for index in range(count)}
    assert {name for name, types in found.items() if FLOAT32 in types} == statistics
    assert all(types == {FLOAT16} for name, types in found.items() if name not in statistics)


@interfaces
def test_the_gates_statistics_stay_float32_from_both_exporters(
    tiny_spec: TinySpec, exporter: str, branches: int
) -> None:
    model = halved(traced(card(tiny_spec(branches)), everything(exporter)))
    means = [node for node in model.graph if node.op_type in ("ReduceMean", "GlobalAveragePool")]
    sums: list[ir.Node] = []
    for node in model.graph:
        if node.op_type == "Add" and all(value.producer() in (*means, *sums) for value in node.inputs if value):
            sums.append(node)
    units = 3
    assert len(means) == units * branches + 1  # the last mean is the one before the classifier
    assert len(sums) == units * (branches - 1)
    assert all(float_types(node) == {FLOAT32} for node in (*means, *sums))


def test_what_was_done_is_reported(tiny: ModelSpec) -> None:
    graph = traced(tiny, TORCHSCRIPT)
    single = {value.name for node in graph.graph for value in node.outputs} | {"input"}
    halving = HalfPrecision()
    model = halving(graph).model
    assert set(halving.halved) <= single  # names of the FP32 graph, which is where they are measured
    assert "logits" in halving.halved
    assert "input" in halving.halved
    assert len(set(halving.halved)) == len(halving.halved)
    assert halving.kept["stages.0.0.sk/GlobalAveragePool"] == "a sum over space"
    assert halving.kept["stages.0.0.sk/Add"] == "adds sums over space"
    halves = {value.name for node in model.graph for value in node.outputs if value.dtype == FLOAT16}
    assert halves == {"logits_fp16" if n == "logits" else "input_fp16" if n == "input" else n for n in halves}
    assert len(halves) >= len(halving.halved)


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_preprocessing_stays_float32(tiny: ModelSpec, exporter: str) -> None:
    halving = HalfPrecision()
    model = halving(traced(tiny, everything(exporter))).model
    inside = [node for node in model.graph if module_of(node.name) == "preprocess" and not node.name.endswith("_fp16")]
    assert [node.op_type for node in inside] == ["Cast", "Transpose", "Mul", "Add"]
    assert all(float_types(node) == {FLOAT32} for node in inside)
    assert {halving.kept[node.name or ""] for node in inside} == {"normalisation of the input"}


@pytest.mark.parametrize("branches", [1, 2, 3])
def test_the_values_are_those_of_half_arithmetic_in_torch(tiny_spec: TinySpec, branches: int) -> None:
    """Two implementations of FP16 round in other places, so each is as far from the other as from the truth, and no further."""
    spec = card(tiny_spec(branches))
    inputs = images(8)
    exact = torch_logits(live(spec), inputs)
    with torch.no_grad():
        by_torch = fold(live(spec)).half()(torch.from_numpy(inputs).half()).float().numpy()
    ours = run(RoundNarrow()(halved(traced(spec, TORCHSCRIPT))).model, inputs)["logits"]
    assert sqnr_db(by_torch, exact) > TORCH_DB
    assert sqnr_db(ours, exact) > FP16_DB
    assert sqnr_db(ours, by_torch) > TORCH_DB
    # And it is FP16: FP32 has 130 dB, and bfloat16's 8 bits 18 dB less than FP16's 11.
    assert sqnr_db(ours, exact) < 75
    assert ours.dtype == np.float32


@pytest.mark.parametrize("pattern", [r"stages\.1\.0\.sk$", r"gate", r"^stem", r"^classifier$"])
def test_kept_modules_stay_float32_between_casts(tiny: ModelSpec, pattern: str) -> None:
    halving = HalfPrecision([pattern])
    model = halving(traced(tiny, TORCHSCRIPT)).model
    check_types(model)
    kept = [node for node in model.graph if re.search(pattern, module_of(node.name)) and node.op_type != "Cast"]
    assert kept
    assert all(float_types(node) <= {FLOAT32} for node in kept)
    assert all(halving.kept[node.name or ""] == f"--keep-fp32 {pattern}" for node in kept if float_types(node))
    others = [node for node in model.graph if node.op_type == "Conv" and node not in kept]
    assert others
    assert all(float_types(node) == {FLOAT16} for node in others)


def test_keeping_more_gives_a_smaller_error(tiny: ModelSpec) -> None:
    inputs = images(8)
    exact = torch_logits(live(tiny), inputs)

    def error(*keep: str) -> float:
        rounded = RoundNarrow()(halved(traced(tiny, TORCHSCRIPT), *keep)).model
        return relative_error(run(rounded, inputs)["logits"], exact)

    assert error("stages") < error()


def test_one_module_may_match_two_patterns(tiny: ModelSpec) -> None:
    model = halved(traced(tiny, TORCHSCRIPT), r"^stages\.0", r"^stages\.0\.0\.sk")
    check_types(model)


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        (["stages["], r"--keep-fp32 'stages\[' is not a regular expression"),
        (["stem", "stage5"], "--keep-fp32 'stage5' matches no module"),
        ([".*"], "keeps everything in FP32"),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_a_usage_error(tiny: ModelSpec, keep: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        halved(traced(tiny, TORCHSCRIPT), *keep)


def set_weight(model: ir.Model, ending: str, value: float) -> str:
    """Sets one element of a constant; gives the constant's name."""
    name, constant = next((n, v) for n, v in model.graph.initializers.items() if n.endswith(ending))
    array = numbers(constant).copy()
    array.flat[0] = value
    constant.const_value = ir.tensor(array, name=name)
    return name


@pytest.mark.parametrize("value", [65505, -1e6, float("inf")])
@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_a_constant_beyond_the_range_is_named_with_a_way_out_that_works(
    tiny: ModelSpec, exporter: str, value: float
) -> None:
    graph = traced(tiny, TraceOptions(exporter=exporter))
    name = set_weight(graph, "stages.1.0.sk.gate.fc2.weight", value)
    with pytest.raises(PrecisionError, match=re.escape(name)) as failure:
        halved(graph)
    assert "65504" in failure.value.message
    pattern = re.search("--keep-fp32 '(.*)';", failure.value.advice)
    again = traced(tiny, TraceOptions(exporter=exporter))
    set_weight(again, "stages.1.0.sk.gate.fc2.weight", value)
    model = halved(again, pattern[1])
    check_types(model)
    weight = next(v for n, v in model.graph.initializers.items() if n.endswith("stages.1.0.sk.gate.fc2.weight"))
    assert weight.dtype == FLOAT32


def test_the_largest_number_of_the_range_is_accepted(tiny: ModelSpec) -> None:
    graph = traced(tiny, TORCHSCRIPT)
    name = set_weight(graph, "stages.1.0.sk.gate.fc2.weight", 65504)
    model = halved(graph)
    assert numbers(model.graph.initializers[f"{name}_fp16"]).flat[0] == np.float16(65504)


def constant_graph(values: np.ndarray) -> ir.Model:
    node = helper.make_node("Mul", ["x", "scale"], ["y"], name="unit/Mul")
    proto = model_of([node], {"x": values.shape}, {"y": values.shape}, {"scale": values})
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


@pytest.mark.parametrize(
    ("values", "flushed"),
    [
        # Zeros that were zeros do not count; what FP16 still has as a subnormal number does not either.
        ([0, FP16_TINY, FP16_TINY / 4, -FP16_TINY / 4, 1, 2, 3, 4], {"scale": 2 / 8}),
        ([0, 1, 2], {}),
    ],
)
def test_the_share_of_a_constant_that_is_flushed_to_zero_is_reported(
    values: list[float], flushed: dict[str, float]
) -> None:
    halving = HalfPrecision()
    halving(constant_graph(np.array(values, np.float32)))
    assert halving.flushed == flushed
