"""Figures of predictions, and the folder that they are kept in."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from skdeploy.accuracy.kept import Kept, cache_folder
from skdeploy.accuracy.predictions import BLOCK, best_classes, logits_agreement
from skdeploy.backends.metrics import compare_logits
from skdeploy.core.spec import Tolerance
from skdeploy.images.audit_report import Unreadable


@pytest.mark.parametrize("block", [BLOCK, 21])
def test_logits_are_compared_as_parity_does(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skdeploy.accuracy.predictions.BLOCK", block)  # 21: three images of 7 classes at a time
    random = np.random.default_rng(3)
    reference = random.normal(size=(40, 7)).astype(np.float32)
    found = (reference + 0.01 * random.normal(size=(40, 7))).astype(np.float32)
    ours = logits_agreement(reference, found)
    metrics = compare_logits(reference, found, Tolerance(max_rel_error=1, min_cosine=0.1, min_sqnr_db=0))
    for name in ("max_rel_error", "min_cosine", "min_sqnr_db", "sqnr_db"):
        assert getattr(ours, name) == pytest.approx(getattr(metrics, name), rel=1e-9)


def test_the_best_classes_are_those_of_a_stable_sort() -> None:
    logits = np.random.default_rng(0).integers(0, 4, (50, 9)).astype(np.float32)  # many are equal
    before = logits.copy()
    assert (best_classes(logits) == np.argsort(-logits, axis=1, kind="stable")[:, :5]).all()
    assert (logits == before).all()


def test_of_equal_logits_the_lower_class_is_first() -> None:
    assert best_classes(np.array([[1.0, 3, 3, 0, 3, 2]])).tolist() == [[1, 2, 4, 5, 0]]


def test_equal_logits_agree_exactly_and_zeros_are_no_division() -> None:
    logits = np.array([[1, 2, 3, 4, 5], [0, 0, 0, 0, 0]], np.float32)
    same, double = logits_agreement(logits, logits), logits_agreement(logits, 2 * logits)
    assert (same.max_rel_error, same.min_cosine, same.sqnr_db) == (0, 1, 300)
    assert (double.max_rel_error, double.min_cosine, double.sqnr_db) == (1, pytest.approx(1), 0)


def test_only_an_absolute_cache_home_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """XDG Base Directory Specification: a relative path is to be ignored."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache/skdeploy/predictions"


@pytest.mark.parametrize(("limit", "value"), [("KEPT", 2), ("KEPT_BYTES", 1500)])
def test_the_oldest_entries_are_forgotten(cache: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int) -> None:
    monkeypatch.setattr(f"skdeploy.accuracy.kept.{limit}", value)
    columns = {"logits": np.zeros((3, 5), np.float32)}  # about 600 bytes in a file
    for age, key in enumerate(("new", "old", "older")):
        assert Kept(key).save(columns, 3, {})
        os.utime(cache / f"{key}.npz", (time.time() - age * 1000 - 100,) * 2)
    assert Kept("newest").save(columns, 3, {})
    assert sorted(file.name for file in cache.iterdir()) == ["new.npz", "newest.npz"]


def test_an_entry_that_is_used_is_not_the_oldest(cache: Path) -> None:
    columns = {"logits": np.zeros((3, 5), np.float32)}
    assert Kept("key").save(columns, 3, {})
    os.utime(cache / "key.npz", (1000, 1000))
    assert Kept("key").load(columns)[0] == 3
    assert (cache / "key.npz").stat().st_mtime > 1000


def test_what_is_kept_is_what_comes_back(cache: Path) -> None:
    """Any arrays with a row a sample: logits, and figures of pairs."""
    random = np.random.default_rng(0)
    columns = {"logits": random.normal(size=(9, 7)).astype(np.float32), "PSNR": random.normal(size=(9, 1))}
    bad = {1: Unreadable(name="b\u00e4d", reason="no image")}
    assert Kept("key").save(columns, 3, bad)
    back = {name: np.zeros_like(column) for name, column in columns.items()}
    assert Kept("key").load(back) == (3, bad, "")
    for name, column in columns.items():
        assert (back[name][:3] == column[:3]).all()
        assert not back[name][3:].any()
    for other in ({"logits": np.zeros((9, 8), np.float32)}, {"logits": np.zeros((2, 7), np.float32)}):
        done, _, note = Kept("key").load(other)
        assert done == 0
        assert "does not belong to this evaluation" in note


def test_a_folder_of_another_user_is_not_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"logits": np.zeros((3, 5), np.float32)}
    assert Kept("key").save(columns, 3, {})
    monkeypatch.setattr(os, "geteuid", lambda: cache.stat().st_uid + 1)
    foreign = Kept("key")
    assert "belongs to another user" in foreign.problem
    assert foreign.load(columns)[0] == 0
    assert not foreign.save(columns, 3, {})
