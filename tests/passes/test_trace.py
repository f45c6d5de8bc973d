"""The traced graph computes what the training form computes, and its interface and names are what they promise to be."""

from __future__ import annotations

import itertools
import re

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from skdeploy.core.errors import ExportError
from skdeploy.core.patterns import module_of
from skdeploy.core.spec import ModelSpec
from skdeploy.passes.trace import attention_name, gate_names, trace
from skdeploy.passes.trace_options import TraceOptions
from skdeploy.zoo.cards import load_card
from skdeploy.zoo.fold import fold
from skdeploy.zoo.selective_kernel import Gate
from skdeploy.zoo.sknet import SKNet
from tests.conftest import TinySpec
from tests.graphs.networks import (
    FLOAT32_ERROR,
    MEAN,
    STD,
    Array,
    card,
    images,
    live,
    relative_error,
    run,
    torch_logits,
    traced,
)

# Every option of the interface at once: most tests share this graph, because tracing takes a second.
EVERYTHING = {"attention": True, "embed_preprocess": True, "dynamic_size": True}

BOTH = pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
OF_BOTH = pytest.mark.parametrize(
    ("exporter", "branches"),
    [("dynamo", 2), pytest.param("dynamo", 3, marks=pytest.mark.slow), ("torchscript", 2), ("torchscript", 3)],
)


@pytest.fixture
def tiny(tiny_spec: TinySpec) -> ModelSpec:
    return card(tiny_spec(2))


def shapes(values: list[ir.Value]) -> list[tuple[str | None, list[object]]]:
    return [(value.name, [d if isinstance(d, int) else d.value for d in value.shape or ()]) for value in values]


def raw(count: int, height: int = 20, width: int = 24) -> Array:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def error(graph: ir.Model, spec: ModelSpec, inputs: Array, planes: Array | None = None) -> float:
    """Of the logits, from those of the training form for the same images, or for the ``planes`` that they are in float64."""
    return relative_error(run(graph, inputs)["logits"], torch_logits(live(spec), inputs if planes is None else planes))


def normal(pixels: Array) -> Array:
    """The normalisation as the card defines it, in float64."""
    return ((pixels / 255 - MEAN) / STD).transpose(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("exporter", "branches", "fuse"),
    [
        ("torchscript", 1, "attention"),
        ("torchscript", 3, "sum"),
        ("dynamo", 3, "sum"),
        pytest.param("dynamo", 1, "attention", marks=pytest.mark.slow),
    ],
)
def test_units_without_a_gate_compute_the_training_form(
    tiny_spec: TinySpec, exporter: str, branches: int, fuse: str
) -> None:
    spec = card(tiny_spec(branches, fuse=fuse))
    graph = traced(spec, TraceOptions(exporter=exporter))
    assert error(graph, spec, images(3)) < FLOAT32_ERROR


def test_the_comparison_sees_other_weights(tiny: ModelSpec) -> None:
    other = live(tiny)
    other.stages[1][1].sk.branches[0].conv.weight *= 1.01
    inputs = images(3)
    assert relative_error(run(traced(tiny), inputs)["logits"], torch_logits(other, inputs)) > FLOAT32_ERROR


@BOTH
def test_the_batch_is_dynamic_by_default(tiny: ModelSpec, exporter: str) -> None:
    graph = traced(tiny, TraceOptions(exporter=exporter))
    assert shapes(graph.graph.inputs) == [("input", ["batch", 3, 20, 24])]
    assert shapes(graph.graph.outputs) == [("logits", ["batch", 5])]
    for batch in (1, 2, 7):
        assert error(graph, tiny, images(batch)) < FLOAT32_ERROR


# An example of one image tempts the torch.export-based exporter to specialise more than the batch.
@pytest.mark.parametrize(("exporter", "batch"), [("dynamo", 1), ("torchscript", 1), ("torchscript", 3)])
def test_a_fixed_batch_is_in_the_interface(tiny: ModelSpec, exporter: str, batch: int) -> None:
    graph = traced(tiny, TraceOptions(exporter=exporter, batch=batch))
    assert shapes(graph.graph.inputs) == [("input", [batch, 3, 20, 24])]
    assert shapes(graph.graph.outputs) == [("logits", [batch, 5])]
    assert error(graph, tiny, images(batch)) < FLOAT32_ERROR


