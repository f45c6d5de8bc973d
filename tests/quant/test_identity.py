"""The identity of a graph and of its tensors: what makes a difference, and what is only how the graph was written."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from skdeploy.core.errors import CalibrationError
from skdeploy.core.spec import ModelSpec
from skdeploy.ir.placement import place
from skdeploy.passes.trace_options import TraceOptions
from skdeploy.quant.identity import graph_identity, range_names
from tests.conftest import TinySpec
from tests.graphs.networks import (
    card,
    traced,
)


@pytest.fixture
def spec(tiny_spec: TinySpec) -> ModelSpec:
    return card(tiny_spec())


@pytest.fixture
def graph(spec: ModelSpec) -> ir.Model:
    return traced(spec, TraceOptions())


@pytest.mark.parametrize(
    "options",
    [
        TraceOptions(exporter="torchscript"),
        TraceOptions(exporter="torchscript", batch=1, attention=True),
        TraceOptions(exporter="torchscript", dynamic_size=True, embed_preprocess=True),
        TraceOptions(opset=20, batch=4, attention=True, embed_preprocess=True),
    ],
)
def test_how_a_graph_is_written_is_no_part_of_its_identity(
    options: TraceOptions, spec: ModelSpec, graph: ir.Model
) -> None:
    assert graph_identity(traced(spec, options)) == graph_identity(graph)


@pytest.mark.parametrize(
    "options",
    [TraceOptions(exporter="torchscript", embed_preprocess=True), TraceOptions(opset=20, batch=4, attention=True)],
)
def test_how_a_graph_is_written_changes_no_quantized_tensors_name_in_a_ranges_file(
    options: TraceOptions, spec: ModelSpec, graph: ir.Model
) -> None:
    """The classifier reads a Reshape of one exporter and a Flatten of the other."""
    other = traced(spec, options)
    one_names, other_names = range_names(graph), range_names(other)
    one = [one_names[name] for name in place(graph).tensors]
    assert [other_names[name] for name in place(other).tensors] == one
    assert {"input", "stem.relu/Relu", "classifier/input"} <= set(one)
    assert len(set(other_names.values())) == len(other_names)  # and no two tensors have one name


def test_a_view_keeps_its_own_name_where_the_layers_input_is_taken() -> None:
    image = helper.make_tensor_value_info("m/input", TensorProto.FLOAT, ["n", 2, 2])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    nodes = [
        helper.make_node("Flatten", ["m/input"], ["m/Flatten"], name="m/Flatten"),
        helper.make_node("MatMul", ["m/Flatten", "w"], ["y"], name="m/MatMul"),
    ]
    weight = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    model = helper.make_model(helper.make_graph(nodes, "g", [image], [output], [weight]))
    assert range_names(ir.from_proto(model)) == {"m/input": "input", "m/Flatten": "m/Flatten", "y": "y"}


def test_the_image_size_is_no_part_of_the_identity_and_the_network_is(tiny_spec: TinySpec, graph: ir.Model) -> None:
    fast = TraceOptions(exporter="torchscript")
    assert graph_identity(traced(card(tiny_spec(), height=28, width=28), fast)) == graph_identity(graph)
    assert graph_identity(traced(card(tiny_spec(stride=1)), fast)) != graph_identity(graph)


def convolution(weight: np.ndarray, *, name: str = "m/Conv", wrap: str = "", **attributes: Any) -> ir.Model:
    """One convolution of (N, 4, 8, 8); ``wrap`` puts the weight behind a Constant node, an Identity, or among the inputs."""
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 8, 8])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    tensor = numpy_helper.from_array(weight, "w")
    nodes, inputs, initializers, used = [], [image], [tensor], "w"
    if wrap == "constant":
        nodes, initializers = [helper.make_node("Constant", [], ["w"], value=tensor)], []
    elif wrap == "identity":
        nodes, used = [helper.make_node("Identity", ["w"], ["v"])], "v"
    elif wrap == "input":  # as graphs before ONNX 1.4 list their weights
        inputs = [image, helper.make_tensor_value_info("w", TensorProto.FLOAT, weight.shape)]
    nodes.append(helper.make_node("Conv", ["x", used], ["y"], name=name, **attributes))
    graph = helper.make_graph(nodes, "g", inputs, [output], initializers)
    return ir.from_proto(onnx.load_from_string(helper.make_model(graph).SerializeToString()))


ONES = np.ones((8, 4, 3, 3), np.float32)


@pytest.mark.parametrize(
    "attributes",
    [
        {"strides": [1, 1], "pads": [0, 0, 0, 0], "dilations": [1, 1], "group": 1},
        {"kernel_shape": [3, 3], "auto_pad": "NOTSET"},
    ],
)
def test_a_default_that_is_written_out_changes_nothing(attributes: dict[str, Any]) -> None:
    assert graph_identity(convolution(ONES, **attributes)) == graph_identity(convolution(ONES))


def test_all_that_changes_the_function_changes_the_identity() -> None:
    grouped = np.ones((8, 2, 3, 3), np.float32)
    graphs = [
        convolution(ONES),
        convolution(ONES, strides=[2, 2]),
        convolution(ONES, strides=[1, 2]),
        convolution(ONES, pads=[1, 1, 1, 1]),
        convolution(ONES, pads=[2, 2, 2, 2], dilations=[2, 2]),
        convolution(ONES, pads=[2, 2, 2, 2]),
        convolution(ONES, auto_pad="SAME_UPPER"),
        convolution(grouped, group=2),
        convolution(np.ones((8, 4, 1, 9), np.float32)),  # the same bytes in another shape
        convolution(ONES, name="other/Conv"),
        convolution(-ONES),
    ]
    assert len({graph_identity(graph) for graph in graphs}) == len(graphs)


@pytest.mark.parametrize("wrap", ["constant", "identity", "input"])
def test_a_weight_counts_wherever_a_graph_keeps_it(wrap: str) -> None:
    assert graph_identity(convolution(ONES, wrap=wrap)) == graph_identity(convolution(ONES))
    assert graph_identity(convolution(2 * ONES, wrap=wrap)) != graph_identity(convolution(ONES))


def test_a_weight_is_told_apart_from_a_tensor_that_varies() -> None:
    left, right = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2, 2]) for name in "ab")
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    nodes = [helper.make_node("Relu", ["b"], ["r"]), helper.make_node("MatMul", ["a", "r"], ["y"], name="m/MatMul")]
    model = helper.make_model(helper.make_graph(nodes, "g", [left, right], [output]))
    assert len(graph_identity(ir.from_proto(model))) == 64  # has no constant at all


def test_a_graph_with_nothing_to_quantize_is_refused() -> None:
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [image], [image])
    with pytest.raises(CalibrationError, match="no Conv, Gemm or MatMul"):
        graph_identity(ir.from_proto(helper.make_model(graph)))
