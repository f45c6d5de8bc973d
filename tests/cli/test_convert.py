"""``skdeploy convert``: two files that need no importer, and what is said where they cannot be made."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from skdeploy.checkpoints import convert as module
from skdeploy.checkpoints.hub import HubFile
from skdeploy.checkpoints.load import load_network
from skdeploy.core.files import digest_file
from skdeploy.core.spec import ModelSpec
from skdeploy.zoo.build import build_meta
from skdeploy.zoo.cards import read_card
from skdeploy.zoo.fold import count_parameters
from skdeploy.zoo.write_card import card_text
from tests.checkpoints import caffe_reference as reference
from tests.checkpoints.caffe_tiny import LAYERS, TOLERANCE, distance
from tests.checkpoints.caffe_tiny import card as paper_card
from tests.cli.conftest import QUICK, Run, Snapshot

BLOBS = reference.trained(LAYERS, 3, 5)
CONTENT = reference.caffemodel(LAYERS, BLOBS)


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """A Caffe file, alone in its folder."""
    path = tmp_path / "given" / "official.caffemodel"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """In a folder that is not there yet."""
    return tmp_path / "made" / "Tiny Net.safetensors"


def in_zoo(folder: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a card into ``./models``, where the zoo is looked for first."""
    (folder / "models").mkdir()
    (folder / "models" / f"{spec.name}.toml").write_text(card_text(spec), encoding="utf-8")
    monkeypatch.chdir(folder)


# ----- what is written


def test_the_files_made_compute_what_caffe_does_and_say_where_they_come_from(
    run: Run, official: Path, output: Path
) -> None:
    result = run("convert", official, "-o", output, "--json")
    assert result.code == 0, result.err
    assert sorted(path.name for path in output.parent.iterdir()) == ["Tiny Net.safetensors", "Tiny Net.toml"]
    spec, content = read_card(output.with_suffix(".toml")), result.json
    data = np.random.default_rng(1).normal(0, 1, (2, 3, 70, 56)).astype(np.float32)
    with torch.inference_mode():
        found = load_network(spec, output)(torch.from_numpy(data)).double().numpy()
    assert distance(found, reference.forward(LAYERS, BLOBS, data.astype(np.float64))) < TOLERANCE

    assert spec.name == "tiny-net"
    assert "official.caffemodel" in spec.summary
    assert "official Caffe layout" in spec.summary
    assert spec.source.licence == "as of the weights"
    assert spec.weights is not None
    assert spec.weights.file == output.name
    assert spec.reference.parameters == count_parameters(build_meta(spec))
    assert spec.assumed.architecture is not None
    assert spec.reference.macs is None  # it depends on the strides, which are assumed
    assert spec.reference.top1_error_224 is None

    assert (content["weights"], content["card"]) == (str(output), str(output.with_suffix(".toml")))
    assert content["sha256"] == spec.weights.sha256 == digest_file(output)
    assert (content["layout"], content["base"], content["input"]) == ("official Caffe", None, [3, 224, 224])
    assert content["tensors"] == len(load_file(output))
    assert content["network"]["stem"]["ceil_mode"] is True
    assert [stage["gate_width"] for stage in content["network"]["stages"]] == [8, 4, 8, 8]
    assert any("BGR" in note for note in content["notes"])


