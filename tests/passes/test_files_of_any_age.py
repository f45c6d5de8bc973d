"""Files of every opset, as strangers have them, compute the same after reading as ONNX Runtime computes of the file itself."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, helper
from onnx.reference import ReferenceEvaluator

from skdeploy.backends.onnxruntime import open_model
from skdeploy.checkpoints.weights_record import WeightsRecord
from skdeploy.core.errors import ExportError, IntegrityError
from skdeploy.core.spec import Precision
from skdeploy.line.export import export
from skdeploy.line.options import ExportOptions
from skdeploy.line.sources import find_source
from skdeploy.passes.foreign import foreign_notes, read_foreign
from skdeploy.passes.opsets import NEWEST_OPSET, OLDEST_OPSET, means_the_same
from skdeploy.passes.simplify import simplify
from tests import tiny
from tests.graphs.networks import FLOAT32_ERROR, images, relative_error, run
from tests.graphs.sk_files import SIDE, classifier, save

OPSETS = range(OLDEST_OPSET, NEWEST_OPSET + 1)


def some(opset: int, always: Collection[int]) -> Any:
    return pytest.param(opset, marks=[] if opset in always else pytest.mark.slow)


def original(path: Path, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": inputs})
    return np.asarray(found)


def error_after_reading(path: Path, expected: NDArray[np.float32], inputs: NDArray[np.float32]) -> float:
    return relative_error(run(simplify(read_foreign(path)), inputs)["logits"], expected)


@pytest.mark.parametrize("opset", [some(one, (7, 9, 12, 13, 18, 21, 22, NEWEST_OPSET)) for one in OPSETS])
def test_every_opset_that_onnx_reads_keeps_its_function(opset: int, tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", classifier(opset))
    model = read_foreign(path)
    assert model.graph.opset_imports[""] == min(max(opset, 19), 20)  # the last that TensorRT 10.3 takes
    assert model.ir_version == 9
    inputs = images(3, SIDE, SIDE)
    assert relative_error(run(simplify(model), inputs)["logits"], original(path, inputs)) < FLOAT32_ERROR


@pytest.mark.parametrize("opset", [some(one, (NEWEST_OPSET,)) for one in OPSETS])
def test_every_opset_is_exported_and_proven(opset: int, tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", classifier(opset))
    tiny.save(tmp_path / "images", "a.png", "b.png", "c.png")
    target = "auto" if opset in (OLDEST_OPSET, 19, NEWEST_OPSET) else "onnx"
    done = export(
        ExportOptions(
            str(path), Precision.FP16, output=tmp_path / "bundle", target=target, images=tmp_path / "images",
            assume_imagenet=True,
        )
    )  # fmt: skip
    assert done.parity.verdict == "pass"
    assert done.parity.of("model.fp16.onnx") is not None
    assert any(artifact.path.endswith(".engine") for artifact in done.bundle.manifest.artifacts) == (target == "auto")


def test_a_new_operator_that_onnx_defines_by_older_ones_is_replaced(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", classifier(24, activation="Swish"))
    model, inputs = read_foreign(path), images(3, SIDE, SIDE)
    assert model.graph.opset_imports[""] == 20
    assert "Swish" not in {node.op_type for node in model.graph}
    assert error_after_reading(path, original(path, inputs), inputs) < FLOAT32_ERROR


def test_a_new_operator_that_nothing_replaces_keeps_the_opset(tmp_path: Path) -> None:
    proto = classifier(26)
    proto.graph.node[1].CopyFrom(helper.make_node("CumProd", ["t0", "axis"], ["t1"]))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1), "axis"))
    path = save(tmp_path / "m.onnx", proto)
    model, inputs = read_foreign(path), images(3, SIDE, SIDE)
    assert model.graph.opset_imports[""] == 26
    assert model.ir_version == helper.find_min_ir_version_for([helper.make_opsetid("", 26)])
    assert error_after_reading(path, original(path, inputs), inputs) < FLOAT32_ERROR


@pytest.mark.parametrize(
    ("node", "newer", "same"),
    [
        (helper.make_node("Conv", ["x", "w"], ["y"]), 22, True),  # it gained bfloat16
        (helper.make_node("Cast", ["x"], ["y"], to=1), 24, True),
        (helper.make_node("Cast", ["x"], ["y"], to=1, round_mode="up"), 24, False),  # a new attribute
        (helper.make_node("QuantizeLinear", ["x", "s"], ["y"], output_dtype=3), 21, False),
        (helper.make_node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=2), 21, False),  # another scale
        (helper.make_node("RotaryEmbedding", ["x", "c", "s"], ["y"]), 23, False),  # a new operator
    ],
)
def test_a_node_is_lowered_only_where_it_means_the_same(node: NodeProto, newer: int, same: bool) -> None:
    assert means_the_same(node, newer, 20) is same


@pytest.mark.parametrize("opset", [21, 22, NEWEST_OPSET])
def test_group_normalization_per_channel_is_what_onnx_says(opset: int, tmp_path: Path) -> None:
    proto = classifier(opset, norm=8)
    inputs = images(3, SIDE, SIDE)
    (expected,) = ReferenceEvaluator(proto).run(None, {"x": inputs})
    assert error_after_reading(save(tmp_path / "m.onnx", proto), expected, inputs) < FLOAT32_ERROR


def test_group_normalization_inside_a_function_is_replaced(tmp_path: Path) -> None:
    """Opset 18's, which no checker takes, where dynamo's exporter keeps a module as a function."""
    function = helper.make_function(
        "local", "Norm", ["x", "s", "b"], ["y"],
        [helper.make_node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=2)],
        [helper.make_opsetid("", 18)],
    )  # fmt: skip
    flat, called = classifier(18, norm=8), classifier(18, norm=8)
    called.functions.append(function)
    called.opset_import.append(helper.make_opsetid("local", 1))
    for at, each in enumerate(called.graph.node):
        if each.op_type == "GroupNormalization":
            called.graph.node[at].CopyFrom(helper.make_node("Norm", each.input, each.output, domain="local"))
    inputs = np.random.default_rng(0).standard_normal((2, 3, SIDE, SIDE), np.float32)
    given = []
    for name, proto in (("flat", flat), ("called", called)):
        model = read_foreign(save(tmp_path / f"{name}.onnx", proto))
        with open_model(model) as session:
            given.append(session.run({"input": inputs})["logits"])
    assert np.array_equal(*given)


@pytest.mark.parametrize(("opset", "values"), [(18, 2), (20, 2), (18, 8), (20, 8)])
@pytest.mark.parametrize("free", [(), (2,), (2, 3)])
def test_group_normalization_before_opset_21_takes_numbers_per_group_or_channel(
    opset: int, values: int, free: tuple[int, ...], tmp_path: Path
) -> None:
    """Expected: the part before it by ONNX Runtime, then the formula, then the rest, in float64."""
    proto = onnx.helper.make_model(
        helper.make_graph(
            [
                helper.make_node("GroupNormalization", ["x", "s", "b"], ["n"], num_groups=2, epsilon=0.1),
                helper.make_node("ReduceMax", ["n"], ["y"], keepdims=0, noop_with_empty_axes=0),
            ],
            "g",
            [helper.make_tensor_value_info("x", 1, ["N", 8, *("s" if axis in free else 6 for axis in (2, 3))])],
            [helper.make_tensor_value_info("y", 1, None)],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=9,
    )
    proto.graph.node[1].CopyFrom(helper.make_node("GlobalMaxPool", ["n"], ["p"]))
    proto.graph.node.append(helper.make_node("Flatten", ["p"], ["y"]))
    generator = np.random.default_rng(1)
    scale, bias = (generator.standard_normal(values).astype(np.float32) for _ in range(2))
    for name, array in (("s", scale), ("b", bias)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    x = generator.standard_normal((3, 8, 6, 6)).astype(np.float32)
    groups = x.astype(np.float64).reshape(3, 2, -1)
    normal = (groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + 0.1)
    each = 8 // values  # channels that share a number
    expected = normal.reshape(x.shape) * np.repeat(scale, each)[:, None, None] + np.repeat(bias, each)[:, None, None]
    made = ir.to_proto(read_foreign(save(tmp_path / "m.onnx", proto))).SerializeToString()
    found = onnxruntime.InferenceSession(made, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    assert relative_error(found, expected.max((2, 3))) < FLOAT32_ERROR


@pytest.mark.parametrize(("opset", "values"), [(20, 4), (21, 2)])
def test_group_normalization_without_a_meaning_is_refused(opset: int, values: int, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"2 groups, 8 channels, and scale and bias of {values} and {values} values"):
        read_foreign(save(tmp_path / "m.onnx", classifier(opset, norm=values)))


@pytest.mark.parametrize("opset", [11, 17])
def test_squeeze_keeps_a_batch_of_one(opset: int, tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", classifier(opset, squeeze=True))
    model, inputs = simplify(read_foreign(path)), images(3, SIDE, SIDE)
    assert len(foreign_notes(read_foreign(path)).kept_batch) == 1
    expected = original(path, inputs)
    assert relative_error(run(model, inputs)["logits"], expected) < FLOAT32_ERROR
    for index in range(3):
        one = inputs[index : index + 1]
        assert relative_error(run(model, one)["logits"], expected[index : index + 1]) < FLOAT32_ERROR


def test_squeeze_keeps_a_batch_of_one_behind_sizes_whose_names_inference_loses(tmp_path: Path) -> None:
    """torch's new exporter leaves the axes out too; behind a Reshape the batch has another name, or none."""
    proto = classifier(18, squeeze=True)
    proto.graph.node.insert(1, helper.make_node("Reshape", ["t0", "shape"], ["flat"]))
    proto.graph.node.insert(2, helper.make_node("Reshape", ["flat", "back"], ["again"]))
    proto.graph.node[3].input[0] = "again"
    for name, shape in (("shape", [-1, 8 * SIDE, SIDE]), ("back", [-1, 8, SIDE, SIDE])):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(shape), name))
    path, inputs = save(tmp_path / "m.onnx", proto), images(3, SIDE, SIDE)
    model = read_foreign(path)
    assert len(foreign_notes(model).kept_batch) == 1
    assert relative_error(run(model, inputs[:1])["logits"], original(path, inputs)[:1]) < FLOAT32_ERROR


