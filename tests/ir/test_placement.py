"""Where INT8 goes: golden placements of every kind of network, and the rules, asked of the graphs themselves."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from skdeploy.core.errors import PassError, UsageError
from skdeploy.core.spec import InputSpec
from skdeploy.ir.placement import Edge, Placement, place, unit_of
from skdeploy.ir.statistics import gate_nodes
from skdeploy.passes.foreign import read_foreign
from skdeploy.passes.simplify import simplify
from skdeploy.passes.trace import trace
from tests.graphs import foreign
from tests.graphs.quantizable import FAST, MAKERS, card, graph, normal, placed, small
from tests.zoo.tiny_networks import VARIANTS, live

GOLDENS = Path(__file__).parents[1] / "golden/placement"
GOLDEN = (
    "sknet with attention",
    "sknet of three branches with attention",
    "sknet as a plain sum of three",
    "resnet of basic blocks",
    "resnet with a deep stem and average pools",
    "linear_sknet",
    "shufflenet_v2",
    "sknet-fashion",
    "foreign timm",
    "foreign three separate layers",
)
op = onnx.helper.make_node
every_graph = pytest.mark.parametrize("name", MAKERS)


def written(placement: Placement) -> str:
    """One line a tensor with its readers, one a weighted node, one a kept node with the reason."""
    lines = []
    for tensor, readers in placement.readers.items():
        raw = [f"{edge.node}:{edge.index}" for edge in placement.raw.get(tensor, ())]
        shown = " ".join(f"{edge.node}:{edge.index}" for edge in readers)
        lines.append(f"tensor {tensor} -> {shown}" + (f" | raw {' '.join(raw)}" if raw else ""))
    lines += [f"weighted {node}" for node in placement.weighted]
    lines += [f"kept {node}: {reason}" for node, reason in placement.kept.items()]
    return "\n".join(lines) + "\n"


def check_golden(name: str, placement: Placement, refresh: bool) -> None:
    file = GOLDENS / f"{name.replace(' ', '_')}.txt"
    if refresh and not (file.exists() and file.read_text("utf-8") == written(placement)):
        file.parent.mkdir(exist_ok=True)
        file.write_text(written(placement), "utf-8")
    assert written(placement).splitlines() == file.read_text("utf-8").splitlines()


@pytest.mark.parametrize("name", GOLDEN)
def test_placements_are_those_that_were_reviewed(name: str, pytestconfig: pytest.Config) -> None:
    check_golden(name, placed(name)[1], pytestconfig.getoption("--refresh-goldens"))


def test_a_changed_placement_is_told_and_refreshing_takes_it_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "sknet with attention"
    _, placement = placed(name)
    changed = replace(placement, raw={placement.tensors[0]: (Edge("classifier/Gemm", 0),)})
    with pytest.raises(AssertionError):
        check_golden(name, changed, refresh=False)
    monkeypatch.setitem(globals(), "GOLDENS", tmp_path / "placement")
    check_golden(name, changed, refresh=True)
    with pytest.raises(AssertionError):
        check_golden(name, placement, refresh=False)


# ------------------------------------------------------------------ rules, by what the graph is, not by how place() sees it


def producers(model: ir.Model) -> dict[str, ir.Node]:
    return {value.name or "": node for node in model.graph for value in node.outputs}


def readers(model: ir.Model, tensor: str) -> list[Edge]:
    return [
        Edge(node.name or "", index)
        for node in model.graph
        for index, value in enumerate(node.inputs)
        if value is not None and value.name == tensor
    ]


def violations(model: ir.Model, placement: Placement) -> list[str]:
    """What breaks a rule that holds for every network."""
    made = producers(model)
    found = []
    for tensor, quantized in placement.readers.items():
        edges = readers(model, tensor)
        both = [*quantized, *placement.raw.get(tensor, ())]
        if Counter(both) != Counter(edges):
            found.append(f"{tensor}: each reader must read it once, as INT8 or as it is")
        if not quantized:
            found.append(f"{tensor}: nobody reads it as INT8")
        ops = [node.op_type for node in model.graph if any(edge.node == node.name for edge in edges)]
        if tensor in made and made[tensor].op_type == "Conv" and ops == ["Relu"]:
            found.append(f"{tensor}: between a convolution and its Relu")
    found.extend(
        f"{node.name}: weighted, but does not read INT8"
        for node in model.graph
        if node.name in placement.weighted and Edge(str(node.name), 0) not in placement.readers[node.inputs[0].name]
    )
    return found


@every_graph
def test_each_tensor_is_quantized_once_and_never_between_a_convolution_and_its_relu(name: str) -> None:
    assert violations(*placed(name)) == []


def test_the_check_sees_a_q_between_a_convolution_and_its_relu_and_a_reader_left_out() -> None:
    model, placement = placed("sknet")
    between = {**placement.readers, "stem.conv/Conv": (Edge("stem.relu/Relu", 0),)}
    assert violations(model, replace(placement, readers=between)) == [
        "stem.conv/Conv: between a convolution and its Relu"
    ]
    tensor = next(tensor for tensor, edges in placement.readers.items() if len(edges) > 1)
    short = {**placement.readers, tensor: placement.readers[tensor][:1]}
    assert any("each reader must read it once" in line for line in violations(model, replace(placement, readers=short)))


def shape_of(value: ir.Value) -> tuple[object, ...]:
    return tuple(dim if isinstance(dim, int) else str(dim) for dim in value.shape)


def reads_points(node: ir.Node) -> bool:
    """A layer that reads a number a channel: in these networks, those of gates and the classifier."""
    if node.op_type not in ("Conv", "Gemm", "MatMul"):
        return False
    shape = shape_of(node.inputs[0])
    return len(shape) == 2 or shape[2:] == (1, 1)


def is_map(value: ir.Value | None) -> bool:
    return len(shape_of(value)) == 4 and shape_of(value)[2:] != (1, 1)


@every_graph
def test_gates_are_untouched_and_the_classifier_is_none(name: str) -> None:
    model, placement = placed(name)
    points = [node for node in model.graph if reads_points(node)]
    assert points[-1].name == "classifier/Gemm"
    assert "classifier/Gemm" in placement.weighted
    gated = any(
        node.op_type == "Mul" and is_map(node.outputs[0]) for node in model.graph if "preprocess" not in str(node.name)
    )
    assert (len(points) > 1) == gated
    for node in points[:-1]:
        assert placement.kept[str(node.name)] == "part of a gate"
        for value in (node.inputs[0], node.outputs[0]):
            assert value.name not in placement.readers


@pytest.mark.parametrize("port", foreign.PORTS)
def test_gates_that_were_not_rewritten_are_untouched_too(port: str, tmp_path: Path) -> None:
    """Of rank 5, with the batch's size computed, as dense layers, or with the mean taken twice."""
    network = foreign.live(foreign.Classifier(foreign.PORTS[port]()))
    model = read_foreign(foreign.export(network, tmp_path / "port.onnx", "torchscript"))
    placement = place(model)
    inside = {str(node.name) for node in model.graph if reads_points(node)} - {"classifier/Gemm"}
    assert len(inside) > 1
    assert {name for name, why in placement.kept.items() if why == "part of a gate"} == inside
    assert violations(model, placement) == []


