"""The line: card -> network -> ONNX -> simplified -> FP16 -> engine -> parity -> bundle.

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
from skdeploy.checkpoints.load import find_weights, recorded_weights
from skdeploy.errors import DependencyError, WeightsError
from skdeploy.options import DEFAULT_IMAGES, ExportOptions
from skdeploy.parity.report import HeadroomReport, ParityReport
from skdeploy.progress import Progress, Silent
from skdeploy.quant.dataset import Dataset, default_dataset, open_dataset
from skdeploy.spec import ModelSpec, Precision
from skdeploy.zoo.cards import load_card


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
    card_spec, card = load_card(options.model)
    spec = options.applied(card_spec)
    record, weights = find_weights(spec, card, options.weights, options.seed)
    network = stages.Network(spec, record, weights)
    dataset = parity_dataset(spec, options.images, options.num_images)
    compiler, no_engine = engines.choose(options.target)
    notes: list[str] = []
    if record.source == "random":
        notes.append(f"no weights given: random ones from seed {record.seed}, so the logits mean nothing")
    if compiler is None:
        notes.append(f"no engine: {no_engine}")
    for note in notes:
        tell.note(note)

    head = Manifest(
        skdeploy=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=spec,
        weights=record,
        precision=options.precision,
        notes=tuple(notes),
    )
    with bundle_for_writing(options.folder(spec), head) as bundle:
        line = Line(bundle, tell)
        graph = line.run(stages.trace(network, options))
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


def verify(
    folder: Path,
    images: Path | None = None,
    num_images: int = DEFAULT_IMAGES,
    weights: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Bundle, ParityReport]:
    """Checks every digest of a bundle and measures parity again, on given or default images; writes nothing.

    The reference is torch if the weights that the manifest names are here, else the bundle's own FP32 graph, which is said.
    Raises IntegrityError, ParityError, UsageError.
    """
    tell = progress or Silent()
    bundle = load_bundle(folder)
    tell.begin("digests")
    started = time.perf_counter()
    bundle.check_complete()
    bundle.check_all()
    tell.end("digests", time.perf_counter() - started, reused=False)
    spec, record = bundle.manifest.model, bundle.manifest.weights
    network = None
    try:
        path = recorded_weights(record, weights)
        network = stages.Network(spec, record, path).module
    except (WeightsError, DependencyError) as error:
        if weights is not None:
            raise
        tell.note(f"reference is the bundle's own FP32 graph, not torch: {error.message}")
    from skdeploy.parity.prove import prove

    tell.begin("parity")
    started = time.perf_counter()
    report = prove(bundle, bundle.manifest.artifacts, parity_dataset(spec, images, num_images), network, tell)
    tell.end("parity", time.perf_counter() - started, reused=False)
    report.check()
    return bundle, report


def parity_dataset(spec: ModelSpec, images: Path | None, count: int) -> Dataset:
    """The images that parity and headroom are measured on: the first ``count`` of the given ones, or of the card's."""
    return open_dataset(images, count) if images is not None else default_dataset(spec, count)
