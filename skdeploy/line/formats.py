"""How an export makes a graph of each precision: the flags that ask for it, and the stations that it adds to the line."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final

from pydantic import create_model

from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.station_facts import MixedFacts, TrainedInt8Facts
from skdeploy.core.errors import UsageError
from skdeploy.core.options import Flag, NoOptions, StationOptions
from skdeploy.core.panel import Panel
from skdeploy.core.precision import DECLINED, PRECISIONS, Precision
from skdeploy.core.spec import ModelSpec
from skdeploy.line.accuracy_options import AccuracyOptions
from skdeploy.line.calibration import calibration_images, calibration_set
from skdeploy.line.fallback_options import FallbackOptions
from skdeploy.line.int8_options import Int8Options
from skdeploy.line.line import Line
from skdeploy.line.station import Station
from skdeploy.line.stations.bf16 import BF16
from skdeploy.line.stations.calibrate import Calibrate, GivenRanges
from skdeploy.line.stations.half import Half, HalfOptions
from skdeploy.line.stations.headroom import Headroom
from skdeploy.line.stations.int8 import ONNX_RUNTIME_HALF, Int8
from skdeploy.line.stations.legacy import LegacyCache, LegacyCacheOptions, LegacyGraph
from skdeploy.line.stations.mixed import Mixed
from skdeploy.line.stations.trained_int8 import TrainedInt8
from skdeploy.line.stations.weight_only import WeightOnly

if TYPE_CHECKING:
    from skdeploy.images.dataset import Dataset


class Format:
    """The precision of one export: its stations, one after another, make the graph from the simplified FP32 graph.

    ``help`` is that of the precision's flag, empty for none; ``aliases`` are more names of that. ``options`` are more flags of
    its own, whose values are ``asked``; ``accuracy`` says on which images accuracy is judged. It is made before anything runs,
    and may read files that the user gave.
    """

    precision: ClassVar[Precision]
    help: ClassVar[str] = ""
    aliases: ClassVar[tuple[str, ...]] = ()
    stations: ClassVar[tuple[type[Station[Any, Any]], ...]] = ()
    options: ClassVar[type[StationOptions]] = NoOptions

    def __init__(self, asked: Any, accuracy: AccuracyOptions) -> None:
        self.asked, self.accuracy = asked, accuracy

    def images(self, count: int, spec: ModelSpec) -> Dataset | None:
        """Those that its own options name, ``count`` at most, which decide parity unless others are given for that."""
        del count, spec
        return None

    def lower(self, line: Line, graph: Artifact, dataset: Dataset) -> Artifact:
        """The graph in this precision. ``dataset`` decides parity."""
        del dataset
        for station in self.stations:
            graph = line.run(station(), self.asked, graph=graph)
        return graph


class Single(Format):
    """FP32, which the line has already."""

    precision = Precision.FP32


class Halved(Format):
    """FP16, whose range must hold what the images make of the network."""

    precision, help, aliases = Precision.FP16, "Export in FP16.", ("--half",)
    stations = (Half, Headroom)
    options = HalfOptions

    def lower(self, line: Line, graph: Artifact, dataset: Dataset) -> Artifact:
        halved = line.run(Half(), self.asked, graph=graph)
        _check_headroom(line, graph, halved, dataset)
        return halved


class Quantized(Format):
    """INT8: ranges from a file, if they are given, or from images; the units that must stay in the fallback for the budget; and
    the INT8 graph.
    """

    precision, help = Precision.INT8, "Export in INT8, calibrated on --calib or with --ranges."
    stations = (Calibrate, GivenRanges, Mixed, LegacyGraph, LegacyCache, Int8, Headroom)
    options = Int8Options

    def __init__(self, asked: Int8Options, accuracy: AccuracyOptions) -> None:
        super().__init__(asked, accuracy)
        self.given = GivenRanges(asked.ranges) if asked.ranges is not None else None

    def images(self, count: int, spec: ModelSpec) -> Dataset | None:
        """``--calib``, in-sample, and the report says so; evenly spread: folders are sorted by class."""
        asked: Int8Options = self.asked
        if asked.ranges is not None or asked.calibration.images is None:
            return None
        return replace(calibration_images(asked.calibration, spec).spread(count, spec), chosen="calib")

    def lower(self, line: Line, graph: Artifact, dataset: Dataset) -> Artifact:
        quantized = self._quantized(line, graph)
        if self.asked.fallback == Precision.FP16:
            line.note(ONNX_RUNTIME_HALF)
            _check_headroom(line, quantized, quantized, dataset)
        return quantized

    def _quantized(self, line: Line, model: Artifact) -> Artifact:
        from skdeploy.accuracy.own_metric import load_metric
        from skdeploy.accuracy.pairs_as_truth import PairsAsTruth
        from skdeploy.images.dataset import EVALUATION, open_dataset
        from skdeploy.images.labels import as_the_network_counts

        asked: Int8Options = self.asked
        spec, accuracy = line.bundle.manifest.model, self.accuracy
        data: Dataset | None = None
        pairs: PairsAsTruth | None = None
        if accuracy.data is not None and accuracy.takes_pairs(spec):
            own = load_metric(accuracy.metric) if accuracy.metric is not None else None
            pairs = PairsAsTruth.of(accuracy.data, spec, own)
            data = pairs.pairs.inputs
        elif accuracy.data is not None:
            data = open_dataset(accuracy.data, archive=EVALUATION, spec=spec)
        exclude: tuple[str, ...] = ()
        if self.given is not None:
            ranges = line.run(self.given, NoOptions())
        else:
            images = calibration_set(asked.calibration, spec)
            with line.alone():
                ranges = line.run(Calibrate(images, data), asked.calibration, graph=model)
            exclude = images.exclude
        keep, keep_fp32 = (*asked.keep, *exclude), asked.half.keep_fp32
        if accuracy.max_drop is not None and data is not None:
            if pairs is None:
                data = as_the_network_counts(data, spec, accuracy.class_order)
            for note in data.notes if pairs is None else pairs.pairs.notes:
                line.progress.note(note)
            search = Mixed(data if pairs is None else pairs, accuracy.max_drop, (*keep, *keep_fp32))
            found = line.run(search, asked, graph=model, ranges=ranges)
            keep = (*keep, *found.facts_as(MixedFacts).keep)
        if asked.legacy_cache is not None:
            graph = line.run(LegacyGraph(), NoOptions(), graph=model, ranges=ranges)
            line.run(LegacyCache(), LegacyCacheOptions(version=asked.legacy_cache), graph=graph, ranges=ranges)
        return line.run(Int8((*keep, *keep_fp32), keep_fp32), asked, graph=model, ranges=ranges)


class Brain(Format):
    """BF16, which has FP32's range, so nothing is measured against it."""

    precision = PRECISIONS["bf16"]
    note = (
        "BF16 is for TensorRT: ONNX Runtime's CPU provider does not load model.bf16.onnx. skdeploy runs it there in FP32 and "
        "rounds each tensor to BF16"
    )
    help = "Export in BF16: for networks whose values FP16 cannot hold; less exact than FP16."
    stations = (BF16,)
    options = HalfOptions

    def lower(self, line: Line, graph: Artifact, dataset: Dataset) -> Artifact:
        made = super().lower(line, graph, dataset)
        line.note(self.note)
        return made