def test_squeeze_of_a_fixed_batch_of_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"Squeeze\) names no axes, so it takes away a batch of one too"):
        read_foreign(save(tmp_path / "m.onnx", classifier(17, squeeze=True, batch=1)))


def test_nodes_of_one_name_get_names_of_their_own(tmp_path: Path) -> None:
    proto = classifier(17)
    for node in proto.graph.node:
        node.name = "twin"
    inputs = images(3, SIDE, SIDE)
    expected = original(save(tmp_path / "unnamed.onnx", classifier(17)), inputs)  # ONNX Runtime takes no twins
    path = save(tmp_path / "m.onnx", proto)
    names = [node.name for node in read_foreign(path).graph]
    assert len(set(names)) == len(names)
    assert error_after_reading(path, expected, inputs) < FLOAT32_ERROR


def test_external_data_in_several_files_is_read(tmp_path: Path) -> None:
    proto, inputs = classifier(17), images(3, SIDE, SIDE)
    expected = original(save(tmp_path / "whole.onnx", proto), inputs)
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=0)
    assert len(list(tmp_path.iterdir())) > 10
    assert error_after_reading(tmp_path / "m.onnx", expected, inputs) < FLOAT32_ERROR


def test_the_record_of_the_weights_has_the_digest_of_each_file_that_holds_them(tmp_path: Path) -> None:
    onnx.save(classifier(17), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)

    def record() -> WeightsRecord:
        return find_source(ExportOptions(str(tmp_path / "m.onnx"), assume_imagenet=True)).record

    first = record()
    assert first.data == {"m.data": hashlib.sha256((tmp_path / "m.data").read_bytes()).hexdigest()}
    weights = np.fromfile(tmp_path / "m.data", np.float32)
    weights[:10] *= 2  # of the first convolution; the model's own file stays the same
    weights.tofile(tmp_path / "m.data")
    second = record()
    assert (second.sha256, second.data == first.data) == (first.sha256, False)
    save(tmp_path / "one.onnx", classifier(17))
    alone = find_source(ExportOptions(str(tmp_path / "one.onnx"), assume_imagenet=True)).record
    assert "data" not in alone.model_dump()  # manifests of before stay what they are


def test_external_data_without_a_name_is_named_so(tmp_path: Path) -> None:
    proto = classifier(17)
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    shell = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    shell.graph.initializer[0].name = ""
    save(tmp_path / "m.onnx", shell)
    (tmp_path / "m.data").write_bytes(b"")
    with pytest.raises(IntegrityError, match="the weights without a name are bytes"):
        read_foreign(tmp_path / "m.onnx")
