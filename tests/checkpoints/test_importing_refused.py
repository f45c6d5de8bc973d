"""A checkpoint that is not the card's, or not whole, or no checkpoint: exit code 2, and the words that help."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from skdeploy.checkpoints import importing
from skdeploy.checkpoints.importing import Imported, import_checkpoint, import_without_card
from skdeploy.checkpoints.read import Checkpoint
from skdeploy.core.errors import WeightsError
from skdeploy.core.spec import ModelSpec
from skdeploy.zoo.cards import load_card
from tests.checkpoints.files import State, written
from tests.checkpoints.goldens import Golden, golden


@cache
def card(name: str) -> ModelSpec:
    return load_card(name)[0]


def refused(path: Path, spec: ModelSpec | None) -> WeightsError:
    with pytest.raises(WeightsError) as error:
        import_checkpoint(path, spec) if spec else import_without_card(path)
    assert error.value.exit_code == 2
    assert str(path) in error.value.message
    assert error.value.advice
    return error.value


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Golden, ModelSpec]:
    """A small checkpoint of pytorchcv's layout, and the card that fits it."""
    of = golden("pytorchcv-sknet")
    return of, import_without_card(written(tmp_path_factory.mktemp("small"), save(of.state)))[0].spec


Small = tuple[Golden, ModelSpec]


def plain_resnet() -> State:
    """Keys of torchvision's ResNet-50, two units of them."""
    state: State = {
        "conv1.weight": torch.zeros(64, 3, 7, 7),
        "fc.weight": torch.zeros(5, 256),
        "fc.bias": torch.zeros(5),
    }
    for unit, seen in (("layer1.0", 64), ("layer1.1", 256)):
        for index, shape in enumerate([(64, seen, 1, 1), (64, 64, 3, 3), (256, 64, 1, 1)], start=1):
            state[f"{unit}.conv{index}.weight"] = torch.zeros(shape)
            for name in ("weight", "bias", "running_mean", "running_var"):
                state[f"{unit}.bn{index}.{name}"] = torch.zeros(shape[0])
    state["layer1.0.downsample.0.weight"] = torch.zeros(256, 64, 1, 1)
    return state


@pytest.mark.parametrize("name", ["sknet50", "sk_resnet50", None])
def test_a_plain_resnet_is_called_one(name: str | None, tmp_path: Path) -> None:
    error = refused(written(tmp_path, save(plain_resnet())), card(name) if name else None)
    assert "has no selective kernel convolutions" in error.message
    assert "plain ResNet" in error.message
    assert "attach_selective_kernels" in error.advice


def test_keys_of_no_layout_are_listed_beside_the_closest(small: Small, tmp_path: Path) -> None:
    of, spec = small
    state = {re.sub(r"\bfc1\b", "squeeze", key): tensor for key, tensor in of.state.items()}
    foreign = [key for key in state if "squeeze" in key]
    for wanted in (spec, None):
        error = refused(written(tmp_path, save(state)), wanted)
        known = len(state) - len(foreign)
        assert f"closest is pytorchcv, which knows {known} of {len(state)}" in error.message
        assert error.message.count("\n    ") == 10
        shown = re.findall(r"\n    (\S+)", error.message)
        assert set(shown) <= set(foreign)
        assert "PytorchInsight" in error.advice


def test_one_odd_key_is_named(small: Small, tmp_path: Path) -> None:
    of, spec = small
    error = refused(written(tmp_path, save({**of.state, "features.aux.weight": torch.zeros(3)})), spec)
    assert "The first unknown keys:\n    features.aux.weight" in error.message


@pytest.mark.parametrize(
    ("key", "shape", "words"),
    [
        (
            "features.stage2.unit2.body.conv3.conv.weight",
            (16, 5, 1, 1),
            "stages.1.1.expand.conv.weight: (16, 5, 1, 1) in the file",
        ),
        ("features.stage3.unit1.body.conv2.fc2.weight", (8, 4, 1, 1), "stages.2.0.sk.gate.fc2.weight"),
        ("features.stage1.unit1.body.conv1.bn.weight", (2, 2), "stages.0.0.reduce.bn.weight cannot have"),
        ("features.stage1.unit1.body.conv1.conv.weight", (4,), "stages.0.0.reduce.conv.weight cannot have"),
        ("output.weight", (), "classifier.weight cannot have"),
        ("output.weight", (5, 64), "classifier.weight"),
    ],
)
def test_one_tensor_of_another_shape_is_named(
    key: str, shape: tuple[int, ...], words: str, small: Small, tmp_path: Path
) -> None:
    of, spec = small
    assert of.state[key].shape != shape
    error = refused(written(tmp_path, save({**of.state, key: torch.zeros(shape)})), spec)
    assert words in error.message
    assert str(shape) in error.message


