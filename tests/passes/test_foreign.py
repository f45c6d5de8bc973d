"""An ONNX file made elsewhere comes in with our interface and its own function, or is refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn

from skdeploy.core.errors import ExportError, IntegrityError, PassError, UsageError
from skdeploy.passes.foreign import foreign_notes, read_foreign
from skdeploy.passes.opsets import NEWEST_OPSET
from tests.graphs.foreign import Classifier, Concatenated, SplitInput, branch, export, live
from tests.graphs.networks import FLOAT32_ERROR, images, relative_error, run, torch_logits
from tests.graphs.small_files import model_of

SHAPE = (12, 10)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return live(Classifier(SplitInput(), Concatenated()))


@pytest.fixture(scope="module")
def exported(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Opset 17 by TorchScript."""
    return export(network, tmp_path_factory.mktemp("foreign") / "m.onnx", "torchscript", 17).read_bytes()


def changed(exported: bytes, tmp_path: Path, change: Callable[[ModelProto], object] = lambda _: None) -> Path:
    proto = onnx.load_from_string(exported)
    change(proto)
    return write(tmp_path / "changed.onnx", proto)


def write(path: Path, proto: ModelProto) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def error_of(model: ir.Model, network: nn.Module) -> float:
    inputs = images(4, *SHAPE)
    return relative_error(run(model, inputs)["logits"], torch_logits(network, inputs))


@pytest.mark.parametrize(
    ("exporter", "opset"),
    [
        *(("torchscript", opset) for opset in (9, 11, 12, 13, 17, 18, 19, 20)),
        pytest.param("dynamo", 18, marks=pytest.mark.slow),
        ("dynamo", 21),
    ],
)
def test_every_opset_keeps_its_function_and_its_modules(
    network: nn.Module, tmp_path: Path, exporter: str, opset: int
) -> None:
    model = read_foreign(export(network, tmp_path / "m.onnx", exporter, opset))
    assert model.graph.opset_imports[""] == min(max(opset, 19), 20)
    assert [value.name for value in model.graph.inputs] == ["input"]
    assert [value.name for value in model.graph.outputs] == ["logits"]
    assert [str(d) for d in model.graph.inputs[0].shape or ()] == ["batch", "3", "12", "10"]
    assert [str(d) for d in model.graph.outputs[0].shape or ()] == ["batch", "5"]
    assert error_of(model, network) < FLOAT32_ERROR
    names = [node.name or "" for node in model.graph]
    assert len(names) == len(set(names))
    assert {"blocks.1.expand/Conv", "merges.1/Conv", "classifier/Gemm"} <= set(names)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_what_was_changed_is_told(exported: bytes, tmp_path: Path) -> None:
    notes = foreign_notes(read_foreign(changed(exported, tmp_path)))
    assert (notes.input_name, notes.output_name, notes.opset) == ("image", "scores", 17)
    assert (notes.dropped_outputs, notes.softmax) == ((), "")


def test_a_softmax_at_the_end_is_told(tmp_path: Path) -> None:
    path = export(live(Classifier(branch(), softmax=True)), tmp_path / "m.onnx", "torchscript", 13)
    assert foreign_notes(read_foreign(path)).softmax == "/Softmax"


def test_other_outputs_of_a_classifier_are_kept_under_their_own_names(exported: bytes, tmp_path: Path) -> None:
    def add(proto: ModelProto) -> None:
        name = next(node.output[0] for node in proto.graph.node if node.op_type == "Conv")
        proto.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))

    model = read_foreign(changed(exported, tmp_path, add))
    notes = foreign_notes(model)
    assert model.graph.outputs[0].name == "scores"
    assert len(model.graph.outputs) == 2
    assert notes.classes == ("scores", 5)
    assert (notes.dropped_outputs, notes.has_logits) == ((), False)


def test_a_value_that_has_our_name_makes_room(network: nn.Module, tmp_path: Path) -> None:
    path = export(network, tmp_path / "m.onnx", "torchscript", 17, names=("logits", "input"))
    model = read_foreign(path)
    assert [value.name for value in (*model.graph.inputs, *model.graph.outputs)] == ["input", "logits"]
    assert error_of(model, network) < FLOAT32_ERROR