@pytest.mark.parametrize(
    ("exporter", "branches"),
    [
        ("dynamo", 2),
        ("torchscript", 3),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in (("dynamo", 3), ("torchscript", 2))),
    ],
)
def test_a_dynamic_size_takes_odd_and_even_sizes(tiny_spec: TinySpec, exporter: str, branches: int) -> None:
    spec = card(tiny_spec(branches))
    graph = traced(spec, TraceOptions(exporter=exporter, **EVERYTHING))
    assert shapes(graph.graph.inputs) == [("input", ["batch", "height", "width", 3])]
    for height, width in ((20, 24), (17, 23), (33, 20), (1, 1)):
        pixels = raw(2, height, width)
        assert error(graph, spec, pixels, normal(pixels)) < FLOAT32_ERROR


@OF_BOTH
def test_attention_is_the_softmax_of_each_gate(tiny_spec: TinySpec, exporter: str, branches: int) -> None:
    spec = card(tiny_spec(branches))
    graph = traced(spec, TraceOptions(exporter=exporter, **EVERYTHING))
    model, pixels = live(spec).double(), raw(3)
    expected: dict[str, Tensor] = {}

    def record(name: str, gate: Gate) -> None:
        def hook(_module: nn.Module, _inputs: object, logits: Tensor) -> None:
            expected[attention_name(name)] = logits.reshape(len(logits), branches, gate.channels).softmax(1)

        gate.fc2.register_forward_hook(hook)

    for name, module in model.named_modules():
        if isinstance(module, Gate):
            record(name, module)
    model(torch.from_numpy(normal(pixels)))

    outputs = run(graph, pixels)
    assert list(outputs) == ["logits", "attention.stages.0.0", "attention.stages.1.0", "attention.stages.1.1"]
    assert set(expected) == set(outputs) - {"logits"}
    for name, attention in expected.items():
        # Weights are between 0 and 1, and the maps before the gate have float32's error.
        np.testing.assert_allclose(outputs[name], attention.numpy(), atol=FLOAT32_ERROR)
        np.testing.assert_allclose(outputs[name].sum(1), 1, atol=1e-6)  # a few roundings of numbers below 1
    # The gates decide here: a test of equal weights would test nothing.
    assert all(float(attention.max()) > 0.6 for attention in expected.values())


@BOTH
def test_embedded_preprocessing_takes_raw_pixels(tiny: ModelSpec, exporter: str) -> None:
    graph = traced(tiny, TraceOptions(exporter=exporter, **EVERYTHING))
    assert graph.graph.inputs[0].dtype == ir.DataType.UINT8
    pixels = raw(5)
    pixels[1], pixels[2], pixels[3, ..., 1] = 0, 255, 255
    found = run(graph, pixels)["logits"]
    assert relative_error(found, torch_logits(live(tiny), normal(pixels))) < FLOAT32_ERROR
    # The same as normalising outside.
    outside = run(traced(tiny, TraceOptions(exporter=exporter)), normal(pixels).astype(np.float32))["logits"]
    assert relative_error(found, outside) < FLOAT32_ERROR


@pytest.mark.parametrize(
    ("options", "interface", "planes"),
    [
        ({"embed_preprocess": True}, ["batch", 20, 24, 3], None),
        ({"dynamic_size": True}, ["batch", 3, "height", "width"], images(2, 17, 23)),
    ],
)
def test_preprocessing_and_a_free_size_are_apart(
    tiny: ModelSpec, options: dict[str, bool], interface: list[object], planes: Array | None
) -> None:
    graph = traced(tiny, TraceOptions(exporter="torchscript", **options))
    assert shapes(graph.graph.inputs) == [("input", interface)]
    given = (raw(2), normal(raw(2))) if planes is None else (planes,)
    assert error(graph, tiny, *given) < FLOAT32_ERROR


