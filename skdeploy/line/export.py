"""The line: card -> weights -> network -> ONNX -> simplified -> FP16 or calibrated INT8 -> engine -> parity -> bundle.

``run_line`` is the order of the stations and what each is given; what a station is, is in its file in ``stations/``.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from skdeploy import engines
from skdeploy.accuracy.evaluate import EvaluationOptions, labelled_images
from skdeploy.accuracy.evaluate_quality import evaluate_any
from skdeploy.accuracy.facts import read_facts
from skdeploy.accuracy.gate import Evaluation
from skdeploy.accuracy.measures import measures_of
from skdeploy.accuracy.own_metric import load_metric
from skdeploy.accuracy.quality import Quality
from skdeploy.accuracy.verdict import Verdict, decide_verdict, next_after_failed_parity
from skdeploy.bundle import contents
from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import Bundle, bundle_for_writing, load_bundle
from skdeploy.bundle.manifest import Manifest
from skdeploy.bundle.runners import require_fp32_graph
from skdeploy.bundle.station_facts import WeightsFacts
from skdeploy.checkpoints.load import Network, OwnNetwork
from skdeploy.core.errors import IntegrityError, first_problem
from skdeploy.core.files import require_places, write_text
from skdeploy.core.options import NoOptions
from skdeploy.core.options import words_of as options_in_words
from skdeploy.core.progress import Progress, Silent
from skdeploy.core.spec import Assumption, ModelSpec, Precision, WeightsSpec
from skdeploy.core.version import __version__
from skdeploy.engines.options import BatchProfile, BuildOptions, require_capability
from skdeploy.images.pairs import open_pairs
from skdeploy.line.ahead import Ahead
from skdeploy.line.apart import Apart, apart_for
from skdeploy.line.calibration import CalibrationOptions, calibration_set
from skdeploy.line.formats import FORMATS, Format, Trained, format_of
from skdeploy.line.line import Line
from skdeploy.line.options import NO_ENGINE, ExportOptions
from skdeploy.line.parity_images import images_of_export
from skdeploy.line.recipe_options import with_recipe
from skdeploy.line.rewrites import REWRITES
from skdeploy.line.route import Route, route_to
from skdeploy.line.sources import CardSource, GraphSource, ModuleSource, find_source, labelled
from skdeploy.line.station import RewriteOptions, Station
from skdeploy.line.stations.calibrate import Calibrate, calibration_notes, facts_of
from skdeploy.line.stations.engine import Engine, engine_station
from skdeploy.line.stations.parity import Parity
from skdeploy.line.stations.read import Read
from skdeploy.line.stations.select import Select
from skdeploy.line.stations.simplify import Simplify
from skdeploy.line.stations.trace import Trace
from skdeploy.line.stations.weights import Weights, fitted_spec
from skdeploy.parity.report import ParityReport
from skdeploy.parity.witness import after_proof, find_witness, settles
from skdeploy.quant.ranges import Ranges, load_ranges
from skdeploy.zoo.assumed import assumptions_of, require_preprocessing
from skdeploy.zoo.write_card import card_text

TOLD: Final = 2  # assumptions that an export prints
STATIONS: Final[list[type[Station[Any, Any]]]] = [Weights, Trace, Read, Select, Simplify, Engine, Parity]
"""The stations of every line; those of ``FORMATS`` and ``REWRITES`` are made when they are asked for."""


def words_of(station: str) -> str:
    """The words for a station; its own name if this skdeploy does not have it."""
    known = _station_named(station)
    return known.words if known is not None else station


def _station_named(name: str) -> type[Station[Any, Any]] | None:
    formats: tuple[type[Format], ...] = (*FORMATS.values(), Trained)
    of_formats = (station for lowering in formats for station in lowering.stations)
    of_rewrites = (rewrite.station for rewrite in REWRITES.values())
    return next((station for station in (*STATIONS, *of_formats, *of_rewrites) if station.name == name), None)


def words_that_made(artifact: Artifact) -> list[str]:
    """The options of an export, as on a command line, that the record of an artifact says.

    Raises IntegrityError for a record that no station writes.
    """
    station = _station_named(artifact.station)
    models = station.flags if station is not None else ()
    try:
        return [word for model in models for word in options_in_words(model.of_record(artifact.provenance.options))]
    except ValidationError as error:
        raise IntegrityError(
            f"the manifest does not show how {artifact.path} was made: options.{first_problem(error)}",
            advice="restore the manifest, or export again into another folder",
        ) from error


@dataclass(frozen=True)
class Export:
    """A finished export: the bundle, the parity report, which files were already up to date, and the seconds it took.

    ``accuracy`` with labelled images, ``route`` to a device that was named.
    """

    bundle: Bundle
    parity: ParityReport
    reused: frozenset[str]
    seconds: float
    accuracy: Evaluation | Quality | None = None
    route: Route | None = None
    allow_inconclusive: bool = False

    @property
    def verdict(self) -> Verdict:
        """The verdict on the bundle."""
        return decide_verdict(read_facts(self.bundle))

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps on the device of ``--for``, the planner's estimate last; empty without a device."""
        if self.route is None:
            return ()
        estimate = self.route.estimate(self.bundle.folder, self.bundle.manifest.precision)
        return (*self.route.steps(self.bundle.folder), estimate)

    def check(self) -> None:
        """Raises ParityError if the artifacts are not in parity, with what to do next; else AccuracyError if the accuracy is
        beyond its budget, or undecided.
        """
        evaluated = self.accuracy is not None
        advice = next_after_failed_parity(self.bundle.manifest, self.bundle.folder, self.parity, evaluated=evaluated)
        self.parity.check(advice)
        if self.accuracy is not None:
            self.accuracy.check(allow_inconclusive=self.allow_inconclusive)


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
    options = with_recipe(options)
    route = route_to(options.device) if options.device is not None else None
    if route is not None:
        require_capability(options.precision, route.device.compute_capability, f"the {route.device.title}")
        options = route.applied(options)
    source = find_source(options)
    checkpoint = source.checkpoint if isinstance(source, CardSource) else None
    embedded = options.trace.embed_preprocess
    witness = find_witness(options.reference, options.golden, source.spec, checkpoint, tell, takes_pixels=embedded)
    if options.accuracy.data is not None and "preprocessing" not in settles(witness):
        require_preprocessing({options.model: source.spec})  # before the long part; ``evaluate`` says what it allows
    if not isinstance(source, CardSource) or source.imported is not None:
        _require_labels(source.spec, options)
    has_scales = isinstance(source, GraphSource) and source.is_trained_int8
    lowering = format_of(options.precision, options.model, has_scales=has_scales)(
        options.of_precision, options.accuracy
    )
    options.of_precision.check_source(options.model, has_scales=has_scales)
    dataset = images_of_export(options, lowering, source.spec)
    compiler, no_engine = engines.choose(options.target)
    no_engine = f"{route.device.title}: {route.why}" if route is not None else no_engine
    notes = source.notes if compiler else (*source.notes, f"{NO_ENGINE}{no_engine}")
    if options.precision not in source.spec.tolerance:
        notes = (
            *notes,
            f"the card has no [tolerance.{options.precision}], so the default of {options.precision.words} is used",
        )
    for note in notes:
        tell.note(note)
    _tell_assumptions(source.assumptions, tell)

    head = Manifest(
        skdeploy=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=source.spec,
        weights=source.record,
        precision=options.precision,
        notes=notes,
        assumptions=source.assumptions,
    )
    with bundle_for_writing(options.folder(source.spec), head) as bundle, apart_for(source) or nullcontext() as apart:
        line = Line(bundle, tell)
        network = enter(line, source, options, apart)
        with Ahead(line, dataset, network, witness, _last_graph(source, options, lowering)) as ahead:
            graph = first_graph(line, source, network, options, apart)
            if options.simplify:
                graph = line.run(Simplify(), NoOptions(), graph=graph)
            graph = lowering.lower(line, graph, dataset)
            if compiler is not None and options.precision in engines.compiler(compiler).NOTES:
                line.note(engines.compiler(compiler).NOTES[options.precision])
            for station, asked in _rewrites(options):
                graph = line.run(station, asked, graph=graph)
            if compiler is not None:
                line.run(engine_station(bundle, compiler, graph), engine_options(options), graph=graph)
            proof = line.run(Parity(ahead.report, line.artifacts, dataset, network, witness), NoOptions())
        report = bundle.read_report(proof, ParityReport)
        _settle(line, report)
        bundle.finish(line.artifacts, "verified" if report.verdict == "pass" else "failed")
        if isinstance(source, CardSource) and source.imported is not None:
            _write_card(bundle)
    evaluation = _evaluated(bundle, options, tell)
    return Export(
        bundle,
        report,
        frozenset(line.reused),
        time.perf_counter() - started,
        evaluation,
        route,
        options.accuracy.allow_inconclusive,
    )