def test_softmax_before_opset_13_flattens(tmp_path: Path) -> None:
    """Over all axes from 1 on: after the upgrade it still sums to one over 1 x 2 x 2 numbers, not over the one channel."""
    nodes = [helper.make_node("Softmax", ["x"], ["s"], axis=1), helper.make_node("Flatten", ["s"], ["y"])]
    model = read_foreign(write(tmp_path / "m.onnx", small(nodes, opset=11, shape=("n", 1, 2, 2))))
    found = run(model, np.random.default_rng(0).standard_normal((3, 1, 2, 2)).astype(np.float32))["logits"]
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)  # four float32 numbers that sum to one


def test_initializers_among_the_inputs_are_no_inputs(exported: bytes, tmp_path: Path) -> None:
    """As files of IR version 3 have it."""

    def list_them(proto: ModelProto) -> None:
        for tensor in proto.graph.initializer:
            proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))

    assert len(read_foreign(changed(exported, tmp_path, list_them)).graph.inputs) == 1


def test_functions_are_inlined(tmp_path: Path) -> None:
    body = [helper.make_node("Relu", ["a"], ["r"]), helper.make_node("Neg", ["r"], ["b"])]
    opsets = [helper.make_opsetid("", 19)]
    function = helper.make_function("mine", "ReluNeg", ["a"], ["b"], body, opsets)
    nodes = [helper.make_node("ReluNeg", ["x"], ["t"], domain="mine"), helper.make_node("Flatten", ["t"], ["y"])]
    proto = small(nodes)
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    model = read_foreign(write(tmp_path / "m.onnx", proto))
    assert [node.op_type for node in model.graph] == ["Relu", "Neg", "Flatten"]


def test_a_dimension_of_minus_one_is_free(tmp_path: Path) -> None:
    """As Paddle's and TensorFlow's exporters write it."""
    model = read_foreign(write(tmp_path / "m.onnx", small([RELU], shape=(-1, 3, -1, -1))))
    assert [str(size) for size in model.graph.inputs[0].shape or ()] == ["batch", "3", "height", "width"]


def small(
    nodes: list[onnx.NodeProto],
    *,
    opset: int = 19,
    shape: tuple[int | str, ...] = ("n", 3, 4, 4),
    dtype: int = TensorProto.FLOAT,
    inputs: tuple[str, ...] = ("x",),
) -> ModelProto:
    """A model of ``nodes`` from x to y."""
    return model_of(nodes, dict.fromkeys(inputs, shape), {"y": None}, dtype=dtype, opset=opset)


RELU = helper.make_node("Relu", ["x"], ["y"])
FLATTEN = helper.make_node("Flatten", ["x"], ["y"], name="flat")

