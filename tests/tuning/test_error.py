"""SQNR and cosine of a graph's outputs against FP32's, their bounds, and the gate by a least SQNR."""

from __future__ import annotations

import numpy as np
import pytest

from skdeploy.tuning.error import ErrorReport, Powers, error_report

RANDOM = np.random.default_rng(15)


def powers_of(expected: np.ndarray, found: np.ndarray) -> Powers:
    """Of outputs (N, outputs, values)."""
    names = tuple(f"out{place}" for place in range(expected.shape[1]))
    return Powers(names, (expected**2).sum(2), ((found - expected) ** 2).sum(2), (found**2).sum(2))


def outputs(count: int, noise: tuple[float, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    expected = random.normal(size=(count, len(noise), 50)) * random.uniform(0.3, 3, (count, 1, 1))
    return expected, expected + random.normal(size=expected.shape) * np.array(noise)[:, None]


def report(powers: Powers, limit: float | None = None, confidence: float = 95) -> ErrorReport:
    return error_report(powers, ("FP32", "way"), confidence, limit, "image")


def test_figures_are_those_of_the_formulas() -> None:
    expected, found = outputs(40, (0.1, 0.03))
    made = report(powers_of(expected, found))
    sqnr = [10 * np.log10((expected[:, o] ** 2).sum() / ((found - expected)[:, o] ** 2).sum()) for o in range(2)]
    assert [output.sqnr_db for output in made.outputs] == pytest.approx(sqnr)
    assert made.sqnr_db == pytest.approx(min(sqnr))
    size = np.linalg.norm(expected, axis=2) * np.linalg.norm(found, axis=2)
    cosine = (expected * found).sum(2) / size
    assert [output.min_cosine for output in made.outputs] == pytest.approx(cosine.min(0).tolist(), abs=1e-12)
    assert made.worst.name == "out0"
    assert made.low_db < made.sqnr_db < made.high_db
    assert made.decision is None
    assert "at out0, its worst output" in made.sentence


def test_the_lower_bound_holds_as_often_as_it_says() -> None:
    """Of 120 sets of 30 samples the bound at 95 % is above the truth in 5 %: by chance and few samples, in 0 or in 14 %."""
    expected, found = outputs(60_000, (0.1,), seed=1)
    every = powers_of(expected, found)
    truth = 10 * np.log10(every.signal[:50_000].sum() / every.noise[:50_000].sum())
    above = 0
    for start in range(50_000, 50_000 + 120 * 30, 30):
        rows = slice(start, start + 30)
        part = Powers(every.names, every.signal[rows], every.noise[rows], every.found[rows])
        above += report(part).low_db > truth
    assert above <= 17


def test_a_limit_passes_fails_or_stays_open() -> None:
    powers = powers_of(*outputs(40, (0.1,)))
    found = report(powers)
    assert report(powers, found.low_db - 0.1).decision == "pass"
    assert report(powers, found.high_db + 0.1).decision == "fail"
    limit = (found.low_db + found.sqnr_db) / 2
    undecided = report(powers, limit)
    assert undecided.decision == "inconclusive"
    assert undecided.images_to_decide is not None
    assert undecided.images_to_decide > 40
    assert f"about {undecided.images_to_decide:,} such images would decide" in undecided.sentence


def test_exact_and_silent_outputs_have_numbers() -> None:
    """No error is 300 dB; an output that is zero where FP32's is not has nothing left of the signal."""
    expected, _ = outputs(10, (0.1,))
    exact = report(powers_of(expected, expected))
    assert (exact.sqnr_db, exact.low_db, exact.min_cosine) == (300, 300, pytest.approx(1))
    silent = report(powers_of(expected, np.zeros_like(expected)))
    assert (silent.sqnr_db, silent.min_cosine) == (pytest.approx(0, abs=1e-9), 0)
    dead = report(powers_of(np.zeros_like(expected), np.zeros_like(expected)))
    assert (dead.sqnr_db, dead.min_cosine) == (300, 1)
