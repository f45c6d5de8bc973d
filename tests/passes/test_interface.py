"""Outputs chosen by name, NHWC made NCHW and a freed batch: the function of the file itself, or a refusal that says why."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from skdeploy.core.errors import ExportError, UsageError
from skdeploy.line.options import ExportOptions
from skdeploy.line.sources import find_source
from skdeploy.passes.foreign import foreign_notes, read_foreign
from skdeploy.passes.read_options import ReadOptions
from skdeploy.passes.simplify import simplify
from tests.graphs.foreign import Classifier, SplitInput, live
from tests.graphs.networks import FLOAT32_ERROR, Array, images, relative_error, run, torch_logits
from tests.graphs.sk_files import SIDE, classifier, save
from tests.graphs.small_files import model_of, node, write

INPUTS = images(3, SIDE, SIDE)


def original(path: Path, inputs: Array) -> list[Array]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [np.asarray(each) for each in session.run(None, {session.get_inputs()[0].name: inputs})]


def with_outputs(*names: str) -> ModelProto:
    proto = classifier(17)
    del proto.graph.output[:]
    proto.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    return proto


def test_outputs_are_kept_by_name_in_the_order_asked_and_the_rest_is_cut_off(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", with_outputs("y", "t3", "t5"))
    expected = dict(zip(("y", "t3", "t5"), original(path, INPUTS), strict=True))
    model = read_foreign(path, options=ReadOptions(outputs="t5,t3"))
    found = run(simplify(model), INPUTS)
    assert list(found) == ["t5", "t3"]
    for name, array in found.items():
        assert relative_error(array, expected[name]) < FLOAT32_ERROR
    assert "Gemm" not in {each.op_type for each in model.graph}  # what only y needed
    assert foreign_notes(model).interface[0].startswith("outputs kept: t5, t3; nodes cut off: ")


def test_a_tensor_inside_becomes_the_output(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", classifier(17))
    (expected,) = original(save(tmp_path / "inner.onnx", with_outputs("t3")), INPUTS)
    found = run(read_foreign(path, options=ReadOptions(outputs="t3")), INPUTS)
    assert relative_error(found["t3"], expected) < FLOAT32_ERROR


def test_an_input_that_only_a_cut_off_output_needs_goes_too(tmp_path: Path) -> None:
    nodes = [node("GlobalAveragePool", "x", "p"), node("Flatten", "p", "y"), node("Relu", "mask", "other")]
    shapes = {"x": ("N", 3, 4, 4), "mask": ("N", 2)}
    path = save(tmp_path / "m.onnx", model_of(nodes, shapes, {"y": None, "other": None}))
    assert [value.name for value in read_foreign(path, options=ReadOptions(outputs="y")).graph.inputs] == ["input"]


def test_an_output_that_is_not_there_is_refused_with_the_nearest(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", with_outputs("y", "t3"))
    with pytest.raises(UsageError, match="has no output t33; it has y, t3") as failure:
        read_foreign(path, options=ReadOptions(outputs="t33"))
    assert "t3" in failure.value.advice
    with pytest.raises(UsageError, match="empty or given twice"):
        ReadOptions(outputs="y,,t3").check()


def nhwc(proto: ModelProto, *, image: bool = False) -> ModelProto:
    """As tf2onnx writes it: NHWC outside, NCHW within. ``image``: the output is a map, NHWC too."""
    graph = proto.graph
    graph.node.insert(0, node("Transpose", "pixels", "x", perm=[0, 3, 1, 2]))
    graph.input[0].CopyFrom(helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", SIDE, SIDE, 3]))
    if image:
        del graph.output[:]
        graph.output.append(helper.make_tensor_value_info("map", TensorProto.FLOAT, ["N", SIDE, SIDE, 8]))
        graph.node.append(node("Transpose", "t1", "map", perm=[0, 2, 3, 1]))
    return proto


def test_nhwc_files_take_nchw_images_and_compute_the_same(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", nhwc(classifier(17)))
    (expected,) = original(path, INPUTS.transpose(0, 2, 3, 1))
    model = read_foreign(path)
    assert [str(size) for size in model.graph.inputs[0].shape or ()] == ["batch", "3", str(SIDE), str(SIDE)]
    assert "Transpose" not in {each.op_type for each in model.graph}  # theirs and ours undo each other
    assert relative_error(run(model, INPUTS)["logits"], expected) < FLOAT32_ERROR
    assert foreign_notes(model).interface == ("the input pixels was NHWC; the graph takes NCHW",)


def test_maps_of_an_nhwc_file_come_out_nchw(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", nhwc(classifier(17), image=True))
    (expected,) = original(path, INPUTS.transpose(0, 2, 3, 1))
    model = simplify(read_foreign(path))
    assert relative_error(run(model, INPUTS)["map"], expected.transpose(0, 3, 1, 2)) < FLOAT32_ERROR
    assert "Transpose" not in {each.op_type for each in model.graph}


def test_nhwc_is_asked_for_where_the_sizes_do_not_show_it(tmp_path: Path) -> None:
    """(N, 3, 3, 3) is both; its layout shows in the function."""
    nodes = [node("ReduceMax", "x", "y", axes=[1, 2], keepdims=0)]
    path = save(tmp_path / "m.onnx", model_of(nodes, {"x": ("N", 3, 3, 3)}, {"y": None}, opset=17))
    inputs = images(4, 3, 3)
    found = run(read_foreign(path, options=ReadOptions(nhwc=True)), inputs)["logits"]
    np.testing.assert_array_equal(found, inputs.max((2, 3)))
    np.testing.assert_array_equal(run(read_foreign(path), inputs)["logits"], inputs.max((1, 2)))


@pytest.mark.parametrize(("turned", "taken"), [(False, (6, 9, 1)), (True, (1, 6, 9))])
def test_a_last_size_of_one_is_a_channel_only_where_the_file_transposes_it(
    turned: bool, taken: tuple[int, ...], tmp_path: Path
) -> None:
    """(N, 6, 9, 1) may as well be six spectra."""
    nodes = [node("Transpose", "x", "t", perm=[0, 3, 1, 2])] if turned else [node("Relu", "x", "t")]
    path = save(tmp_path / "m.onnx", model_of([*nodes, node("Flatten", "t", "y")], {"x": ("N", 6, 9, 1)}, {"y": None}))
    assert tuple(read_foreign(path).graph.inputs[0].shape or ())[1:] == taken


def reshaping(batch: int, shape: list[int]) -> ModelProto:
    nodes = [
        node("Conv", "x", "w", "c"),
        node("Reshape", "c", "shape", "rows"),
        node("MatMul", "rows", "m", "y"),
    ]
    random = np.random.default_rng(0)
    constants = {
        "w": random.standard_normal((2, 3, 1, 1)).astype(np.float32),
        "shape": np.array(shape),
        "m": random.standard_normal((32, 5)).astype(np.float32),
    }
    return model_of(nodes, {"x": (batch, 3, 4, 4)}, {"y": (batch, 5)}, constants)


@pytest.mark.parametrize(("batch", "shape"), [(1, [1, -1]), (1, [1, 32]), (2, [2, -1])])
def test_a_fixed_batch_is_freed(batch: int, shape: list[int], tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", reshaping(batch, shape))
    model = read_foreign(path, options=ReadOptions(free_batch=True))
    inputs = images(2 * batch, 4, 4)
    expected = np.concatenate([original(path, inputs[start : start + batch])[0] for start in (0, batch)])
    assert str((model.graph.inputs[0].shape or ())[0]) == "batch"
    assert relative_error(run(model, inputs)["logits"], expected) < FLOAT32_ERROR
    assert relative_error(run(model, inputs[:1])["logits"], expected[:1]) < FLOAT32_ERROR
    assert foreign_notes(model).interface == (f"the batch was fixed at {batch} and is free now",)


@pytest.mark.parametrize("opset", [11, 17])
def test_a_squeeze_that_takes_a_fixed_batch_of_one_leaves_it_when_it_is_freed(opset: int, tmp_path: Path) -> None:
    nodes = [node("GlobalMaxPool", "x", "p"), node("Squeeze", "p", "y")]
    path = save(tmp_path / "m.onnx", model_of(nodes, {"x": (1, 3, 4, 4)}, {"y": (3,)}, opset=opset))
    inputs = images(4, 4, 4)
    assert original(path, inputs[:1])[0].shape == (3,)
    with pytest.raises(
        UsageError, match=r"\[3\]: the node \S*Squeeze\S* \(Squeeze\) takes the batch of one away"
    ) as refusal:
        read_foreign(path, has_classes=False)
    assert "--free-batch" in refusal.value.advice
    model = read_foreign(path, options=ReadOptions(free_batch=True))
    np.testing.assert_array_equal(run(model, inputs)["logits"], inputs.max((2, 3)))
    np.testing.assert_array_equal(run(model, inputs[:1])["logits"], inputs[:1].max((2, 3)))


@pytest.mark.parametrize(("opset", "exporter"), [(11, "torchscript"), (20, "torchscript"), (21, "dynamo")])
def test_a_fixed_batch_of_either_exporter_is_freed(opset: int, exporter: str, tmp_path: Path) -> None:
    """torch's new exporter sets ``allowzero`` on each Reshape, by which 0 does not mean "as many as there are"."""
    network = live(Classifier(SplitInput()))
    one = torch.from_numpy(images(1, 12, 10))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the old exporter, about itself
        torch.onnx.export(
            network, (one,), tmp_path / "m.onnx", dynamo=exporter == "dynamo", opset_version=opset, verbose=False
        )
    model, inputs = read_foreign(tmp_path / "m.onnx", options=ReadOptions(free_batch=True)), images(4, 12, 10)
    assert relative_error(run(model, inputs)["logits"], torch_logits(network, inputs)) < FLOAT32_ERROR