class NarrowWeights(Format):
    """Weights alone in INT8: the engine is small, the arithmetic is that of the fallback, and no images are needed."""

    precision = PRECISIONS["weight-only-int8"]
    help = "Export with INT8 weights and FP16 arithmetic: a small engine, without calibration."
    stations = (WeightOnly, Headroom)
    options = FallbackOptions

    def lower(self, line: Line, graph: Artifact, dataset: Dataset) -> Artifact:
        asked: FallbackOptions = self.asked
        made = line.run(WeightOnly(), asked, graph=graph)
        if asked.fallback == Precision.FP16:
            _check_headroom(line, made, made, dataset)
        return made


class Trained(Format):
    """INT8 that a network was trained with: the Q/DQ of its file, with their own scales. Nothing is calibrated."""

    precision = Precision.INT8
    stations = (TrainedInt8, Headroom)
    options = Int8Options

    def lower(self, line: Line, graph: Artifact, dataset: Dataset) -> Artifact:
        asked: Int8Options = self.asked
        made = line.run(TrainedInt8(dataset), asked, graph=graph)
        if asked.fallback == Precision.FP16 and made.facts_as(TrainedInt8Facts).fp16_tensors:
            line.note(ONNX_RUNTIME_HALF)
            _check_headroom(line, made, made, dataset)
        return made


def _check_headroom(line: Line, model: Artifact, halved: Artifact, dataset: Dataset) -> None:
    from skdeploy.parity.report import HeadroomReport

    measured = line.run(Headroom(dataset), NoOptions(), graph=model, halved=halved)
    line.bundle.read_report(measured, HeadroomReport).check()


# A new one is its record in core/precision.py, its station, and a line here.
FORMATS: Final[dict[str, type[Format]]] = {
    made.precision: made for made in (Single, Halved, Brain, NarrowWeights, Quantized)
}


def format_of(precision: Precision, model: str, *, has_scales: bool) -> type[Format]:
    """How an export to this precision makes its graph. ``has_scales``: the graph carries Q/DQ of its own.

    Raises UsageError for a graph with Q/DQ and another precision.
    """
    if not has_scales:
        return FORMATS[precision]
    if precision != Precision.INT8:
        asked = precision.flag if precision != Precision.FP32 else "an export to FP32"
        raise UsageError(
            f"{model} carries INT8 in its Q/DQ nodes, and {asked} would keep rounding to INT8 and gain none of its speed",
            advice="export with --int8, which keeps the file's own scales; for more precision, give the network without Q/DQ",
        )
    return Trained


def flags_of_formats() -> type[StationOptions]:
    """The flags that ask for a precision, as options: whether each is given, or its value if it takes one.

    Those of precisions that skdeploy declines are read too, and not in the help: ``precision_asked`` says why.
    """
    named: dict[str, Any] = {}
    for made in FORMATS.values():
        flag, _, value = made.precision.flag.partition(" ")
        if made.help:
            said = Flag(made.help, (flag, *made.aliases), metavar=value or None, panel=Panel.PRECISION)
            named[_field(flag)] = (Annotated[str | None, said], None) if value else (Annotated[bool, said], False)
    for declined in DECLINED.values():
        if " " not in declined.flag:
            said = Flag(declined.why, (declined.flag,), panel=Panel.PRECISION, hidden=True)
            named[_field(declined.flag)] = (Annotated[bool, said], False)
    return create_model("Formats", __base__=StationOptions, **named)


def _field(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def precision_asked(name: str, value: bool | str) -> Precision:
    """The precision that a flag of ``flags_of_formats`` asks for, by the field's name and its value.

    Raises UsageError for one that skdeploy does not make, with the reason where it has one.
    """
    flag = "--" + name.replace("_", "-")
    asked = flag if isinstance(value, bool) else f"{flag} {value}"
    for declined in DECLINED.values():
        if declined.flag == asked:
            raise UsageError(declined.why, advice=declined.instead)
    known = [precision for precision in PRECISIONS.values() if precision.flag.split()[0] == flag]
    found = next((precision for precision in known if precision.flag == asked), None)
    if found is None:
        raise UsageError(f"{asked} is not supported", advice=f"use {' or '.join(each.flag for each in known)}")
    return found
