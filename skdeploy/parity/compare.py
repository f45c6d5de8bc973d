"""Runs the same images through several backends and compares what comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from skdeploy.backends.base import Session
from skdeploy.backends.logits import batch_limits, run_images
from skdeploy.backends.metrics import Outputs, largest_difference
from skdeploy.core.errors import SkdeployError
from skdeploy.core.spec import ModelSpec, Precision, Tolerance
from skdeploy.images.dataset import Inputs, Pixels
from skdeploy.images.feeds import feeds_of
from skdeploy.parity.report import BatchInvariance, Comparison
from skdeploy.parity.tasks import judged, resized, task_of

BATCHES: Final = (1, 2, 5, 32)


@dataclass(frozen=True)
class Subject:
    """What is run: an artifact's path, the backend it runs on, its precision and the card's tolerance for that."""

    artifact: str
    backend: str
    precision: Precision
    tolerance: Tolerance


def compare(
    session: Session,
    pixels: Pixels | Inputs,
    reference: Outputs,
    spec: ModelSpec,
    who: Subject,
    name_of: Callable[[int], str] | None = None,
) -> Comparison:
    """Runs ``session`` on the crops and compares its outputs with ``reference``. ``name_of`` names an image."""
    task, metrics = task_of(spec), None
    outputs = run_images(session, pixels, spec)
    problems = task.check(outputs, len(pixels), spec)
    if not problems:
        metrics = task.measure(reference, judged(task, outputs), who.tolerance)
        problems = task.violations(metrics, who.tolerance, name_of)
    return Comparison(
        artifact=who.artifact,
        backend=who.backend,
        precision=who.precision,
        verdict="fail" if problems else "pass",
        metrics=metrics,
        problems=problems,
    )


def unproven(who: Subject, error: SkdeployError) -> Comparison:
    """The record of an artifact that cannot run on this machine."""
    artifact, backend, precision = who.artifact, who.backend, who.precision
    return Comparison(artifact=artifact, backend=backend, precision=precision, verdict="unproven", reason=error.message)


def batch_invariance(
    session: Session,
    pixels: Pixels,
    spec: ModelSpec,
    *,
    artifact: str,
    tolerance: float,
    batches: Sequence[int] = BATCHES,
) -> BatchInvariance | None:
    """Image k must give the same outputs in any batch; None for a graph of fixed batch, where there is nothing to vary.

    The first size is the reference. Images are repeated if there are fewer than a batch takes. ``tolerance`` is relative to
    the largest value: kernels may sum in another order for another batch, so bits may differ. Sizes outside an engine's profile
    are left out.
    """
    low, high = batch_limits(session)
    batches = [size for size in batches if low <= size <= high]
    if isinstance(session.inputs[0].shape[0], int) or len(batches) < 2:
        return None
    many = np.resize(pixels, (max(batches), *pixels.shape[1:]))
    distinct = many[: min(len(pixels), len(many))]
    task = task_of(spec)
    single = judged(task, run_images(session, distinct, spec, batches[0]))
    worst, problem = 0.0, ""
    for size in batches[1:]:
        found = session.run(feeds_of(many[:size], spec, session.inputs))
        error = largest_difference(resized(single, size), found, single)
        if error > worst:
            worst = error
            if error > tolerance:
                between = f"between a batch of {batches[0]} and of {size}"
                problem = f"images differ by {error:.2e} of the largest {task.value} {between}"
    return BatchInvariance(
        artifact=artifact,
        batches=tuple(batches),
        max_rel_error=min(worst, 1e9),  # JSON has no infinity
        tolerance=tolerance,
        verdict="fail" if problem else "pass",
        problem=problem,
    )
