"""The line: card -> weights -> network -> ONNX -> simplified -> FP16 or calibrated INT8 -> engine -> parity -> bundle.

``export`` is the order of the stations and what each is given; ``stages.py`` says what decides whether a station must run
again, and what it does is in its own package.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from skdeploy import engines
from skdeploy.accuracy.facts import read_facts
from skdeploy.accuracy.verdict import Verdict, decide_verdict, next_after_failed_parity
from skdeploy.bundle import contents
from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import Bundle, Stage, bundle_for_writing, load_bundle
from skdeploy.bundle.manifest import Manifest
from skdeploy.checkpoints.network import Network, OwnNetwork
from skdeploy.core.errors import IntegrityError
from skdeploy.core.files import require_places
from skdeploy.core.progress import Progress, Silent
from skdeploy.core.spec import ModelSpec, Precision
from skdeploy.core.version import __version__
from skdeploy.images.dataset import Dataset
from skdeploy.line import engine_stages, int8_stages, stages
from skdeploy.line.options import DEFAULT_IMAGES, ExportOptions
from skdeploy.line.parity_images import images_of_export
from skdeploy.line.rewrite_stage import rewrite, rewrite_notes
from skdeploy.line.sources import CardSource, GraphSource, ModuleSource, find_source
from skdeploy.parity.report import HeadroomReport, ParityReport
from skdeploy.parity.witness import after_proof, find_witness, settles
from skdeploy.quant.ranges import Ranges, load_ranges
from skdeploy.zoo.assumed import assumptions_of, require_preprocessing


@dataclass
class Line:
    """Runs stages into a bundle, or finds that their earlier results hold, and remembers which artifacts are current."""

    bundle: Bundle
    progress: Progress
    artifacts: tuple[Artifact, ...] = ()
    reused: set[str] = field(default_factory=set)
    refused: bool = False  # by TensorRT's parser, and told

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
        refused = artifact.details.get(contents.PARSER_REFUSAL)
        if refused and not self.refused:  # once: later graphs are refused for the same nodes
            self.refused = True
            self.note(f"{artifact.path} is valid ONNX that ONNX Runtime runs; no engine can be made of it: {refused}")
        return artifact

    def note(self, *notes: str) -> None:
        """Says it now, and in the manifest."""
        self.bundle.adopt(self.bundle.manifest.model, notes)
        for note in notes:
            self.progress.note(note)


@dataclass(frozen=True)
class Export:
    """A finished export: the bundle, the parity report, which files were already up to date, and the seconds it took."""

    bundle: Bundle
    parity: ParityReport
    reused: frozenset[str]
    seconds: float

    @property
    def verdict(self) -> Verdict:
        """The verdict on the bundle."""
        return decide_verdict(read_facts(self.bundle))

    def check(self) -> None:
        """Raises ParityError if the artifacts are not in parity, with what to do next."""
        self.parity.check(next_after_failed_parity(self.bundle.manifest, self.bundle.folder, self.parity))


def export(options: ExportOptions, progress: Progress | None = None) -> Export:
    """Runs the whole line, and judges it. Raises a SkdeployError with the exit code of the stage that failed; what is done
    stays done.
    """
    done = run_line(options, progress)
    done.check()
    return done


def run_line(options: ExportOptions, progress: Progress | None = None) -> Export:
    """Runs the whole line. A bundle that is not in parity is written, and nothing is raised: ``Export.check`` judges."""
    started = time.perf_counter()
    tell = progress or Silent()
    options.check()
    source = find_source(options)
    checkpoint = source.checkpoint if isinstance(source, CardSource) else None
    embedded = options.trace.embed_preprocess
    witness = find_witness(options.reference, options.golden, source.spec, checkpoint, tell, takes_pixels=embedded)
    if options.int8.max_drop is not None and "preprocessing" not in settles(witness):
        require_preprocessing({options.model: source.spec})
    dataset = images_of_export(options, source.spec)
    ranges = int8_stages.given_ranges(options.int8.ranges) if options.int8.ranges is not None else None
    compiler, no_engine = engines.choose(options.target)
    notes = source.notes if compiler else (*source.notes, f"no engine: {no_engine}")
    for note in (*notes, *map(str, source.assumptions)):
        tell.note(note)

    head = Manifest(
        skdeploy=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=source.spec,
        weights=source.record,
        precision=options.precision,
        notes=notes,
        assumptions=source.assumptions,
    )
    with bundle_for_writing(options.folder(source.spec), head) as bundle:
        line = Line(bundle, tell)
        graph, network = enter(line, source, options)
        if options.simplify:
            graph = line.run(stages.simplify(bundle, graph))
        if options.precision is Precision.FP16:
            model = graph
            graph = line.run(stages.half(bundle, model, options))
            _check_headroom(line, model, graph, dataset)
        elif options.precision is Precision.INT8:
            graph = lower_to_int8(line, graph, options, ranges)
            line.note(*int8_stages.int8_notes(graph))
            if options.has_half:
                line.note(int8_stages.ONNX_RUNTIME_HALF)
                _check_headroom(line, graph, graph, dataset)
            if compiler == "tensorrt_rtx":
                line.note(int8_stages.RTX_INT8)
        if options.regroup is not None or options.gap is not None:
            graph = line.run(rewrite(bundle, graph, options))
            line.note(*rewrite_notes(graph))
        if compiler is not None:
            asked = engine_stages.build_options(options)
            line.run(engine_stages.build(bundle, graph, compiler, asked, tell))
        proof = line.run(stages.parity(bundle, line.artifacts, dataset, network, tell, witness))
        report = ParityReport.model_validate_json(bundle.check(proof).read_text(encoding="utf-8"))
        _settle(line, report)
        bundle.finish(line.artifacts, "verified" if report.verdict == "pass" else "failed")
    return Export(bundle, report, frozenset(line.reused), time.perf_counter() - started)


def enter(
    line: Line, source: CardSource | GraphSource | ModuleSource, options: ExportOptions
) -> tuple[Artifact, Network | OwnNetwork | None]:
    """The first graph of the line, and the network that it must be in parity with; None where only the graph is known."""
    if isinstance(source, GraphSource):
        graph = line.run(stages.read(source.graph, source.record))
        return _select(line, source.spec, graph, options), None
    if isinstance(source, ModuleSource):
        own = OwnNetwork(source.spec, source.module)
        graph = line.run(stages.trace(own, {"weights": source.record.sha256 or ""}, options))
        return _select(line, source.spec, graph, options), own
    weights = line.run(stages.weights(source.spec, source.record, source.checkpoint))
    spec, said = stages.imported(source.spec, weights)
    assumed = [assumption for assumption in assumptions_of(spec) if assumption not in source.assumptions]
    line.bundle.adopt(spec, (), tuple(assumed))
    line.note(*said)
    for assumption in assumed:
        line.progress.note(str(assumption))
    network = Network(spec, line.bundle.check(weights))
    return line.run(stages.trace(network, {weights.path: weights.sha256}, options)), network


def _settle(line: Line, report: ParityReport) -> None:
    """Take out of the bundle's assumptions what the author's own outputs have shown to be so."""
    before = line.bundle.manifest
    line.bundle.manifest = after_proof(before, report)
    shown = [assumption.text for assumption in before.assumptions if assumption not in line.bundle.manifest.assumptions]
    if shown:
        line.note(f"no longer assumed, by {report.reference}: {'; '.join(shown)}")


def _select(line: Line, spec: ModelSpec, graph: Artifact, options: ExportOptions) -> Artifact:
    """Selective kernel blocks of somebody else's making in their deploy form."""
    selected = line.run(stages.select(line.bundle, graph, options))
    _adopt(line, spec, stages.blocks_found(selected))
    return selected


