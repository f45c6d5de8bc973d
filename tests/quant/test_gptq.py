"""Rounding column by column: against the paper's own formula, and what it must never do."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from numpy.typing import NDArray

from skdeploy.quant.gptq import BLOCK, DAMPING, round_columns

Floats = NDArray[np.float64]
LARGEST = 127


def problem(groups: int, rows: int, columns: int, seed: int = 0) -> tuple[Floats, Floats, Floats]:
    """Weights, steps, and moments of inputs of which each is a mixture of a few causes."""
    random = np.random.default_rng(seed)
    weight = random.normal(size=(groups, rows, columns))
    causes = random.normal(size=(groups, 3 * columns, max(2, columns // 3)))
    inputs = causes @ random.normal(size=(groups, causes.shape[2], columns))
    inputs += 0.3 * random.normal(size=inputs.shape)
    moments = inputs.transpose(0, 2, 1) @ inputs / inputs.shape[1]
    return weight, np.abs(weight).max(axis=2) / 20, moments


def damped(moments: Floats) -> Floats:
    return moments + DAMPING * np.mean(np.diag(moments)) * np.eye(len(moments))


def as_in_the_paper(weight: Floats, steps: Floats, moments: Floats) -> Floats:
    """Algorithm 1 without its blocks: the upper Cholesky factor of the inverse, and the weights that are left changed."""
    factor = np.linalg.cholesky(np.linalg.inv(damped(moments))).T
    left, levels = weight.copy(), np.empty_like(weight)
    for column in range(weight.shape[1]):
        levels[:, column] = np.clip(np.rint(left[:, column] / steps), -LARGEST, LARGEST)
        error = (left[:, column] - levels[:, column] * steps) / factor[column, column]
        left[:, column:] -= np.outer(error, factor[column, column:])
    return levels


def error_of(weight: Floats, levels: NDArray[np.int8], steps: Floats, moments: Floats) -> float:
    error = weight - levels * steps[..., None]
    return float(np.einsum("gri,gij,grj->", error, moments, error))


@pytest.mark.parametrize("columns", [1, 5, BLOCK, 2 * BLOCK + 7])
def test_the_integers_are_those_of_the_papers_algorithm(columns: int) -> None:
    weight, steps, moments = problem(2, 6, columns)
    found = round_columns(weight, steps, moments, LARGEST)
    for group in range(2):
        assert (found[group] == as_in_the_paper(weight[group], steps[group], moments[group])).all()


def test_outputs_are_nearer_than_by_rounding_to_nearest() -> None:
    weight, steps, moments = problem(4, 16, 36)
    nearest = np.rint(weight / steps[..., None]).astype(np.int8)
    found = round_columns(weight, steps, moments, LARGEST)
    # Inputs of twelve causes leave two thirds of the directions free for the error: half is far from what that allows.
    assert error_of(weight, found, steps, moments) < 0.5 * error_of(weight, nearest, steps, moments)


def test_inputs_that_have_nothing_in_common_change_nothing() -> None:
    weight, steps, _ = problem(1, 8, 40)
    independent = np.diag(np.linspace(0.1, 2, 40))[None]
    assert (round_columns(weight, steps, independent, LARGEST) == np.rint(weight / steps[..., None])).all()


def test_an_input_that_is_always_zero_is_rounded_to_nearest_and_bothers_no_other() -> None:
    weight, steps, moments = problem(1, 8, 20)
    silent = moments.copy()
    silent[:, 7, :] = silent[:, :, 7] = 0
    found = round_columns(weight, steps, silent, LARGEST)
    assert (found[..., 7] == np.rint(weight[..., 7] / steps)).all()
    others = [column for column in range(20) if column != 7]
    # The damping is a share of the mean of the diagonal, and that is another over 19 of 20: so the zeros stay in.
    moved = silent[:, [*others, 7]][:, :, [*others, 7]]
    assert (round_columns(weight[..., [*others, 7]], steps, moved, LARGEST)[..., :19] == found[..., others]).all()


def test_a_network_that_saw_only_zeros_is_rounded_to_nearest() -> None:
    weight, steps, moments = problem(1, 3, 9)
    found = round_columns(weight, steps, np.zeros_like(moments), LARGEST)
    assert (found == np.rint(weight / steps[..., None])).all()


def test_integers_stay_within_the_levels() -> None:
    weight, steps, moments = problem(1, 16, 30)
    found = round_columns(weight, steps / 10, moments, LARGEST)  # a step that half of the weights are beyond
    assert found.min() == -LARGEST
    assert found.max() == LARGEST


def digest_of_a_large_layer() -> str:
    weight, steps, moments = problem(1, 64, 5 * BLOCK + 3)
    return hashlib.sha256(round_columns(weight, steps, moments, LARGEST).tobytes()).hexdigest()


def test_the_threads_of_the_matrix_products_change_no_bit() -> None:
    found = set()
    for threads in ("1", "2"):
        script = "from tests.quant.test_gptq import digest_of_a_large_layer as digest; print(digest())"
        limits = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        done = subprocess.run(
            [sys.executable, "-c", script], env={**os.environ, **limits}, capture_output=True, text=True, check=True
        )
        found.add(done.stdout)
    assert len(found) == 1
