"""The simplifier is trusted with nothing: what it returns is run against what it was given."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import onnx
import onnx_ir as ir
import onnxsim
import pytest
from onnx import helper, numpy_helper

from skdeploy.core.errors import PassError
from skdeploy.core.spec import ModelSpec, TensorSpec
from skdeploy.ir import large
from skdeploy.ir.large import Portable
from skdeploy.passes import simplify as simplify_module
from skdeploy.passes.same_function import MAX_REL_CHANGE, random_images, require_same_function
from skdeploy.passes.simplify import simplify
from skdeploy.passes.trace_options import TraceOptions
from tests.conftest import TinySpec
from tests.graphs.networks import FLOAT32_ERROR, card, images, live, relative_error, run, torch_logits, traced
from tests.graphs.small_files import model_of

TORCHSCRIPT = TraceOptions(exporter="torchscript")


@pytest.fixture
def tiny(tiny_spec: TinySpec) -> ModelSpec:
    return card(tiny_spec(2))


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_the_simplified_graph_computes_the_training_form(tiny: ModelSpec, exporter: str) -> None:
    graph = traced(tiny, TraceOptions(exporter=exporter))
    names = {node.name for node in graph.graph}
    simplified = simplify(graph)
    inputs = images(5)
    assert relative_error(run(simplified, inputs)["logits"], torch_logits(live(tiny), inputs)) < FLOAT32_ERROR
    assert len(simplified.graph) <= len(names)
    assert {node.name for node in simplified.graph} <= names  # modules can still be told
    assert not simplified.metadata_props
    assert not {node.op_type for node in simplified.graph} & {"Constant", "Identity"}
    onnx.checker.check_model(ir.to_proto(simplified), full_check=True)
    values = [value for node in simplified.graph for value in node.outputs]
    assert all(value.shape is not None and value.dtype is not None for value in values)


WITHOUT_TORCH = """
import sys
from importlib.util import find_spec
from pathlib import Path
from skdeploy.backends.onnxruntime import load_graph
from skdeploy.passes.simplify import simplify
simplify(load_graph(Path(sys.argv[1])))
assert "onnxsim" in sys.modules and "torch" not in sys.modules and find_spec("torch"), sorted(sys.modules)
"""


def test_the_simplifier_loads_no_torch_and_leaves_it_to_whoever_wants_it(tmp_path: Path) -> None:
    onnx.save(scaled(1).proto, tmp_path / "model.onnx")
    run_python = [sys.executable, "-P", "-c", WITHOUT_TORCH, str(tmp_path / "model.onnx")]
    done = subprocess.run(run_python, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_graph_before_is_gone_when_the_simplifier_begins(tiny: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its session has run and its copies of the weights are freed: beside the simplifier's own they would be the peak."""
    real, kept, alive = simplify_module.portable, list[weakref.ref[Portable]](), list[bool]()

    def portable(model: ir.Model) -> Portable:
        made = real(model)
        kept.append(weakref.ref(made))
        return made

    monkeypatch.setattr(simplify_module, "portable", portable)
    tamper(monkeypatch, lambda _: alive.append(kept[0]() is not None))
    simplify(traced(tiny, TORCHSCRIPT))
    assert alive == [False]


