"""``skdeploy export epoch=29.ckpt``: a fine-tuned checkpoint alone, as Lightning saves it, with its labels and images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from skdeploy.backends import onnxruntime
from skdeploy.bundle.folder import load_bundle
from skdeploy.zoo.cards import read_card
from tests import tiny
from tests.checkpoints.goldens import golden
from tests.cli.conftest import Run

FAST = ("--exporter", "torchscript", "--target", "onnx")
CLASSES = golden("timm-skresnet18").state["fc.weight"].shape[0]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """timm's skresnet18 inside a LightningModule, with a loss that has weights of its own."""
    state = {f"net.{key}": tensor for key, tensor in golden("timm-skresnet18").state.items()}
    content = {"state_dict": state | {"criterion.weight": torch.ones(CLASSES)}, "epoch": 29, "global_step": 3}
    torch.save(content, tmp_path / "epoch=29.ckpt")
    return tmp_path / "epoch=29.ckpt"


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.txt"
    path.write_text("".join(f"Sorte {index}: Äpfel\n" for index in range(CLASSES)), encoding="utf-8")
    return path


def test_it_needs_no_card_and_computes_what_timm_does(run: Run, checkpoint: Path, labels: Path, tmp_path: Path) -> None:
    tiny.save(tmp_path / "images", "0.png", "1.png")
    command = (
        "export", checkpoint, "--fp16", "--labels", labels, "--imgsz", 64, "--dynamic-size", "--images", tmp_path / "images",
        *FAST, "-o", tmp_path / "b",
    )  # fmt: skip
    result = run(*command)
    assert result.code == 0, result.err
    assert "criterion.weight" in result.out + result.err
    spec = load_bundle(tmp_path / "b").manifest.model
    assert spec.labels[1] == "Sorte 1: Äpfel"
    assert (spec.name, spec.network.classes) == ("epoch-29", CLASSES)
    expected = golden("timm-skresnet18")
    with onnxruntime.open_session(tmp_path / "b" / "model.onnx") as session:
        logits = session.run({session.inputs[0].name: expected.input.numpy()})["logits"]
    truth = expected.arrays["logits_float64"].numpy()
    assert np.abs(logits - truth).max() <= 1e-4 * np.abs(truth).max()  # float32, convolutions and norms folded

    card = read_card(tmp_path / "b" / "card.toml")
    assert (card.labels, card.network) == (spec.labels, spec.network)
    again = run(*command, "--json")
    reused = {row["path"] for row in json.loads(again.out)["artifacts"] if row["reused"]}
    assert {"weights.safetensors", "model.onnx", "model.fp16.onnx"} <= reused


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--classes", CLASSES + 1), f"--classes {CLASSES + 1}"),
        (("--weights", "other.pth"), "a checkpoint itself"),
        (("--labels", "missing.txt"), "--labels missing.txt"),
        (("--labels", "."), "cannot read --labels"),
        (("--golden", "missing.npz"), "--golden missing.npz"),
        (("--labels", "short.txt"), "has 1 names"),
    ],
)
def test_what_contradicts_it_is_told_and_leaves_no_folder(
    run: Run, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[object, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("one\n", encoding="utf-8")
    result = run("export", checkpoint, *options, *FAST, "-o", "b")
    assert result.code == 2
    assert said in result.err
    assert not Path("b").exists()


def test_another_number_of_classes_than_the_cards_is_taken_over(
    run: Run, checkpoint: Path, labels: Path, tmp_path: Path
) -> None:
    tiny.save(tmp_path / "images", "0.png", "1.png")
    text = tmp_path / "mine.toml"
    run("convert", checkpoint, "-o", tmp_path / "mine.safetensors")
    card = text.read_text(encoding="utf-8").replace(f"classes = {CLASSES}", f"classes = {CLASSES + 3}")
    text.write_text(
        card[: card.index("[weights]")] + card[card.index("[", card.index("[weights]") + 9) :], encoding="utf-8"
    )
    result = run(
        "export", text, "--weights", checkpoint, "--labels", labels, "--images", tmp_path / "images", *FAST, "--imgsz", 64,
        "-o", tmp_path / "b",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert f"classes is {CLASSES}, not {CLASSES + 3} as the card says" in result.out + result.err
    assert len(load_bundle(tmp_path / "b").manifest.model.labels) == CLASSES