POINTS = [op("GlobalAveragePool", ["input"], ["mean"]), op("Conv", ["mean", "squeeze"], ["z"], name="fc1/Conv")]


@pytest.mark.parametrize(
    ("nodes", "gate"),
    [
        ([*POINTS, op("Sigmoid", ["z"], ["a"]), op("Mul", ["input", "a"], ["y"])], {"fc1/Conv"}),
        ([*POINTS, op("HardSigmoid", ["z"], ["a"]), op("Mul", ["a", "input"], ["y"])], {"fc1/Conv"}),
        # SiLU in a head: the product of two numbers a channel weighs no map.
        ([*POINTS, op("Sigmoid", ["z"], ["a"]), op("Mul", ["z", "a"], ["y"])], set()),
        # Context that is added, not multiplied.
        ([*POINTS, op("Add", ["input", "z"], ["y"])], set()),
        # A gate over places: from means over channels it is one, from a pool of 2 x 2, which leaves a map, it is none.
        ([op("AveragePool", ["input"], ["p"], kernel_shape=[2, 2]), op("Conv", ["p", "squeeze"], ["z"], name="fc1/Conv"),
          op("Sigmoid", ["z"], ["a"]), op("Mul", ["p", "a"], ["y"])], set()),
        ([op("ReduceMean", ["input", "axis"], ["p"]), op("Conv", ["p", "place"], ["z"], name="fc1/Conv"),
          op("Sigmoid", ["z"], ["a"]), op("Mul", ["input", "a"], ["y"])], {"fc1/Conv"}),
        # A maximum over space is no mean.
        ([op("GlobalMaxPool", ["input"], ["p"]), op("Conv", ["p", "squeeze"], ["z"], name="fc1/Conv"),
          op("Sigmoid", ["z"], ["a"]), op("Mul", ["input", "a"], ["y"])], set()),
    ],
)  # fmt: skip
def test_a_gate_is_between_means_over_space_and_a_product_with_maps(
    nodes: list[onnx.NodeProto], gate: set[str]
) -> None:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    constants = {"squeeze": normal(4, 4, 1, 1), "place": normal(1, 1, 1, 1), "axis": np.array([1])}
    used = {name for node in nodes for name in node.input}
    model = small(copies, ("N", 4, 6, 6), {name: array for name, array in constants.items() if name in used})
    assert gate_nodes(model) == gate


