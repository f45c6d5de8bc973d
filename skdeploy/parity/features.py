"""Networks that give vectors or maps for other programs: embeddings, backbones, and whatever else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from skdeploy.backends.base import Array
from skdeploy.backends.metrics import Metrics, Outputs, compare_outputs
from skdeploy.core.spec import ModelSpec, Tolerance
from skdeploy.parity import limits
from skdeploy.parity.task import Task

MIN_IMAGES: Final = 5  # 10 pairs: with fewer, one pair is more than a tenth


class Raw(Task):
    """Any outputs, (N, ...), of which nothing more is known: error, cosine and SQNR of each."""

    help = "any outputs"

    def measure(self, reference: Outputs, found: Outputs, tolerance: Tolerance, spec: ModelSpec, /) -> Metrics:
        del tolerance, spec
        return compare_outputs(reference, found)


class Features(Task):
    """Maps of a backbone, or embeddings (N, values): error, cosine and SQNR of each, and of embeddings which pairs are alike.

    ``pair_error``: two images are taken for the same if the cosine of their embeddings is above a threshold. The reference's
    threshold parts its pairs in halves. This is the equal error rate of the artifact against that: the share of pairs that it
    takes for the same and should not, at the threshold where it misses the same share.
    """

    help = "vectors or maps per image"
    limits = limits.PAIRS

    def measure(self, reference: Outputs, found: Outputs, tolerance: Tolerance, spec: ModelSpec, /) -> Metrics:
        del tolerance, spec
        metrics = compare_outputs(reference, found)
        vectors = [name for name, value in reference.items() if value.ndim == 2 and len(value) >= MIN_IMAGES]
        if not vectors:
            return metrics
        worst = max(pair_error(reference[name], found[name]) for name in vectors)
        return metrics.model_copy(update={"figures": {"pair_error": worst}})

    def violations(
        self, metrics: Metrics, tolerance: Tolerance, name_of: Callable[[int], str] | None = None, /
    ) -> tuple[str, ...]:
        problems = super().violations(metrics, tolerance, name_of)
        error = metrics.figures.get("pair_error")
        if error is not None and tolerance.max_pair_error is not None and not error <= tolerance.max_pair_error:
            problems += (
                f"{error:.2%} of the pairs of embeddings change sides, at most {tolerance.max_pair_error:.2%}",
            )
        return problems


def pair_error(reference: Array, found: Array) -> float:
    """The equal error rate of the pairs of ``found`` against the decisions of ``reference``, both (N, values)."""
    expected, got = _pairs(reference), _pairs(found)
    alike = expected > np.median(expected)
    return equal_error_rate(got[alike], got[~alike])


def equal_error_rate(same: Array, other: Array) -> float:
    """The share of errors where a threshold misses as many of ``same`` as it takes of ``other``; 0 if one of them is empty."""
    if not len(same) or not len(other):
        return 0.0
    thresholds = np.unique(np.concatenate([same, other]))
    missed = np.searchsorted(np.sort(same), thresholds) / len(same)  # those below a threshold
    taken = 1 - np.searchsorted(np.sort(other), thresholds) / len(other)  # those at it or above
    at = int(np.argmin(np.maximum(missed, taken)))
    return float((missed[at] + taken[at]) / 2)


def _pairs(vectors: Array) -> Array:
    """The cosine of each pair."""
    rows = vectors.astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return np.asarray((rows @ rows.T)[np.triu_indices(len(rows), 1)])
