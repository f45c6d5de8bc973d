"""Where a graph's attention is found, and that what is read there is the softmax of the definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

from skdeploy.attention.gates import AttentionReader, Gate, find_gates
from skdeploy.core.architecture import NetworkSpec
from skdeploy.core.errors import IntegrityError, ParityError
from skdeploy.passes.trace_options import TraceOptions
from tests.attention.networks import half, spec_of, square, unit
from tests.graphs.int8_networks import THREE, TWO, int8, normalised, pixels, single
from tests.graphs.int8_networks import spec_of as tiny_card
from tests.zoo.tiny_networks import live

TORCHSCRIPT = TraceOptions(exporter="torchscript")
WITH_OUTPUTS = TraceOptions(exporter="torchscript", attention=True)


def softmaxes(structure: NetworkSpec, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float64]]:
    """(N, M, C) of each unit from torch's training form in float64: fc2's output by the definition, and not by our code."""
    network, found = live(structure).double(), {}
    for name, module in network.named_modules():
        if name.endswith(".gate.fc2"):

            def record(
                _module: Any, _inputs: Any, logits: torch.Tensor, unit: str = name[: -len(".sk.gate.fc2")]
            ) -> None:
                rows = logits[:, :, 0, 0].numpy().reshape(len(logits), len(structure.selective_kernel.branches), -1)
                powers = np.exp(rows - rows.max(1, keepdims=True))
                found[unit] = powers / powers.sum(1, keepdims=True)

            module.register_forward_hook(record)
    with torch.no_grad():
        network(torch.from_numpy(normalised(tiny_card(structure), images)).double())
    return found


@pytest.mark.parametrize(
    ("structure", "branches", "options"),
    [(TWO, 2, TraceOptions()), (TWO, 2, TORCHSCRIPT), (THREE, 3, TORCHSCRIPT)],
    ids=["dynamo", "torchscript", "torchscript of three branches"],
)
def test_attention_inside_a_graph_is_torchs_softmax_over_branches(
    structure: NetworkSpec, branches: int, options: TraceOptions
) -> None:
    model = single(structure, options)
    gates = find_gates(model)
    assert [(gate.unit, gate.branches, gate.channels) for gate in gates] == [
        ("stages.0.0", branches, 16),
        ("stages.1.0", branches, 16),
        ("stages.1.1", branches, 16),
    ]
    images = pixels(5)
    expected = softmaxes(structure, images)
    with AttentionReader(model, gates, "the graph") as reader:
        found = reader.read(list(images), tiny_card(structure), 2)
    assert found.keys() == expected.keys()
    for name, attention in expected.items():
        assert attention.std() > 0.01  # a dead gate would agree with anything
        assert found[name].shape == (5, branches, 16)
        # float32 through a dozen layers, see tests/graphs/networks.py; a sigmoid's slope is 1/4 at most
        np.testing.assert_allclose(found[name], attention, atol=2e-5)
        # A softmax in float32: its M terms are rounded one by one.
        np.testing.assert_allclose(found[name].sum(1), 1, atol=1e-6)


@pytest.mark.parametrize("structure", [TWO, THREE])
def test_the_outputs_of_an_export_with_attention_say_the_same_as_the_inside_of_one_without(
    structure: NetworkSpec,
) -> None:
    images, spec = list(pixels(3)), tiny_card(structure)
    found = []
    for options in (TORCHSCRIPT, WITH_OUTPUTS):
        model = single(structure, options)
        with AttentionReader(model, find_gates(model), "the graph") as reader:
            found.append(reader.read(images, spec, 8))
    inside, outputs = found
    assert inside.keys() == outputs.keys()
    for name, attention in inside.items():
        np.testing.assert_allclose(outputs[name], attention, atol=1e-6)  # the last branch: 1 - the others, in float32


def test_fp16_and_int8_graphs_keep_the_names_and_stay_near_fp32() -> None:
    images, spec, gates = list(pixels(6)), tiny_card(TWO), find_gates(single(TWO))
    found = {}
    for name, model in {"fp32": single(TWO), "fp16": half(single(TWO)), "int8": int8(TWO, half=True)}.items():
        with AttentionReader(model, gates, name) as reader:
            found[name] = reader.read(images, spec, 8)
    for unit_name, attention in found["fp32"].items():
        fp16, int8_ = found["fp16"][unit_name], found["int8"][unit_name]
        # What the unit multiplies with, so rounded to FP16, to the last bit.
        assert np.array_equal(fp16[:, 0], fp16[:, 0].astype(np.float16))
        # Some ten tensors in a row are rounded to 2^-11 (INT8: 2^-8) of their size. Logits of ten are then off by ten times
        # that and ten, and a sigmoid's slope is 1/4 at most: 0.012 and 0.1 for weights between 0 and 1; most are nearer.
        assert 0 < np.abs(fp16 - attention).mean() < 0.012
        assert 0 < np.abs(int8_ - attention).mean() < 0.1
        assert np.abs(attention[:, ::-1] - attention).mean() > 0.3  # what swapped branches would be off by


def test_se_gates_and_gates_of_single_pixels_are_no_selective_kernels() -> None:
    model = unit([1, 1], [0, 0])
    assert len(find_gates(model)) == 1
    nodes = {node.name: node for node in model.graph}
    nodes["stages.0.0.sk/Sub"].op_type = "Add"  # weights now scale a sum of maps, as squeeze and excitation does
    assert find_gates(model) == ()
    model = unit([1, 1], [0, 0])
    next(n for n in model.graph if n.op_type == "Sigmoid").outputs[0].shape = ir.Shape(["batch", 2, 16, 16])
    assert find_gates(model) == ()


def test_a_unit_without_a_module_is_called_by_the_node_of_its_gate() -> None:
    model = unit([1, 1], [0, 0])
    next(node for node in model.graph if node.op_type == "Sigmoid").name = "Sigmoid_7"
    assert [gate.unit for gate in find_gates(model)] == ["Sigmoid_7"]


def test_a_graph_that_lacks_a_gate_of_the_fp32_graph_is_refused() -> None:
    gate = Gate("stages.9.9", "stages.9.9.sk.gate/Sigmoid", 2, 2)
    with pytest.raises(IntegrityError, match=r"broken\.onnx does not have the tensor stages\.9\.9\.sk\.gate/Sigmoid"):
        AttentionReader(unit([1, 1], [0, 0]), [gate], "broken.onnx")


def test_attention_that_is_not_finite_is_refused() -> None:
    model = unit([float("inf"), 1], [0, 0])  # times a mean of zero
    with (
        AttentionReader(model, find_gates(model), "broken.onnx") as reader,
        pytest.raises(ParityError, match=r"stages\.0\.0 in broken\.onnx has NaN or infinite"),
    ):
        reader.read([square(0)], spec_of(), 1)


def test_outputs_that_do_not_sum_to_one_are_refused() -> None:
    model = single(TWO, WITH_OUTPUTS)
    gates = find_gates(model)
    last = next(node for node in model.graph if node.outputs[0].name == "attention.stages.1.0")
    assert last.op_type == "Concat"
    last.replace_input_with(1, last.inputs[0])  # both rows are now those of the first branch
    with (
        AttentionReader(model, gates, "broken.onnx") as reader,
        pytest.raises(ParityError, match=r"stages\.1\.0 in broken\.onnx does not sum to 1 over its 2 branches"),
    ):
        reader.read(list(pixels(2)), tiny_card(TWO), 2)
