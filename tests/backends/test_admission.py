"""What may not leave: each refusal names the node, and what is sound is admitted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from skdeploy.backends.admission import admit, admit_file
from skdeploy.core.errors import PassError
from skdeploy.ir.large import save_model
from skdeploy.passes.trace_options import TraceOptions
from tests.conftest import TinySpec
from tests.graphs.networks import card, traced
from tests.graphs.small_files import model_of

FLOAT, DOUBLE = TensorProto.FLOAT, TensorProto.DOUBLE


def graph(
    *nodes: onnx.NodeProto, shape: tuple[int, ...] = (2, 3, 4, 5), infer: bool = True, **constants: int
) -> ir.Model:
    given = {name: np.array([value]) for name, value in constants.items()}
    made = model_of(nodes, {"x": shape}, {"y": None}, given)
    return ir.from_proto(onnx.shape_inference.infer_shapes(made) if infer else made)


def node(operator: str, inputs: str, output: str, name: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), [output], name=name, **attributes)


def test_a_traced_network_is_admitted(tiny_spec: TinySpec) -> None:
    admit(traced(card(tiny_spec(3)), TraceOptions(exporter="torchscript")))


def test_a_tensor_of_rank_four_is_admitted() -> None:
    admit(graph(node("Relu", "x", "y", "unit/Relu")))


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (
            graph(node("Unsqueeze", "x axes", "w", "u/Wide"), node("Squeeze", "w axes", "y", "u/Narrow"), axes=0),
            r"node u/Wide \(Unsqueeze\): w has rank 5, and 4 is the limit",
        ),
        (
            graph(node("Cast", "x", "d", "u/Up", to=DOUBLE), node("Cast", "d", "y", "u/Down", to=FLOAT)),
            r"node u/Up \(Cast\): d is DOUBLE, which TensorRT does not take",
        ),
        (
            graph(node("Relu", "x", "h", "u/Relu"), node("Relu", "h", "y", "u/Relu_2"), infer=False),
            r"node u/Relu \(Relu\): the type or rank of h is unknown",
        ),
        (graph(node("Relu", "x", "y", "u/Relu"), axes=0), "nothing reads the constant axes"),
        (
            graph(node("Relu", "x", "y", "u/Relu"), node("Exp", "x", "e", "u/Exp")),
            r"nothing reads what node u/Exp \(Exp\) makes",
        ),
        (
            graph(helper.make_node("MaxPool", ["x"], ["y", "where"], name="u/Pool", kernel_shape=[1, 1])),
            r"nothing reads where, an output that node u/Pool \(MaxPool\) may leave out",
        ),
    ],
    ids=["rank 5", "float64", "no type", "idle constant", "idle node", "idle output"],
)
def test_what_is_refused_is_named(refused: ir.Model, words: str) -> None:
    with pytest.raises(PassError, match=words):
        admit(refused)


def test_an_unknown_rank_is_refused() -> None:
    model = graph(node("Relu", "x", "h", "unit/Relu"), node("Relu", "h", "y", "unit/Relu_2"))
    model.graph[0].outputs[0].shape = None
    with pytest.raises(PassError, match=r"node unit/Relu \(Relu\): the type or rank of h is unknown"):
        admit(model)


def admit_written(model: ir.Model, folder: Path) -> None:
    path = folder / "graph.onnx"
    save_model(model, path)
    admit_file(path)


def test_a_sound_file_is_admitted(tmp_path: Path) -> None:
    admit_written(graph(node("Relu", "x", "y", "unit/Relu")), tmp_path)


def test_invalid_onnx_is_refused(tmp_path: Path) -> None:
    model = graph(node("Relu", "x", "y", "unit/Relu"))
    model.graph[0].op_type = "Rleu"
    with pytest.raises(PassError, match=r"not valid ONNX: node unit/Relu \(Rleu\)"):
        admit_written(model, tmp_path)


def test_a_node_without_an_input_is_refused(tmp_path: Path) -> None:
    model = graph(node("Conv", "x x", "y", "unit/Conv"))
    model.graph[0].resize_inputs(1)
    with pytest.raises(PassError, match=r"not valid ONNX: node unit/Conv \(Conv\)"):
        admit_written(model, tmp_path)


def test_a_type_that_the_schema_forbids_is_refused(tmp_path: Path) -> None:
    """The plain checker takes this: only strict inference looks at types."""
    model = graph(
        node("Cast", "x", "h", "unit/Cast", to=TensorProto.FLOAT16),
        node("Celu", "h", "c", "unit/Celu"),
        node("Cast", "c", "y", "unit/Cast_2", to=FLOAT),
        infer=False,
    )
    model.graph.outputs[0].shape = ir.Shape([2, 3, 4, 5])
    onnx.checker.check_model(ir.to_proto(model))
    with pytest.raises(PassError, match=r"not valid ONNX: node unit/Celu \(Celu\).*unsupported type"):
        admit_written(model, tmp_path)


def test_a_file_that_no_runtime_loads_is_refused(tmp_path: Path) -> None:
    """Valid ONNX: that ONNX Runtime has no such kernel, only loading it says."""
    model = graph(node("Cast", "x", "h", "unit/Cast", to=TensorProto.INT16), node("Relu", "h", "s", "unit/Relu"),
                  node("Cast", "s", "y", "unit/Cast_2", to=FLOAT))  # fmt: skip
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    with pytest.raises(PassError, match=r"ONNX Runtime cannot load the graph: node unit/Relu \(Relu\)"):
        admit_written(model, tmp_path)


def test_a_constant_that_only_a_removed_node_reads_is_refused() -> None:
    model = graph(node("Unsqueeze", "x axes", "w", "unit/Unsqueeze"), node("Relu", "x", "y", "unit/Relu"), axes=0)
    model.graph.remove(model.graph[0])
    with pytest.raises(PassError, match="nothing reads the constant axes"):
        admit(model)


def test_an_output_that_cannot_be_left_out_is_admitted() -> None:
    made = helper.make_node("TopK", ["x", "k"], ["y", "where"], name="unit/TopK")
    admit(graph(made, k=1))
