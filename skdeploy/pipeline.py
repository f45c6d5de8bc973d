"""The line: card -> weights -> network -> ONNX -> simplified -> FP16 -> engine -> parity -> bundle.

``export`` is the order of the stations and what each is given; ``stages.py`` says what decides whether a station must run
again, and what it does is in its own package.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from skdeploy import __version__, engines, stages
from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import Bundle, Stage, bundle_for_writing, load_bundle
from skdeploy.bundle.manifest import Manifest
from skdeploy.errors import DependencyError
from skdeploy.options import DEFAULT_IMAGES, ExportOptions
from skdeploy.parity.report import HeadroomReport, ParityReport
from skdeploy.progress import Progress, Silent
from skdeploy.quant.dataset import Dataset, default_dataset, open_dataset
from skdeploy.sources import CardSource, GraphSource, ModuleSource, find_source
from skdeploy.spec import ModelSpec, Precision


@dataclass
class Line:
    """Runs stages into a bundle, or finds that their earlier results hold, and remembers which artifacts are current."""

    bundle: Bundle
    progress: Progress
    artifacts: tuple[Artifact, ...] = ()
    reused: set[str] = field(default_factory=set)

    def run(self, stage: Stage) -> Artifact:
        started = time.perf_counter()
        self.progress.begin(stage.name)
        artifact = self.bundle.up_to_date(stage)
        if artifact is not None:
            self.reused.add(artifact.path)
        else:
            artifact = self.bundle.produce(stage)
        self.artifacts = (*self.artifacts, artifact)
        self.progress.end(stage.name, time.perf_counter() - started, reused=artifact.path in self.reused)
        return artifact


@dataclass(frozen=True)
class Export:
    """A finished export: the bundle, the parity report, which files were already up to date, and the seconds it took."""

    bundle: Bundle
    parity: ParityReport
    reused: frozenset[str]
    seconds: float


def export(options: ExportOptions, progress: Progress | None = None) -> Export:
    """Runs the whole line. Raises a SkdeployError with the exit code of the stage that failed; what is done stays done."""
    started = time.perf_counter()
    tell = progress or Silent()
    options.check()
    source = find_source(options)
    dataset = parity_dataset(source.spec, options.images, options.num_images)
    compiler, no_engine = engines.choose(options.target)
    notes = source.notes if compiler else (*source.notes, f"no engine: {no_engine}")
    for note in notes:
        tell.note(note)

    head = Manifest(
        skdeploy=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=source.spec,
        weights=source.record,
        precision=options.precision,
        notes=notes,
    )
    with bundle_for_writing(options.folder(source.spec), head) as bundle:
        line = Line(bundle, tell)
        graph, network = enter(line, source, options)
        if options.simplify:
            graph = line.run(stages.simplify(bundle, graph))
        if options.precision is Precision.FP16:
            model = graph
            graph = line.run(stages.half(bundle, model, options))
            measured = line.run(stages.headroom(bundle, model, graph, dataset))
            HeadroomReport.model_validate_json(bundle.check(measured).read_text(encoding="utf-8")).check()
        if compiler is not None:
            line.run(stages.build(bundle, graph, compiler, options, tell))
        proof = line.run(stages.parity(bundle, line.artifacts, dataset, network, tell))
        report = ParityReport.model_validate_json(bundle.check(proof).read_text(encoding="utf-8"))
        bundle.finish(line.artifacts, "verified" if report.verdict == "pass" else "failed")
    report.check()
    return Export(bundle, report, frozenset(line.reused), time.perf_counter() - started)


def enter(
    line: Line, source: CardSource | GraphSource | ModuleSource, options: ExportOptions
) -> tuple[Artifact, stages.Network | stages.OwnNetwork | None]:
    """The first graph of the line, and the network that it must be in parity with; None where only the graph is known."""
    if isinstance(source, GraphSource):
        graph = line.run(stages.read(source.graph, source.record))
        return _select(line, source.spec, graph, options), None
    if isinstance(source, ModuleSource):
        own = stages.OwnNetwork(source.spec, source.module)
        graph = line.run(stages.trace(own, {"weights": source.record.sha256 or ""}, options))
        return _select(line, source.spec, graph, options), own
    weights = line.run(stages.weights(source.spec, source.record, source.checkpoint))
    spec, said = stages.imported(source.spec, weights)
    _adopt(line, spec, said)
    network = stages.Network(spec, line.bundle.check(weights))
    return line.run(stages.trace(network, {weights.path: weights.sha256}, options)), network


def _select(line: Line, spec: ModelSpec, graph: Artifact, options: ExportOptions) -> Artifact:
    """Selective kernel blocks of somebody else's making in their deploy form."""
    selected = line.run(stages.select(line.bundle, graph, options))
    _adopt(line, spec, stages.blocks_found(selected))
    return selected


def _adopt(line: Line, spec: ModelSpec, notes: tuple[str, ...]) -> None:
    line.bundle.adopt(spec, notes)
    for note in notes:
        line.progress.note(note)


def verify(
    folder: Path, images: Path | None = None, num_images: int = DEFAULT_IMAGES, progress: Progress | None = None
) -> tuple[Bundle, ParityReport]:
    """Checks every digest of a bundle and measures parity again, on given or default images; writes nothing.

    The reference is torch with the bundle's own weights, or its first FP32 graph where there is no torch or the bundle came
    from a graph or a module, which is said. Raises IntegrityError, ParityError, UsageError.
    """
    tell = progress or Silent()
    bundle = load_bundle(folder)
    tell.begin("digests")
    started = time.perf_counter()
    bundle.check_complete()
    bundle.check_all()
    tell.end("digests", time.perf_counter() - started, reused=False)
    network = None
    weights = bundle.artifact(stages.WEIGHTS)
    if weights is None:
        tell.note(
            "the reference is the bundle's own first graph: it was made from a graph or from code, not from a card"
        )
    else:
        try:
            network = stages.Network(bundle.manifest.model, bundle.check(weights)).module
        except DependencyError as error:
            tell.note(f"the reference is the bundle's own FP32 graph, not torch: {error.message}")
    from skdeploy.parity.prove import prove

    tell.begin("parity")
    started = time.perf_counter()
    dataset = parity_dataset(bundle.manifest.model, images, num_images)
    report = prove(bundle, bundle.manifest.artifacts, dataset, network, tell)
    tell.end("parity", time.perf_counter() - started, reused=False)
    report.check()
    return bundle, report


def parity_dataset(spec: ModelSpec, images: Path | None, count: int) -> Dataset:
    """The images that parity and headroom are measured on: the first ``count`` of the given ones, or of the card's."""
    return open_dataset(images, count) if images is not None else default_dataset(spec, count)