def lower_to_int8(line: Line, model: Artifact, options: ExportOptions, given: Stage | None) -> Artifact:
    """Ranges from a file, if they are given, or from images; the units that must stay in the fallback for the budget; and the
    INT8 graph.
    """
    asked, bundle = options.int8, line.bundle
    exclude: tuple[str, ...] = ()
    if given is not None:
        ranges = line.run(given)
    else:
        images = int8_stages.calibration_set(asked.calibration, bundle.manifest.model)
        ranges = line.run(int8_stages.calibrate(bundle, model, images, asked, line.progress))
        exclude = images.exclude
    line.note(*int8_stages.calibration_notes(ranges.details))
    keep = (*asked.keep, *exclude)
    if asked.max_drop is not None:
        mixed = line.run(int8_stages.mixed(bundle, model, ranges, options, keep, line.progress))
        keep = (*keep, *int8_stages.kept_for_the_budget(mixed))
    if asked.legacy_cache is not None:
        graph = line.run(int8_stages.legacy_graph(bundle, model, ranges))
        line.run(int8_stages.legacy_cache(bundle, graph, ranges, asked.legacy_cache))
    return line.run(int8_stages.int8(bundle, model, ranges, options, keep))


def _check_headroom(line: Line, model: Artifact, halved: Artifact, dataset: Dataset) -> None:
    measured = line.run(stages.headroom(line.bundle, model, halved, dataset))
    HeadroomReport.model_validate_json(line.bundle.check(measured).read_text(encoding="utf-8")).check()