def test_a_batch_that_the_network_mixes_is_not_freed(tmp_path: Path) -> None:
    proto = reshaping(2, [2, -1])
    proto.graph.node.append(node("ReduceMean", "y", "mean", axes=[0], keepdims=1))
    proto.graph.node.append(node("Sub", "y", "mean", "z"))
    proto.graph.node[-2].ClearField("attribute")
    proto.graph.node[-2].input.append("axes")
    proto.graph.initializer.append(numpy_helper.from_array(np.array([0]), "axes"))
    proto.graph.output[0].name = "z"
    path = save(tmp_path / "m.onnx", proto)
    read_foreign(path)  # as it is, it is taken
    with pytest.raises(ExportError, match="does not let its batch go: z is not for two batches"):
        read_foreign(path, options=ReadOptions(free_batch=True))


def test_a_batch_in_a_shape_that_cannot_be_freed_is_named(tmp_path: Path) -> None:
    proto = reshaping(1, [2, 16])  # two rows an image
    proto.graph.initializer[2].CopyFrom(numpy_helper.from_array(np.ones((16, 5), np.float32), "m"))
    proto.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 5]))
    with pytest.raises(ExportError, match=r"does not let its batch go: node .* \(Reshape\) makes the shape \[2, 16\]"):
        read_foreign(save(tmp_path / "m.onnx", proto), options=ReadOptions(free_batch=True))