REFUSED: dict[str, tuple[ModelProto, type[Exception], str]] = {
    "text": (small([FLATTEN], dtype=TensorProto.STRING), UsageError, r"x is string\['n', 3, 4, 4\], but float32, int64"),
    "float64": (small([FLATTEN], dtype=TensorProto.DOUBLE), UsageError, r"x is double\['n', 3, 4, 4\], but float32"),
    "no pixel": (small([RELU], shape=("N", 3, 0, 4)), UsageError, r"a dimension of 0 holds nothing"),
    "a number": (small([RELU], shape=()), UsageError, r"float\[\], of rank 0; skdeploy takes 1 to 8 dimensions"),
    "integer output": (
        model_of(
            [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.UINT16)],
            {"x": ("n", 3, 4, 4)},
            {"y": None},
            result=TensorProto.UINT16,
        ),
        UsageError,
        r"takes float32, integers of 8, 32 or 64 bits, and booleans, but the outputs are y \(uint16, by ",
    ),
    "custom operator": (
        small([helper.make_node("Mish", ["x"], ["t"], name="act", domain="com.acme"), FLATTEN]),
        ExportError,
        "the node act is com.acme.Mish, an operator that is not ONNX's own",
    ),
    "unknown operator": (
        small([helper.make_node("Flattened", ["x"], ["y"], name="flat")]),
        ExportError,
        "the node flat is ai.onnx.Flattened, which opset 19 does not have",
    ),
    "operator of a later opset": (
        small([helper.make_node("Gelu", ["x"], ["t"], name="act"), FLATTEN]),
        ExportError,
        "the node act is ai.onnx.Gelu, which opset 19 does not have",
    ),
    "too new": (
        small([FLATTEN], opset=NEWEST_OPSET + 1),
        ExportError,
        rf"has opset {NEWEST_OPSET + 1}; skdeploy reads 7 to {NEWEST_OPSET}, with onnx {onnx.__version__}",
    ),
    "too old": (small([FLATTEN], opset=6), ExportError, "has opset 6; skdeploy reads 7 to"),
    "empty": (small([]), IntegrityError, "holds no nodes"),
    "impossible shapes": (
        small([helper.make_node("Transpose", ["x"], ["y"], perm=[0, 1])]),
        ExportError,
        "ONNX Runtime cannot",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_image_classifier_is_refused(name: str, tmp_path: Path) -> None:
    proto, error, message = REFUSED[name]
    path = write(tmp_path / "m.onnx", proto)
    with pytest.raises(error, match=message) as failure:
        read_foreign(path)
    assert str(path) in str(failure.value)
    assert getattr(failure.value, "advice", "")


def test_maps_are_logits_of_nobody(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", small([helper.make_node("Relu", ["x"], ["y"])]))
    with pytest.raises(UsageError, match=r"\[3, 3, 4, 4\], but a classifier gives"):
        read_foreign(path, has_classes=True)
    assert [str(value.name) for value in read_foreign(path).graph.outputs] == ["y"]


def test_outputs_keep_their_names_and_their_types(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["low"]),
        helper.make_node("Flatten", ["low"], ["logits"]),  # a name of ours, that is not ours here
        helper.make_node("ArgMax", ["x"], ["mask"], axis=1),
    ]
    proto = small(nodes)
    del proto.graph.output[:]
    types = {"low": TensorProto.FLOAT, "mask": TensorProto.INT64, "logits": TensorProto.FLOAT}
    proto.graph.output.extend(helper.make_tensor_value_info(name, kind, None) for name, kind in types.items())
    model = read_foreign(write(tmp_path / "m.onnx", proto), has_classes=False)
    shapes = {value.name: str(value.shape) for value in model.graph.outputs}
    assert shapes == {"low": "[batch,3,4,4]", "mask": "[batch,1,4,4]", "logits": "[batch,48]"}
    assert foreign_notes(model).dropped_outputs == ()
    images = np.random.default_rng(0).standard_normal((3, 3, 4, 4)).astype(np.float32)
    found = run(model, images)
    np.testing.assert_array_equal(found["low"], np.maximum(images, 0))
    np.testing.assert_array_equal(found["logits"], np.maximum(images, 0).reshape(3, -1))
    np.testing.assert_array_equal(found["mask"], images.argmax(1, keepdims=True))


def test_a_classifier_that_ends_in_an_argmax_gives_class_numbers(tmp_path: Path) -> None:
    nodes = [FLATTEN, helper.make_node("ArgMax", ["y"], ["ids"], axis=1, keepdims=0)]
    proto = small(nodes)
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("ids", TensorProto.INT64, None))
    path = write(tmp_path / "m.onnx", proto)
    for asked in (None, True):
        notes = foreign_notes(read_foreign(path, has_classes=asked))
        assert notes.classes == ("ids", 48)
        assert (notes.has_logits, notes.picked) == (False, True)
    assert foreign_notes(read_foreign(path, has_classes=False)).classes is None


def test_class_numbers_that_were_changed_do_not_say_how_many_there_are(tmp_path: Path) -> None:
    nodes = [
        FLATTEN,
        helper.make_node("ArgMax", ["y"], ["best"], axis=1, keepdims=0),
        helper.make_node("Add", ["best", "one"], ["ids"]),
    ]
    proto = small(nodes)
    proto.graph.initializer.append(numpy_helper.from_array(np.array(1), "one"))
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("ids", TensorProto.INT64, None))
    path = write(tmp_path / "m.onnx", proto)
    assert foreign_notes(read_foreign(path)).classes is None
    with pytest.raises(UsageError, match="nothing says how many classes") as refused:
        read_foreign(path, has_classes=True)
    assert "--classes" in refused.value.advice
    assert foreign_notes(read_foreign(path, has_classes=True, classes=49)).classes == ("ids", 49)


