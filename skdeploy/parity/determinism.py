"""Does the same give the same? One session run twice, and one engine built twice: recorded, not assumed.

A CPU repeats its bits; a GPU need not where kernels add in an order of their own. Two builds of one graph may choose other
kernels and so round differently; nobody promises bit-identical plans.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from skdeploy import engines
from skdeploy.backends import backend
from skdeploy.backends.base import Array, Session
from skdeploy.backends.logits import one_batch, run_images
from skdeploy.backends.metrics import Metrics, largest_difference
from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import Bundle
from skdeploy.bundle.runners import graph_of
from skdeploy.bundle.station_facts import EngineFacts
from skdeploy.core.errors import DependencyError, IntegrityError
from skdeploy.core.files import digest_file
from skdeploy.core.spec import ModelSpec, Tolerance
from skdeploy.engines.options import BuildOptions, of_record
from skdeploy.images.dataset import Pixels
from skdeploy.images.feeds import RUN_BATCH
from skdeploy.parity.compare import Subject
from skdeploy.parity.measured import measured
from skdeploy.parity.report import Rebuild, RunToRun
from skdeploy.parity.tasks import judged, task_of


def run_to_run(session: Session, pixels: Pixels, spec: ModelSpec, who: Subject, images: int = RUN_BATCH) -> RunToRun:
    """One batch, run twice. Other bits are recorded; an error above the tolerance fails."""
    feeds = one_batch(session, pixels, spec, images)
    task, tolerance = task_of(spec), who.tolerance.max_rel_error
    first, second = (judged(spec, session.run(feeds)) for _ in range(2))
    differing, error = sum(_differing(first[name], second[name]) for name in first), largest_difference(first, second)
    problem = ""
    if not error <= tolerance:
        among = f"by {error:.1e} of the largest {task.value}, allowed {tolerance:.0e}"
        problem = f"two runs of the same {spec.sample_word}s differ {among}"
    return RunToRun(
        artifact=who.artifact,
        backend=who.backend,
        images=len(next(iter(first.values()))),
        values=sum(value.size for value in first.values()),
        differing=differing,
        max_rel_error=min(error, 1e9),  # JSON has no infinity
        tolerance=tolerance,
        verdict="fail" if problem else "pass",
        problem=problem,
    )


def rebuild(bundle: Bundle, engine: Artifact, pixels: Pixels, tolerance: Tolerance) -> Rebuild:
    """Builds an engine again from its graph, with the options that the manifest records, into a temporary folder.

    Where engines run, the logits of the two are compared on the images and held to the card's tolerance: both are the same
    graph in the same precision. Raises DependencyError without the compiler, EngineError, IntegrityError without the graph.
    """
    options, built = recorded_options(bundle, engine), engine.facts_as(EngineFacts)
    name = built.compiler
    graph = graph_of(bundle, engine)
    path = bundle.check(engine)
    engines.demand(name)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="skdeploy-") as scratch:
        second = Path(scratch) / "again.engine"
        report = engines.build(name, bundle.check(graph), second, options, lambda *_: None)
        seconds = time.perf_counter() - started
        sha256 = digest_file(second)
        logits, problems, reason = _compare(
            bundle.manifest.model, name, ((path, engine.sha256), (second, sha256)), pixels, tolerance
        )
        return Rebuild(
            artifact=engine.path,
            compiler=name,
            built_by=built.version,
            rebuilt_by=str(report.version),
            sha256=engine.sha256,
            rebuilt_sha256=sha256,
            size_bytes=engine.size_bytes,
            rebuilt_size_bytes=second.stat().st_size,
            differing_bytes=differing_bytes(path.read_bytes(), second.read_bytes()),
            seconds=round(seconds, 3),
            logits=logits,
            verdict="fail" if problems else "pass" if logits else "recorded",
            problems=problems,
            reason=reason,
        )


def differing_bytes(first: bytes, second: bytes) -> int:
    """At how many places two files differ; what one has more than the other differs."""
    common = min(len(first), len(second))
    one, other = (np.frombuffer(content, np.uint8, common) for content in (first, second))
    return int(np.count_nonzero(one != other)) + max(len(first), len(second)) - common


def recorded_options(bundle: Bundle, engine: Artifact) -> BuildOptions:
    """How an engine was built. Raises IntegrityError if the manifest does not say."""
    try:
        options = of_record(engine.provenance.options)
    except ValidationError as error:
        raise _unsaid(bundle, engine, str(error).splitlines()[0]) from error
    if options.profile is None:
        raise _unsaid(bundle, engine, "no batch profile")
    return options


def _unsaid(bundle: Bundle, engine: Artifact, why: str) -> IntegrityError:
    return IntegrityError(f"{bundle.folder} does not show how {engine.path} was built: {why}", advice="export again")


def _compare(
    spec: ModelSpec, name: str, plans: tuple[tuple[Path, str], tuple[Path, str]], pixels: Pixels, tolerance: Tolerance
) -> tuple[Metrics | None, tuple[str, ...], str]:
    """Outputs of two plans on the images: metrics, problems, and why there are none."""
    task, found = task_of(spec), list[dict[str, Array]]()
    for path, sha256 in plans:
        try:
            session: Session = backend(name).open_session(path, sha256=sha256)
        except DependencyError as error:
            return None, (), error.message
        with session:
            outputs = run_images(session, pixels, spec)
        problems = task.check(outputs, len(pixels), spec)
        if problems:
            return None, problems, ""
        found.append(judged(spec, outputs))
    metrics = measured(task, found[0], found[1], tolerance, spec)
    return metrics, task.violations(metrics, tolerance), ""


def _differing(first: Array, second: Array) -> int:
    """How many values have other bits."""
    one, other = (np.ascontiguousarray(array).view(np.uint8).reshape(array.size, -1) for array in (first, second))
    return int(np.count_nonzero((one != other).any(axis=1)))
