"""A committed baseline: what counts as a drop, and when there is nothing to compare."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skdeploy.accuracy.baseline import compare_with_baseline, read_baseline, write_baseline
from skdeploy.accuracy.gate import Evaluation, accuracy_report
from skdeploy.core.errors import UsageError
from tests.accuracy.runners import runner_of

IMAGES = 1000


def evaluated(*correct: int, digest: str = "a", labels: str = "b", images: int = IMAGES) -> Evaluation:
    """An evaluation whose artifacts have so many images right, by the real tally of predictions."""
    truth = np.zeros(images, np.int64)
    reports = []
    for number, right in enumerate(correct):
        top = np.tile([1, 0], (images, 1))
        top[:right] = [0, 1]
        reports.append(accuracy_report(top, truth, ("cat", "dog"), 0.95, runner_of(f"model{number}.onnx")))
    return Evaluation(
        dataset="eval",
        dataset_sha256=digest * 64,
        labels_sha256=labels * 64,
        images=images,
        reused=0,
        unreadable=(),
        classes=("cat", "dog"),
        missing_classes=("dog",),
        accuracies=tuple(reports),
        pairs=(),
        not_evaluated=(),
        confidence=95,
        seconds=1,
    )


@pytest.fixture
def committed(tmp_path: Path) -> Path:
    path = tmp_path / "baseline.json"
    write_baseline(path, evaluated(950, 940))
    return path


@pytest.mark.parametrize(
    ("correct", "verdicts"),
    [
        ((950, 940), ["pass", "pass"]),
        ((948, 940), ["pass", "pass"]),  # 0.2 points of 1,000 images are 2
        ((947, 940), ["fail", "pass"]),
        ((950, 937), ["pass", "fail"]),
        ((1000, 1000), ["pass", "pass"]),
    ],
)
def test_a_drop_is_the_images_that_are_right_no_longer(
    committed: Path, correct: tuple[int, int], verdicts: list[str]
) -> None:
    found = compare_with_baseline(evaluated(*correct), read_baseline(committed), 0.2, committed)
    assert [row.verdict for row in found.rows] == verdicts
    assert len(found.failures) == verdicts.count("fail")


def test_a_failure_names_artifact_and_both_figures(committed: Path) -> None:
    (failure,) = compare_with_baseline(evaluated(930, 940), read_baseline(committed), 0.2, committed).failures
    assert failure == (
        "model0.onnx on onnxruntime: top-1 93.00 %, in the baseline 95.00 % of the same 1,000 images: "
        "beyond the budget of 0.2"
    )


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (evaluated(950, 940, digest="c"), "was measured on other images: its sha256 is aaaa"),
        (evaluated(950, 940, labels="c"), "was measured on other labels: its sha256 is bbbb"),
        (evaluated(950, 940, images=999), "counts 1,000 images, but only 999 could be read now"),
        (evaluated(950), "has model1.onnx on onnxruntime, which was not evaluated"),
    ],
    ids=["images", "labels", "unreadable", "artifact"],
)
def test_what_cannot_be_compared_is_refused_and_does_not_pass(committed: Path, now: Evaluation, message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        compare_with_baseline(now, read_baseline(committed), 100, committed)
    assert message in refusal.value.message


def test_an_artifact_that_is_new_since_then_is_no_failure(committed: Path) -> None:
    assert compare_with_baseline(evaluated(950, 940, 10), read_baseline(committed), 0.2, committed).failures == ()


@pytest.mark.parametrize(
    ("how", "where"),
    [
        (lambda c: c.update(schema=2), "schema"),
        (lambda c: c.update(images=0), "images"),
        (lambda c: c["artifacts"][0].update(correct=-1), "artifacts.0.correct"),
        (lambda c: c["artifacts"][0].update(correct="950"), "artifacts.0.correct"),
        (lambda c: c.update(more=1), "more"),
    ],
)
def test_a_file_that_is_no_baseline_is_refused_with_the_key(
    committed: Path, how: Callable[[Any], None], where: str
) -> None:
    content = json.loads(committed.read_text(encoding="utf-8"))
    how(content)
    committed.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UsageError, match=f"{committed.name} is not a baseline: {where}: "):
        read_baseline(committed)


def test_a_baseline_that_is_not_there_is_told_with_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the baseline") as refusal:
        read_baseline(tmp_path / "absent.json")
    assert "--save-baseline" in refusal.value.advice
