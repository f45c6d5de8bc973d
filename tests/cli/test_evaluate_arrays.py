"""Accuracy of a classifier whose inputs are arrays: class folders of .npy and .npz, lists, stacks with labels, own metrics."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cli.conftest import Run
from tests.graphs import array_networks as networks
from tests.graphs.array_networks import Bands

Folder = Callable[[type], Path]
WRONG = 6  # of 60 samples


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """60 samples in class folders, in a list, and stacked; torch sees the class of all but six in them."""
    generator = np.random.default_rng(0)
    planes = 4 * generator.standard_normal((60, 18, 1, 1)) + generator.standard_normal((60, 18, 12, 12))
    planes = planes.astype(np.float32)
    labels = networks.trained(Bands)(torch.from_numpy(planes)).numpy().argmax(1)
    assert len(set(labels.tolist())) > 2
    labels[:WRONG] = (labels[:WRONG] + 1) % 5
    lines = []
    for number in range(5):
        (tmp_path / "classes" / str(number)).mkdir(parents=True)
    for index, (sample, label) in enumerate(zip(planes, labels, strict=True)):
        file = tmp_path / f"classes/{label}/{index}"
        if index % 2:
            np.save(f"{file}.npy", sample)
        else:
            np.savez(f"{file}.npz", planes=sample)
        lines.append(f"classes/{label}/{index}.{'npy' if index % 2 else 'npz'},{label}\n")
    (tmp_path / "list.csv").write_text("".join(lines), encoding="utf-8")
    np.savez(tmp_path / "stack.npz", planes=planes, labels=labels)
    np.savez(tmp_path / "pairs.npz", planes=planes, targets=labels)
    return tmp_path


@pytest.mark.parametrize("data", ["classes", "list.csv", "stack.npz"])
def test_labels_come_in_every_form_and_are_counted_right(
    run: Run, array_bundle: Folder, labelled: Path, data: str
) -> None:
    bundle = Path(shutil.copytree(array_bundle(Bands) / "bundle", labelled / "bundle"))
    found = run("evaluate", bundle, "--data", labelled / data, "--max-drop", "30", "--json")
    assert found.code == 0, found.err
    # FP16 may decide one close call otherwise: the logits of a random network are near each other
    for each in found.json["accuracies"]:
        assert each["top1"]["correct"] == pytest.approx(60 - WRONG, abs=each["precision"] == "fp16")


def test_one_bad_file_in_a_hundred_is_named_and_left_out_and_two_are_refused(
    run: Run, array_bundle: Folder, labelled: Path
) -> None:
    bundle = Path(shutil.copytree(array_bundle(Bands) / "bundle", labelled / "bundle"))
    for index in range(40):
        np.save(labelled / f"classes/3/more{index}.npy", np.zeros((18, 12, 12), np.float32))
    np.save(labelled / "classes/3/more7.npy", np.zeros((18, 12), np.float32))
    found = run("evaluate", bundle, "--data", labelled / "classes", "--json")
    assert found.code == 0, found.err
    assert found.json["images"] == 99
    assert [each["name"] for each in found.json["unreadable"]] == ["classes/3/more7.npy".removeprefix("classes/")]
    np.save(labelled / "classes/3/more8.npy", np.full((18, 12, 12), np.nan, np.float32))
    refused = run("evaluate", bundle, "--data", labelled / "classes")
    assert refused.code == 2
    assert "3/more7.npy: planes has shape (18, 12), of rank 2" in refused.err
    assert "values of planes are NaN or infinite" in refused.err
    assert "2 of the first" in refused.err
    assert "samples of classes cannot be read" in refused.err


def test_a_metric_of_the_users_own_takes_pairs_of_arrays(
    run: Run, array_bundle: Folder, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Path(shutil.copytree(array_bundle(Bands) / "bundle", labelled / "bundle"))
    (labelled / "right_class.py").write_text(
        "def metric(outputs, target):\n    return float(outputs['logits'].argmax() == target)\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(labelled)
    found = run("evaluate", bundle, "--data", labelled / "pairs.npz", "--metric", "right_class:metric", "--json")
    assert found.code == 0, found.err
    assert found.json["artifacts"][0]["figures"][0]["value"] == pytest.approx((60 - WRONG) / 60)


@pytest.mark.parametrize("verb", ["predict", "evaluate", "verify", "bench"])
def test_start_runs_every_verb_on_samples(
    run: Run, array_bundle: Folder, labelled: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(labelled))
    arguments = {
        "predict": [labelled / "classes/3"],
        "evaluate": ["--data", labelled / "stack.npz"],
        "verify": ["--images", labelled / "classes"],
        "bench": ["--seconds", "0.01"],
    }
    done = run(
        "start", "--bundle", array_bundle(Bands) / "bundle", "--cache", labelled / "cache", "--backend", "onnxruntime",
        verb, *arguments[verb],
    )  # fmt: skip
    assert done.code == 0, done.err


def test_samples_without_labels_say_how_to_label_them(run: Run, array_bundle: Folder) -> None:
    folder = array_bundle(Bands)
    refused = run("evaluate", folder / "bundle", "--data", folder / "samples")
    assert refused.code == 2
    assert "its files are not in class folders" in refused.err