def _tell_assumptions(assumptions: Sequence[Assumption], tell: Progress) -> None:
    """Note at most two; the verdict counts them, and the report, the card and --verbose have all."""
    texts = list(map(str, assumptions))
    for text in texts:
        tell.update(text)
    if len(texts) > TOLD:
        texts = [f"{texts[0]}, and {len(texts) - 1} more: `skdeploy report` and --verbose list them"]
    for text in texts:
        tell.note(text)


def _require_labels(spec: ModelSpec, options: ExportOptions) -> None:
    """Raises UsageError, before the long part, for ``--data`` whose labels are not the network's classes."""
    asked = options.accuracy
    if asked.data is not None:
        if asked.takes_pairs(spec):
            open_pairs(asked.data, spec)
            measures_of(spec, load_metric(asked.metric) if asked.metric is not None else None)
            return
        labelled_images(asked.data, spec, None, asked.class_order)


def _evaluated(bundle: Bundle, options: ExportOptions, tell: Progress) -> Evaluation | Quality | None:
    """The accuracy on the labelled images that were given, kept as the bundle's evidence."""
    asked = options.accuracy
    if asked.data is None:
        return None
    wanted = EvaluationOptions(asked.data, class_order=asked.class_order, max_drop=asked.max_drop, metric=asked.metric)
    return evaluate_any(bundle.folder, wanted, tell)