ODD_SHAPES = [(), (0,), (1,), (3, 5), (2, 2, 2), (7, 3, 2, 2), (4, 0, 3, 3), (6, 3, 3, 3), (8, 8, 17, 17), (5, 4, 1, 1)]


@pytest.mark.parametrize("name", ["developer0hye", "simclr-r50_1x_sk1", "timm-skresnet18"])
def test_any_tensor_of_any_shape_or_none_is_imported_or_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key of each kind in turn. Nothing else than a WeightsError may come of it: that would be a bug's traceback."""
    state = golden(name).state
    zoo = importing.list_cards()
    monkeypatch.setattr(importing, "list_cards", lambda: zoo)

    def outcome(changed: State) -> str:
        monkeypatch.setattr(importing, "read_checkpoint", lambda _: Checkpoint(changed, (), ()))
        try:
            import_without_card(Path("x.pth"))
        except WeightsError:
            return "refused"
        return "imported"

    kinds = {re.sub(r"\d+", "0", key): key for key in state if not key.endswith("num_batches_tracked")}
    outcomes = [outcome({k: t for k, t in state.items() if k != key}) for key in kinds.values()]
    assert set(outcomes) == {"refused"}
    for index, key in enumerate(kinds.values()):
        for shape in ODD_SHAPES[index % 3 :: 3]:
            if shape != tuple(state[key].shape):
                assert outcome({**state, key: torch.zeros(shape)}) == "refused", (key, shape)
    assert outcome(state) == "imported"


def test_other_branches_than_the_other_ones_are_refused(tmp_path: Path) -> None:
    state = {**golden("developer0hye").state, "stage_1.0.conv2_sk.fcs.1.weight": torch.zeros(4, 5, 1, 1)}
    error = refused(written(tmp_path, save(state)), None)
    assert (
        "stages.0.0.sk.gate.fc2.weight in the branches have different shapes: (8, 4, 1, 1), (4, 5, 1, 1)"
        in error.message
    )


def test_other_classes_than_the_cards_are_taken_over_without_its_labels(small: Small, tmp_path: Path) -> None:
    of, spec = small
    half = {**of.state, "output.weight": of.state["output.weight"][:2].clone(), "output.bias": torch.zeros(2)}
    named = spec.model_copy(update={"labels": tuple("abcde")})
    imported = import_checkpoint(written(tmp_path, save(half)), named)
    assert (imported.spec.network.classes, imported.spec.labels) == (2, ())
    assert "inferred from the weights: classes is 2, not 5 as the card says" in imported.notes


@pytest.mark.parametrize(
    ("part", "by_card", "words"),
    [
        (".stage2.unit2.", True, "stages.1.units: the card says 2, the weights 1"),
        (".stage2.unit1.", False, "stages.1.0"),  # in the middle: the keys that are left fit nothing
        ("output.", True, "is not a whole network: classifier.weight is missing"),
        ("stage1.unit1.body.conv3.bn.running_var", True, "missing (1):\n    stages.0.0.expand.bn.running_var"),
    ],
)
def test_a_missing_part_is_named(part: str, by_card: bool, words: str, small: Small, tmp_path: Path) -> None:
    of, spec = small
    cut = {key: tensor for key, tensor in of.state.items() if part not in key}
    error = refused(written(tmp_path, save(cut)), spec if by_card else None)
    assert words in error.message
    assert ("no card of the zoo fits" in error.advice) == ("units" in words)


def test_other_input_channels_are_named(small: Small, tmp_path: Path) -> None:
    of, spec = small
    key = "features.init_block.conv.conv.weight"
    gray = {**of.state, key: of.state[key][:, :1].clone()}
    error = refused(written(tmp_path, save(gray)), spec)
    assert "input.channels: the card says 3, the weights 1" in error.message
    imported = import_without_card(written(tmp_path, save(gray), "gray.pth"))[0]
    assert imported.spec.input.channels == 1
    assert len(imported.spec.preprocess.mean) == 1


def test_a_state_that_fits_comes_out_as_it_went_in(small: Small, tmp_path: Path) -> None:
    of, spec = small
    imported: Imported = import_checkpoint(written(tmp_path, save(of.state)), spec)
    counted = [tensor for key, tensor in of.state.items() if not key.endswith("num_batches_tracked")]

    def total(tensors: list[Tensor]) -> float:
        return float(sum(tensor.double().sum() for tensor in tensors))

    assert len(imported.state) == len(counted)
    assert total(list(imported.state.values())) == pytest.approx(total(counted), rel=1e-12)