def test_what_was_dropped_is_told(run: Run, weights: Path, card: Path, output: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": load_file(weights), "epoch": 3}, tmp_path / "run.pth")
    result = run("convert", tmp_path / "run.pth", "-o", output, "--card", card)
    assert result.code == 0
    assert "the weights were under state_dict" in result.out
    assert "not the network's weights, left out: epoch" in result.out


# ----- the zoo, and a card given


def test_a_card_of_the_zoo_that_fits_gives_its_input_and_labels(
    run: Run, official: Path, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = paper_card().model_copy(update={"name": "tiny", "labels": tuple("abcdefg"), "training": {"epochs": 3}})
    in_zoo(tmp_path, zoo, monkeypatch)
    content = run("convert", official, "-o", output, "--json").json
    assert content["base"] == "tiny"
    sources = {row["about"]: row["source"] for row in content["assumptions"]}
    assert sources == {"architecture": "the layout official Caffe", "preprocessing": "the card tiny"}
    spec = read_card(output.with_suffix(".toml"))
    assert spec.input == zoo.input
    assert spec.labels == zoo.labels
    assert spec.training == {}
    assert spec.architecture.stem.ceil_mode


def test_labels_of_other_classes_are_left_out(
    run: Run, official: Path, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = paper_card().architecture.model_copy(update={"classes": 2})
    zoo = paper_card().model_copy(update={"name": "tiny", "network": network, "labels": ("cat", "dog")})
    in_zoo(tmp_path, zoo, monkeypatch)
    assert run("convert", official, "-o", output, "--json").json["base"] == "tiny"
    spec = read_card(output.with_suffix(".toml"))
    assert spec.labels == ()
    assert spec.network.classes == 7


def test_with_the_card_that_fits_only_weights_are_written(run: Run, weights: Path, card: Path, output: Path) -> None:
    """Beside the card, too."""
    output.parent.mkdir()
    beside = Path(shutil.copy(card, output.with_name("beside.toml")))
    assert run("convert", weights, "-o", beside.with_suffix(".safetensors"), "--card", beside).code == 0
    assert beside.read_bytes() == card.read_bytes()
    result = run("convert", weights, "-o", output, "--card", card)
    assert result.code == 0
    assert "none needed" in result.out
    assert not output.with_suffix(".toml").exists()
    made, given = load_file(output), load_file(weights)
    assert made.keys() == {key for key in given if not key.endswith("num_batches_tracked")}
    assert all(torch.equal(made[key], given[key]) for key in made)


def test_a_card_that_is_overruled_gets_a_card_beside_the_weights_and_is_never_replaced(
    run: Run, official: Path, output: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    paper = tmp_path / "paper.toml"
    paper.write_text(card_text(paper_card()), encoding="utf-8")
    before = snapshot(tmp_path)
    refused = run("convert", official, "-o", paper.with_suffix(".safetensors"), "--card", paper, "--force")
    assert refused.code == 2
    assert "differ from the card" in refused.err
    assert "stem.ceil_mode" in refused.err
    assert snapshot(tmp_path) == before
    result = run("convert", official, "-o", output, "--card", paper)
    assert result.code == 0
    assert "stem.ceil_mode is True, not False as the card says" in result.out
    assert read_card(output.with_suffix(".toml")).architecture.stem.ceil_mode


def test_weights_from_the_hub_are_said_with_their_commit(
    run: Run, official: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = HubFile(official, "ann/sk", None, "c" * 40, "model.bin", "0" * 64)
    monkeypatch.setattr(module, "resolve_weights", {"hf://ann/sk": found}.__getitem__)
    result = run("convert", "hf://ann/sk", "-o", output)
    assert f"model.bin of ann/sk at commit {'c' * 40}" in result.out
    assert "hf://ann/sk" in read_card(output.with_suffix(".toml")).summary


# ----- what cannot be converted; nothing is written then


@pytest.mark.parametrize("name", ["a\\b.safetensors", "a\nb.safetensors"])
def test_a_name_that_no_card_could_hold_is_refused(name: str, run: Run, official: Path, tmp_path: Path) -> None:
    result = run("convert", official, "-o", tmp_path / "made" / name)
    assert result.code == 2
    assert "cannot be written in a card" in result.err
    assert not (tmp_path / "made").exists()


def test_a_card_that_is_there_is_not_replaced_unasked(
    run: Run, official: Path, output: Path, snapshot: Snapshot
) -> None:
    output.parent.mkdir()
    there = output.with_suffix(".toml")
    there.write_text("mine", encoding="utf-8")
    before = snapshot(output.parent)
    result = run("convert", official, "-o", output)
    assert result.code == 2
    assert f"{there} already exists" in result.err
    assert "--force" in result.err
    assert snapshot(output.parent) == before
    assert run("convert", official, "-o", output, "--force").code == 0
    assert read_card(output.with_suffix(".toml")).weights is not None


def test_a_file_can_be_replaced_by_its_own_conversion(run: Run, weights: Path, card: Path, tmp_path: Path) -> None:
    """The old file is mapped into memory while the new one is written."""
    path = tmp_path / "own.safetensors"
    path.write_bytes(weights.read_bytes())
    assert run("convert", path, "-o", path, "--card", card, "--force").code == 0
    given = load_file(weights)
    assert all(torch.equal(tensor, given[key]) for key, tensor in load_file(path).items())


def test_a_write_that_fails_leaves_nothing(
    run: Run, official: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_state: object, _path: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    result = run("convert", official, "-o", output)
    assert result.code == 9
    assert f"no space left to write {output}: No space left on device" in result.err
    assert not output.parent.exists()


# ----- what was assumed stays said


def test_what_a_card_assumes_is_said_by_export_and_inspect_until_a_person_corrects_it(
    run: Run, official: Path, output: Path, images: Path, tmp_path: Path
) -> None:
    run("convert", official, "-o", output)
    card, folder = output.with_suffix(".toml"), tmp_path / "bundle"
    options = (*QUICK, "--images", images, "-o", folder, "--imgsz", 64)

    first = run("export", card, *options)
    assert first.code == 0
    assert "assumed: stride 2 stem and 3x3 max pool, rounded up (the layout official Caffe)" in first.err
    assert first.err.count("assumed: ") == 1  # one line for all of them
    assert "more: `skdeploy report` and --verbose list them" in first.err
    recorded = run("inspect", folder, "--json").json["assumptions"]
    assert [row["about"] for row in recorded] == ["architecture"] * 4 + ["preprocessing"]  # --imgsz said the size
    assert recorded[0]["text"] == "stride 2 stem and 3x3 max pool, rounded up"

    again = run("export", card, *options)  # resumed: everything is up to date
    assert "assumed: stride 2 stem" in again.err
    assert run("inspect", folder, "--json").json["assumptions"] == recorded

    text = card.read_text(encoding="utf-8")
    card.write_text(text[: text.index("[assumed.architecture]")], encoding="utf-8")
    settled = run("export", card, *options)
    assert "assumed" not in settled.err
    assert run("inspect", folder, "--json").json["assumptions"] == []
