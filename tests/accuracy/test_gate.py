"""The figures of a report, against counts by hand and naive loops."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import stats

from skdeploy.accuracy.gate import (
    AccuracyReport,
    Evaluation,
    PairedReport,
    accuracy_report,
    class_names,
    less_drop,
    paired_report,
)
from skdeploy.core.errors import AccuracyError
from skdeploy.core.spec import Precision
from tests.accuracy.runners import runner_of

NAMES = tuple(f"class {n}" for n in range(7))


def report(top: NDArray[np.int64], labels: NDArray[np.int64], names: tuple[str, ...] = NAMES) -> AccuracyReport:
    return accuracy_report(top, labels, names, 0.95, runner_of("model.onnx"))


def random_predictions(images: int, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    random = np.random.default_rng(seed)
    top = np.stack([random.permutation(7)[:5] for _ in range(images)])
    return top, random.integers(0, 6, images)  # no image of class 6


def test_figures_are_those_of_a_loop() -> None:
    top, labels = random_predictions(500)
    found = report(top, labels)
    assert found.top1.correct == sum(row[0] == label for row, label in zip(top, labels, strict=True))
    assert found.top5 is not None
    assert found.top5.correct == sum(label in list(row) for row, label in zip(top, labels, strict=True))
    assert found.top1.accuracy == found.top1.correct / 500
    expected = stats.binomtest(found.top1.correct, 500).proportion_ci(0.95, method="wilson")
    assert (found.top1.low, found.top1.high) == pytest.approx(tuple(expected))
    for label in range(7):
        for taken in range(7):
            count = sum(1 for row, truth in zip(top, labels, strict=True) if truth == label and row[0] == taken)
            assert found.confusion[label][taken] == count
        share = found.per_class[label].top1
        assert share.images == int((labels == label).sum())
        assert share.correct == found.confusion[label][label]


def without(content: dict[str, Any], *path: str | int) -> dict[str, Any]:
    """A copy of what was written, without the value at this path."""
    changed: Any = copy.deepcopy(content)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return changed


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (("classes", 2), "does not have the labels of classes"),
        (("accuracies", 0, "per_class", 6), "not 6 classes long"),
        (("accuracies", 0, "confusion", 3), "do not count the same images"),
        (("accuracies", 0, "confusion", 3, 0), "not 7 classes long"),
    ],
)
def test_figures_of_other_classes_than_the_evaluation_names_are_not_read(
    path: tuple[str | int, ...], words: str
) -> None:
    content = evaluation().model_dump(mode="json") | {
        "accuracies": [report(*random_predictions(100)).model_dump(mode="json")]
    }
    Evaluation.model_validate_json(json.dumps(content))
    with pytest.raises(ValidationError, match=words):
        Evaluation.model_validate_json(json.dumps(without(content, *path)))


def test_a_class_without_images_has_no_accuracy() -> None:
    found = report(*random_predictions(100))
    missing = found.per_class[6].top1
    assert (missing.images, missing.accuracy, missing.low, missing.high) == (0, None, 0, 1)


def test_top5_of_five_classes_says_nothing_and_is_left_out() -> None:
    top = np.array([[0, 1, 2, 3, 4], [1, 0, 2, 3, 4]])
    assert report(top, np.array([0, 0]), NAMES[:5]).top5 is None


def test_two_classes_and_one_image_are_enough() -> None:
    found = report(np.array([[1, 0]]), np.array([0]), NAMES[:2])
    assert found.confusion == ((0, 1), (0, 0))


def pair(max_drop: float | None, *, images: int = 1000, lost: int = 0, gained: int = 0) -> PairedReport:
    """The second loses the first ``lost`` images and gains the last ``gained``."""
    labels = np.arange(images) % 7
    first, second = labels[:, None].repeat(5, axis=1), labels[:, None].repeat(5, axis=1)
    second[:lost] += 1
    first[images - gained :] += 1 if gained else 0
    return paired_report(first, second, labels, 0.95, max_drop, names=("a", "b"))


def test_pairs_are_counted_the_right_way_round() -> None:
    found = pair(None, lost=30, gained=10)
    assert (found.pairs.both_right, found.pairs.only_first, found.pairs.only_second) == (960, 30, 10)
    assert found.pairs.both_wrong == 0
    assert found.drop == pytest.approx(2)  # points
    assert found.drop_low < 2 < found.drop_high
    assert found.mcnemar_p == pytest.approx(stats.binomtest(30, 40).pvalue)
    assert found.agreement == 0.96
    assert found.decision is None


def test_agreement_counts_the_same_wrong_class_and_not_two_wrong_ones() -> None:
    first, second = np.array([[1, 0], [1, 0], [0, 1]]), np.array([[1, 0], [2, 0], [0, 1]])
    found = paired_report(first, second, np.zeros(3, np.int64), 0.95, None, names=("a", "b"))
    assert found.agreement == pytest.approx(2 / 3)
    assert found.pairs.both_wrong == 2


@pytest.mark.parametrize(
    ("images", "lost", "budget", "decision"),
    [(1000, 0, 0.5, "pass"), (1000, 60, 0.5, "fail"), (1000, 5, 0.5, "inconclusive"), (2, 0, 0.5, "inconclusive")],
)
def test_the_gate_says_pass_fail_or_that_it_cannot_tell(images: int, lost: int, budget: float, decision: str) -> None:
    found = pair(budget, images=images, lost=lost)
    assert found.decision == decision
    assert f"{budget:g}" in found.sentence


def permuted(right: int, *, lost: int = 0, images: int = 280, max_drop: float = 5) -> PairedReport:
    """A network that is right on ``right`` images of 7 classes, since the labels are in another order; INT8 agrees with it, but
    for ``lost`` of these.
    """
    labels = np.arange(images) % 7
    first = ((labels + (np.arange(images) >= right)) % 7)[:, None]
    second = first.copy()
    second[:lost] = (second[:lost] + 3) % 7
    return paired_report(first, second, labels, 0.95, max_drop, names=("a", "b"))


@pytest.mark.parametrize("max_drop", [5, 0.01])
def test_labels_in_another_order_decide_nothing(max_drop: float) -> None:
    """0 % against 0 % is no drop, and would pass any budget. More images of this kind are no help, so none are asked for."""
    found = permuted(0, max_drop=max_drop)
    assert (found.decision, found.images_to_decide) == ("inconclusive", None)
    assert (
        "a is right on 0 of 280 images, no better than naming the most frequent class each time (40)" in found.sentence
    )
    with pytest.raises(AccuracyError, match="cannot be judged: a is right on 0 of 280") as refused:
        evaluation(found).check()
    assert refused.value.exit_code == 10
    assert "order of the classes" in refused.value.advice
    assert "--allow-inconclusive" in refused.value.advice
    evaluation(found).check(allow_inconclusive=True)


def test_a_weak_network_is_judged() -> None:
    """25 % right where guessing gives 14 %."""
    assert permuted(70).decision == "pass"
    assert permuted(70, lost=60).decision == "fail"


def test_a_drop_beyond_the_budget_stays_a_failure_for_a_reference_that_guesses() -> None:
    assert permuted(45, lost=45).decision == "fail"


def test_images_of_one_class_decide_nothing() -> None:
    """A network that always names this class is right on all of them."""
    zeros = np.zeros((100, 1), np.int64)
    found = paired_report(zeros, zeros, zeros[:, 0], 0.95, 10, names=("a", "b"))
    assert found.decision == "inconclusive"
    assert "all 100 images are of one class" in found.sentence


def evaluation(*pairs: PairedReport) -> Evaluation:
    return Evaluation(
        dataset="d", dataset_sha256="", labels_sha256="", images=1, reused=0, unreadable=(), classes=NAMES,
        missing_classes=(), accuracies=(), pairs=pairs, not_evaluated=(), confidence=95, seconds=0,
    )  # fmt: skip


def test_the_worst_decision_is_the_verdict_and_the_error_names_its_pair() -> None:
    good, bad, unsure = pair(0.5), pair(0.5, lost=60), pair(0.5, images=2)
    evaluation(good).check()
    evaluation(pair(None, lost=60)).check()
    assert evaluation(pair(None)).verdict is None
    assert evaluation(good, unsure).verdict == "inconclusive"
    assert evaluation(good, unsure, bad).verdict == "fail"
    with pytest.raises(
        AccuracyError, match=r"out of its budget: .*b drops by \+6.00 points of top-1, 0.5 allowed"
    ) as failed:
        evaluation(good, unsure, bad).check(allow_inconclusive=True)
    assert failed.value.exit_code == 10
    # two images without a difference: the score's variance at the budget is d (1 - d), and so N is near 6.18 / 0.005
    assert re.search(r"about 1,4\d\d such images would decide", unsure.sentence)
    with pytest.raises(AccuracyError, match=r"too few images to decide .*: b \(--max-drop 0.5\)") as doubtful:
        evaluation(good, unsure).check()
    assert "--allow-inconclusive" in doubtful.value.advice
    evaluation(good, unsure).check(allow_inconclusive=True)


def test_classes_without_labels_are_called_by_number() -> None:
    assert class_names((), 3) == ("0", "1", "2")
    assert class_names(("cat", "dog"), 2) == ("cat", "dog")


def test_the_advice_is_for_the_precision_that_lost() -> None:
    assert "calibrate" in less_drop(Precision.FP32, Precision.INT8)
    assert "calibrate" not in less_drop(Precision.FP32, Precision.FP16)
    assert "--keep-fp32" in less_drop(Precision.FP16)
