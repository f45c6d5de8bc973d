"""Rounding of a weight's columns one after another, each making up for the errors of those before it.

Frantar, Ashkboos, Hoefler and Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
2022: OBQ (Frantar and Alistarh, 2022) with the same fixed order of columns for all rows, from a Cholesky factor. The step of
each row is given, and stays.

A layer computes W x. With E = W - Q the error of the rounded weight, and H the second moments of x, the mean squared error of
the outputs is tr(E H E^T). With H = V V^T for an upper triangular V it is the squared length of E V, whose column j is
V_jj e_j + sum over k < j of V_kj e_k. So the best column after those before it is w_j + sum over k < j of e_k V_kj / V_jj,
rounded. GPTQ computes the same from a factor of the inverse; with that of H itself no inverse is needed.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

DAMPING: Final = 0.05  # of the mean of the diagonal, added to it: few images do not tell all K moments apart
BLOCK: Final = 64  # columns that are rounded one by one before their errors go to all that follow, in one product

Floats = NDArray[np.float64]


def round_columns(weight: Floats, steps: Floats, moments: Floats, largest: int) -> NDArray[np.int8]:
    """The integers, (G, R, K), of rows (G, R, K) with steps (G, R), for inputs with second moments (G, K, K).

    An input that was always zero has no say, and its column is rounded to nearest.
    """
    factor = _factor(moments)
    groups, rows, columns = weight.shape
    levels = np.empty((groups, rows, columns), np.int8)
    errors = np.empty_like(weight)
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        wanted = weight[:, :, start:end] + errors[:, :, :start] @ factor[:, :start, start:end]
        for column in range(start, end):
            target = wanted[:, :, column - start]
            rounded = np.clip(np.rint(target / steps), -largest, largest)
            levels[:, :, column] = rounded
            # Of the weight as it was: what earlier columns asked for is in ``target``, and is no error of this one.
            error = errors[:, :, column] = weight[:, :, column] - rounded * steps
            rest = factor[:, column, column + 1 : end]
            wanted[:, :, column + 1 - start :] += error[:, :, None] * rest[:, None, :]
    return levels


def _factor(moments: Floats) -> Floats:
    """V of V V^T for the damped moments, upper triangular, with each column divided by its diagonal: (G, K, K).

    The Cholesky factor of the matrix with rows and columns reversed, reversed.
    """
    factor = np.empty_like(moments)
    for matrix, made in zip(moments, factor, strict=True):
        damped = matrix[::-1, ::-1].copy()
        diagonal = np.einsum("kk->k", damped)  # a view
        mean = np.diagonal(matrix).mean()
        diagonal += DAMPING * mean if mean > 0 else 1.0
        _cholesky(damped)
        made[:] = damped[::-1, ::-1]
        made /= np.diagonal(made).copy()
    return factor


def _cholesky(matrix: Floats) -> None:
    """Makes a matrix its lower Cholesky factor, in blocks of a fixed size: LAPACK chooses its blocks by the number of threads,
    and other blocks give other last bits. In place: of 2,048 inputs, each copy takes 32 MB.
    """
    size = len(matrix)
    for start in range(0, size, BLOCK):
        end = min(start + BLOCK, size)
        corner = np.linalg.cholesky(matrix[start:end, start:end])
        matrix[start:end, start:end] = corner
        below = matrix[end:, start:end] @ np.linalg.inv(corner).T
        matrix[end:, start:end] = below
        matrix[start:end, end:] = 0
        matrix[end:, end:] -= below @ np.ascontiguousarray(below.T)
