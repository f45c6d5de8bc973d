"""What predictions come to, and the folder that they are kept in."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from skdeploy.accuracy.predictions import Cache, Predictions, best_classes, cache_folder
from skdeploy.backends.metrics import compare_logits
from skdeploy.core.spec import Tolerance
from skdeploy.images.audit_report import Unreadable


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/skdeploy/evaluations"


def test_logits_are_compared_as_parity_does() -> None:
    random = np.random.default_rng(3)
    reference = random.normal(size=(40, 7)).astype(np.float32)
    found = (reference + 0.01 * random.normal(size=(40, 7))).astype(np.float32)
    predictions = Predictions.none_yet(2, 40, 7)
    for rows in (range(25), range(25, 40)):
        predictions.add(list(rows), [reference[rows], found[rows]])
    ours = predictions.logits_agreement(1)
    metrics = compare_logits(reference, found, Tolerance(max_rel_error=1, min_cosine=0.1, min_sqnr_db=0))
    for name in ("max_rel_error", "min_cosine", "min_sqnr_db", "sqnr_db"):
        assert getattr(ours, name) == pytest.approx(getattr(metrics, name), rel=1e-9)


def test_of_equal_logits_the_lower_class_is_first() -> None:
    assert best_classes(np.array([[1.0, 3, 3, 0, 3, 2]])).tolist() == [[1, 2, 4, 5, 0]]


def test_only_an_absolute_cache_home_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """XDG Base Directory Specification: a relative path is to be ignored."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache/skdeploy/evaluations"


def test_the_oldest_predictions_are_forgotten(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skdeploy.accuracy.predictions.KEPT", 2)
    for age, key in enumerate(("new", "old", "older")):
        assert Cache(key).save(Predictions.none_yet(1, 3, 5))
        os.utime(cache / f"{key}.npz", (time.time() - age * 1000 - 100,) * 2)
    assert Cache("newest").save(Predictions.none_yet(1, 3, 5))
    assert sorted(file.name for file in cache.iterdir()) == ["new.npz", "newest.npz"]


def test_what_is_kept_is_what_comes_back() -> None:
    predictions = Predictions.none_yet(2, 9, 7)
    random = np.random.default_rng(0)
    predictions.add([0, 2], [random.normal(size=(2, 7)), random.normal(size=(2, 7))])
    predictions.unreadable.append(Unreadable(name="b\u00e4d", reason="no image"))
    predictions.done = 3
    assert Cache("key").save(predictions)
    back = Predictions.none_yet(2, 9, 7)
    assert Cache("key").load(back) == ""
    assert back.done == 3
    assert back.unreadable == predictions.unreadable
    assert (back.top == predictions.top).all()
    assert (back.sums == predictions.sums).all()
    assert back.readable.tolist() == [True, False, True] + 6 * [False]
    other = Predictions.none_yet(3, 9, 7)
    assert "does not belong to this evaluation" in Cache("key").load(other)
    assert other.done == 0


def test_more_classes_than_16_bits_hold_are_kept_too() -> None:
    logits = np.zeros((1, 40_000))
    logits[0, 39_999] = 1
    predictions = Predictions.none_yet(1, 1, 40_000)
    predictions.add([0], [logits])
    assert predictions.top[0, 0, 0] == 39_999


def test_equal_logits_agree_exactly_and_zeros_are_no_division() -> None:
    predictions = Predictions.none_yet(3, 2, 5)
    logits = np.array([[1, 2, 3, 4, 5], [0, 0, 0, 0, 0]], np.float32)
    predictions.add([0, 1], [logits, logits, 2 * logits])
    same, double = predictions.logits_agreement(1), predictions.logits_agreement(2)
    assert (same.max_rel_error, same.min_cosine, same.sqnr_db) == (0, 1, 300)
    assert (double.max_rel_error, double.min_cosine, double.sqnr_db) == (1, pytest.approx(1), 0)
