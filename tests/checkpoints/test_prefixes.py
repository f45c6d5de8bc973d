"""A network inside a training module: found under its attribute, and what lies beside it is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from skdeploy.checkpoints.convert import convert
from skdeploy.checkpoints.importing import import_checkpoint, import_without_card, save_weights
from skdeploy.checkpoints.own_module import load_checkpoint
from skdeploy.core.errors import WeightsError
from tests.checkpoints.cifar_network import CifarNetwork, trained
from tests.refused import refused

STATE = trained().state_dict()


def under(prefix: str, state: dict[str, Any] = STATE) -> dict[str, Any]:
    return {prefix + key: tensor for key, tensor in state.items()}


def saved(content: Any, folder: Path) -> Path:
    """Under a new name each time: the tensors of an earlier file are mapped from it."""
    path = folder / f"run{len(list(folder.iterdir()))}.ckpt"
    torch.save(content, path)
    return path


ONE = torch.ones(3)
NESTED: dict[str, tuple[dict[str, Any], str, list[str]]] = {
    "any attribute": (under("backbone_of_mine."), "backbone_of_mine.", []),
    "two deep": (under("task.net."), "task.net.", []),
    "beside a loss and a metric": (
        under("net.") | {"loss_fn.weight": ONE, "val_acc.tp": ONE},
        "net.",
        ["loss_fn.weight", "val_acc.tp"],
    ),
    "known prefix beside a loss": (under("model.") | {"criterion.weight": ONE}, "model.", ["criterion.weight"]),
    "beside its moving average": (
        under("net.", {key: tensor * 0 for key, tensor in STATE.items()}) | under("net_ema."),
        "net_ema.",
        [f"net.{key}" for key in STATE],
    ),
    "beside its momentum copy, under the usual name": (
        under("model.") | under("momentum.", {key: tensor * 0 for key, tensor in STATE.items()}),
        "model.",
        [f"momentum.{key}" for key in STATE],
    ),
    "beside another network": (
        under("student.") | {f"teacher.layers.{i}.w": ONE for i in range(60)},
        "student.",
        [f"teacher.layers.{i}.w" for i in range(60)],
    ),
}


@pytest.mark.parametrize("kind", NESTED)
@pytest.mark.parametrize("wrapped", [False, True])
def test_the_network_is_found_and_the_rest_is_named(kind: str, wrapped: bool, tmp_path: Path) -> None:
    content, prefix, left_out = NESTED[kind]
    imported, _ = import_without_card(saved({"state_dict": content, "epoch": 1} if wrapped else content, tmp_path))
    expected, _ = import_without_card(saved(STATE, tmp_path))
    assert imported.state.keys() == expected.state.keys()
    assert all(torch.equal(imported.state[key], tensor) for key, tensor in expected.state.items())
    notes = "\n".join(imported.notes)
    assert f"{prefix}\n" in f"{notes}\n"
    for name in left_out[:5]:
        assert name in notes
    assert len(notes) < 1_000  # sixty names are not listed one by one


def test_a_network_that_lacks_its_classifier_is_not_whole(tmp_path: Path) -> None:
    """Its classifier lies outside of the attribute, as in a backbone with a head: nothing may be made up for it."""
    backbone = {key: tensor for key, tensor in STATE.items() if not key.startswith("classifier")}
    path = saved(under("backbone.", backbone) | {"head.weight": torch.ones(5, 24)}, tmp_path)
    with refused(WeightsError, r"classifier\.weight is missing", "if it is one of head.weight"):
        import_without_card(path)


def test_two_networks_of_one_kind_are_not_chosen_from(tmp_path: Path) -> None:
    """Which one is to be deployed is not in the file; taking the first would deploy the wrong one half of the time."""
    other = {key: tensor * 0.5 if tensor.is_floating_point() else tensor for key, tensor in STATE.items()}
    for content in (under("encoder_q.") | under("encoder_k.", other), under("a.student.", other) | under("a.teacher.")):
        with pytest.raises(WeightsError, match="several networks") as error:
            import_without_card(saved({"state_dict": content}, tmp_path))
        assert "encoder_q, encoder_k" in error.value.message or "a.student, a.teacher" in error.value.message
    same, _ = import_without_card(saved(under("net_a.") | under("net_b."), tmp_path))  # one network under two names
    assert torch.equal(same.state["classifier.weight"], STATE["classifier.weight"])


def test_the_closest_layout_is_that_of_the_part_known_best(tmp_path: Path) -> None:
    content = under("net.") | {"net.stage_1.0.novelty.weight": ONE, "loss.weight": ONE}
    with pytest.raises(WeightsError) as error:
        import_without_card(saved(content, tmp_path))
    assert "The closest is developer0hye" in error.value.message
    assert "\n    stage_1.0.novelty.weight" in error.value.message
    assert "loss.weight" not in error.value.message


def test_a_converted_network_inside_a_module_is_taken_by_its_card(tmp_path: Path) -> None:
    done = convert(str(saved(STATE, tmp_path)), tmp_path / "net.safetensors")
    own = load_file(tmp_path / "net.safetensors")
    imported = import_checkpoint(saved(under("net.", own) | {"loss.w": ONE}, tmp_path), done.spec)
    assert imported.layout == "skdeploy"
    assert all(torch.equal(imported.state[key], tensor) for key, tensor in own.items())


def test_averaged_weights_are_said_to_be_taken(tmp_path: Path) -> None:
    spoilt = {key: tensor * 0 for key, tensor in STATE.items()}
    imported, _ = import_without_card(saved({"params": spoilt, "params_ema": STATE}, tmp_path))
    assert bool(imported.state["classifier.weight"].any())
    assert "uses the averaged weights, params_ema" in imported.notes
    assert "not the network's weights, left out: params" in imported.notes


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = CifarNetwork()


@pytest.mark.parametrize("prefix", ["", "net.", "task.net.", "model."])
def test_a_module_of_ones_own_takes_the_part_that_is_its_own(prefix: str, tmp_path: Path) -> None:
    network = CifarNetwork()
    load_checkpoint(network, saved(under(prefix) | ({"loss.w": ONE} if prefix else {}), tmp_path), "nets:build")
    assert all(torch.equal(network.state_dict()[key], tensor) for key, tensor in STATE.items())
    if prefix == "model.":
        holder = Holder()
        load_checkpoint(holder, saved(under(prefix), tmp_path), "nets:build")
        assert torch.equal(holder.model.classifier.weight, STATE["classifier.weight"])


def test_tensors_that_share_memory_are_saved_apart(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    state = {"a": whole[:4], "b": whole[2:8], "c": whole.view(3, 4), "d": whole}
    save_weights(state, tmp_path / "w.safetensors")
    found = load_file(tmp_path / "w.safetensors")
    assert all(torch.equal(found[key], tensor) for key, tensor in state.items())


@pytest.mark.filterwarnings(
    "ignore:The PyTorch API of nested tensors:UserWarning"
)  # from making one, not from reading it
def test_a_nested_tensor_is_refused(tmp_path: Path) -> None:
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    path = tmp_path / "nested.pth"
    torch.save({"w": nested}, path)
    with pytest.raises(WeightsError, match="not plain arrays of numbers: w"):
        import_without_card(path)
