"""``skdeploy build``: another engine for a bundle, on the device that will run it, without the export."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from skdeploy import engines
from skdeploy.bundle import contents
from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import Bundle, bundle_for_writing, load_bundle
from skdeploy.bundle.runners import Runner, backend_of, last_graph
from skdeploy.bundle.station_facts import EngineFacts
from skdeploy.core.errors import DependencyError, UsageError
from skdeploy.core.progress import Progress, Silent
from skdeploy.engines.options import BatchProfile
from skdeploy.line.line import Line
from skdeploy.line.options import DEFAULT_PROFILE, NO_ENGINE, BuildRequest
from skdeploy.line.stations.engine import engine_station
from skdeploy.line.stations.parity import add_unproven_engine

NOT_COMPARED: Final = "built after the export and not yet compared: `skdeploy verify` compares it on this machine"
GIB: Final = 1 << 30
MAX_GIB: Final = 1 << 20  # no machine has more, and TensorRT's limit is a 64-bit number


@dataclass(frozen=True)
class Built:
    """A bundle with its new engine; ``reused``: it was there already. ``reason``: why this compiler. ``unproven``: why nothing
    is claimed of the engine yet; empty where an export on this device has compared it.
    """

    bundle: Bundle
    artifact: Artifact
    record: EngineFacts
    reused: bool
    seconds: float
    reason: str
    unproven: str


def build_engine(folder: Path, request: BuildRequest, progress: Progress | None = None) -> Built:
    """Builds an engine from the bundle's last graph, and records it in the manifest; nothing is built if it is there already.

    An engine of the same compiler and precision is replaced. The parity report then names the new one, unproven: only a run
    proves an engine. Raises UsageError, DependencyError without the compiler, EngineError, IntegrityError for a bundle that is
    not verified, damaged, or written to by another process.
    """
    started = time.perf_counter()
    found = load_bundle(folder)
    found.check_deployable()
    if request.target == engines.ONNX:
        raise UsageError("--target onnx makes no engine", advice=f"choose {', '.join(engines.COMPILERS)} or auto")
    compiler, reason = engines.choose(request.target)
    if compiler is None:
        raise DependencyError(reason, advice=" or ".join(engines.install_advice(name) for name in engines.COMPILERS))
    with bundle_for_writing(folder, found.manifest) as bundle:
        bundle.manifest = load_bundle(folder).manifest  # what another process wrote until the lock was ours
        bundle.check_deployable()
        notes = tuple(note for note in bundle.manifest.notes if not note.startswith(NO_ENGINE))
        bundle.manifest = bundle.manifest.model_copy(update={"notes": notes})  # written with the engine
        line = Line(bundle, progress or Silent())
        graph = last_graph(bundle).artifact
        parity = _parity(bundle)
        engine = line.run(engine_station(bundle, compiler, graph), request, graph=graph)
        record = engine.facts_as(EngineFacts)
        unproven = _unproven(bundle, parity, engine)
    return Built(bundle, engine, record, engine.path in line.reused, time.perf_counter() - started, reason, unproven)


def _parity(bundle: Bundle) -> Artifact | None:
    """The parity report that the new engine is added to: a damaged one is refused before the build. Raises IntegrityError."""
    from skdeploy.parity.report import ParityReport

    parity = bundle.artifact(contents.PARITY)
    if parity is not None:
        bundle.read_report(parity, ParityReport)
    return parity


def _unproven(bundle: Bundle, parity: Artifact | None, engine: Artifact) -> str:
    """Names the engine in the parity report, unless that speaks of this very engine, and says what it says there."""
    from skdeploy.parity.report import ParityReport

    if parity is None:
        return NOT_COMPARED
    if parity.provenance.parents.get(engine.path) != engine.sha256:
        reason = _reason(bundle, engine)
        add_unproven_engine(bundle, parity, engine, backend_of(engine), reason)
        return reason
    report = bundle.read_report(parity, ParityReport)
    comparison = next((c for c in report.comparisons if c.artifact == engine.path), None)
    return comparison.reason if comparison is not None else NOT_COMPARED


def _reason(bundle: Bundle, engine: Artifact) -> str:
    """Why the engine is not proven. One that loads here, and no more than that, is not either; one that does not load though
    its compiler and device are here is not an engine: its error is raised.
    """
    try:
        Runner(bundle, engine, backend_of(engine)).open().close()
    except DependencyError as error:
        return error.message
    return NOT_COMPARED


def profiles_of(
    written: tuple[str, ...], batches: tuple[int | None, int | None, int | None]
) -> tuple[BatchProfile | None, tuple[BatchProfile, ...]]:
    """The first profile, None where none is given, and the others: from texts like "1/8/32", or one from (min, opt, max), of
    which None is the default. Raises UsageError.
    """
    if batches == (None, None, None):
        first, *others = map(_profile, written) if written else (None,)
        return first, tuple(others)
    if written:
        raise UsageError(
            "--profile and --min-batch, --opt-batch or --max-batch set the same values",
            advice="give only one of the two",
        )
    low, opt, high = (
        default if given is None else given for given, default in zip(batches, DEFAULT_PROFILE, strict=True)
    )
    return BatchProfile(low, opt, high), ()


def _profile(text: str) -> BatchProfile:
    try:
        low, opt, high = (int(part) for part in text.split("/"))
    except ValueError as error:
        raise UsageError(f"--profile {text}: give three batches", advice="for example 1/8/32") from error
    return BatchProfile(low, opt, high)


def gibibytes(option: str, amount: float | None) -> int | None:
    """Convert GiB to bytes. Raises UsageError for what no machine could have."""
    if amount is None:
        return None
    if not 0 < amount < MAX_GIB:
        raise UsageError(f"{option} {amount:g}: must be more than 0 GiB and less than {MAX_GIB:,}")
    return round(amount * GIB)
