"""Weights into a network: which file, whether it fits, and what is said when it does not."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from skdeploy.checkpoints.load import check_state, find_weights, load_network
from skdeploy.checkpoints.weights_record import WeightsRecord
from skdeploy.core.architecture import SKNetSpec
from skdeploy.core.errors import WeightsError
from skdeploy.core.files import digest_file
from skdeploy.core.spec import ModelSpec, WeightsSpec
from skdeploy.zoo.build import initialise
from skdeploy.zoo.sknet import SKNet
from tests import tiny

State = dict[str, Tensor]
OTHER_BYTES = hashlib.sha256(b"other bytes").hexdigest()


@pytest.fixture
def spec(tiny_spec: Callable[..., SKNetSpec]) -> ModelSpec:
    return tiny.spec().model_copy(update={"network": tiny_spec()})


@pytest.fixture
def state(spec: ModelSpec) -> State:
    network = SKNet(spec.network, 3)
    initialise(network, 1)
    return network.state_dict()


def load(path: Path, spec: ModelSpec) -> State:
    return load_network(spec, path).state_dict()


def refused(path: Path, spec: ModelSpec) -> WeightsError:
    with pytest.raises(WeightsError) as error:
        load(path, spec)
    assert error.value.exit_code == 2
    assert str(path) in error.value.message
    assert error.value.advice
    assert "weights_only" not in str(error.value)  # torch's own text tells how to load it unsafely
    return error.value


def test_the_network_is_ready_for_inference(spec: ModelSpec, state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "x.safetensors")
    network = load_network(spec, tmp_path / "x.safetensors")
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 5)


@pytest.mark.parametrize("left_out", ["nothing", "step counters"])
def test_the_network_has_the_weights_of_the_file(left_out: str, spec: ModelSpec, state: State, tmp_path: Path) -> None:
    saved = {key: t for key, t in state.items() if left_out == "nothing" or not key.endswith("num_batches_tracked")}
    torch.save({"state_dict": {f"module.{key}": tensor for key, tensor in saved.items()}, "epoch": 3}, tmp_path / "x")
    found = load(tmp_path / "x", spec)
    assert found.keys() == state.keys()
    for key, tensor in state.items():
        assert torch.equal(found[key], tensor), key


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


MISFITS: dict[str, tuple[State, list[str], str]] = {
    "another shape": (
        {"stem.conv.weight": torch.zeros(8, 1, 3, 3)},
        ["stem.conv.weight: (8, 1, 3, 3) in the file, (8, 3, 3, 3) in the network"],
        "skdeploy's own",
    ),
    "another class count": (
        {"classifier.weight": torch.zeros(9, 16), "classifier.bias": torch.zeros(9)},
        ["trained for 9 classes", "says 5"],
        "network.classes = 9",
    ),
    "a classifier without a shape": (
        {"classifier.weight": torch.tensor(1.0)},
        ["classifier.weight: () in the file"],
        "",
    ),
    "integers": (
        {"stem.conv.weight": torch.zeros(8, 3, 3, 3, dtype=torch.int8)},
        ["stem.conv.weight: torch.int8"],
        "before any quantization",
    ),
    **{
        str(value): ({"stem.bn.running_var": torch.full((8,), value)}, ["NaN or infinite", "stem.bn.running_var"], "")
        for value in (float("nan"), float("inf"), float("-inf"))
    },
}


@pytest.mark.parametrize("kind", MISFITS)
def test_a_tensor_that_does_not_fit_is_named(kind: str, spec: ModelSpec, state: State, tmp_path: Path) -> None:
    changed, words, advice = MISFITS[kind]
    save_file(state | changed, tmp_path / "x.safetensors")
    error = refused(tmp_path / "x.safetensors", spec)
    assert all(word in error.message for word in words)
    assert advice in error.advice


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
    record, path = find_weights(with_own, card, str(tmp_path / "given.safetensors"), 0)
    assert path == tmp_path / "given.safetensors"
    assert record.sha256 == digest_file(tmp_path / "given.safetensors")
    assert find_weights(spec, card, None, 4) == (WeightsRecord(source="random", seed=4), None)


def elsewhere(folder: Path) -> None:
    (folder / "elsewhere").touch()
    (folder / "cards/own").symlink_to(folder / "elsewhere")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda folder: (folder / "cards/own").write_text("other bytes"),
            rf"sha256 is {OTHER_BYTES}, in the card {'0' * 64}",
        ),
        (lambda folder: None, "that are not there"),
        (elsewhere, "outside its folder"),
    ],
    ids=["other bytes", "gone", "a link"],
)
def test_weights_that_the_card_names_in_vain_are_named(
    make: Callable[[Path], object], words: str, spec: ModelSpec, tmp_path: Path
) -> None:
    (tmp_path / "cards").mkdir()
    make(tmp_path)
    with_own = spec.model_copy(update={"weights": WeightsSpec(file="own", sha256="0" * 64)})
    with pytest.raises(WeightsError, match=words):
        find_weights(with_own, tmp_path / "cards/card.toml", None, 0)


def test_given_weights_are_recorded_as_they_were_given(
    spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").write_text("weights")
    monkeypatch.chdir(tmp_path)
    record, path = find_weights(spec, Path("card.toml"), "./x", 0)
    assert record == WeightsRecord(source="checkpoint", file="./x", sha256=digest_file(tmp_path / "x"))
    assert path == Path("x")


@pytest.mark.parametrize(("path", "words"), [("/dev", "folder"), ("/dev/null", "device"), ("x/y", "No such file")])
def test_what_is_no_file_is_no_checkpoint(path: str, words: str, spec: ModelSpec) -> None:
    with pytest.raises(WeightsError, match=words):
        find_weights(spec, Path("card.toml"), path, 0)
