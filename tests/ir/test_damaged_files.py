"""Damaged ONNX files: whatever is wrong, reading one gives a graph or one of our errors."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper

from skdeploy.backends.onnxruntime import load_graph
from skdeploy.core.errors import IntegrityError, SkdeployError
from skdeploy.inspect.inspection import inspect_file
from skdeploy.passes.foreign import read_foreign
from skdeploy.planning.dla import dla_report
from skdeploy.planning.layers import fuse
from skdeploy.planning.plain import read_plain
from tests.graphs.small_files import model_of

QUICK, SLOW = 60, 2000  # files of each kind of damage


def classifier() -> ModelProto:
    """A valid graph with most of what a file can hold: a function, a subgraph, a constant, weights of two kinds."""
    normal = np.random.default_rng(0).standard_normal
    weights = {"w": normal((4, 3, 3, 3)), "v": normal((4, 5)), "b": normal(5)}
    then, other = (
        helper.make_graph(
            [helper.make_node(kind, ["f"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        )
        for kind, name in (("Relu", "positive"), ("Neg", "negative"))
    )
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1] * 4),
        helper.make_node("Twice", ["c"], ["t"], name="twice", domain="own"),
        helper.make_node("GlobalAveragePool", ["t"], ["p"], name="pool"),
        helper.make_node("Constant", [], ["sizes"], value_ints=[0, 4]),
        helper.make_node("Reshape", ["p", "sizes"], ["f"], name="flat"),
        helper.make_node("If", ["yes"], ["i"], name="if", then_branch=then, else_branch=other),
        helper.make_node("Gemm", ["i", "v", "b"], ["y"], name="fc"),
    ]
    twice = helper.make_function(
        "own", "Twice", ["a"], ["d"], [helper.make_node("Add", ["a", "a"], ["d"])], [helper.make_opsetid("", 17)]
    )
    constants = {name: array.astype(np.float32) for name, array in weights.items()} | {"yes": np.array(True)}
    proto = model_of(nodes, {"x": ["n", 3, 8, 8]}, {"y": ["n", 5]}, constants, opset=17)
    proto.opset_import.append(helper.make_opsetid("own", 1))
    proto.functions.append(twice)
    return proto


def flip(draw: random.Random, proto: ModelProto) -> bytes:
    content = bytearray(proto.SerializeToString())
    for _ in range(draw.choice((1, 1, 2, 8))):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(content)


def cut(draw: random.Random, proto: ModelProto) -> bytes:
    content = proto.SerializeToString()
    start = draw.randrange(len(content))
    return content[:start] + content[start + draw.choice((1, 7, len(content))) :]


def rewire(draw: random.Random, proto: ModelProto) -> bytes:
    """Nodes that are missing, there twice, in another order, or read and write other values than they should."""
    nodes = proto.graph.node
    node = draw.choice(nodes)
    known = [name for other in nodes for name in (*other.input, *other.output)]
    name = draw.choice([*known, "", "nowhere", "é/ü \n", "x" * 10_000])
    kind = draw.choice(("Relu", "Loop", "Scan", "If", "Constant", "Twice", "Foo", "", "Concat", "Resize", "Split"))
    place = draw.randrange(max(len(node.input), 1))
    changes: list[Callable[[], object]] = [
        lambda: nodes.remove(node),
        lambda: nodes.add().CopyFrom(node),
        lambda: nodes.sort(key=lambda _: draw.random()),
        lambda: node.input.__delitem__(slice(place, None)),
        lambda: node.ClearField("output"),
        lambda: node.output.__setitem__(slice(1), [name]),
        lambda: node.input.append(name),
        lambda: setattr(node, "op_type", kind),
        lambda: node.input.__setitem__(slice(place, place + 1), [name]),
    ]
    draw.choice(changes)()
    return proto.SerializeToString()


def redeclare(draw: random.Random, proto: ModelProto) -> bytes:
    """Inputs, outputs and weights of other names, types and shapes, and attributes with other values."""
    graph = proto.graph
    number = draw.choice((0, -1, 1, 2, 7, 2**31, 2**40, 2**62))
    value, tensor = draw.choice((*graph.input, *graph.output)), draw.choice(graph.initializer)
    kind, size = value.type.tensor_type, value.type.tensor_type.shape.dim[0]
    attribute = draw.choice([attribute for node in graph.node for attribute in node.attribute])
    changed = AttributeProto(type=draw.choice((0, *range(1, 15))), i=number)
    changed.name = draw.choice((attribute.name, "pads", "group", "kernel_shape", "strides", "axis"))
    changed.ints.extend(draw.choice(([], [number], [number] * 4)))
    changes: list[Callable[[], object]] = [
        lambda: setattr(value, "name", draw.choice(("", "w", "p", "input", "logits"))),
        lambda: setattr(kind, "elem_type", draw.choice((0, 7, 8, 16, 99, -1))),
        lambda: setattr(size, "dim_value", number),
        lambda: value.ClearField(draw.choice(("type", "name"))),
        lambda: tensor.dims.__setitem__(0, number) if tensor.dims else tensor.dims.append(number),
        lambda: setattr(tensor, "data_type", draw.choice((0, 7, 8, 10, 21, 99))),
        lambda: setattr(tensor, "name", draw.choice(("", "x", "c", "v"))),
        lambda: graph.initializer.remove(tensor),
        lambda: graph.sparse_initializer.add().values.CopyFrom(tensor),
        lambda: setattr(proto.opset_import[0], "version", draw.choice((0, 6, 9, 13, 22, 99))),
        lambda: attribute.MergeFrom(changed),
    ]
    draw.choice(changes)()
    return proto.SerializeToString()


@pytest.mark.parametrize("damage", [flip, cut, rewire, redeclare])
def test_any_damage_ends_in_a_graph_or_in_one_of_our_errors(
    damage: Callable[[random.Random, ModelProto], bytes], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    file = tmp_path / "m.onnx"
    whole = classifier().SerializeToString()
    for seed in range(SLOW if request.config.getoption("--slow") else QUICK):
        file.write_bytes(damage(random.Random(seed), ModelProto.FromString(whole)))
        for read in (read_foreign, inspect_file, planned):
            try:
                read(file)
            except SkdeployError:
                continue
            except Exception as error:
                raise AssertionError(f"{damage.__name__}, seed {seed}, {read.__name__}") from error


def planned(file: Path) -> None:
    plain = read_plain(load_graph(file), file, 1, (8, 8))
    dla_report(plain, fuse(plain.model))


def test_the_undamaged_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(classifier().SerializeToString())
    read_foreign(file)
    assert inspect_file(file)["nodes"] == 7
    planned(file)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda proto: proto.graph.node[0].output.__setitem__(0, ""), "conv"),
        (lambda proto: proto.graph.node[6].input.__setitem__(1, "nowhere"), "nowhere"),
        (
            lambda proto: proto.graph.initializer[0].dims.__setitem__(0, 5),
            "w has the shape [5, 3, 3, 3], so it needs 540 bytes",
        ),
        (lambda proto: setattr(proto.graph.initializer[1], "data_type", 99), "v has the type 99"),
        (lambda proto: setattr(proto.graph.output[0].type.tensor_type, "elem_type", 99), "y has the type 99"),
        (lambda proto: setattr(proto.graph.node[0].attribute[0], "type", AttributeProto.FLOAT), "pads"),
    ],
    ids=("output", "input", "shape", "type", "declared", "attribute"),
)
def test_what_is_wrong_is_named(tmp_path: Path, damage: Callable[[ModelProto], None], said: str) -> None:
    proto = classifier()
    damage(proto)
    file = tmp_path / "m.onnx"
    file.write_bytes(proto.SerializeToString())
    for read in (read_foreign, inspect_file, planned):
        with pytest.raises(IntegrityError) as error:
            read(file)
        assert str(file) in error.value.message
        assert said in error.value.message


def test_a_name_that_is_not_text_is_told(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(classifier().SerializeToString().replace(b"flat", b"fl\xf5t"))
    with pytest.raises(IntegrityError, match=r"graph\.node\.name is b'fl\\xf5t', which is not text"):
        inspect_file(file)


def test_constants_of_nodes_beyond_one_file_are_refused_before_they_are_read(tmp_path: Path) -> None:
    """Weights of the graph may stay in their file, but nothing takes a node whose attributes do."""
    proto = classifier()
    constant = helper.make_node("Constant", [], ["large"], value=helper.make_tensor("v", TensorProto.FLOAT, [1], [0]))
    weight = constant.attribute[0].t
    weight.dims[:] = [4, 2**28]
    weight.ClearField("float_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="weights.bin")
    proto.graph.node.insert(0, constant)
    with (tmp_path / "weights.bin").open("wb") as stream:
        stream.truncate(4 * 2**30)  # no disk is used
    file = tmp_path / "m.onnx"
    file.write_bytes(proto.SerializeToString())
    with pytest.raises(
        SkdeployError, match=r"m\.onnx has 4\.3 GB with the constants of its nodes, but one ONNX file can hold 2\.1 GB"
    ):
        read_foreign(file)
