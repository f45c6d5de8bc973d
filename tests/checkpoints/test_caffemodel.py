"""The paper's Caffe files: read without Caffe, and what they compute compared with Caffe's own definitions in numpy."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from skdeploy.checkpoints import caffemodel
from skdeploy.checkpoints.caffemodel import is_caffemodel, read_caffemodel
from skdeploy.checkpoints.importing import Imported, import_checkpoint, import_without_card
from skdeploy.checkpoints.infer import differences, infer
from skdeploy.checkpoints.layouts import caffe
from skdeploy.checkpoints.read import read_checkpoint
from skdeploy.checkpoints.recognise import assemble, recognise
from skdeploy.core.errors import WeightsError
from skdeploy.zoo.build import build, build_meta
from skdeploy.zoo.cards import load_card
from skdeploy.zoo.fold import count_parameters
from tests.checkpoints import caffe_reference as reference
from tests.checkpoints import caffe_wire as wire
from tests.checkpoints.caffe_reference import Array, Layer, Stage
from tests.checkpoints.caffe_tiny import LAYERS, SIZE, TOLERANCE, card, distance
from tests.checkpoints.files import FORMATS, refused, small_state, written

Blobs = dict[str, list[Array]]


@pytest.fixture(scope="module")
def blobs() -> Blobs:
    return reference.trained(LAYERS, 3, 5)


@pytest.fixture(scope="module")
def data() -> Array:
    return np.random.default_rng(6).normal(0, 1, (2, 3, *SIZE)).astype(np.float32).astype(np.float64)


@pytest.fixture
def file(blobs: Blobs, tmp_path: Path) -> Path:
    return written(tmp_path, reference.caffemodel(LAYERS, blobs), "tiny.caffemodel")


def logits(imported: Imported, data: Array) -> Array:
    network = build(imported.spec)
    missing, unexpected = network.load_state_dict(imported.state, strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    with torch.inference_mode():
        result: Array = network.eval()(torch.from_numpy(data).float()).double().numpy()
    return result


# ----- the function


def test_a_caffemodel_computes_what_caffe_does(file: Path, blobs: Blobs, data: Array) -> None:
    imported = import_checkpoint(file, card())
    assert imported.layout == "official Caffe"
    assert distance(logits(imported, data), reference.forward(LAYERS, blobs, data)) < TOLERANCE


def test_where_it_is_not_as_the_card_says_it_is_told(file: Path) -> None:
    (inferred,) = (note for note in import_checkpoint(file, card()).notes if "inferred" in note)
    assert "stem.ceil_mode is True, not False" in inferred
    assert "stages.1.gate_width is 4, not 8" in inferred
    assert inferred.count(" is ") == 2


def test_without_a_card_the_same_network_is_inferred(file: Path, blobs: Blobs, data: Array) -> None:
    imported, zoo = import_without_card(file)
    assert zoo == ""
    assert not differences(imported.spec.architecture, import_checkpoint(file, card()).spec.architecture)
    assert distance(logits(imported, data), reference.forward(LAYERS, blobs, data)) < TOLERANCE


@pytest.mark.parametrize("encode", [wire.old_blob, wire.double_blob])
def test_old_and_double_blobs_are_the_same_weights(
    encode: Callable[[Array], bytes], blobs: Blobs, data: Array, tmp_path: Path
) -> None:
    path = written(tmp_path, reference.caffemodel(LAYERS, blobs, encode))
    found = logits(import_checkpoint(path, card()), data)
    assert distance(found, reference.forward(LAYERS, blobs, data)) < TOLERANCE


def _pool_of_torch(bottoms: list[Array], _blobs: list[Array], _options: object) -> list[Array]:
    return [torch.nn.functional.max_pool2d(torch.from_numpy(bottoms[0]), 3, 2, 1).numpy()]


def _changed_blobs(blobs: Blobs, ending: str, change: Callable[[list[Array]], list[Array]]) -> Blobs:
    changed = {name: change(group) if name.endswith(ending) else group for name, group in blobs.items()}
    assert any(changed[name] is not blobs[name] for name in blobs)
    return changed


def _channel_major(group: list[Array]) -> list[Array]:
    rows, width = group[0].shape[:2]
    return [group[0].reshape(2, rows // 2, width).swapaxes(0, 1).reshape(group[0].shape)]


@pytest.mark.parametrize(
    ("ending", "change"),
    [
        ("B_fc2", _channel_major),
        ("B_fc2", lambda group: [np.roll(group[0], len(group[0]) // 2, axis=0)]),  # the other branch first
        ("B_fc2", lambda group: [0 * group[0]]),  # a gate of one half
        ("3x3g32d2/bn", lambda group: [group[1], group[0], *group[2:]]),  # bias before scale
        ("1x1_increase/bn", lambda group: [*group[:2], group[3], group[2] ** 2]),  # variance before mean
        ("1x1_reduce/bn", lambda group: [*group[:3], 1 / np.sqrt(group[3])]),  # 1 / sigma in place of the variance
        ("classifier", lambda group: [group[0], 0 * group[1]]),
    ],
)
def test_blobs_taken_for_others_would_be_seen(
    ending: str, change: Callable[[list[Array]], list[Array]], file: Path, blobs: Blobs, data: Array
) -> None:
    other = reference.forward(LAYERS, _changed_blobs(blobs, ending, change), data)
    assert distance(logits(import_checkpoint(file, card()), data), other) > 100 * TOLERANCE


PLAIN = [
    replace(each, options=each.options | {"dilation": 1, "pad": 1}) if each.name.endswith("g32d2") else each
    for each in LAYERS
]


@pytest.mark.parametrize(
    ("layers", "pooling", "epsilon", "least"),
    [
        (LAYERS, _pool_of_torch, reference.EPSILON, 100),
        (LAYERS, reference.max_pool, 1e-3, 100),
        # 9e-6 less beside a quiet channel's variance of 0.01 is 4.5e-4 of its values, and some layers add that up in a quarter
        # of the channels: about 1e-3 of the logits, 100 TOLERANCE, and a tenth of that is asked for.
        (LAYERS, reference.max_pool, 1e-6, 10),
        (PLAIN, reference.max_pool, reference.EPSILON, 100),
    ],
    ids=["pool", "large epsilon", "small epsilon", "dilation"],
)
def test_another_forward_would_be_seen(
    layers: list[Layer], pooling: Any, epsilon: float, least: int, file: Path, blobs: Blobs, data: Array,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setitem(reference.RUN, "Pooling", pooling)
    monkeypatch.setattr(reference, "EPSILON", epsilon)
    other = reference.forward(layers, blobs, data)
    assert distance(logits(import_checkpoint(file, card()), data), other) > least * TOLERANCE


# ----- the official networks, by their names and shapes


@pytest.mark.parametrize(
    ("name", "units", "gates", "parameters", "changed"),
    [
        ("sknet50", (3, 4, 6, 3), (32, 32, 32, 64), 27_479_784, {"stem.ceil_mode"}),
        # conv3_x of sknet101.prototxt has num_output: 16 in B_fc1: 4 * (256 + 2 + 512) * 16 fewer than the paper's rule gives
        ("sknet101", (3, 4, 23, 3), (32, 16, 32, 64), 48_736_040 - 49_280, {"stem.ceil_mode", "stages.1.gate_width"}),
    ],
)
def test_the_official_files_are_the_cards_but_for_pool_and_gate(
    name: str, units: tuple[int, ...], gates: tuple[int, ...], parameters: int, changed: set[str]
) -> None:
    stages = [
        Stage(count, 128 << index, 256 << index, min(index + 1, 2), gate)
        for index, (count, gate) in enumerate(zip(units, gates, strict=True))
    ]
    official = reference.shapes(reference.sknet(64, stages, 32, 1000), 3)
    path = Path(f"{name}.caffemodel")
    with torch.device("meta"):
        tensors = {
            f"{layer}:{i}": torch.empty(shape) for layer, group in official.items() for i, shape in enumerate(group)
        }
        state = assemble(tensors, recognise(tensors, path).canonical, path)
    network, channels = infer({key: tuple(each.shape) for key, each in state.items()}, caffe.LAYOUT.implied, path)
    spec, _ = load_card(name)
    assert channels == 3
    assert {key for key, _, _ in differences(spec.architecture, network)} == changed
    wanted = build_meta(spec.model_copy(update={"network": network}))
    shapes = {key: each.shape for key, each in wanted.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert {key: each.shape for key, each in state.items()} == shapes
    assert count_parameters(wanted) == parameters


# ----- reading


def test_every_blob_has_its_layers_name_its_number_its_shape_and_its_values(file: Path, blobs: Blobs) -> None:
    tensors = read_checkpoint(file).tensors
    assert tensors.keys() == {f"{name}:{i}" for name, group in blobs.items() for i in range(len(group))}
    for name, group in blobs.items():
        for index, blob in enumerate(group):
            tensor = tensors[f"{name}:{index}"]
            assert tensor.dtype == torch.float32
            assert tensor.shape == blob.shape
            assert np.array_equal(tensor.numpy(), blob)  # float32 numbers, so exactly


def test_an_old_blob_keeps_its_four_dimensions(tmp_path: Path) -> None:
    path = written(tmp_path, wire.net("n", [wire.layer("ip", "InnerProduct", [wire.old_blob(np.ones((2, 3)))])]))
    assert read_caffemodel(path)["ip:0"].shape == (1, 1, 2, 3)


def test_a_scalar_and_an_empty_blob_are_what_their_shapes_say(tmp_path: Path) -> None:
    layer = wire.layer("l", "T", [wire.blob(np.array(2.5)), wire.blob(np.ones((0, 3)))])
    tensors = read_caffemodel(written(tmp_path, wire.net("n", [layer])))
    assert tensors["l:0"].shape == ()
    assert tensors["l:0"].item() == 2.5
    assert tensors["l:1"].shape == (0, 3)


def test_fields_that_do_not_matter_are_passed_over(file: Path) -> None:
    """``force_backward``, ``input_shape`` and a net without a name, as old snapshots have them."""
    content = file.read_bytes()
    named = wire.delimited(1, "sknet_tiny")
    shape = wire.delimited(8, wire.delimited(1, wire.varint(1) + wire.varint(3)))
    extended = wire.delimited(3, "data") + shape + wire.number(5, 1) + content.removeprefix(named) + wire.number(7, 1)
    assert is_caffemodel(extended[:512])
    expected = read_caffemodel(file)
    found = read_caffemodel(written(file.parent, extended, "extended"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_fixed_field_beside_the_layers_is_passed_over(tmp_path: Path) -> None:
    layer = wire.layer("l", "T", [wire.blob(np.ones(1))])
    odd = wire.varint(200 << 3 | 5) + struct.pack("<f", 1.0) + wire.varint(201 << 3 | 1) + struct.pack("<d", 1.0)
    assert read_caffemodel(written(tmp_path, wire.net("n", [layer]) + odd)).keys() == {"l:0"}


# ----- what is one


@pytest.mark.parametrize("name", ["weights", "weights.pth", "weights.txt"])
def test_the_name_of_the_file_does_not_matter(name: str, file: Path) -> None:
    assert len(read_checkpoint(file.rename(file.with_name(name))).tensors) == len(read_caffemodel(file.with_name(name)))


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
def test_another_checkpoint_is_not_taken_for_one(make: Callable[..., bytes]) -> None:
    assert not is_caffemodel(make(small_state())[:512])


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\n",
        b"\n\n\n\n",
        b'name: "sknet50"\nlayer {\n',
        b'\nname: "sknet50"\nlayer { name: "conv1" }\n' * 9,
        "\n¢ a text in UTF-8 ¢\x06 after an empty line".encode(),
        b"\x08\x07\x12\x07pytorch\x1a\x052.9.0",  # ONNX: ir_version, producer
        b"\n\x10\n\x04conv\x12\x08Constant" * 9,  # TensorFlow: nodes with a name and an operation
        b"\n\x03net\xa2\x06\x05\x08\x01\x10\x02\x18",  # a field 100 that is no layer
        b"\n\x03net\xa2\x06\x08\n\x01\x07\x12\x03Foo",  # a layer with a name that cannot be read
        b"\n\x03n\x00t" + wire.layer("a", "T"),  # a net with a name that cannot be read
        b"\n\x03net\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80",  # a number longer than any
        b"\x00" * 512,
        bytes(range(256)) * 2,
    ],
)
def test_another_file_is_not_taken_for_one(head: bytes) -> None:
    assert not is_caffemodel(head)


@pytest.mark.parametrize(
    "layer",
    [
        wire.delimited(2, "data") + wire.delimited(3, "conv1") + wire.delimited(4, "conv1") + wire.number(5, 4),
        wire.delimited(4, "data") + wire.number(5, 5),
        wire.delimited(1, wire.delimited(1, "conv1") + wire.delimited(2, "conv")),  # V0
    ],
)
def test_the_format_before_2014_is_refused_by_name(layer: bytes, tmp_path: Path) -> None:
    error = refused(written(tmp_path, wire.delimited(1, "old") + wire.delimited(2, layer)))
    assert "V1 layers, the format of Caffe before November 2014" in error.message
    assert "upgrade_net_proto_binary" in error.advice


# ----- what is wrong with one


def test_a_file_cut_in_half_is_said_to_be_cut(file: Path) -> None:
    content = file.read_bytes()
    error = refused(written(file.parent, content[: len(content) // 2]))
    assert "is cut off: the caffemodel ends inside layer" in error.message
    assert "download it again" in error.advice


def test_wherever_it_is_cut_it_is_refused(tmp_path: Path) -> None:
    """Also between two layers, where what is left is a whole message: then there is no classifier."""
    blobs = reference.trained(LAYERS, 3, 1)
    content = reference.caffemodel(LAYERS, blobs)
    start = len(wire.net("sknet_tiny", [wire.layer("input", "Input", top="data")]))
    after_conv1 = start + len(
        wire.layer("conv1/7x7_s2", "Convolution", [wire.blob(blobs["conv1/7x7_s2"][0])], ["data"])
    )
    end = content.rindex(wire.delimited(1, "classifier"))
    for cut in [*range(start + 1, start + 60), after_conv1, *range(after_conv1, end, 20_011), end, len(content) - 1]:
        with pytest.raises(WeightsError, match=r"cut|holds no weights|not a whole network|no selective kernel"):
            import_checkpoint(written(tmp_path, content[:cut]), card())


@pytest.mark.parametrize("layers", [0, 1])
def test_a_file_cut_beside_its_layers_is_said_to_be_cut(layers: int, tmp_path: Path) -> None:
    content = wire.net("n", [wire.layer("a", "T", [wire.blob(np.ones(1))])] * layers) + wire.delimited(200, b"x" * 99)
    with pytest.raises(WeightsError, match="ends inside layer 1" if layers else "ends inside its header"):
        read_caffemodel(written(tmp_path, content[:-1]))


def shaped(values: int, shape: tuple[int, ...]) -> bytes:
    return wire.layer("conv1", "Convolution", [wire.blob(np.ones(values), shape=shape)])


ONE = wire.layer("a", "T", [wire.blob(np.ones(1))])
HALF_A_VALUE = wire.delimited(7, wire.delimited(1, b"\x02")) + wire.delimited(5, wire.floats([1.0, 2.0])[:-1])
NO_MESSAGE = wire.delimited(100, wire.delimited(1, "b") + wire.delimited(2, "T") + b"\x3a\x7f")
BROKEN: dict[str, tuple[bytes, str]] = {
    "other than its shape": (
        shaped(6, (2, 4)),
        "blob 0 of the layer 'conv1' has 6 values, but its shape (2, 4) needs 8",
    ),
    # refused before any memory is asked for
    "a shape that no memory holds": (shaped(6, ((1 << 64) - 2, (1 << 64) - 3)), "has 6 values"),
    "a large shape": (shaped(6, (1 << 40, 1 << 40)), "has 6 values"),
    "33 dimensions": (shaped(1, (1,) * 33), "33 dimensions"),
    "a product that Python does not write out": (shaped(1, (2**62,) * 400), "400 dimensions"),
    "a long product": (shaped(1, (2**62,) * 32), "but its shape"),
    "nothing of a large size": (shaped(0, (2**62, 0)), "too large for any memory"),
    "half a value": (wire.layer("l", "T", [HALF_A_VALUE]), "has 1.75 values"),
    "a layer that is no message": (ONE + NO_MESSAGE, "is damaged: its layer 2"),
    "rubbish after a layer": (ONE + b"\xff" * 20, "is damaged: the data after layer 1"),
    "two layers of one name": (ONE * 2, "two layers with weights named 'a'"),
    "no blobs": (wire.layer("a", "T") + wire.layer("b", "T"), "none of its 2 layers has any"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_refused_with_what_is_wrong(kind: str, tmp_path: Path) -> None:
    layers, words = BROKEN[kind]
    assert words in refused(written(tmp_path, wire.net("n", [layers]))).message


@pytest.mark.parametrize(("limit", "value"), [("MAX_LAYERS", 1), ("MAX_LAYER_BYTES", 10)])
def test_a_file_over_a_limit_is_refused(
    limit: str, value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caffemodel, limit, value)
    path = written(tmp_path, wire.net("n", [wire.layer(name, "T", [wire.blob(np.ones(1))]) for name in "ab"]))
    assert "is refused: it has more than" in refused(path).message


def test_a_layer_of_a_plain_resnet_fits_no_layout(tmp_path: Path) -> None:
    layer = wire.layer("res2a_branch2b", "Convolution", [wire.blob(np.ones((4, 4, 3, 3)))])
    with pytest.raises(WeightsError, match="fit no known layout") as error:
        import_without_card(written(tmp_path, wire.net("ResNet-50", [layer])))
    assert "res2a_branch2b:0" in error.value.message


def test_a_branch_too_many_is_not_left_out_in_silence(tmp_path: Path, blobs: Blobs) -> None:
    extra = Layer("conv2_1/3x3g32d3", "Convolution", ("data",), ("conv2_1/3x3g32d3",))
    content = reference.caffemodel([*LAYERS, extra], blobs | {extra.name: [np.ones((8, 2, 3, 3))]})
    with pytest.raises(WeightsError, match="conv2_1/3x3g32d3:0"):
        import_checkpoint(written(tmp_path, content), card())


def test_safetensors_bytes_in_a_caffemodel_suffix_are_read_as_such(tmp_path: Path) -> None:
    path = written(tmp_path, save(small_state()), "weights.caffemodel")
    assert read_checkpoint(path).tensors.keys() == small_state().keys()
