"""Checkpoints: what is read, what is refused, and that reading one never runs code."""

from __future__ import annotations

import io
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from skdeploy.bundle.artifact import digest_file
from skdeploy.bundle.manifest import WeightsRecord
from skdeploy.checkpoints.load import check_state, find_weights, load_network, read_checkpoint, recorded_weights
from skdeploy.errors import WeightsError
from skdeploy.spec import ModelSpec, NetworkSpec, WeightsSpec
from skdeploy.zoo.cards import read_card
from skdeploy.zoo.sknet import SKNet, initialise

State = dict[str, Tensor]
CARD = Path(__file__).parents[1] / "fixtures/tiny.toml"


@pytest.fixture
def spec(tiny_spec: Callable[..., NetworkSpec]) -> ModelSpec:
    return read_card(CARD).model_copy(update={"network": tiny_spec()})


@pytest.fixture
def state(spec: ModelSpec) -> State:
    network = SKNet(spec.network, 3)
    initialise(network, 1)
    return network.state_dict()


def load(path: Path, spec: ModelSpec) -> State:
    record = WeightsRecord(source="checkpoint", file=str(path), sha256=digest_file(path))
    return load_network(spec, record, path).state_dict()


def refused(path: Path, spec: ModelSpec) -> WeightsError:
    with pytest.raises(WeightsError) as error:
        load(path, spec)
    assert error.value.exit_code == 2
    assert str(path) in error.value.message
    assert error.value.advice
    assert "weights_only" not in str(error.value)  # torch's own text tells how to load it unsafely
    return error.value


