"""Weights from another project through the command line: what is said, where it is recorded, and that it stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from skdeploy.core.spec import ModelSpec
from tests.checkpoints.goldens import golden
from tests.cli.conftest import QUICK, Run

# Of developer0hye's network as its golden has it, but for the biases of the select, which this card does not mention.
CARD = """
schema = 1
name = "theirs"
summary = "for tests"
[network]
family = "sknet"
classes = 5
stem = { channels = 8, kernel = 7, stride = 2, max_pool = true }
stages = [
  { units = 1, middle_channels = %d, out_channels = 16, stride = 1, gate_width = 4 },
  { units = 2, middle_channels = 16, out_channels = 32, stride = 2, gate_width = 4 },
  { units = 1, middle_channels = 32, out_channels = 64, stride = 2, gate_width = 8 },
  { units = 1, middle_channels = 64, out_channels = 128, stride = 2, gate_width = 16 },
]
[network.selective_kernel]
branches = [ { kernel = 3, dilation = 1, groups = 4 }, { kernel = 3, dilation = 2, groups = 4 } ]
[input]
channels = 3
height = 32
width = 32
[preprocess]
resize = 36
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
[source]
paper = "none: made for tests"
url = "https://example.invalid"
licence = "MIT"
[tolerance.fp32]
max_rel_error = 1e-4
min_cosine = 0.99999
min_sqnr_db = 80.0
"""

NOTES = [
    "weights in the layout of developer0hye",
    "the weights were under state_dict",
    "not the network's weights, left out: epoch",
    "inferred from the weights: selective_kernel.gate.select_bias is True, not False as the card says",
]


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """The card, and the checkpoint beside it."""
    (tmp_path / "theirs.toml").write_text(CARD % 8, encoding="utf-8")
    torch.save({"state_dict": golden("developer0hye").state, "epoch": 3}, tmp_path / "theirs.pth")
    return tmp_path


@pytest.fixture
def arguments(theirs: Path, images: Path) -> list[object]:
    return ["export", theirs / "theirs.toml", "--weights", theirs / "theirs.pth", *QUICK,
            "--images", images, "-o", theirs / "bundle", "--json"]  # fmt: skip


def test_what_was_recognised_inferred_and_dropped_is_said_recorded_and_said_again(
    run: Run, theirs: Path, arguments: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(*arguments)
    assert first.code == 0, first.err
    manifest = json.loads((theirs / "bundle/manifest.json").read_text(encoding="utf-8"))
    for note in NOTES:
        assert note in first.err
        assert note in first.json["notes"]
        assert note in manifest["notes"]
    network = manifest["model"]["network"]
    assert network["selective_kernel"]["gate"]["select_bias"] is True  # what was exported, not what the card says
    details = next(row for row in first.json["artifacts"] if row["path"] == "weights.safetensors")["details"]
    assert details["layout"] == "developer0hye"
    assert details["network"] == network

    with monkeypatch.context() as patch:
        patch.setattr("torch.load", None)  # nobody reads the checkpoint again
        again = run(*arguments)
    assert again.code == 0, again.err
    assert all(row["reused"] for row in again.json["artifacts"])
    assert again.json["notes"] == first.json["notes"]
    assert all(note in again.err for note in NOTES)
    kept = json.loads((theirs / "bundle/manifest.json").read_text(encoding="utf-8"))
    assert kept["model"] == manifest["model"]
    assert ModelSpec.model_validate_json(json.dumps(kept["model"]))

    # From here on the bundle needs neither the card nor the checkpoint.
    (theirs / "theirs.pth").unlink()
    (theirs / "theirs.toml").unlink()
    verified = run("verify", theirs / "bundle", "--images", arguments[arguments.index("--images") + 1])
    assert verified.code == 0
    assert "reference: torch float32" in verified.out


def test_a_card_of_another_width_is_refused_with_both_numbers(run: Run, theirs: Path, arguments: list[object]) -> None:
    (theirs / "theirs.toml").write_text(CARD % 12, encoding="utf-8")
    result = run(*arguments)
    assert result.code == 2
    assert "does not fit theirs" in result.err
    assert "stages.0.middle_channels: the card says 12, the weights 8" in result.err
    assert not (theirs / "bundle/weights.safetensors").exists()