def test_a_large_graph_is_gone_when_the_simplifier_reads_its_file(
    tiny: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that nobody reads again has lost its weights then, and the file is gone in the end. The graph that the simplifier
    makes of it is the same.
    """
    given, wanted = traced(tiny, TORCHSCRIPT), ir.to_proto(simplify(traced(tiny, TORCHSCRIPT)))
    real, files = onnxsim.simplify, list[Path]()

    def watched(file: str) -> tuple[onnx.ModelProto, bool]:
        files.append(Path(file))
        assert files[0].is_file()
        assert not any(value.const_value for value in given.graph.initializers.values())
        return real(file)

    monkeypatch.setattr(large, "COPIED", 0)
    monkeypatch.setattr(onnxsim, "simplify", watched)
    found = ir.to_proto(simplify(given, spent=True))
    assert found.SerializeToString(deterministic=True) == wanted.SerializeToString(deterministic=True)
    assert not files[0].parent.exists()


def test_a_full_disk_is_not_the_failure_of_the_simplifier(tiny: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(large, "COPIED", 0)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left") as failure:
        simplify(traced(tiny, TORCHSCRIPT))
    assert failure.value.errno == errno.ENOSPC


def tamper(monkeypatch: pytest.MonkeyPatch, change: Callable[[onnx.GraphProto], None]) -> None:
    """Lets the real simplifier run and then changes its result in place."""
    real = onnxsim.simplify

    def tampered(model: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
        result, checked = real(model)
        change(result.graph)
        return result, checked

    monkeypatch.setattr(onnxsim, "simplify", tampered)


def scale(graph: onnx.GraphProto, name: str, factor: float) -> None:
    weight = next(tensor for tensor in graph.initializer if tensor.name.endswith(name))
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(factor), weight.name))


def scale_one_filter(graph: onnx.GraphProto) -> None:
    scale(graph, "stages.1.1.sk.branches.0.conv.weight", 1.01)


def spoil(graph: onnx.GraphProto) -> None:
    scale(graph, "classifier.weight", np.nan)


def fix_batch(graph: onnx.GraphProto) -> None:
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def rename(graph: onnx.GraphProto) -> None:
    graph.output[0].name = graph.node[-1].output[0] = "scores"


def break_graph(graph: onnx.GraphProto) -> None:
    graph.node[3].op_type = "NoSuchOperator"


def bake(graph: onnx.GraphProto) -> None:
    """Inside the graph, where the interface does not show it: the batch is the one that the exporter was shown."""
    flatten = next(node for node in graph.node if node.op_type == "Flatten")
    graph.initializer.append(numpy_helper.from_array(np.array([2, 16]), "baked"))
    flatten.CopyFrom(helper.make_node("Reshape", [flatten.input[0], "baked"], flatten.output, name=flatten.name))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (scale_one_filter, "changed the function: logits differs by"),
        (spoil, r"logits now holds NaN or infinity: node classifier/\S+ \(\w+\) is the first to make it"),
        (fix_batch, r"changed the interface from input: float32\[batch, 3, 20, 24\] .* to input: float32\[2, "),
        (rename, r"changed the interface from .* to .* scores: "),
        (break_graph, r"onnx-simplifier broke the graph: node \S+ \(NoSuchOperator\): ONNX Runtime cannot load"),
        (bake, r"broke the graph: node \S+ \(Reshape\): ONNX Runtime cannot run the graph on input \(3, 3, 20, 24\)"),
    ],
)
def test_a_change_is_caught(
    tiny: ModelSpec, monkeypatch: pytest.MonkeyPatch, change: Callable[[onnx.GraphProto], None], said: str
) -> None:
    tamper(monkeypatch, change)
    with pytest.raises(PassError, match=said) as failure:
        simplify(traced(tiny, TORCHSCRIPT))
    assert "--no-simplify" in failure.value.advice


@pytest.mark.parametrize("error", [RuntimeError("shape inference\nfailed"), ValueError()])
def test_an_exception_inside_is_a_pass_error(
    tiny: ModelSpec, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(model: onnx.ModelProto) -> None:
        raise error

    monkeypatch.setattr(onnxsim, "simplify", fail)
    with pytest.raises(PassError, match=f"onnx-simplifier failed: {type(error).__name__}") as failure:
        simplify(traced(tiny, TORCHSCRIPT))
    assert "--no-simplify" in failure.value.advice
    assert "\n" not in failure.value.message


def scaled(factor: float, *, batch: int | str = "batch", rows: int | None = None) -> Portable:
    """input (batch, 4) times a factor; with ``rows``, reshaped to so many rows of two."""
    constants = {"factor": np.float32(factor)} | ({"shape": np.array([rows, -1])} if rows else {})
    nodes = [helper.make_node("Mul", ["input", "factor"], ["scaled" if rows else "logits"])]
    if rows:
        nodes.append(helper.make_node("Reshape", ["scaled", "shape"], ["logits"]))
    model = model_of(nodes, {"input": [batch, 4]}, {"logits": [None, None]}, constants)
    return Portable(model.SerializeToString())


def test_the_bound_separates_rounding_from_change() -> None:
    require_same_function(scaled(1), scaled(1 + MAX_REL_CHANGE / 2), "a step", "advice")
    with pytest.raises(PassError, match="changed the function"):
        require_same_function(scaled(1), scaled(1 + MAX_REL_CHANGE * 2), "a step", "advice")


def test_an_output_of_another_shape_is_caught_even_if_numpy_would_broadcast() -> None:
    """Three images of one number each, against one row of three: the difference of both is a 3 x 3 array of nothing."""
    with pytest.raises(PassError, match=r"changed the output logits from float32\[3, 4\] to float32\[1, 12\]"):
        require_same_function(scaled(0), scaled(0, rows=1), "a step", "advice")


def test_random_feeds_fit_the_inputs() -> None:
    specs = (
        TensorSpec(name="pixels", dtype="uint8", shape=("batch", "height", "width", 3)),
        TensorSpec(name="planes", dtype="float32", shape=(2, 3, 8, 8)),
    )
    feeds = random_images(specs, 0, free=4, size=16)
    assert feeds["pixels"].shape == (4, 16, 16, 3)
    assert feeds["pixels"].dtype == np.uint8
    assert feeds["pixels"].max() > 200  # the range of pixels, not of normal numbers
    assert feeds["planes"].shape == (2, 3, 8, 8)
    assert feeds["planes"].dtype == np.float32
    again = random_images(specs, 0, free=4, size=16)
    assert all(np.array_equal(feeds[name], again[name]) for name in feeds)
