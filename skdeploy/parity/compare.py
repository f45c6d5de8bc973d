"""Runs the same images through several backends and compares what comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from skdeploy.backends.base import Array, Session
from skdeploy.backends.logits import batch_limits
from skdeploy.backends.metrics import Outputs, largest_difference
from skdeploy.core.errors import SkdeployError
from skdeploy.core.spec import ModelSpec, Precision, Tolerance
from skdeploy.images.dataset import Pixels
from skdeploy.images.feeds import RUN_BATCH, feeds_of
from skdeploy.parity.margins import NONE as NO_MARGINS
from skdeploy.parity.margins import Margins
from skdeploy.parity.measured import measured
from skdeploy.parity.report import BatchInvariance, Comparison
from skdeploy.parity.tasks import judged, task_of

BATCHES: Final = (1, 2, 5, 32)  # besides RUN_BATCH, in which all images are run
EXPORT_BATCHES: Final = (1, 2, 5)  # 32 takes the time and memory of all that an export runs; `verify` has both


@dataclass(frozen=True)
class Subject:
    """The subject of a comparison: an artifact's path, its backend, its precision and the card's tolerance."""

    artifact: str
    backend: str
    precision: Precision
    tolerance: Tolerance


def compare(
    outputs: dict[str, Array],
    reference: Outputs,
    spec: ModelSpec,
    who: Subject,
    name_of: Callable[[int], str] | None = None,
    margins: Margins = NO_MARGINS,
) -> Comparison:
    """Compares the outputs of all images with ``reference``. ``name_of`` names an image, ``margins`` are those of integers."""
    task, metrics = task_of(spec), None
    problems = task.check(outputs, len(next(iter(reference.values()))), spec) or unlike(reference, outputs)
    if not problems:
        metrics = measured(task, reference, judged(spec, outputs), who.tolerance, spec, margins)
        problems = task.violations(metrics, who.tolerance, name_of)
    return Comparison(
        artifact=who.artifact,
        backend=who.backend,
        precision=who.precision,
        verdict="fail" if problems else "pass",
        metrics=metrics,
        problems=problems,
    )


def unlike(reference: Outputs, outputs: Outputs) -> tuple[str, ...]:
    """Say which output has another shape than the reference's: a check knows of no size that is free."""
    return tuple(
        f"{name} has shape {outputs[name].shape}, but the reference's has {value.shape}"
        for name, value in reference.items()
        if outputs[name].shape != value.shape
    )


def unproven(who: Subject, error: SkdeployError) -> Comparison:
    """The record of an artifact that cannot run on this machine."""
    artifact, backend, precision = who.artifact, who.backend, who.precision
    return Comparison(artifact=artifact, backend=backend, precision=precision, verdict="unproven", reason=error.message)


def batch_invariance(
    session: Session,
    pixels: Pixels,
    outputs: dict[str, Array],
    spec: ModelSpec,
    *,
    artifact: str,
    tolerance: float,
    batches: Sequence[int] = BATCHES,
) -> BatchInvariance | None:
    """Image k must give the same outputs in any batch; None for a graph of fixed batch, where there is nothing to vary.

    ``outputs`` are those of all images as ``run_images`` gave them, in batches of their own size. Each of ``batches`` takes the
    images after those of the one before, from the first again where they end. ``tolerance`` is relative to the largest value:
    kernels may sum in another order for another batch, so bits may differ. Sizes outside an engine's profile are left out.
    """
    low, high = batch_limits(session)
    ran = min(max(RUN_BATCH, low), high, max(len(pixels), low))
    batches = [size for size in batches if low <= size <= high and size != ran]
    if isinstance(session.inputs[0].shape[0], int) or not batches:
        return None
    task = task_of(spec)
    known = judged(spec, outputs)
    worst, problem, first = 0.0, "", 0
    for size in batches:
        chosen = np.arange(first, first + size) % len(pixels)
        first += size
        found = session.run(feeds_of(pixels[chosen], spec, session.inputs))
        error = largest_difference({name: value[chosen] for name, value in known.items()}, found, known)
        if error > worst:
            worst = error
            if error > tolerance:
                between = f"between a batch of {ran} and of {size}"
                problem = f"{spec.sample_word}s differ by {error:.2e} of the largest {task.value} {between}"
    return BatchInvariance(
        artifact=artifact,
        batches=tuple(sorted({ran, *batches})),
        max_rel_error=min(worst, 1e9),  # JSON has no infinity
        tolerance=tolerance,
        verdict="fail" if problem else "pass",
        problem=problem,
    )
