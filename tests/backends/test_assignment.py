"""Where nodes are run, asked of a real ONNX Runtime.

The CPU build has a second provider, Azure's, which takes no operator of ONNX: a session opened with it runs everything on the
CPU, without an error. That is the fallback that a GPU's provider has for what it lacks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from skdeploy.backends import assignment
from skdeploy.backends.assignment import Assigned, assignment_of, misplaced, require_assignment, session_config
from skdeploy.backends.onnxruntime import load_graph
from skdeploy.core.errors import EngineError
from tests.backends.reshaped import AZURE, network
from tests.graphs.small_files import save

CPU = "CPUExecutionProvider"
GPU = "CUDAExecutionProvider"


def opened(path: Path, provider: str) -> Any:
    options = ort.SessionOptions()
    for key, value in session_config(ort).items():
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(path, options, providers=[provider], enable_fallback=0)


@pytest.mark.parametrize("provider", [CPU, AZURE])
def test_every_node_is_told_with_the_provider_that_really_has_it(tmp_path: Path, provider: str) -> None:
    nodes = assignment_of(opened(network(tmp_path / "model.onnx"), provider))
    assert {(node.name, node.op_type) for node in nodes} >= {("conv", "Conv"), ("relu", "Relu")}
    assert {node.provider for node in nodes} == {CPU}


def test_a_session_on_its_provider_passes(tmp_path: Path) -> None:
    path = network(tmp_path / "model.onnx")
    nodes = assignment_of(opened(path, CPU))
    assert misplaced(nodes, CPU, load_graph(path)) == ()
    require_assignment(nodes, CPU, load_graph(path), "model.onnx")


@pytest.mark.parametrize("types", [True, False], ids=["typed", "untyped"])
def test_a_session_that_fell_back_is_refused_with_names_and_share(tmp_path: Path, types: bool) -> None:
    path = network(tmp_path / "model.onnx", types=types)
    session = opened(path, AZURE)
    assert session.get_providers() == [AZURE, CPU]  # listed, and runs nothing: the list of providers proves nothing
    nodes = assignment_of(session)
    with pytest.raises(EngineError, match=r"AzureExecutionProvider does not run all of model\.onnx") as refusal:
        require_assignment(nodes, AZURE, load_graph(path), "model.onnx")
    assert refusal.value.exit_code == 7
    assert f"3 of {len(nodes)} nodes, 1 of 1 convolutions and matrix products on {CPU}" in refusal.value.message
    assert [line.strip() for line in refusal.value.message.splitlines()[1:]] == [
        "conv (Conv)",
        "relu (Relu)",
        "reshape (Reshape)",
    ]
    assert "--backend onnxruntime" in refusal.value.advice


@pytest.mark.parametrize("named", [True, False], ids=["named", "nameless"])
def test_shapes_may_be_computed_on_the_cpu(tmp_path: Path, named: bool) -> None:
    model = load_graph(network(tmp_path / "model.onnx", named=named))
    shapes = [("shape", "Shape"), ("batch", "Gather"), ("target", "Concat")]
    nodes = [Assigned(name if named else "", kind, CPU) for name, kind in shapes]
    nodes += [Assigned(name, kind, GPU) for name, kind in (("conv", "Conv"), ("relu", "Relu"), ("reshape", "Reshape"))]
    assert misplaced(nodes, GPU, model) == ()


@pytest.mark.parametrize(("name", "kind"), [("conv", "Conv"), ("relu", "Relu"), ("reshape", "Reshape")])
def test_one_node_on_the_cpu_is_enough(tmp_path: Path, name: str, kind: str) -> None:
    model = load_graph(network(tmp_path / "model.onnx"))
    nodes = [Assigned(name, kind, CPU), Assigned("shape", "Shape", CPU)]
    assert [node.name for node in misplaced(nodes, GPU, model)] == [name]


def test_a_node_that_optimizations_made_is_not_taken_for_a_shape(tmp_path: Path) -> None:
    model = load_graph(network(tmp_path / "model.onnx"))
    made = Assigned("fused/transpose", "Transpose", CPU)
    assert misplaced([made], GPU, model) == (made,)


def test_integers_that_are_read_from_numbers_are_no_shape(tmp_path: Path) -> None:
    """ArgMax gives integers of logits: that is computation, and not of shapes."""
    nodes = [helper.make_node("ArgMax", ["logits"], ["classes"], name="classes", axis=1)]
    path = tmp_path / "m.onnx"
    save(path, nodes, {"logits": ("n", 4)}, {"classes": ("n", 1)}, result=TensorProto.INT64)
    found = misplaced(assignment_of(opened(path, AZURE)), AZURE, load_graph(path))
    assert [node.name for node in found] == ["classes"]


def test_many_nodes_are_counted_and_the_first_are_named(tmp_path: Path) -> None:
    model = load_graph(network(tmp_path / "model.onnx"))
    nodes = [Assigned(f"made{n}", "Conv", CPU) for n in range(9)]
    with pytest.raises(EngineError, match=r"9 of 9 nodes, 9 of 9 convolutions") as refusal:
        require_assignment(nodes, GPU, model, "model.onnx")
    assert "  ... and 4 more" in refusal.value.message


def test_an_older_onnx_runtime_refuses_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without the question, what is left is the session option that makes ONNX Runtime fail; the real one does."""
    method = next(c for c in ort.InferenceSession.__mro__ if "get_provider_graph_assignment_info" in vars(c))
    monkeypatch.delattr(method, "get_provider_graph_assignment_info")
    assert not assignment.tells_assignment(ort)
    assert session_config(ort) == {"session.disable_cpu_ep_fallback": "1"}
    with pytest.raises(Exception, match="fallback to CPU EP has been explicitly disabled"):
        opened(network(tmp_path / "model.onnx"), AZURE)
    capfd.readouterr()  # ONNX Runtime prints the same