def _write_card(bundle: Bundle) -> None:
    """The card of a network that was inferred, beside its weights: to correct, and to export again from."""
    weights = bundle.artifact(contents.WEIGHTS)
    assert weights is not None  # a card's network has them
    named = WeightsSpec(file=weights.path, sha256=weights.sha256)
    write_text(bundle.folder / contents.CARD, card_text(bundle.manifest.model.model_copy(update={"weights": named})))


def enter(
    line: Line, source: CardSource | GraphSource | ModuleSource, options: ExportOptions, apart: Apart | None = None
) -> Network | OwnNetwork | None:
    """The network that the line's graphs must be in parity with, with its weights; None where only a graph is known."""
    if isinstance(source, GraphSource):
        return None
    if isinstance(source, ModuleSource):
        return OwnNetwork(source.spec, source.module)
    weights = line.run(Weights(source.record, source.checkpoint, source.imported, apart), NoOptions())
    facts = weights.facts_as(WeightsFacts)
    spec = labelled(fitted_spec(source.spec, facts), options)
    assumed = [assumption for assumption in assumptions_of(spec) if assumption not in source.assumptions]
    _require_labels(spec, options)
    line.bundle.adopt(spec, (), tuple(assumed))
    _tell_assumptions(assumed, line.progress)
    return Network(spec, line.bundle.check(weights))


def first_graph(
    line: Line,
    source: CardSource | GraphSource | ModuleSource,
    network: Network | OwnNetwork | None,
    options: ExportOptions,
    apart: Apart | None = None,
) -> Artifact:
    """The graph of the source: as it was read, or traced from the network that ``enter`` gave."""
    last = not options.simplify
    if isinstance(network, Network):
        (weights,) = line.artifacts
        return line.run(Trace(network, last=last, apart=apart), options.trace, weights=weights)
    if isinstance(source, GraphSource):
        graph = line.run(Read(source.graph, source.record, last and source.is_trained_int8), options.read)
        if source.is_trained_int8:
            return graph  # its select stays as it was trained: another form rounds other sums
    else:
        assert network is not None  # a module's
        graph = line.run(Trace(network, source.record.sha256 or ""), options.trace)
    return line.run(Select(last), NoOptions(), graph=graph)


