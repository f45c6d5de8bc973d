"""A network family and a checkpoint layout that are registered from outside go through the whole line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from skdeploy.backends import onnxruntime
from skdeploy.bundle.folder import load_bundle
from skdeploy.checkpoints.importing import import_checkpoint
from skdeploy.checkpoints.layouts import LAYOUTS
from skdeploy.core.architecture import SPECS
from skdeploy.core.errors import CardError
from skdeploy.core.spec import Precision, Target
from skdeploy.line.export import export
from skdeploy.line.options import ExportOptions
from skdeploy.zoo import FAMILIES
from skdeploy.zoo.build import build, initialise
from skdeploy.zoo.cards import read_card
from skdeploy.zoo.describe import describe
from tests import tiny
from tests.conftest import FAST
from tests.outside import toy_family

FOREIGN = {
    "stem.": "entry.", "stages.": "body.", ".sk.branches.": ".split.", ".sk.gate.fc1": ".fuse", ".sk.gate.bn": ".fuse_norm",
    ".sk.gate.fc2": ".select", "classifier": "head",
}  # fmt: skip


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny card with a neck, once the family and the layout are registered."""
    monkeypatch.setitem(SPECS, "toy", toy_family.ToySpec)
    monkeypatch.setitem(FAMILIES, "toy", toy_family.FAMILY)
    monkeypatch.setitem(LAYOUTS, "toy", toy_family.LAYOUT)
    text = tiny.CARD.read_text(encoding="utf-8").replace('family = "sknet"', 'family = "toy"\nneck = 10')
    path = tmp_path / "toy.toml"
    path.write_text(text.replace('name = "tiny"', 'name = "toy"'), encoding="utf-8")
    return path


@pytest.fixture
def checkpoint(card: Path, tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    """A trained network of the family, and its weights under its own keys."""
    network = build(read_card(card))
    initialise(network, 3)
    network.neck.norm.running_mean.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    state = {}
    for key, tensor in network.state_dict().items():
        for ours, theirs in FOREIGN.items():
            key = key.replace(ours, theirs)
        state[key] = tensor
    torch.save(state, tmp_path / "toy.pth")
    return tmp_path / "toy.pth", network.eval()


def test_its_card_is_read_and_described(card: Path) -> None:
    spec = read_card(card)
    assert isinstance(spec.network, toy_family.ToySpec)
    assert "neck 10" in describe(spec)["family"]
    card.write_text(card.read_text(encoding="utf-8").replace("neck", "nek"), encoding="utf-8")
    with pytest.raises(CardError, match="did you mean 'neck'"):
        read_card(card)


def test_a_family_that_nobody_registered_is_refused_with_those_there_are(card: Path) -> None:
    card.write_text(card.read_text(encoding="utf-8").replace('"toy"\nneck', '"toi"\nneck'), encoding="utf-8")
    with pytest.raises(CardError, match=r"must be one of .*'toy'.* \(given 'toi'\)"):
        read_card(card)
    assert "toi" not in SPECS


def test_its_checkpoint_goes_through_the_whole_line(
    card: Path, checkpoint: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    weights, network = checkpoint
    imported = import_checkpoint(weights, read_card(card))
    assert imported.layout == "toy"
    assert "toys are fragile" in imported.notes
    tiny.save(tmp_path / "images", "0.png", "1.png")
    options = ExportOptions(
        str(card), Precision.FP16, output=tmp_path / "b", weights=str(weights), trace=FAST, target=Target.ONNX,
        images=tmp_path / "images",
    )  # fmt: skip
    done = export(options)
    assert done.verdict.state == "verified"
    again = load_bundle(tmp_path / "b")
    assert isinstance(again.manifest.model.network, toy_family.ToySpec)
    assert export(options).reused >= {"weights.safetensors", "model.onnx", "model.fp16.onnx"}

    images = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    with onnxruntime.open_session(tmp_path / "b" / "model.onnx") as session:
        logits = session.run({session.inputs[0].name: images})["logits"]
    with torch.inference_mode():
        expected = network(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max() + 1e-6)  # float32 in another order