@pytest.mark.parametrize("content", [b"", b"this is text, and no model at all", b"\x08\x07\x12", None])
def test_other_files_and_truncated_ones_are_refused(content: bytes | None, exported: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(exported[: len(exported) // 2] if content is None else content)
    with pytest.raises(IntegrityError, match="cannot be read as ONNX" if content != b"" else "holds no nodes"):
        read_foreign(tmp_path / "m.onnx")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"none\.onnx cannot be read"):
        read_foreign(tmp_path / "none.onnx")


@pytest.mark.parametrize("opset", [1001, 2**31, 2**63 - 1])
def test_an_opset_that_onnx_cannot_have_is_refused(opset: int, tmp_path: Path) -> None:
    proto = small([helper.make_node("Relu", ["x"], ["y"])])
    proto.opset_import[0].version = opset
    with pytest.raises(IntegrityError, match=f"has the opset {opset}, which ONNX does not have"):
        read_foreign(write(tmp_path / "m.onnx", proto))


def test_a_batch_that_was_baked_in_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    proto = small(nodes)
    proto.graph.initializer.append(numpy_helper.from_array(np.array([2, -1]), "shape"))
    with pytest.raises(UsageError, match=r"for 3 images the output logits is \[2, 72\]"):
        read_foreign(write(tmp_path / "m.onnx", proto))


def scaled_by_mistake(model: ModelProto, version: int) -> ModelProto:
    result: ModelProto = CONVERT(model, version)
    weight = next(tensor for tensor in result.graph.initializer if len(tensor.dims) == 4)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
    return result


def failing(model: ModelProto, version: int) -> ModelProto:
    raise RuntimeError("no adapter\nfor this")


CONVERT = onnx.version_converter.convert_version


@pytest.mark.parametrize(
    ("converter", "said"),
    [
        (scaled_by_mistake, r"converting .* from opset 17 to 19 changed the function: logits differs"),
        (failing, "cannot be upgraded from opset 17 to 19: no adapter"),
    ],
)
def test_an_upgrade_that_changes_the_function_or_fails_is_caught(
    exported: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    converter: Callable[[ModelProto, int], ModelProto],
    said: str,
) -> None:
    monkeypatch.setattr(onnx.version_converter, "convert_version", converter)
    with pytest.raises(PassError, match=said):
        read_foreign(changed(exported, tmp_path))


def external(exported: bytes, folder: Path, location: str = "weights.bin") -> Path:
    """The model with its weights in a file of their own, which the model calls ``location``."""
    folder.mkdir()
    proto = onnx.load_from_string(exported)
    onnx.save(
        proto, folder / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0,
        convert_attribute=True,
    )  # fmt: skip
    proto = onnx.load(folder / "m.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    return write(folder / "m.onnx", proto)


def test_external_weights_are_inlined(exported: bytes, network: nn.Module, tmp_path: Path) -> None:
    path = external(exported, tmp_path / "model")
    model = read_foreign(path)
    (path.parent / "weights.bin").unlink()
    assert error_of(model, network) < FLOAT32_ERROR


@pytest.mark.parametrize(
    ("left", "said", "advice"),
    [
        (None, r"are in weights\.bin, which does not exist", "copy weights.bin"),
        (-1, r"are bytes \d+ to \d+ of weights\.bin, which has only \d+", "cut off"),
    ],
)
def test_missing_and_truncated_external_weights_are_told(
    exported: bytes, tmp_path: Path, left: int | None, said: str, advice: str
) -> None:
    path = external(exported, tmp_path / "model")
    weights = path.parent / "weights.bin"
    content = weights.read_bytes()
    weights.unlink() if left is None else weights.write_bytes(content[:left])
    with pytest.raises(IntegrityError, match=said) as failure:
        read_foreign(path)
    assert advice in failure.value.advice


@pytest.mark.parametrize("way", ["parent", "absolute", "inside and out", "symlink", "nameless"])
def test_weights_outside_the_folder_are_refused(exported: bytes, tmp_path: Path, way: str) -> None:
    outside = tmp_path / "weights.bin"
    location = {
        "parent": "../weights.bin", "absolute": str(outside), "inside and out": "a/../../weights.bin",
        "symlink": "link.bin", "nameless": "",
    }[way]  # fmt: skip
    path = external(exported, tmp_path / "model", location)
    outside.write_bytes((path.parent / "weights.bin").read_bytes())
    (path.parent / "link.bin").symlink_to(outside)
    with pytest.raises(IntegrityError, match="which is not inside the folder of the model"):
        read_foreign(path)