def _rewrites(options: ExportOptions) -> Iterator[tuple[Station[Any, Any], RewriteOptions]]:
    """The passes for hardware that are asked for, in their order."""
    for name, rewrite in REWRITES.items():
        asked = options.rewrites.get(name)
        if asked is not None and asked != rewrite.options():
            yield rewrite.station(), asked


def _last_graph(source: CardSource | GraphSource | ModuleSource, options: ExportOptions, lowering: Format) -> str:
    """The name of the station that makes the line's last graph. The proof begins on that; a wrong one costs time only."""
    first = Read if isinstance(source, GraphSource) and source.is_trained_int8 else Select
    stations: list[type[Station[Any, Any]]] = [Trace if isinstance(source, CardSource) else first]
    stations += [Simplify] if options.simplify else []
    stations += [station for station in lowering.stations if station.format == "onnx"]
    return [*stations, *(type(station) for station, _ in _rewrites(options))][-1].name


def _settle(line: Line, report: ParityReport) -> None:
    """Take out of the bundle's assumptions what the author's own outputs have shown to be so."""
    before = line.bundle.manifest
    line.bundle.manifest = after_proof(before, report)
    shown = [assumption.text for assumption in before.assumptions if assumption not in line.bundle.manifest.assumptions]
    if shown:
        line.note(f"confirmed by {report.reference}: {'; '.join(shown)}")


def engine_options(options: ExportOptions) -> BuildOptions:
    """The build options that an export sets; the graph decides the rest."""
    return BuildOptions(
        profile=BatchProfile(*options.profile) if options.profile else None,
        workspace_bytes=options.workspace_bytes,
        compute_capabilities=options.compute_capabilities,
    )


def calibrate(
    options: ExportOptions, asked: CalibrationOptions, output: Path, progress: Progress | None = None
) -> Ranges:
    """Calibrates a network, or the FP32 graph of the bundle in the folder ``options.model``, and writes the ranges file.

    Nothing but ``output`` is written, whole or not at all.
    """
    tell = progress or Silent()
    asked.check()
    asked.require_images()
    require_places(output)
    with tempfile.TemporaryDirectory(prefix="skdeploy-") as scratch:
        with fp32_graph(options, Path(scratch), tell) as (bundle, model):
            images = calibration_set(asked, bundle.manifest.model)
            station, inputs = Calibrate(images), Line(bundle, tell).inputs(graph=model)
            tell.begin(station.name)
            started = time.perf_counter()
            path = Path(scratch) / contents.RANGES
            station.make(inputs, asked, path)
            tell.end(station.name, time.perf_counter() - started, reused=False)
        ranges = load_ranges(path)
        ranges.write(output)
    tell_of_ranges(ranges, tell)
    return ranges


def tell_of_ranges(ranges: Ranges, tell: Progress) -> None:
    """Warnings about the images that ranges were measured on."""
    for note in calibration_notes(facts_of(ranges, "calibrate")):
        tell.note(note)


@contextmanager
def fp32_graph(options: ExportOptions, scratch: Path, progress: Progress) -> Iterator[tuple[Bundle, Artifact]]:
    """The simplified FP32 graph: a bundle's own, or traced anew into a bundle in ``scratch``."""
    folder = Path(options.model)
    if folder.is_dir():
        options.require_only_model()
        bundle = load_bundle(folder)
        yield bundle, require_fp32_graph(bundle)
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
    with bundle_for_writing(scratch / "bundle", head) as bundle, apart_for(source) or nullcontext() as apart:
        line = Line(bundle, progress)
        graph = first_graph(line, source, enter(line, source, options, apart), options, apart)
        yield bundle, line.run(Simplify(), NoOptions(), graph=graph)
