"""A refusal names the node that is the cause and its operator, though what others say names neither."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from skdeploy.core.errors import ExportError, IntegrityError, PassError, UsageError
from skdeploy.ir.large import Portable
from skdeploy.passes.foreign import read_foreign
from skdeploy.passes.same_function import require_same_function
from tests.graphs.small_files import node, write


def recurrent() -> list[onnx.NodeProto]:
    """ONNX Runtime has no GRU with the batch first, and says so without the node's name."""
    gru = helper.make_node("GRU", ["s", "w", "r"], ["", "h"], name="the_h", hidden_size=2, layout=1)
    return [node("Relu", "x", "a"), node("Reshape", "a", "sequence", "s"), gru, node("Flatten", "h", "y")]


RECURRENT = {
    "sequence": np.array([-1, 12, 4]),
    "w": np.ones((1, 6, 4), np.float32),
    "r": np.ones((1, 6, 2), np.float32),
}


def test_a_node_that_the_runtime_does_not_name_is_found(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"m\.onnx: node /GRU \(GRU\): ONNX Runtime cannot load .*Batchwise") as error:
        read_foreign(write(tmp_path / "m.onnx", recurrent(), **RECURRENT))
    assert "replace this operator" in error.value.advice


def test_a_step_that_breaks_the_graph_names_the_node(tmp_path: Path) -> None:
    sound = write(tmp_path / "sound.onnx", [node("Flatten", "x", "y")])
    broken = write(tmp_path / "broken.onnx", recurrent(), **RECURRENT)
    with pytest.raises(PassError, match=r"a step broke the graph: node the_h \(GRU\): "):
        require_same_function(Portable(sound.read_bytes()), Portable(broken.read_bytes()), "a step", "advice")


def test_the_first_node_that_makes_nan_is_named(tmp_path: Path) -> None:
    """Random images are negative in places."""
    nodes = [node("Neg", "x", "n"), node("Log", "n", "l"), node("Add", "l", "x", "s"), node("Flatten", "s", "y")]
    with pytest.raises(ExportError, match=r"m\.onnx: logits holds NaN or infinity .*: node /Log \(Log\) is the first"):
        read_foreign(write(tmp_path / "m.onnx", nodes))


def test_infinities_that_go_no_further_are_not_blamed(tmp_path: Path) -> None:
    """The mask's are bounded by the softmax; the root of negative numbers is what spoils the output."""
    nodes = [
        node("Where", "seen", "x", "no", "m"),
        node("Softmax", "m", "p"),
        node("Sqrt", "x", "r"),
        node("Add", "p", "r", "s"),
        node("Flatten", "s", "y"),
    ]
    constants = {"seen": np.eye(4, dtype=bool), "no": np.float32(-np.inf)}
    with pytest.raises(ExportError, match=r"node /Sqrt \(Sqrt\) is the first"):
        read_foreign(write(tmp_path / "m.onnx", nodes, **constants))


def test_two_nodes_that_make_one_tensor_are_named(tmp_path: Path) -> None:
    nodes = [node("Relu", "x", "a"), node("Neg", "x", "a"), node("Flatten", "a", "y")]
    nodes[1].name = "again"
    with pytest.raises(IntegrityError, match=r"the nodes the_a \(Relu\) and again \(Neg\) both make a\n"):
        read_foreign(write(tmp_path / "m.onnx", nodes))


def test_who_reads_a_constant_that_is_no_number_is_named(tmp_path: Path) -> None:
    nodes = [node("Add", "x", "b", "a"), node("Flatten", "a", "y")]
    with pytest.raises(IntegrityError, match=r"of the 1 values of b, which the_a \(Add\) reads, 1 are NaN"):
        read_foreign(write(tmp_path / "m.onnx", nodes, b=np.float32(np.nan)))


def test_a_classifier_of_words_is_refused(tmp_path: Path) -> None:
    proto = onnx.load(write(tmp_path / "m.onnx", [node("Flatten", "x", "f")]))
    proto.graph.node.append(helper.make_node("Cast", ["f"], ["y"], name="the_y", to=TensorProto.STRING))
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.STRING
    onnx.save(proto, tmp_path / "words.onnx")
    with pytest.raises(
        UsageError, match=r"words\.onnx: skdeploy takes .*, but the outputs are y \(string, by .*the_y.*\)"
    ):
        read_foreign(tmp_path / "words.onnx")
