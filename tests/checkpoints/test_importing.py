"""A checkpoint for a card, or without one: what is taken, what is said, and what is refused with which words."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from torch import nn

from skdeploy.checkpoints.importing import import_checkpoint, import_without_card, random_weights, save_weights
from skdeploy.checkpoints.load import load_network
from skdeploy.core.errors import WeightsError
from skdeploy.core.spec import ModelSpec
from skdeploy.zoo.cards import load_card
from tests.checkpoints.files import State, torch_bytes, written
from tests.checkpoints.goldens import checkpoint_bytes, golden, relative_error

# Float32, relative to the largest logit; see test_layouts.py.
FLOAT32 = 1e-5


@cache
def card(name: str) -> ModelSpec:
    return load_card(name)[0]


# ----- full size: pytorchcv itself


@pytest.fixture(scope="module")
def original() -> nn.Module:
    """pytorchcv's sknet50, as after training: gates decide, normalisations shift and scale."""
    from pytorchcv.model_provider import get_model

    torch.manual_seed(0)
    network: nn.Module = get_model("sknet50", pretrained=False)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, module in network.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.3, 0.8, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)
                module.running_mean.normal_(0, 0.1, generator=generator)  # type: ignore[union-attr]  # it keeps statistics
                module.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]  # it keeps statistics
            elif name.endswith("fc2"):
                module.weight.normal_(0, 1, generator=generator)
    return network.eval()


@pytest.fixture(scope="module")
def full_size(original: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("full") / "sknet50.pth"
    torch.save(original.state_dict(), path)
    return path


def test_pytorchcvs_sknet50_computes_the_same_here(original: nn.Module, full_size: Path, tmp_path: Path) -> None:
    imported = import_checkpoint(full_size, card("sknet50"))
    assert imported.layout == "pytorchcv"
    assert imported.notes == ("weights in the layout of pytorchcv",)
    save_weights(imported.state, tmp_path / "x.safetensors")
    network = load_network(imported.spec, tmp_path / "x.safetensors")
    # Theirs is of 7 x 7, which is the whole map for images of 224 x 224 alone.
    original.get_submodule("features").final_pool = nn.AdaptiveAvgPool2d(1)
    image = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = original(image)
        assert relative_error(network(image), expected) < FLOAT32
        for key, tensor in network.state_dict().items():  # and the comparison is no accident
            if key == "stages.3.2.sk.gate.fc2.weight":
                tensor.copy_(tensor.roll(1024, 0))
        assert relative_error(network(image), expected) > 100 * FLOAT32


def test_the_same_network_under_another_name_takes_the_weights(full_size: Path) -> None:
    imported = import_checkpoint(full_size, card("timm/skresnext50_32x4d"))
    assert imported.spec.name == "timm/skresnext50_32x4d"
    assert not any("inferred" in note for note in imported.notes)


def test_another_card_is_answered_with_the_right_one(full_size: Path) -> None:
    with pytest.raises(WeightsError) as raised:
        import_checkpoint(full_size, card("sknet101"))
    error = raised.value
    assert error.exit_code == 2
    assert "(pytorchcv layout) does not fit sknet101" in error.message
    assert "stages.2.units: the card says 23, the weights 6" in error.message
    assert "it fits sknet50 or timm/skresnext50_32x4d" in error.advice


def test_without_a_card_the_zoos_is_found(full_size: Path) -> None:
    imported, name = import_without_card(full_size)
    assert name == imported.spec.name == "sknet50"


# ----- a port's own ways


def developer0hyes_sknet50() -> State:
    """Zeros in the shapes and under the keys of developer0hye's SKNet-50."""
    state: State = {"classifier.weight": torch.zeros(1000, 2048), "classifier.bias": torch.zeros(1000)}

    def conv_norm(prefix: str, *shape: int) -> None:
        state[f"{prefix}.0.weight"] = torch.zeros(shape)
        for name in ("weight", "bias", "running_mean", "running_var"):
            state[f"{prefix}.1.{name}"] = torch.zeros(shape[0])

    conv_norm("basic_conv", 64, 3, 7, 7)
    seen = 64
    for stage, (units, middle) in enumerate(zip((3, 4, 6, 3), (128, 256, 512, 1024), strict=True), start=1):
        for index in range(units):
            unit = f"stage_{stage}.{index}"
            width = max(middle // 16, 32)
            conv_norm(f"{unit}.conv1", middle, seen, 1, 1)
            for branch in (0, 1):
                conv_norm(f"{unit}.conv2_sk.convs.{branch}", middle, middle // 32, 3, 3)
                state[f"{unit}.conv2_sk.fcs.{branch}.weight"] = torch.zeros(middle, width, 1, 1)
                state[f"{unit}.conv2_sk.fcs.{branch}.bias"] = torch.zeros(middle)
            conv_norm(f"{unit}.conv2_sk.fc", width, middle, 1, 1)
            conv_norm(f"{unit}.conv3", 2 * middle, middle, 1, 1)
            if index == 0:
                conv_norm(f"{unit}.shortcut", 2 * middle, seen, 1, 1)
            seen = 2 * middle
    return state


def test_biases_of_the_select_are_taken_over_and_said(tmp_path: Path) -> None:
    state = developer0hyes_sknet50()
    learnable = [tensor for key, tensor in state.items() if "running" not in key]
    assert sum(tensor.numel() for tensor in learnable) == 27_494_888
    imported = import_checkpoint(written(tmp_path, save(state)), card("sknet50"))
    assert imported.spec.architecture.selective_kernel.gate.select_bias
    assert imported.notes == (
        "weights in the layout of developer0hye",
        "inferred from the weights: selective_kernel.gate.select_bias is True, not False as the card says",
    )
    kept = [tensor for key, tensor in imported.state.items() if "running" not in key]
    assert sum(tensor.numel() for tensor in kept) == 27_494_888


# ----- without code or card


def test_a_card_made_from_the_weights_says_where_it_came_from(tmp_path: Path) -> None:
    imported, name = import_without_card(written(tmp_path, checkpoint_bytes(golden("syt2")), "My net.v2.pth"))
    assert name == ""
    assert (imported.spec.name, imported.spec.summary) == ("my-net", "made without a card")
    assert imported.spec.source.licence == "as of the weights"


def test_random_weights_are_the_same_for_the_same_seed_alone() -> None:
    spec = load_card("tests/fixtures/tiny.toml")[0]
    one, same, other = (random_weights(spec, seed).state["stem.conv.weight"] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_canonical_weights_are_taken_as_they_are(tmp_path: Path) -> None:
    spec = load_card("tests/fixtures/tiny.toml")[0]
    state = random_weights(spec, 3).state
    wrapped = {"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}, "epoch": 3}
    imported = import_checkpoint(written(tmp_path, torch_bytes(wrapped)), spec)
    assert imported.layout == "skdeploy"
    assert imported.notes == (
        "the weights were under state_dict, module.",
        "not the network's weights, left out: epoch",
    )
    assert all(torch.equal(tensor, imported.state[key]) for key, tensor in state.items())


def test_saved_weights_are_whole_and_readable_by_others(tmp_path: Path) -> None:
    state = {"b": torch.randn(3), "a": torch.ones(2, 2)}
    (tmp_path / "new").touch()
    save_weights(state, tmp_path / "x.safetensors")
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "new").stat().st_mode
    found = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(tensor, found[key]) for key, tensor in state.items())


def test_what_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        save_weights({"a": torch.ones(2)}, tmp_path / "gone/x.safetensors")
