"""``skdeploy evaluate`` against a committed baseline, from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

Run = Callable[..., Any]


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Labels are chance: what counts is that they are the same twice."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (40, 40, 44, 3), dtype=np.uint8)
    path = tmp_path / "evaluation.npz"
    np.savez(path, images=images, labels=random.integers(0, 5, 40))
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_same_bundle_is_as_good_as_its_baseline(run: Run, bundle: Path, labelled: Path, tmp_path: Path) -> None:
    baseline, junit = tmp_path / "baseline.json", tmp_path / "evaluate.xml"
    assert run("evaluate", bundle, "--data", labelled, "--save-baseline", baseline).code == 0
    result = run("evaluate", bundle, "--data", labelled, "--baseline", baseline, "--junit", junit)
    assert result.code == 0, result.err
    assert "model.fp16.onnx on onnxruntime: top-1 " in result.out
    cases = [
        case for case in ET.parse(junit).getroot().iter("testcase") if case.get("classname") == "skdeploy.baseline"
    ]
    assert len(cases) == 2
    assert run("evaluate", bundle, "--data", labelled, "--baseline", baseline, "--json").json["decision"] == "pass"


def test_a_drop_below_the_baseline_fails_with_the_code_of_accuracy(
    run: Run, bundle: Path, labelled: Path, tmp_path: Path
) -> None:
    baseline = tmp_path / "baseline.json"
    assert run("evaluate", bundle, "--data", labelled, "--save-baseline", baseline).code == 0
    content = json.loads(baseline.read_text(encoding="utf-8"))
    content["artifacts"][1]["correct"] += 1  # it had one more right: 2.5 points of 40 images
    baseline.write_text(json.dumps(content), encoding="utf-8")
    result = run("evaluate", bundle, "--data", labelled, "--baseline", baseline)
    assert result.code == 10
    assert "beyond the budget of 0.2" in result.err
    assert (
        run("evaluate", bundle, "--data", labelled, "--baseline", baseline, "--json").json["error"]["exit_code"] == 10
    )
    assert run("evaluate", bundle, "--data", labelled, "--baseline", baseline, "--baseline-drop", "3").code == 0


def test_a_baseline_that_is_not_there_is_told_before_anything_runs(
    run: Run, bundle: Path, labelled: Path, tmp_path: Path
) -> None:
    result = run("evaluate", bundle, "--data", labelled, "--baseline", tmp_path / "absent.json")
    assert result.code == 2
    assert "cannot read the baseline" in result.err
    assert "evaluate  " not in result.err  # no stage ran