def test_a_final_softmax_makes_no_gate_of_the_classifier() -> None:
    model, placement = placed("foreign three separate layers")
    assert model.graph.outputs[0].producer().op_type == "Softmax"
    assert "classifier/Gemm" in placement.weighted


@every_graph
def test_every_residual_addition_has_an_int8_residual_input(name: str) -> None:
    model, placement = placed(name)
    skips = [node for node in model.graph if re.search(r"^(stages\.\d+\.\d+)?/Add(_\d+)?$", str(node.name))]
    assert bool(skips) != name.startswith("shufflenet")
    for node in skips:
        assert all(is_map(value) for value in node.inputs)
        quantized = [Edge(str(node.name), i) in placement.readers.get(node.inputs[i].name, ()) for i in (0, 1)]
        # The other operand is the convolution that the addition is fused into, or one more map that is quantized.
        assert any(quantized)
        for value, is_int8 in zip(node.inputs, quantized, strict=True):
            assert is_int8 or (value.producer().op_type == "Conv" and len(value.uses()) == 1)


def is_made_depthwise(value: ir.Value) -> bool:
    """By a depthwise convolution and the ReLU behind it."""
    node = value.producer()
    node = node.inputs[0].producer() if node.op_type == "Relu" else node
    return node.op_type == "Conv" and node.attributes.get_int("group", 1) == node.inputs[1].shape[0] > 1


@every_graph
def test_all_branches_go_into_select_as_int8_and_nothing_inside_it_is(name: str) -> None:
    model, placement = placed(name)
    for node in model.graph:
        if node.op_type == "Sub" and is_map(node.outputs[0]):
            for index, value in enumerate(node.inputs):
                is_read = Edge(str(node.name), index) in placement.readers.get(value.name, ())
                assert is_read == (not is_made_depthwise(value))
            assert node.outputs[0].name not in placement.readers
        if node.op_type == "Mul" and is_map(node.outputs[0]):
            assert node.outputs[0].name not in placement.readers


