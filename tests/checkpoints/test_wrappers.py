"""The ways in which people save a checkpoint: each gives the network's own logits, or a refusal that says how to go on."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from skdeploy.checkpoints.importing import Imported, import_without_card
from skdeploy.core.errors import SkdeployError, WeightsError
from skdeploy.line.export import export
from skdeploy.line.options import ExportOptions
from skdeploy.zoo.build import build
from tests.checkpoints.cifar_network import CifarNetwork, trained

State = dict[str, Any]

NETWORK: Final = trained()
STATE: Final = NETWORK.state_dict()
WORSE: Final = {key: tensor * 0.5 if tensor.is_floating_point() else tensor for key, tensor in STATE.items()}
OPTIMIZER: Final = {"state": {0: {"step": 3, "exp_avg": torch.ones(8)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
ONE: Final = torch.ones(5)
IMAGE: Final = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def under(prefix: str, state: State = STATE) -> State:
    return {prefix + key: tensor for key, tensor in state.items()}


def counted() -> State:
    """As thop's ``profile`` leaves a network: two counters in every module."""
    modules = {key.rpartition(".")[0] for key in STATE}
    return STATE | {
        f"{module}.{name}": torch.zeros(1, dtype=torch.float64)
        for module in modules
        for name in ("total_ops", "total_params")
    }


def parameters() -> State:
    """As ``dict(network.named_parameters())`` with the buffers: tensors that require gradients."""
    return {key: nn.Parameter(tensor) if tensor.is_floating_point() else tensor for key, tensor in STATE.items()}


def exponential() -> State:
    """A list of shadow parameters beside the plain ones, as torch_ema saves them: nothing names what they are of."""
    return {
        "model": STATE,
        "ema": {"decay": 0.99, "num_updates": 7, "shadow_params": [t * 0.5 for t in STATE.values()]},
    }


class Lightning(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = CifarNetwork()
        self.encoder.load_state_dict(STATE)
        self.criterion = nn.CrossEntropyLoss(weight=ONE.clone())
        self.val_confusion = nn.BatchNorm1d(5)  # a metric with buffers


# name: content of the file, and what has to be said
GOOD: Final[dict[str, tuple[Callable[[], Any], str]]] = {
    "plain": (lambda: STATE, ""),
    "an OrderedDict with metadata": (lambda: NETWORK.state_dict(), ""),
    "state_dict, epoch and best accuracy": (lambda: {"state_dict": STATE, "epoch": 29, "best_acc1": 0.9}, "epoch"),
    "PyTorch's tutorial": (
        lambda: {"epoch": 5, "model_state_dict": STATE, "optimizer_state_dict": OPTIMIZER, "loss": 0.4},
        "optimizer_state_dict",
    ),
    "net and acc": (lambda: {"net": STATE, "acc": 93.1, "epoch": 7}, "acc"),
    "model, optimizer and scheduler": (
        lambda: {"model": STATE, "optimizer": OPTIMIZER, "lr_scheduler": {"last_epoch": 4}, "args": {"lr": 0.1}},
        "lr_scheduler",
    ),
    "network and scaler": (lambda: {"network": STATE, "scaler": {"scale": 65536.0}}, "scaler"),
    "BasicSR: params": (lambda: {"params": STATE}, "params"),
    "BasicSR: params and params_ema": (lambda: {"params": WORSE, "params_ema": STATE}, "uses the averaged weights, params_ema"),
    "timm: state_dict and state_dict_ema": (
        lambda: {"state_dict": WORSE, "state_dict_ema": STATE, "arch": "sk", "version": 2, "metric": 80.1},
        "uses the averaged weights, state_dict_ema",
    ),
    "torchvision: model and model_ema": (
        lambda: {"model": WORSE, "model_ema": under("module.") | {"n_averaged": torch.tensor(9)}, "optimizer": OPTIMIZER},
        "uses the averaged weights, model_ema",
    ),
    "ema inside": (lambda: {"model": WORSE, "ema": STATE, "updates": 100}, "uses the averaged weights, ema"),
    "a moving average without names": (exponential, "model"),
    "Lightning": (
        lambda: {"state_dict": under("model."), "pytorch-lightning_version": "2.5", "global_step": 9,
                 "hyper_parameters": {"lr": 0.1}, "optimizer_states": [OPTIMIZER], "callbacks": {}, "loops": {}},
        "pytorch-lightning_version",
    ),
    "Lightning with another attribute, a loss and a metric": (
        lambda: {"state_dict": Lightning().state_dict(), "epoch": 1},
        "criterion.weight",
    ),
    "Lightning compiled": (lambda: {"state_dict": under("net._orig_mod."), "epoch": 1}, "net._orig_mod."),
    "DataParallel": (lambda: under("module."), "module."),
    "torch.compile": (lambda: under("_orig_mod."), "_orig_mod."),
    "DataParallel of torch.compile": (lambda: under("module._orig_mod."), "module."),
    "torch.compile of DataParallel": (lambda: {"model": under("_orig_mod.module.")}, "_orig_mod."),
    "SWA's AveragedModel": (lambda: AveragedModel(NETWORK).state_dict(), "n_averaged"),
    "SWA of DataParallel": (lambda: under("module.module.") | {"n_averaged": torch.tensor(3)}, "module."),
    "thop's counters": (counted, "total_ops"),
    "MMEngine": (
        lambda: {"meta": {"epoch": 9, "CLASSES": ("a", "b")}, "state_dict": under("backbone."), "message_hub": {}},
        "backbone.",
    ),
    "fairseq": (
        lambda: {"args": None, "cfg": {"lr": [0.1]}, "model": under("encoder."), "last_optimizer_state": OPTIMIZER,
                 "optimizer_history": [{"num_updates": 3}], "extra_state": {"metrics": {}}},
        "optimizer_history",
    ),
    "DeepSpeed's module": (
        lambda: {"module": under("module."), "global_steps": 9, "skipped_steps": 0, "ds_config": {"zero": 0}},
        "ds_config",
    ),
    "argparse's Namespace beside": (lambda: {"state_dict": STATE, "args": argparse.Namespace(lr=0.1, gpus=[0])}, "args"),
    "numpy scalars beside": (lambda: {"state_dict": STATE, "best": np.float64(0.93), "epoch": np.int64(7)}, "best"),
    "a path beside": (lambda: {"state_dict": STATE, "data": Path("/data")}, "data"),
    "a list of weights and epoch": (lambda: [STATE, 5], "entry 0 of a list"),
    "two wrappers": (lambda: {"checkpoint": {"state_dict": STATE, "epoch": 3}, "config": {}}, "checkpoint"),
    "an own key": (lambda: {"generator_weights": STATE, "iteration": 5}, "generator_weights"),
    "parameters that require gradients": (parameters, ""),
    "a teacher beside the model": (lambda: {"state_dict": under("model.") | under("teacher.", WORSE)}, "teacher."),
    "profilers' and tied copies": (lambda: under("net.") | under("alias."), "net."),
}  # fmt: skip


def saved(content: Any, folder: Path, name: str = "w.ckpt") -> Path:
    torch.save(content, folder / name)
    return folder / name


def logits(imported: Imported) -> Tensor:
    network = build(imported.spec)
    missing = network.load_state_dict(imported.state, strict=False)
    assert not missing.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in missing.missing_keys)
    with torch.no_grad():
        return network.eval()(IMAGE)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    """The logits of the plain state_dict; ``test_card_wins.py`` compares those with the author's own network."""
    return logits(import_without_card(saved(STATE, tmp_path_factory.mktemp("plain")))[0])