def _adopt(line: Line, spec: ModelSpec, notes: tuple[str, ...]) -> None:
    line.bundle.adopt(spec, ())
    line.note(*notes)


def calibrate(options: ExportOptions, output: Path, progress: Progress | None = None) -> Ranges:
    """Calibrates a network, or the FP32 graph of the bundle in the folder ``options.model``, and writes the ranges file.

    Only ``options.int8.calibration`` of the INT8 options is looked at. Nothing but ``output`` is written, whole or not at all.
    """
    tell = progress or Silent()
    options.int8.calibration.check()
    require_places(output)
    with tempfile.TemporaryDirectory(prefix="skdeploy-") as scratch:
        with fp32_graph(options, Path(scratch), tell) as (bundle, model):
            images = int8_stages.calibration_set(options.int8.calibration, bundle.manifest.model)
            stage = int8_stages.calibrate(bundle, model, images, options.int8, tell)
            tell.begin(stage.name)
            started = time.perf_counter()
            path = Path(scratch) / int8_stages.RANGES
            product = stage.make(path)
            tell.end(stage.name, time.perf_counter() - started, reused=False)
        ranges = load_ranges(path)
        ranges.write(output)
    for note in int8_stages.calibration_notes(product.details):
        tell.note(note)
    return ranges


@contextmanager
def fp32_graph(options: ExportOptions, scratch: Path, progress: Progress) -> Iterator[tuple[Bundle, Artifact]]:
    """The simplified FP32 graph: a bundle's own, or traced anew into a bundle in ``scratch``."""
    folder = Path(options.model)
    if folder.is_dir():
        bundle = load_bundle(folder)
        model = bundle.artifact(contents.MODEL)
        if model is None:
            raise IntegrityError(f"{folder} holds no {contents.MODEL}", advice="export it again")
        yield bundle, model
        return
    source = find_source(options)
    for note in (*source.notes, *map(str, source.assumptions)):
        progress.note(note)
    head = Manifest(
        skdeploy=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=source.spec,
        weights=source.record,
        precision=Precision.FP32,
        assumptions=source.assumptions,
    )
    with bundle_for_writing(scratch / "bundle", head) as bundle:
        line = Line(bundle, progress)
        graph, _ = enter(line, source, options)
        yield bundle, line.run(stages.simplify(bundle, graph))


def verify(
    folder: Path, images: Path | None = None, num_images: int = DEFAULT_IMAGES, progress: Progress | None = None
) -> tuple[Bundle, ParityReport]:
    """Checks every digest of a bundle and measures parity again, on given or default images; writes nothing.

    ``line.verification.verify`` has more options. Raises IntegrityError, ParityError, UsageError.
    """
    from skdeploy.line.verification import VerifyOptions
    from skdeploy.line.verification import verify as run

    verification = run(folder, VerifyOptions(images, num_images), progress)
    verification.check()
    return verification.bundle, verification.report
