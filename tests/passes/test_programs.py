"""Programs that torch does not decompose: the graph is the one that it would have made, and other programs are left to it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from skdeploy.passes import trace as tracing
from skdeploy.passes.programs import spare_decompositions
from skdeploy.passes.trace import trace
from skdeploy.passes.trace_options import TraceOptions
from tests.conftest import TinySpec
from tests.graphs.networks import card, images, live, run


def nodes(graph: ir.Model) -> list[tuple[str, str | None, list[str]]]:
    """Operator, name and attributes of each node, but for the flattening before the classifier: the exporter's optimiser
    makes a Reshape of that, with -1 for the batch or with 0, or leaves it.
    """
    return [
        ("flattened", "", [])
        if node.op_type in ("Reshape", "Flatten")
        else (node.op_type, node.name, sorted(map(str, node.attributes.values())))
        for node in graph.graph
    ]


@pytest.mark.parametrize("batch", [None, pytest.param(3, marks=pytest.mark.slow)])
def test_the_graph_is_the_one_that_torchs_decompositions_give(
    tiny_spec: TinySpec, batch: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, spared = card(tiny_spec(2)), list[bool]()
    network, options = live(spec), TraceOptions(batch=batch)

    def spare(program: torch.export.ExportedProgram) -> bool:
        spared.append(spare_decompositions(program))
        return spared[-1]

    monkeypatch.setattr(tracing, "spare_decompositions", spare)
    quick = trace(network, spec, options)
    assert spared == [True]
    monkeypatch.setattr(tracing, "spare_decompositions", lambda program: False)
    decomposed = trace(network, spec, options)
    assert nodes(quick) == nodes(decomposed)
    assert str(quick.graph.inputs) == str(decomposed.graph.inputs)
    assert str(quick.graph.outputs) == str(decomposed.graph.outputs)
    x = images(3)
    np.testing.assert_array_equal(
        run(quick, x)["logits"], run(decomposed, x)["logits"]
    )  # the same operators: the same bits


class Made(nn.Module):
    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x)


def twice_read(x: Tensor) -> Tensor:
    before = x * 2
    another = before + 1
    return before.relu_() + another


def through_a_view(x: Tensor) -> Tensor:
    before = x * 2
    before.flatten(1).relu_()
    return before


@pytest.mark.parametrize(
    "compute",
    [
        twice_read,
        through_a_view,
        lambda x: (x * 2).flatten(1).relu_(),
        lambda x: nn.functional.adaptive_avg_pool2d(x, 2),
        lambda x: x.softmax(1),
    ],
    ids=["read twice", "through a view", "of a view", "to 2 x 2", "another operator"],
)
def test_a_program_that_needs_torch_is_left_as_it_is(compute: Callable[[Tensor], Tensor]) -> None:
    program = torch.export.export(Made(compute), (torch.randn(2, 3, 8, 8),), strict=False)
    before = str(program.graph)
    assert not spare_decompositions(program)
    assert str(program.graph) == before
    assert "run_decompositions" not in vars(program)


def test_means_and_relus_are_what_they_were() -> None:
    """In float64, so that nothing but the operators themselves could differ."""
    network = Made(lambda x: nn.functional.adaptive_avg_pool2d((x + 1).relu_(), 1).flatten(1))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    program = torch.export.export(network, (x,), strict=False)
    assert spare_decompositions(program)
    assert torch.equal(program.module()(x), network(x))
