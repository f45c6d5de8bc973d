"""A task that is registered from outside the package judges an export; a task without classes counts none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from skdeploy.bundle.folder import load_bundle
from skdeploy.parity.tasks import TASKS
from tests.cli.conftest import QUICK, Run
from tests.outside.toy_task import Bearings


@pytest.fixture
def card_of(card: Path, tmp_path: Path) -> Any:
    def write(task: str, more: str = "") -> Path:
        path = tmp_path / "mine.toml"
        path.write_text(f'task = "{task}"\n{more}{card.read_text(encoding="utf-8")}', encoding="utf-8")
        return path

    return write


@pytest.fixture
def embedding(run: Run, card_of: Any, images: Path, tmp_path: Path) -> Path:
    bundle = tmp_path / "embedding"
    done = run("export", card_of("embedding"), *QUICK, "--fp16", "--images", images, "--output", bundle)
    assert done.code == 0, done.err
    return bundle


def parity_of(bundle: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((bundle / "parity.json").read_text(encoding="utf-8"))
    return report


def test_a_task_from_outside_judges_an_export(
    run: Run, card_of: Any, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "bundle"
    command = ("export", card_of("bearings"), *QUICK, "--fp16", "--images", images, "--output", bundle)
    refused = run(*command)
    assert refused.code != 0
    assert "'bearings'" in refused.err
    assert "features (vectors or maps per image)" in refused.err
    assert not bundle.exists()

    monkeypatch.setitem(TASKS, "bearings", Bearings(most_degrees=2.0))
    done = run(*command)
    assert done.code == 0, done.err
    assert "verified" in done.out
    assert "degrees" in done.out
    half = parity_of(bundle)["comparisons"][-1]
    assert half["artifact"] == "model.fp16.onnx"
    assert 0 < half["metrics"]["figures"]["degrees"] < 2.0  # FP16 rounds each of 5 values by 2^-11, some layers long
    assert half["metrics"]["top1_agreement"] is None
    assert run("report", bundle).code == 0
    assert "degrees" in (bundle / "report.html").read_text(encoding="utf-8")

    monkeypatch.setitem(TASKS, "bearings", Bearings(most_degrees=1e-9))
    failed = run("verify", bundle, "--images", images)
    assert failed.code != 0
    assert "failed: " in failed.out
    assert "degrees, at most 1e-09" in failed.out


def test_an_embedding_is_compared_without_classes(run: Run, embedding: Path) -> None:
    for comparison in parity_of(embedding)["comparisons"]:
        assert comparison["verdict"] == "pass"
        assert comparison["metrics"]["top1_agreement"] is None
        assert comparison["metrics"]["min_sqnr_db"] > 30  # the card's, of FP16
    assert "top-1" not in run("inspect", embedding).out
    assert load_bundle(embedding).manifest.model.task == "embedding"


def test_a_verb_that_counts_classes_refuses_an_embedding(run: Run, embedding: Path, card_of: Any, images: Path) -> None:
    for command, words in (
        (("evaluate", embedding, "--data", images), "no measure of accuracy for the task 'embedding'"),
        (
            ("export", card_of("embedding"), "--int8", "--calib", images, "--data", images, "--max-drop", 1),
            "has no folder of inputs",  # what a network without classes is measured on
        ),
    ):
        result = run(*command)
        assert result.code == 2
        assert words in result.err


def test_labels_need_a_task_with_classes(run: Run, card_of: Any, tmp_path: Path) -> None:
    card = card_of("embedding", 'labels = ["a", "b", "c", "d", "e"]\n')
    result = run("export", card, "--target", "onnx", "--output", tmp_path / "bundle")
    assert result.code != 0
    assert "has labels" in result.err