def torch_bytes(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


LEGACY = {"_use_new_zipfile_serialization": False}
FILES: dict[str, Callable[[State], bytes]] = {
    "safetensors": save,
    "zip": torch_bytes,
    "legacy pickle": lambda state: torch_bytes(state, **LEGACY),
    "in state_dict": lambda state: torch_bytes({"state_dict": state, "epoch": 3}),
    "in model": lambda state: torch_bytes({"model": state, "optimizer": {}}),
    "in model in state_dict": lambda state: torch_bytes({"state_dict": {"model": state}}),
    "from DataParallel": lambda state: torch_bytes({f"module.{key}": tensor for key, tensor in state.items()}),
    "wrapped and from DataParallel": lambda state: torch_bytes(
        {"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}}
    ),
    "without step counters": lambda state: torch_bytes(
        {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_weights_arrive_unchanged_from_every_kind_of_file(
    kind: str, spec: ModelSpec, state: State, tmp_path: Path
) -> None:
    path = tmp_path / "weights"  # the kind is told by the content, not by the name
    path.write_bytes(FILES[kind](state))
    found = load(path, spec)
    assert found.keys() == state.keys()
    for key, tensor in state.items():
        assert torch.equal(found[key], tensor), key


def test_the_network_is_ready_for_inference(spec: ModelSpec, state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "x.safetensors")
    network = load_network(spec, WeightsRecord(source="checkpoint"), tmp_path / "x.safetensors")
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_types_become_float32(
    dtype: torch.dtype, spec: ModelSpec, state: State, tmp_path: Path
) -> None:
    stored = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    save_file(stored, tmp_path / "x.safetensors")
    found = load(tmp_path / "x.safetensors", spec)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32, torch.int64}  # int64: the step counters
    for key, tensor in stored.items():
        assert torch.equal(found[key], tensor.to(found[key].dtype)), key


def test_random_weights_are_the_same_for_the_same_seed_alone(spec: ModelSpec) -> None:
    one, same, other = (
        load_network(spec, WeightsRecord(source="random", seed=seed), None).state_dict()["stem.conv.weight"]
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


# ----- damaged and foreign files


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy pickle"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused_wherever_it_ends(
    kind: str, share: float, spec: ModelSpec, state: State, tmp_path: Path
) -> None:
    whole = FILES[kind](state)
    path = tmp_path / "cut.pth"
    path.write_bytes(whole[: int(len(whole) * share)])
    refused(path, spec)


@pytest.mark.parametrize("first", [b"PK", b"\x80", b"\x80\x02", b"PK\x03\x04", b"\x08\0\0\0\0\0\0\0{"])
def test_garbage_behind_a_right_beginning_is_refused(first: bytes, spec: ModelSpec, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(first + bytes(range(255, 0, -1)) * 4)
    refused(path, spec)


def test_an_empty_file_is_called_empty(spec: ModelSpec, tmp_path: Path) -> None:
    (tmp_path / "x.pth").touch()
    assert "is empty" in refused(tmp_path / "x.pth", spec).message


def test_a_text_file_by_another_name_is_refused(spec: ModelSpec, tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 10\n")
    error = refused(tmp_path / "x.pth", spec)
    assert "neither a safetensors file nor a PyTorch checkpoint" in error.message
    assert "save_file" in error.advice


def test_another_programs_zip_is_refused(spec: ModelSpec, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as file:
        file.writestr("word/document.xml", "<w/>")
    refused(tmp_path / "x.pth", spec)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "holds no state_dict but a list"),
        ({}, "holds no state_dict but a dict"),
        ({"epoch": 3, "net": {}}, "epoch: int"),
        ({0: torch.zeros(2)}, "0: Tensor"),
    ],
)
def test_a_file_without_a_state_dict_says_what_it_holds(
    content: Any, words: str, spec: ModelSpec, tmp_path: Path
) -> None:
    (tmp_path / "x.pth").write_bytes(torch_bytes(content))
    assert words in refused(tmp_path / "x.pth", spec).message


def test_a_program_is_no_checkpoint(spec: ModelSpec, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and such files are about all the same
        torch.jit.script(torch.nn.ReLU()).save(str(tmp_path / "x.pt"))
    assert "TorchScript" in refused(tmp_path / "x.pt", spec).message


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch '{self.mark}'",)


@pytest.mark.parametrize(
    "pack",
    [
        torch_bytes,
        lambda content: torch_bytes(content, **LEGACY),
        pickle.dumps,
        lambda content: pickle.dumps(content, protocol=2),
        lambda content: torch_bytes({"state_dict": content}),
    ],
    ids=["zip", "legacy", "pickle", "pickle 2", "wrapped"],
)
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(
    pack: Callable[[Any], bytes], spec: ModelSpec, tmp_path: Path
) -> None:
    mark = tmp_path / "it ran"
    Payload(mark).__reduce__()[0](*Payload(mark).__reduce__()[1])  # type: ignore[operator, misc]
    assert mark.exists()  # the payload works where it is let
    mark.unlink()
    path = tmp_path / "evil.pth"
    path.write_bytes(pack({"stem.conv.weight": Payload(mark)}))
    assert "is refused" in refused(path, spec).message
    assert not mark.exists()


def test_a_whole_pickled_module_is_refused_with_the_class_it_wants(spec: ModelSpec, tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(torch_bytes(torch.nn.Linear(2, 2)))
    error = refused(tmp_path / "x.pth", spec)
    assert "torch.nn.modules.linear.Linear" in error.message
    assert "state_dict" in error.advice


# ----- another network's weights


def test_foreign_keys_are_listed_ten_of_each_at_most(spec: ModelSpec, state: State, tmp_path: Path) -> None:
    foreign = {f"layer{stage}.{block}.conv1.weight": torch.zeros(1) for stage in range(1, 5) for block in range(3)}
    save_file(foreign, tmp_path / "resnet.safetensors")
    message = refused(tmp_path / "resnet.safetensors", spec).message
    needed = sum(not key.endswith("num_batches_tracked") for key in state)
    assert f"missing ({needed}):" in message
    assert f"... and {needed - 10} more" in message
    assert "unexpected (12):" in message
    assert "... and 2 more" in message
    assert "layer1.0.conv1.weight" in message
    assert message.count("\n    ") == 2 * 11  # ten names and the rest, twice


def test_one_missing_and_one_unexpected_key_are_named(spec: ModelSpec, state: State, tmp_path: Path) -> None:
    state["stem.conv.kernel"] = state.pop("stem.conv.weight")
    save_file(state, tmp_path / "x.safetensors")
    message = refused(tmp_path / "x.safetensors", spec).message
    assert "missing (1):\n    stem.conv.weight" in message
    assert "unexpected (1):\n    stem.conv.kernel" in message


def test_a_tensor_of_another_shape_is_named_with_both(spec: ModelSpec, state: State, tmp_path: Path) -> None:
    state["stem.conv.weight"] = torch.zeros(8, 1, 3, 3)
    save_file(state, tmp_path / "x.safetensors")
    message = refused(tmp_path / "x.safetensors", spec).message
    assert "stem.conv.weight: (8, 1, 3, 3) in the file, (8, 3, 3, 3) in the network" in message


def test_another_class_count_names_both(spec: ModelSpec, state: State, tmp_path: Path) -> None:
    state["classifier.weight"], state["classifier.bias"] = torch.zeros(9, 16), torch.zeros(9)
    save_file(state, tmp_path / "x.safetensors")
    error = refused(tmp_path / "x.safetensors", spec)
    assert "trained for 9 classes" in error.message
    assert "says 5" in error.message
    assert "network.classes = 9" in error.advice


def test_a_classifier_without_a_shape_is_another_shape(spec: ModelSpec, state: State, tmp_path: Path) -> None:
    state["classifier.weight"] = torch.tensor(1.0)
    save_file(state, tmp_path / "x.safetensors")
    assert "classifier.weight: () in the file" in refused(tmp_path / "x.safetensors", spec).message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_named(value: float, spec: ModelSpec, state: State, tmp_path: Path) -> None:
    state["stem.bn.running_var"][3] = value
    save_file(state, tmp_path / "x.safetensors")
    message = refused(tmp_path / "x.safetensors", spec).message
    assert "NaN or infinite" in message
    assert "stem.bn.running_var" in message


def test_integers_in_place_of_weights_are_refused(spec: ModelSpec, state: State, tmp_path: Path) -> None:
    state["stem.conv.weight"] = state["stem.conv.weight"].to(torch.int8)
    save_file(state, tmp_path / "x.safetensors")
    error = refused(tmp_path / "x.safetensors", spec)
    assert "stem.conv.weight: torch.int8" in error.message
    assert "before any quantization" in error.advice


def test_a_state_that_fits_passes(spec: ModelSpec, state: State) -> None:
    check_state(state, state, spec, Path("x"))


# ----- which file


def test_given_weights_come_before_the_cards_own(spec: ModelSpec, state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "own.safetensors")
    save_file(state, tmp_path / "given.safetensors", metadata={"other": "bytes"})
    weights = WeightsSpec(file="own.safetensors", sha256=digest_file(tmp_path / "own.safetensors"))
    with_own = spec.model_copy(update={"weights": weights})
    card = tmp_path / "card.toml"
    assert find_weights(with_own, card, None, 0)[1] == tmp_path / "own.safetensors"
    record, path = find_weights(with_own, card, tmp_path / "given.safetensors", 0)
    assert path == tmp_path / "given.safetensors"
    assert record.sha256 == digest_file(tmp_path / "given.safetensors")
    assert find_weights(spec, card, None, 4) == (WeightsRecord(source="random", seed=4), None)


def test_the_cards_own_weights_must_be_the_ones_it_names(spec: ModelSpec, tmp_path: Path) -> None:
    (tmp_path / "own").write_text("other bytes")
    with_own = spec.model_copy(update={"weights": WeightsSpec(file="own", sha256="0" * 64)})
    with pytest.raises(WeightsError) as error:
        find_weights(with_own, tmp_path / "card.toml", None, 0)
    assert digest_file(tmp_path / "own") in error.value.message
    assert "0" * 64 in error.value.message


def test_weights_that_the_card_names_in_vain_are_named(spec: ModelSpec, tmp_path: Path) -> None:
    with_own = spec.model_copy(update={"weights": WeightsSpec(file="gone", sha256="0" * 64)})
    with pytest.raises(WeightsError, match="that are not there"):
        find_weights(with_own, tmp_path / "card.toml", None, 0)


def test_a_link_beside_the_card_may_not_lead_elsewhere(spec: ModelSpec, tmp_path: Path) -> None:
    (tmp_path / "cards").mkdir()
    (tmp_path / "elsewhere").touch()
    (tmp_path / "cards/own").symlink_to(tmp_path / "elsewhere")
    with_own = spec.model_copy(update={"weights": WeightsSpec(file="own", sha256="0" * 64)})
    with pytest.raises(WeightsError, match="outside its folder"):
        find_weights(with_own, tmp_path / "cards/card.toml", None, 0)


def test_recorded_weights_are_found_again_or_missed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("weights")
    record = WeightsRecord(source="checkpoint", file=str(path), sha256=digest_file(path))
    assert recorded_weights(record, None) == path
    assert recorded_weights(WeightsRecord(source="random", seed=1), None) is None
    with pytest.raises(WeightsError, match="are not here"):
        recorded_weights(record, tmp_path / "gone")
    path.write_text("other weights")
    with pytest.raises(WeightsError, match="is not the file that was exported"):
        recorded_weights(record, None)


@pytest.mark.parametrize(("path", "words"), [("/dev", "folder"), ("/dev/null", "device"), ("x/y", "No such file")])
def test_what_is_no_file_is_no_checkpoint(path: str, words: str, spec: ModelSpec) -> None:
    with pytest.raises(WeightsError, match=words):
        find_weights(spec, Path("card.toml"), Path(path), 0)


def test_a_checkpoint_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="Is a directory"):
        read_checkpoint(tmp_path)