@pytest.mark.parametrize(
    ("exporter", "opset"),
    [("torchscript", 19), ("torchscript", 20), ("dynamo", 19), pytest.param("dynamo", 20, marks=pytest.mark.slow)],
)
def test_the_opset_is_the_one_asked_for(tiny: ModelSpec, exporter: str, opset: int) -> None:
    graph = traced(tiny, TraceOptions(exporter=exporter, opset=opset))
    assert graph.opset_imports[""] == opset
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)
    assert error(graph, tiny, images(2)) < FLOAT32_ERROR


def module_order(graph: ir.Model) -> list[str]:
    """The modules that the nodes name, in the order of the graph, without what only one of the exporters writes."""
    names = [module_of(node.name) for node in graph.graph if node.op_type not in ("Constant", "Identity")]
    return [name for name, _ in itertools.groupby(names)]


def test_both_exporters_name_nodes_after_the_same_modules(tiny: ModelSpec) -> None:
    dynamo, torchscript = (module_order(traced(tiny, TraceOptions(exporter=e))) for e in ("dynamo", "torchscript"))
    assert dynamo == torchscript
    assert "stages.1.0.sk.branches.1.conv" in dynamo


@BOTH
def test_nodes_are_named_module_slash_operator_once_each(tiny: ModelSpec, exporter: str) -> None:
    graph = traced(tiny, TraceOptions(exporter=exporter, **EVERYTHING))
    modules = {name for name, _ in fold(live(tiny)).named_modules()} | {"preprocess"}
    names = [node.name or "" for node in graph.graph]
    assert len(set(names)) == len(names)
    for node in graph.graph:
        module, _, operator = (node.name or "").rpartition("/")
        assert module in modules
        assert re.fullmatch(rf"{node.op_type}(_\d+)?", operator)


@OF_BOTH
def test_no_tensor_has_more_than_four_dimensions(tiny_spec: TinySpec, exporter: str, branches: int) -> None:
    proto = ir.to_proto(traced(card(tiny_spec(branches)), TraceOptions(exporter=exporter, **EVERYTHING)))
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True).graph
    ranks = [
        len(value.type.tensor_type.shape.dim) for value in (*inferred.input, *inferred.value_info, *inferred.output)
    ]
    assert len(ranks) > len(inferred.node)  # every output of every node is there, and the inputs
    assert max(ranks) == 4


def test_sknet50_has_at_most_320_nodes_and_no_tensor_of_rank_five() -> None:
    spec, _ = load_card("sknet50")
    graph = trace(SKNet(spec.network, spec.input.channels), spec, TraceOptions()).graph
    assert len(graph) <= 320
    assert max(len(value.shape) for node in graph for value in node.outputs if value.shape is not None) <= 4


def test_the_network_itself_is_left_as_it_was(tiny: ModelSpec) -> None:
    model = live(tiny)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trace(model, tiny, TraceOptions(exporter="torchscript", attention=True))
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert before.keys() == model.state_dict().keys()
    assert isinstance(model.stages[0][0].sk.gate, Gate)  # this is the claim: the trained gate, not its deploy form


def test_gates_are_found_in_both_forms(tiny_spec: TinySpec) -> None:
    model = live(card(tiny_spec(3)))
    expected = ["stages.0.0.sk.gate", "stages.1.0.sk.gate", "stages.1.1.sk.gate"]
    assert gate_names(model) == gate_names(fold(model)) == expected
    assert gate_names(live(card(tiny_spec(3, fuse="sum")))) == []


class Broken(nn.Module):
    """Fails in the middle of its forward, as a network of another family may."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError("deformable attention has no symbolic form")


@BOTH
def test_a_network_that_cannot_be_traced_is_an_export_error_with_the_cause(tiny: ModelSpec, exporter: str) -> None:
    with pytest.raises(ExportError, match=f"could not export tiny with --exporter {exporter}") as failure:
        trace(Broken(), tiny, TraceOptions(exporter=exporter))
    assert "deformable attention has no symbolic form" in failure.value.message
    assert "--exporter" in failure.value.advice