def test_the_partial_sum_of_three_branches_stays_in_the_kernel_that_adds_them() -> None:
    model, placement = placed("sknet as a plain sum of three")
    first, second = (node for node in model.graph if re.search(r"stages\.0\.0\.sk/Add", str(node.name)))
    assert second.inputs[0] is first.outputs[0]
    assert first.outputs[0].name not in placement.readers
    branches = [*first.inputs, second.inputs[1]]
    assert all(value.name in placement.readers for value in branches)


@pytest.mark.parametrize("branches", ["sknet", "sknet of three branches"])
def test_maps_of_one_pixel_are_maps(branches: str) -> None:
    """The last stage of a network of stride 8 on images of 8 x 8."""
    spec = card(VARIANTS[branches])
    small = spec.model_copy(update={"input": InputSpec(channels=3, height=8, width=8)})
    model = simplify(trace(live(VARIANTS[branches]).float(), small, FAST))
    large = place(graph(branches))
    assert shape_of(next(node.outputs[0] for node in model.graph if node.name == "stages.1.1/Add"))[2:] == (1, 1)
    assert written(place(model)) == written(large)


# ----------------------------------------------------------------------------------------------------------- what users keep


def test_a_kept_module_stays_and_reads_the_tensor_as_it_is_while_others_read_int8() -> None:
    model = graph("sknet-fashion")
    placement = place(model, [r"^stages\.0\.0\.reduce"])
    assert placement.kept["stages.0.0.reduce.conv/Conv"] == r"kept by '^stages\\.0\\.0\\.reduce'"
    assert placement.readers["stem.relu/Relu"] == (Edge("stages.0.0.shortcut.conv/Conv", 0),)
    assert placement.raw["stem.relu/Relu"] == (Edge("stages.0.0.reduce.conv/Conv", 0),)
    assert set(place(model).weighted) - set(placement.weighted) == {"stages.0.0.reduce.conv/Conv"}


def test_a_kept_unit_reads_nothing_as_int8() -> None:
    model = graph("sknet-fashion")
    placement = place(model, [r"stages\.1\.1"])
    inside = {str(node.name) for node in model.graph if str(node.name).startswith("stages.1.1")}
    assert not inside & {edge.node for edges in placement.readers.values() for edge in edges}
    assert not inside & set(placement.weighted)
    assert violations(model, placement) == []


