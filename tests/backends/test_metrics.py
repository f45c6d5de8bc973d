"""The metrics against their definitions, written down a second time with scipy and plain loops, and their edges."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import distance

from skdeploy.backends.metrics import (
    EXACT_DB,
    Metrics,
    compare_logits,
    compare_outputs,
    compare_values,
    violations,
)
from skdeploy.core.spec import Tolerance

TOLERANCE = Tolerance(max_rel_error=1e-2, min_cosine=0.999, min_sqnr_db=30.0)


def noisy(scale: float) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    reference = generator.standard_normal((20, 7)).astype(np.float32)
    return reference, (reference + scale * generator.standard_normal((20, 7))).astype(np.float32)


# Both sides are computed in float64, from the same numbers.
FLOAT64 = 1e-9


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 0.3])
def test_every_figure_is_that_of_its_definition(scale: float) -> None:
    reference, found = noisy(scale)
    metrics = compare_logits(reference, found, TOLERANCE)
    rows = [(r.astype(np.float64), f.astype(np.float64)) for r, f in zip(reference, found, strict=True)]
    largest = max(abs(float(x)) for x in reference.flat)
    errors = [abs(float(f) - float(r)) for r, f in zip(reference.flat, found.flat, strict=True)]
    decibels = [10 * np.log10(sum(r * r) / sum((f - r) ** 2)) for r, f in rows]
    power = sum(float(sum(r * r)) for r, _ in rows), sum(float(sum((f - r) ** 2)) for r, f in rows)
    same = [int(np.argmax(r)) == int(np.argmax(f)) for r, f in rows]
    margins = [float(np.partition(r, -2)[-1] - np.partition(r, -2)[-2]) for r, _ in rows]
    decided = [agree for agree, margin in zip(same, margins, strict=True) if margin > 2 * 1e-2 * largest]

    assert metrics.images == 20
    assert metrics.max_abs_error == pytest.approx(max(errors), rel=FLOAT64)
    assert metrics.max_rel_error == pytest.approx(max(errors) / largest, rel=FLOAT64)
    assert metrics.min_cosine == pytest.approx(min(1 - distance.cosine(r, f) for r, f in rows), rel=FLOAT64)
    assert metrics.min_sqnr_db == pytest.approx(min(decibels), rel=FLOAT64)
    assert metrics.sqnr_db == pytest.approx(10 * np.log10(power[0] / power[1]), rel=FLOAT64)
    assert metrics.top1_agreement == sum(same) / 20
    assert metrics.top1_decided == sum(decided) / len(decided)
    assert 0 < len(decided) < 20


@pytest.mark.parametrize("reference", [noisy(0)[0], np.zeros((3, 4), np.float32)], ids=["noise", "zeros"])
def test_identical_logits_have_no_error(reference: np.ndarray) -> None:
    metrics = compare_logits(reference, reference, TOLERANCE)
    assert metrics.max_abs_error == metrics.max_rel_error == 0
    assert metrics.min_cosine == pytest.approx(1, rel=FLOAT64)
    assert metrics.min_sqnr_db == metrics.sqnr_db == EXACT_DB
    assert metrics.top1_agreement == metrics.top1_decided == 1
    assert violations(metrics, TOLERANCE) == ()


def test_a_dead_output_has_no_direction() -> None:
    reference, _ = noisy(0)
    metrics = compare_logits(reference, np.zeros_like(reference), TOLERANCE)
    assert metrics.min_cosine == 0
    assert metrics.sqnr_db == pytest.approx(0, abs=FLOAT64)
    assert metrics.max_rel_error == 1
    assert len(violations(metrics, TOLERANCE)) == 4


def test_something_for_nothing_is_a_violation_that_survives_json() -> None:
    metrics = compare_logits(np.zeros((2, 3), np.float32), np.full((2, 3), 3e38, np.float32), TOLERANCE)
    assert metrics.min_cosine == 0
    assert violations(metrics, TOLERANCE)
    assert Metrics.model_validate_json(metrics.model_dump_json()) == metrics


@pytest.mark.parametrize(
    ("reference", "found", "agreement", "decided", "judged"),
    [
        # All classes tie, so any rounding may choose another one: a constant row is never decided.
        ([[1, 1, 1], [3, 1, 0]], [[1, 1, 1.001], [3, 1, 0]], 0.5, 1, ""),
        ([[1, 1, 1], [1, 1, 1]], [[1, 1, 1.001], [1, 1, 1.001]], 0, 1, ""),
        ([[10, 9, 0], [10, 0, 0]], [[9, 10, 0], [10, 0, 0]], 0.5, 0.5, "top-1 agreement 0.5000"),
    ],
    ids=["one tie", "ties everywhere", "a clear margin that flips"],
)
def test_only_a_clear_margin_that_flips_is_judged(
    reference: list[list[float]], found: list[list[float]], agreement: float, decided: float, judged: str
) -> None:
    metrics = compare_logits(np.array(reference, np.float32), np.array(found, np.float32), TOLERANCE)
    assert (metrics.top1_agreement, metrics.top1_decided) == (agreement, decided)
    problems = [problem for problem in violations(metrics, TOLERANCE) if problem.startswith("top-1")]
    assert [judged] == [problem[: len(judged)] for problem in problems] if judged else problems == []


def test_a_network_of_one_class_is_always_right() -> None:
    metrics = compare_logits(np.ones((2, 1), np.float32), np.ones((2, 1), np.float32), TOLERANCE)
    assert metrics.top1_agreement == metrics.top1_decided == 1


def test_the_worst_image_counts_and_not_the_mean() -> None:
    reference, _ = noisy(0)
    found = reference.copy()
    found[13] = -found[13]
    metrics = compare_logits(reference, found, TOLERANCE)
    assert metrics.min_cosine == pytest.approx(-1, rel=FLOAT64)
    assert metrics.min_sqnr_db == pytest.approx(10 * np.log10(1 / 4), rel=FLOAT64)
    assert metrics.top1_agreement == 19 / 20


SOUND = {
    "images": 4,
    "max_abs_error": 0.1,
    "max_rel_error": 1e-2,
    "min_cosine": 0.999,
    "min_sqnr_db": 30.0,
    "sqnr_db": 40.0,
    "top1_agreement": 0.5,
    "top1_decided": 1.0,
}


@pytest.mark.parametrize("value", ["outside", float("nan")])
@pytest.mark.parametrize(
    ("figure", "outside", "words"),
    [
        ("max_rel_error", 1.01e-2, "max error 1.01e-02 of the largest logit, allowed 1e-02"),
        ("min_cosine", 0.998, "cosine 0.998000, at least 0.999"),
        ("min_sqnr_db", 29.9, "SQNR 29.9 dB, at least 30 dB"),
        (
            "top1_decided",
            0.99,
            "top-1 agreement 0.9900, at least 1.0 (where the first class leads by more than max_rel_error can move)",
        ),
    ],
)
def test_each_figure_out_of_tolerance_is_told(figure: str, outside: float, words: str, value: str | float) -> None:
    assert violations(Metrics.model_validate(SOUND), TOLERANCE) == ()  # just inside
    number = outside if value == "outside" else value
    problems = violations(Metrics.model_validate(SOUND | {figure: number}), TOLERANCE)
    assert len(problems) == 1
    if value == "outside":
        assert problems == (words,)


def test_maps_that_are_compared_in_parts_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    reference = random.standard_normal((7, 3, 5, 4)).astype(np.float32)
    found = reference + random.standard_normal(reference.shape).astype(np.float32) / 100
    whole = compare_values(reference, found)
    monkeypatch.setattr("skdeploy.backends.metrics.AT_ONCE", 2 * 3 * 5 * 4)  # two images
    parts = compare_values(reference, found)
    assert parts.model_dump(exclude={"sqnr_db"}) == whole.model_dump(exclude={"sqnr_db"})
    assert parts.sqnr_db == pytest.approx(whole.sqnr_db, abs=1e-9)  # sums of float64 in another order


def test_the_worst_output_decides_and_each_is_told() -> None:
    reference = {"near": np.ones((2, 4), np.float32), "far": np.full((2, 3, 3), 10, np.float32)}
    found = {"near": reference["near"] + np.float32(0.001), "far": reference["far"] + np.float32(1)}
    metrics = compare_outputs(reference, found)
    assert metrics.max_rel_error == pytest.approx(0.1)
    assert metrics.outputs["near"].max_rel_error == pytest.approx(0.001, rel=1e-3)
    said = violations(metrics, Tolerance(max_rel_error=0.01, min_cosine=0.5, min_sqnr_db=10))
    assert [problem.partition(":")[0] for problem in said] == ["far"]
