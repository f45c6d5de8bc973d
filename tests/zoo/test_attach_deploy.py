"""An attached network goes down the line: both exporters, ONNX Runtime, FP16; and its documentation runs."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import torch
from pytorchcv.models.mobilenetv2 import mobilenetv2_wd4
from pytorchcv.models.resnext import resnext14_32x4d
from pytorchcv.models.shufflenetv2 import shufflenetv2_wd2
from torch import nn

from skdeploy.backends.rounding import RoundNarrow
from skdeploy.core.patterns import module_of
from skdeploy.core.spec import InputSpec
from skdeploy.passes.half import HalfPrecision
from skdeploy.passes.simplify import simplify
from skdeploy.passes.trace import gate_names, trace
from skdeploy.passes.trace_options import TraceOptions
from skdeploy.zoo.attach import attach_selective_kernels
from skdeploy.zoo.cards import load_card
from tests.graphs.networks import relative_error, run, torch_logits
from tests.zoo.attach_networks import build, images, live, selective

DOCS = Path(__file__).resolve().parents[2] / "docs/how-to/attach.md"
# The card gives the interface and the name; the network is another.
SPEC = load_card("sknet50")[0].model_copy(
    update={"name": "attached", "input": InputSpec(channels=3, height=64, width=64)}
)
Make = Callable[[], nn.Module]


pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def attached(make: Make) -> nn.Module:
    """As after fine-tuning: every batch normalisation, the gates' too, has the statistics of its own input."""
    return live(attach_selective_kernels(build(make))).float()


@cache
def traced(make: Make, exporter: str) -> bytes:
    graph = trace(attached(make), SPEC, TraceOptions(exporter=exporter, attention=True))  # type: ignore[arg-type]  # one of the two
    return ir.to_proto(graph).SerializeToString()


def graph_of(make: Make, exporter: str) -> ir.Model:
    return ir.from_proto(onnx.load_from_string(traced(make, exporter)))


# resnext50_32x4d passes too, in three times the time; tests/zoo/test_attach.py has it in float64. The one that always runs has
# the most kinds of layers: channel shuffles, depthwise convolutions, and a block with two inputs.
slow_networks = [pytest.param(make, marks=pytest.mark.slow) for make in (resnext14_32x4d, mobilenetv2_wd4)]
networks = pytest.mark.parametrize("make", [*slow_networks, shufflenetv2_wd2], ids=lambda make: make.__name__)
exports = pytest.mark.parametrize(
    ("make", "exporter"),
    [
        # 10 to 20 s each, and nothing in them that torchscript's and tests/zoo/test_families.py have not.
        *(
            pytest.param(make, "dynamo", marks=pytest.mark.slow)
            for make in (resnext14_32x4d, mobilenetv2_wd4, shufflenetv2_wd2)
        ),
        *(pytest.param(make, "torchscript", marks=pytest.mark.slow) for make in (resnext14_32x4d, mobilenetv2_wd4)),
        (shufflenetv2_wd2, "torchscript"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)

# Rounding at 6e-8 (2**-24) becomes 1e-5 to 4e-5 of the largest logit in these untrained networks of 30 to 80 layers, with few
# pixels in the last ones; the order of sums differs between machines.
FLOAT32_ERROR = 2e-4
# FP16 rounds at 2**-11, so the same amplification gives 2**13 times that error; measured: 2,500 to 7,500 times.
FP16_OVER_FLOAT32 = 4 * 2**13


@exports
def test_the_graph_computes_what_torch_does_for_any_batch(make: Make, exporter: str) -> None:
    graph = graph_of(make, exporter)
    assert [str(value.shape) for value in graph.graph.inputs] == ["[batch,3,64,64]"]
    assert {str(value.shape[0]) for value in graph.graph.outputs if value.shape} == {"batch"}
    for batch in (1, 3):
        inputs = images(batch).float().numpy()
        outputs = run(graph, inputs)
        assert relative_error(outputs["logits"], torch_logits(attached(make), inputs)) < FLOAT32_ERROR
        shares = [array for name, array in outputs.items() if name.startswith("attention.")]
        assert [array.shape[:2] for array in shares] == [(batch, 2)] * len(gate_names(attached(make)))


def test_the_comparison_sees_one_gate_that_prefers_the_other_branch() -> None:
    other = copy.deepcopy(attached(shufflenetv2_wd2))
    unit = next(iter(selective(other).values()))
    with torch.no_grad():
        unit.gate.fc2.weight *= -1
    inputs = images(3).float().numpy()
    logits = run(graph_of(shufflenetv2_wd2, "torchscript"), inputs)["logits"]
    assert relative_error(logits, torch_logits(other, inputs)) > FLOAT32_ERROR


@exports
def test_the_graph_is_named_by_module_and_only_a_channel_shuffle_has_rank_five(make: Make, exporter: str) -> None:
    graph = graph_of(make, exporter).graph
    named = {module_of(node.name) for node in graph}
    for name in selective(attached(make)):
        assert {name, f"{name}.branches.0.conv", f"{name}.branches.1.conv", f"{name}.gate.fc1"} <= named
    values = [(module_of(node.name), value) for node in graph for value in node.outputs]
    assert all(value.shape is not None for _, value in values)
    high = {module.rpartition(".")[2] for module, value in values if len(value.shape or ()) > 4}
    assert high == ({"c_shuffle"} if make is shufflenetv2_wd2 else set())


@networks
def test_fp16_loses_no_more_than_the_network_amplifies(make: Make) -> None:
    graph = simplify(graph_of(make, "torchscript"))
    inputs = images(3).float().numpy()
    expected = torch_logits(attached(make), inputs)
    float32 = relative_error(run(graph, inputs)["logits"], expected)
    half = HalfPrecision()(graph).model
    onnx.checker.check_model(ir.to_proto(half), full_check=True)
    float16 = relative_error(run(RoundNarrow()(half).model, inputs)["logits"], expected)
    assert 10 * float32 < float16 < FP16_OVER_FLOAT32 * float32


def test_the_documentation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```(python|text)\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {}
    for language, block in blocks:
        if language == "python":
            exec(compile(block, str(DOCS), "exec"), names)
        else:
            assert capsys.readouterr().out.startswith(block)
    assert {"attached", "late", "strided", "three", "real5x5", "logits"} <= set(names)