@pytest.mark.parametrize(
    ("patterns", "message"),
    [(["stages.0("], "no regular expression|not a regular expression"), (["nowhere"], "no module")],
)
def test_a_pattern_that_is_none_or_matches_nothing_is_refused(patterns: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        place(graph("sknet"), ["stem", *patterns])


def test_grouped_convolutions_are_kept_if_asked() -> None:
    model = graph("sknet-fashion")
    placement = place(model, keep_grouped=True)
    grouped = {str(node.name) for node in model.graph if node.attributes.get_int("group", 1) > 1}
    assert len(grouped) == 12
    assert {name for name, why in placement.kept.items() if why.startswith("a grouped")} == grouped
    assert not grouped & {edge.node for edges in placement.readers.values() for edge in edges}
    assert grouped <= set(place(model).weighted)


@pytest.mark.parametrize(
    ("groups", "inputs", "outputs", "weighted"),
    [(1, 3, 5, True), (2, 8, 8, True), (2, 8, 12, False), (4, 8, 16, False), (8, 8, 8, False), (2, 16, 8, True)],
)
def test_grouped_convolutions_need_multiples_of_four(groups: int, inputs: int, outputs: int, weighted: bool) -> None:
    node = op("Conv", ["input", "w"], ["y"], group=groups)
    model = small([node], ("N", inputs, 6, 6), {"w": normal(outputs, inputs // groups, 3, 3)})
    placement = place(model)
    assert (placement.weighted == ("m/Conv",)) == weighted
    if not weighted:
        assert "channels a group: TensorRT's INT8 takes multiples of 4" in placement.kept["m/Conv"]
        assert placement.tensors == ()


WEIGHTS = {"w": normal(5, 3, 3, 3), "stack": normal(1, 3, 5), "matrix": normal(3, 5), "scaled": normal(5)}


@pytest.mark.parametrize(
    ("shape", "nodes", "reason"),
    [
        ((5, 3, 6, 6), [op("Flatten", ["input"], ["f"]), op("ReduceMax", ["f"], ["r"]), op("Reshape", ["r", "one"], ["b"]),
                        op("Expand", ["b", "five"], ["bias"]), op("Conv", ["input", "w", "bias"], ["y"])],
         "its bias is computed"),
        (("N", 7, 3), [op("MatMul", ["input", "stack"], ["y"])], "its weight is not a matrix"),
        ((3, "N"), [op("Gemm", ["input", "matrix"], ["y"], transA=1)], "it scales or transposes what it reads"),
        (("N", 3), [op("Gemm", ["input", "matrix"], ["y"], alpha=0.5)], "it scales or transposes what it reads"),
        (("N", 3), [op("Gemm", ["input", "matrix", "scaled"], ["y"], beta=2.0)], "it scales or transposes what it reads"),
    ],
)  # fmt: skip
def test_what_the_passes_cannot_rewrite_stays_with_a_reason(
    shape: tuple[int | str, ...], nodes: list[onnx.NodeProto], reason: str
) -> None:
    sizes = {"one": np.array([1]), "five": np.array([5])}
    placement = place(small(nodes, shape, WEIGHTS | sizes))
    assert list(placement.kept.values()) == [reason]
    assert placement.tensors == ()


def test_a_classifier_alone_is_quantized() -> None:
    placement = place(small([op("Gemm", ["input", "matrix"], ["y"])], ("N", 3), WEIGHTS))
    assert placement == Placement({"input": (Edge("m/Gemm", 0),)}, {}, ("m/Gemm",), {})


def test_nodes_without_unique_names_are_refused() -> None:
    model = graph("sknet")
    first, second, *_ = model.graph
    second.name = first.name
    with pytest.raises(PassError, match=r"2 nodes of the graph are called 'stem.conv/Conv'"):
        place(model)


@pytest.mark.parametrize(
    ("name", "prefix"), [("sknet", "stages.1.0"), ("sknet-fashion", "stages.2.1"), ("linear_sknet", "stages.0.1")]
)
def test_a_unit_is_what_a_skip_spans(name: str, prefix: str) -> None:
    units = unit_of(graph(name))
    inside = {node for node in units if node.startswith(f"{prefix}.")}
    assert {node for node, unit in units.items() if unit == prefix} == inside
    assert f"{prefix}.reduce.conv/Conv" in inside
    assert not any(".gate." in node for node in units)
    assert units["stem.conv/Conv"] == "stem.conv"
    assert units["classifier/Gemm"] == "classifier"


def test_whole_numbers_are_not_quantized() -> None:
    """Sums and products of integers look like those of maps, and INT8 steps of them are other numbers."""
    model = small(
        [
            op("Conv", ["input", "w"], ["a"], name="stem/Conv"),
            op("Cast", ["a"], ["i"], to=onnx.TensorProto.INT64, name="i/Cast"),
            op("Mul", ["i", "i"], ["j"], name="j/Mul"),
            op("Add", ["i", "j"], ["k"], name="k/Add"),
            op("MatMul", ["k", "n"], ["l"], name="l/MatMul"),
            op("Cast", ["l"], ["y"], to=onnx.TensorProto.FLOAT, name="y/Cast"),
        ],
        ("batch", 3, 8, 8),
        {"w": normal(4, 3, 1, 1), "n": np.ones((8, 8), np.int64)},
    )
    placement = place(model)
    assert placement.tensors == ("input",)
    assert placement.weighted == ("stem/Conv",)
    assert placement.kept == {"l/MatMul": "its weight is INT64, not float32"}
