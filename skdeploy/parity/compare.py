"""Runs the same images through several backends and compares what comes out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from skdeploy.backends.base import Array, Session
from skdeploy.errors import SkdeployError
from skdeploy.parity.metrics import SMALLEST, compare_logits, violations
from skdeploy.parity.report import BatchInvariance, Comparison
from skdeploy.quant.dataset import Inputs, Pixels
from skdeploy.quant.feeds import RUN_BATCH, batches_of, feeds_of
from skdeploy.spec import ModelSpec, Precision, Tolerance

BATCHES: Final = (1, 2, 5, 32)


def check_outputs(outputs: dict[str, Array], images: int, spec: ModelSpec) -> tuple[str, ...]:
    """What makes a comparison pointless: no logits, another shape or type, values that are not finite."""
    logits = outputs.get("logits")
    if logits is None:
        return (f"no output named 'logits', only {sorted(outputs)}",)
    if logits.shape != (images, spec.network.classes):
        return (f"logits have shape {logits.shape}, expected {(images, spec.network.classes)}",)
    if logits.dtype != np.float32:
        return (f"logits are {logits.dtype}, expected float32",)
    problems = []
    for name, value in outputs.items():
        broken = np.argwhere(~np.isfinite(value))
        if len(broken):
            problems.append(f"{len(broken)} {name} are NaN or infinite, first in image {int(broken[0, 0])}")
    return tuple(problems)


def run_images(session: Session, pixels: Pixels | Inputs, spec: ModelSpec, batch: int = RUN_BATCH) -> dict[str, Array]:
    """Outputs of all images, (N, ...) each. The fill of a last batch is cut off; a wrong number of rows is left to be seen.

    An engine's batches are within its profile, whatever ``batch`` says.
    """
    low, high = batch_limits(session)
    batch = min(max(batch, low), high)
    last = len(pixels) % batch
    if 0 < last < low:
        filled = run_images(session, np.concatenate([pixels, np.repeat(pixels[-1:], low - last, axis=0)]), spec, batch)
        return {name: value[: len(pixels)] if len(value) >= len(pixels) else value for name, value in filled.items()}
    parts: dict[str, list[Array]] = {}
    for feeds, count in batches_of(pixels, spec, session.inputs, batch):
        fed = len(feeds[session.inputs[0].name])
        for name, value in session.run(feeds).items():
            parts.setdefault(name, []).append(value[:count] if value.shape[:1] == (fed,) else np.atleast_1d(value))
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def batch_limits(session: Session) -> tuple[int, int]:
    """The smallest and the largest batch that a session takes: an engine's profile has limits, others have none."""
    profile: Mapping[str, tuple[tuple[int, ...], ...]] | None = getattr(session, "profile", None)
    if profile is None:
        return 1, sys.maxsize
    low, _, high = profile[session.inputs[0].name]
    return low[0], high[0]


def one_batch(session: Session, pixels: Pixels, spec: ModelSpec, size: int = RUN_BATCH) -> dict[str, Array]:
    """Feeds of ``size`` images, or as near to that as the session takes; images are repeated if there are fewer."""
    fixed = session.inputs[0].shape[0]
    low, high = (fixed, fixed) if isinstance(fixed, int) else batch_limits(session)
    wanted = min(max(min(size, len(pixels)), low), high)
    return feeds_of(np.resize(pixels, (wanted, *pixels.shape[1:])), spec, session.inputs)


def compare(
    session: Session,
    pixels: Pixels | Inputs,
    reference: Array,
    spec: ModelSpec,
    *,
    artifact: str,
    backend: str,
    precision: Precision,
    tolerance: Tolerance,
    name_of: Callable[[int], str] | None = None,
) -> Comparison:
    """Runs ``session`` on the crops and compares its logits with ``reference``, (N, classes). ``name_of`` names an image."""
    outputs = run_images(session, pixels, spec)
    problems = check_outputs(outputs, len(pixels), spec)
    metrics = None
    if not problems:
        metrics = compare_logits(reference, outputs["logits"], tolerance)
        problems = violations(metrics, tolerance, name_of)
    return Comparison(
        artifact=artifact,
        backend=backend,
        precision=precision,
        verdict="fail" if problems else "pass",
        metrics=metrics,
        problems=problems,
    )


def unproven(artifact: str, backend: str, precision: Precision, error: SkdeployError) -> Comparison:
    """The record of an artifact that cannot run on this machine."""
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
    """Image k must give the same logits in any batch; None for a graph of fixed batch, where there is nothing to vary.

    The first size is the reference. Images are repeated if there are fewer than a batch takes. ``tolerance`` is relative to
    the largest logit: kernels may sum in another order for another batch, so bits may differ. Sizes outside an engine's profile
    are left out.
    """
    low, high = batch_limits(session)
    batches = [size for size in batches if low <= size <= high]
    if isinstance(session.inputs[0].shape[0], int) or len(batches) < 2:
        return None
    many = np.resize(pixels, (max(batches), *pixels.shape[1:]))
    distinct = many[: min(len(pixels), len(many))]
    single = run_images(session, distinct, spec, batches[0])["logits"].astype(np.float64)
    scale = max(float(np.max(np.abs(single))), SMALLEST)
    worst, problem = 0.0, ""
    for size in batches[1:]:
        logits = session.run(feeds_of(many[:size], spec, session.inputs))["logits"]
        expected = np.resize(single, (size, single.shape[1]))
        error = float(np.max(np.abs(logits - expected))) / scale if np.isfinite(logits).all() else float("inf")
        if error > worst:
            worst = error
            if error > tolerance:
                problem = (
                    f"images differ by {error:.2e} of the largest logit between a batch of {batches[0]} and of {size}"
                )
    return BatchInvariance(
        artifact=artifact,
        batches=tuple(batches),
        max_rel_error=worst if np.isfinite(worst) else 1e9,
        tolerance=tolerance,
        verdict="fail" if problem else "pass",
        problem=problem,
    )