def test_enough_ways_are_tried() -> None:
    assert len(GOOD) >= 30


@pytest.mark.parametrize("name", GOOD)
def test_a_wrapped_checkpoint_has_the_logits_of_the_plain_one(name: str, reference: Tensor, tmp_path: Path) -> None:
    content, said = GOOD[name]
    imported, _ = import_without_card(saved(content(), tmp_path))
    assert torch.equal(logits(imported), reference)
    assert said in "\n".join(imported.notes)


def test_other_weights_have_other_logits(reference: Tensor, tmp_path: Path) -> None:
    """The comparison above can fail: the weights that are not to be taken there are told apart by it."""
    assert not torch.allclose(logits(import_without_card(saved(WORSE, tmp_path))[0]), reference, rtol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_give_logits_that_rounding_explains(
    dtype: torch.dtype, reference: Tensor, tmp_path: Path
) -> None:
    half = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in STATE.items()}
    found = logits(import_without_card(saved({"model": half}, tmp_path))[0])
    # Each weight is off by at most half a step, relative; errors of the nine layers add up, so ten steps bound the logits.
    assert (found - reference).abs().max() <= 10 * torch.finfo(dtype).eps * reference.abs().max()
    assert not torch.equal(found, reference)


def test_safetensors_of_hugging_face_and_accelerate(reference: Tensor, tmp_path: Path) -> None:
    for number, state in enumerate((STATE, under("model."), under("module."))):
        file = tmp_path / f"model{number}.safetensors"
        save_file({key: tensor.clone() for key, tensor in state.items()}, file, metadata={"format": "pt"})
        assert torch.equal(logits(import_without_card(file)[0]), reference)


# What is refused


class Whole(nn.Module):
    pass


WAYS: Final = ("--weights", "ONNX", "rename")
UNKNOWN: Final[dict[str, Any]] = {
    "own names": {f"layer{i}.conv.weight": torch.ones(4, 3, 3, 3) for i in range(9)},
    "own names, wrapped": {"state_dict": {f"module.block{i}.w": torch.ones(4) for i in range(9)}, "epoch": 1},
    "own head": {"state_dict": {key.replace("classifier", "head.out"): tensor for key, tensor in STATE.items()}},
    "DeepSpeed ZeRO's flat groups": {"module": {f"flat.{i}": torch.ones(50) for i in range(3)}, "ds_version": "0.16"},
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_layout_names_the_three_ways_that_finish_the_job(name: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as error:
        import_without_card(saved(UNKNOWN[name], tmp_path))
    text = str(error.value)
    for way in WAYS:
        assert way in text, text
    assert "losest" in text or "classifier" in text, text


def test_a_refused_export_leaves_no_folder_behind(tmp_path: Path) -> None:
    for number, content in enumerate((*UNKNOWN.values(), {"optimizer": OPTIMIZER}, Whole(), {})):
        folder = tmp_path / "build" / str(number)
        with pytest.raises(SkdeployError):
            export(ExportOptions(str(saved(content, tmp_path)), output=folder, target="onnx"))
        assert not (tmp_path / "build").exists()


def test_an_index_of_shards_says_what_to_give(tmp_path: Path) -> None:
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(STATE, "model-00001-of-00002.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(WeightsError) as error:
        import_without_card(tmp_path / "model.safetensors.index.json")
    assert "model.state_dict()" in str(error.value)
