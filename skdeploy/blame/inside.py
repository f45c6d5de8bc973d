"""Inside the stage that is to blame: every tensor's own error, the first that is too large, and the graph that shows it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from skdeploy.backends.base import Array
from skdeploy.backends.metrics import EXACT_DB
from skdeploy.blame.layers import Own, Pair, Recording, decibels
from skdeploy.blame.layers_graph import ROUNDED, GraphStage, named_node, pairs_of_graphs, pairs_with_torch
from skdeploy.blame.layers_int8 import int8_range
from skdeploy.blame.layers_torch import TorchStage
from skdeploy.blame.repro import save_repro
from skdeploy.core.errors import UsageError
from skdeploy.core.patterns import module_of
from skdeploy.core.spec import ModelSpec, Precision
from skdeploy.images.dataset import Pixels
from skdeploy.parity.blame_report import BlamedTensor, BlameReport, LayerResult
from skdeploy.parity.cause import Cause, explain
from skdeploy.parity.measured import measured
from skdeploy.parity.tasks import judged, task_of, tolerance_of

Inspectable = TorchStage | GraphStage


@dataclass(frozen=True)
class Suspect:
    """A stage that fails, the one that it is made from, and the first graph from it on: itself, or one made of it."""

    stage: Inspectable
    before: Inspectable
    graph: GraphStage | None


@dataclass
class Inner:
    """The tensors of a stage, measured; ``first`` is the one to blame, ``value`` what the stage made of it."""

    rows: list[LayerResult] = field(default_factory=list)
    first: Pair | None = None
    blamed: LayerResult | None = None
    value: Array | None = None


def look_inside(
    report: BlameReport, suspect: Suspect, image: Pixels, spec: ModelSpec, repro: Path | None
) -> BlameReport:
    """The report with the tensor to blame, or a note why there is none. ``image``: one crop, uint8 (1, H, W, C)."""
    stage, reference = suspect.stage, suspect.before
    floor = tolerance_of(spec, stage.precision).min_sqnr_db
    if isinstance(stage, GraphStage) and stage.twin is not None:
        reference = stage.twin
        task, tolerance = task_of(spec), tolerance_of(spec, Precision.FP32)
        before, found = (judged(spec, made.outputs(image)) for made in (suspect.before, reference))
        problems = task.violations(measured(task, before, found, tolerance, spec), tolerance)
        if problems:
            note = f"equalizing its channels before INT8 changes the result: {problems[0]}"
            return report.model_copy(update={"note": note})
    graphs = [one for one in (stage, reference, suspect.graph) if isinstance(one, GraphStage)]
    image = np.repeat(image, max([1, *(graph.fixed_batch or 1 for graph in graphs)]), axis=0)
    with tempfile.TemporaryDirectory(prefix="skdeploy-") as folder:
        recording = Recording(Path(folder))
        pairs = _record(stage, reference, image, recording)
        inner = _measure(stage, pairs, recording, image, floor)
        report = report.model_copy(update={"layers": tuple(inner.rows)})
        if inner.first is None or inner.blamed is None or inner.value is None:
            return report.model_copy(update={"note": _nobody(inner.rows, floor)})
        blamed = _describe(stage, inner.first, inner.blamed, recording.get(inner.first.reference), inner.value)
        report = report.model_copy(update={"tensor": blamed})
        if repro is None:
            return report
        graph = suspect.graph
        if (
            graph is not None and graph is not stage
        ):  # of PyTorch: the graph that is made of it has the same fault in it
            pairs = _record(graph, reference, image, recording)
        return _save(report, graph, pairs, inner.first, recording, image, repro)


def pairs_of(found: Inspectable, reference: Inspectable) -> tuple[Pair, ...]:
    """The tensors of ``found`` that ``reference`` has too. Raises UsageError for a network that is made from a graph."""
    if isinstance(found, GraphStage):
        if isinstance(reference, GraphStage):
            return pairs_of_graphs(found, reference)
        return pairs_with_torch(found, reference)
    if isinstance(reference, GraphStage):
        raise UsageError(f"{found.name} cannot be made from {reference.name}")
    same = reference.names_of_folded() if found.folded else {name: name for name in reference.modules()}
    return tuple(Pair(module, same[module]) for module in found.modules() if module in same)


def _record(found: Inspectable, reference: Inspectable, image: Pixels, recording: Recording) -> tuple[Pair, ...]:
    """The pairs of tensors of two stages that the reference was seen to make; they are in the recording now."""
    pairs = pairs_of(found, reference)
    reference.stream(image, frozenset(pair.reference for pair in pairs), recording.put)
    return tuple(pair for pair in pairs if pair.reference in recording)


def _measure(found: Inspectable, pairs: tuple[Pair, ...], recording: Recording, image: Pixels, floor: float) -> Inner:
    by_name = {pair.found: pair for pair in pairs}
    run: dict[str, float | None] = {}
    broken: dict[str, Array | None] = {}  # tensors that are not finite as the stage runs; the first with its values

    def as_run(name: str, array: Array) -> None:
        pair = by_name[name]
        run[name] = decibels(recording.get(pair.reference), array + pair.offset if pair.offset else array)
        if not np.isfinite(array).all():
            broken[name] = None if broken else array

    found.stream(image, frozenset(by_name), as_run)
    inner = Inner()
    last: list[str] = []  # where nothing says what a module reads, the module that ran before it

    def own(measured: Own) -> None:
        pair, value = measured.pair, measured.value
        expected = recording.get(pair.reference)
        if value.shape != expected.shape:
            return  # not the same tensor after all: a module whose last node is not what it returns
        inputs = [name for name in measured.inputs or last[-1:] if name in run]
        broken_here = broken.get(pair.found) if not any(name in broken for name in inputs) else None
        value = broken_here if broken_here is not None and np.isfinite(value).all() else value
        finite = bool(np.isfinite(value).all())
        own_db = decibels(expected, value)
        if own_db is None and finite:
            return  # nothing but zeros is expected: there is no signal to compare noise with
        row = LayerResult(
            tensor=_tensor(found, pair),
            module=_module(found, pair),
            own_db=own_db,
            run_db=run.get(pair.found),
            inputs_db=_least([run[name] for name in inputs]),
        )
        last.append(pair.found)
        inner.rows.append(row)
        if inner.first is None and (own_db is None or own_db < floor):
            inner.first, inner.blamed, inner.value = pair, row, value

    found.stream_own(image, pairs, recording, own)
    return inner


def _describe(found: Inspectable, pair: Pair, row: LayerResult, expected: Array, value: Array) -> BlamedTensor:
    if isinstance(found, TorchStage):
        node, operator = row.module, type(found.make().get_submodule(row.module)).__name__
        cause = explain(expected, value)
    else:
        held, quantizer = int8_range(found.model, pair)
        cause = explain(expected, value, held)
        made = quantizer if quantizer is not None and cause.kind == "saturation" else named_node(found, pair.found)
        node, operator = made.name or "", made.op_type
    return BlamedTensor(
        **dict(row), reference=pair.reference, node=node, operator=operator, cause=cause.kind, words=_words(cause)
    )


def _words(cause: Cause) -> str:
    return f"likely cause: {cause.kind}; {cause.words}" if cause.kind != "differs" else cause.words


def _save(
    report: BlameReport,
    graph: GraphStage | None,
    pairs: Sequence[Pair],
    blamed: Pair,
    recording: Recording,
    image: Pixels,
    folder: Path,
) -> BlameReport:
    """Cuts the nodes that make the blamed tensor, with their inputs, and what they should give, from the stage before."""
    known = {pair.found: pair for pair in pairs}
    pair = next((pair for pair in pairs if pair.reference == blamed.reference), None)
    if graph is None or pair is None:
        return report.model_copy(update={"note": "no graph has this tensor, so no graph can be cut out"})
    segment = graph.parts.segment(pair.found, known.keys())
    feeds = graph.segment_feeds(segment, known, recording, image)
    expected = recording.feed(pair)
    shown = decibels(expected, graph.parts.run(segment.nodes, feeds, [pair.found], graph.name)[pair.found])
    if shown is not None and report.floor_db is not None and shown >= report.floor_db:
        note = f"{graph.name} is right where {report.guilty} is wrong, so no graph can be cut out that shows it"
        return report.model_copy(update={"note": note})
    model = graph.parts.cut(segment.nodes, feeds, [pair.found])
    story = (
        f"Cut from {graph.name} of {report.model} by skdeploy verify --blame --save-repro, on {report.image} "
        f"of {report.dataset}.\ninputs.npz has the inputs, expected.npz has what {pair.found} should be; both "
        f"come from the stage before.\n{report.verdict}."
    )
    save_repro(folder, model, feeds, {pair.found: expected}, story)
    return report.model_copy(update={"repro": str(folder)})


def _nobody(rows: Sequence[LayerResult], floor: float) -> str:
    if not rows:
        return "it shares no tensor names with the stage before, so no tensor can be blamed"
    worst = min(rows, key=lambda row: EXACT_DB if row.own_db is None else row.own_db)
    drop = max(rows, key=_drop)
    said = (
        f"no single tensor: of {len(rows)}, {worst.tensor} has the largest error of its own, "
        f"{worst.own_db:.1f} dB, and the card allows {floor:g} dB. Many small errors add up, or the network "
        "amplifies them"
    )
    if drop.inputs_db is None or drop.run_db is None or _drop(drop) <= 0:
        return said
    return f"{said}: most at {drop.tensor}, from {drop.inputs_db:.1f} to {drop.run_db:.1f} dB"


def _drop(row: LayerResult) -> float:
    """How many dB are lost from the inputs that have an error to this tensor, as the stage runs."""
    if row.inputs_db is None or row.run_db is None or row.inputs_db >= EXACT_DB:
        return 0.0
    return row.inputs_db - row.run_db


def _tensor(found: Inspectable, pair: Pair) -> str:
    if isinstance(found, TorchStage):
        return pair.found
    return pair.found.removesuffix(ROUNDED)


def _module(found: Inspectable, pair: Pair) -> str:
    if isinstance(found, TorchStage):
        return pair.found
    return module_of(pair.found) or module_of(named_node(found, pair.found).name)


def _least(values: Sequence[float | None]) -> float | None:
    """The lowest; None if one is not finite. Of no values: the input has no error."""
    known = [value for value in values if value is not None]
    return None if len(known) < len(values) else min(known, default=EXACT_DB)