def test_a_batch_baked_behind_a_free_input_is_named_where_it_is(tmp_path: Path) -> None:
    """The advice is about the batch, not about another operator."""
    nodes = [
        node("GlobalAveragePool", "x", "p"),
        node("Reshape", "p", "flat", "f"),
        node("Add", "f", "bias", "y"),
    ]
    constants = {"flat": np.array([1, 3]), "bias": np.ones(3, np.float32)}
    with pytest.raises(
        ExportError, match=r"the input's batch is free, but node .*Reshape \(Reshape\) makes the shape \[1, 3\]"
    ) as error:
        read_foreign(write(tmp_path / "m.onnx", nodes, **constants))
    assert "with a dynamic batch; or with a fixed one" in error.value.advice
    constants["flat"] = np.array([-1, 3])
    read_foreign(write(tmp_path / "m.onnx", nodes, **constants))


def test_a_free_batch_needs_no_freeing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not fix its batch"):
        read_foreign(save(tmp_path / "m.onnx", classifier(17)), options=ReadOptions(free_batch=True))


def test_other_sources_do_not_take_them() -> None:
    with pytest.raises(UsageError, match=r"--nhwc is for an \.onnx file"):
        find_source(ExportOptions("sknet50", read=ReadOptions(nhwc=True)))
