"""A graph's own names never clash with ours, whatever they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from skdeploy.backends.rounding import RoundNarrow
from skdeploy.ir.constants import free_name, names_in
from skdeploy.passes.foreign import read_foreign
from skdeploy.passes.half import HalfPrecision
from skdeploy.passes.select import RewriteSelect
from tests.graphs.networks import relative_error, run
from tests.graphs.small_files import model_of

VALUES = ("x", "y", "c", "r", "p", "f", "w", "v", "b", "yes", "mean", "half", "t", "o")
NODES = ("conv", "relu", "pool", "flat", "if", "fc")
EPSILON = 1e-5  # the same graph in the same runtime; names may change the order of fusions


def network(names: dict[str, str]) -> ModelProto:
    """A classifier with a subgraph, whose values and nodes are called what ``names`` says."""
    called = {key: names.get(key, key) for key in (*VALUES, *NODES)}
    normal = np.random.default_rng(0).standard_normal

    def node(kind: str, inputs: str, output: str, name: str) -> onnx.NodeProto:
        return helper.make_node(kind, [called[key] for key in inputs.split()], [called[output]], name=called[name])

    then, other = (
        helper.make_graph(
            [node(kind, "f", key, key)], key, [], [helper.make_tensor_value_info(called[key], TensorProto.FLOAT, None)]
        )
        for kind, key in (("Relu", "t"), ("Neg", "o"))
    )
    conditional = node("If", "yes", "b", "if")
    conditional.attribute.append(helper.make_attribute("then_branch", then))
    conditional.attribute.append(helper.make_attribute("else_branch", other))
    weights = {"w": normal((4, 3, 3, 3)), "v": normal((4, 5))}
    nodes = [
        node("Conv", "x w", "c", "conv"),
        node("Relu", "c", "r", "relu"),
        node("GlobalAveragePool", "r", "p", "pool"),
        node("Flatten", "p", "f", "flat"),
        node("ReduceMean", "f", "mean", "mean"),
        node("Greater", "mean half", "yes", "yes"),
        conditional,
        node("MatMul", "b v", "y", "fc"),
    ]
    constants = {called[key]: array.astype(np.float32) for key, array in weights.items()}
    constants[called["half"]] = np.float32(0.5).reshape(1, 1)
    return model_of(nodes, {called["x"]: ["n", 3, 8, 8]}, {called["y"]: ["n", 5]}, constants)


CASES = {
    "swapped": {"x": "logits", "y": "input"},
    "inside": {"c": "input", "r": "logits"},
    "with their makeshifts": {
        "c": "input",
        "r": "input_inner",
        "p": "logits",
        "f": "logits_inner",
        "w": "input_inner_2",
    },
    "weights": {"w": "input", "v": "logits"},
    "subgraphs": {"t": "input", "o": "logits", "c": "input_inner"},
    "generated": {"t": "/Conv", "o": "/Relu", "w": "/MatMul", "v": "/Flatten"},
    "generated, with a dot": {"w": "a/b", "v": "a.b", "t": "a.b_2"},
    "of FP16": {"c": "logits_fp16", "w": "input_fp16", "t": "input_fp32", "r": "/Conv_fp16", "v": "/MatMul_fp16"},
    "of rounding": {"w": "logits_unrounded", "v": "logits_round16", "t": "/Conv_rounded", "o": "/Relu_round16"},
    "one name for all nodes": dict.fromkeys(NODES, "node"),
    "no name": dict.fromkeys(NODES, ""),
    "strange": {"x": "a b", "c": "größe/élan", "r": "層\n", "w": "/", "conv": "//", "relu": "../x", "f": " "},
    "long": {"x": "x" * 10_000, "c": "/".join("c" * 100 for _ in range(100)), "conv": "m/" * 5_000},
}


@pytest.mark.parametrize("names", CASES.values(), ids=CASES)
def test_a_graph_keeps_its_function_under_any_names(tmp_path: Path, names: dict[str, str]) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(network(names).SerializeToString())
    inputs = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    expected = run(network({"x": "input"}), inputs)["y"]
    model = read_foreign(file)
    RewriteSelect()(model)
    assert relative_error(run(model, inputs)["logits"], expected) < EPSILON
    values = [value.name for node in model.graph for value in node.outputs] + list(model.graph.initializers)
    assert len(values) == len(set(values))
    for step in (HalfPrecision(), RoundNarrow()):
        step(model)
        found = run(model, inputs)["logits"]
        assert relative_error(found, expected) < 0.01  # ten roundings of 2^-11, on values of a similar size


def test_a_free_name_is_free_in_graphs_inside_nodes_too(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(network({"t": "mine", "o": "mine_2"}).SerializeToString())
    graph = read_foreign(file).graph
    assert {"mine", "mine_2"} <= names_in(graph)
    assert free_name(graph, "mine") == "mine_3"


def test_a_name_is_free_exactly_where_the_collected_names_lack_it(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(network({}).SerializeToString())
    graph = read_foreign(file).graph
    taken = names_in(graph)
    unread = {name for name, value in graph.initializers.items() if not value.uses()}  # these give their names up
    for name in sorted(taken - unread):
        assert free_name(graph, name) == next(f"{name}_{n}" for n in range(2, 99) if f"{name}_{n}" not in taken)
    assert free_name(graph, "nobody's") == "nobody's"
