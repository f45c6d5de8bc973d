"""The cost of INT8 for each unit: alone in INT8, and alone not in INT8."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from pydantic import Field

from skdeploy.backends.logits import check_outputs, outputs_by_batch
from skdeploy.backends.metrics import sqnr_db
from skdeploy.backends.onnxruntime import OnnxRuntimeSession, load_graph
from skdeploy.bundle.contents import MODEL, RANGES
from skdeploy.bundle.evidence import keep_evidence
from skdeploy.bundle.folder import Bundle
from skdeploy.core.errors import CalibrationError, UsageError
from skdeploy.core.patterns import module_of, modules_pattern
from skdeploy.core.progress import Progress, Silent
from skdeploy.core.spec import ClassOrder, Frozen, ModelSpec
from skdeploy.images.dataset import EVALUATION, Pixels, check_count, default_dataset, open_dataset
from skdeploy.images.feeds import RUN_BATCH
from skdeploy.images.labels import as_the_network_counts
from skdeploy.images.reading import read_crops
from skdeploy.images.selection import select
from skdeploy.ir.placement import place, unit_of
from skdeploy.quant.macs import macs_of, weights_of
from skdeploy.quant.quantize import quantize
from skdeploy.quant.ranges import Ranges, load_ranges
from skdeploy.zoo.assumed import require_preprocessing

Crops = Sequence[Pixels] | Pixels  # uint8 (H, W, C) each
Labels = NDArray[np.integer[Any]]
Logits = NDArray[np.float64]

BATCH_PIXELS: Final = (
    RUN_BATCH * 224 * 224
)  # in one batch: RUN_BATCH is for images of 224 x 224, small ones go together
MAX_BATCH: Final = 256


@dataclass(frozen=True)
class Unit:
    """A part of the network that is INT8 or in the fallback as a whole.

    ``modules`` are those of the graph that lie in it, ``pattern`` is the regular expression of ``--int8-keep`` for them;
    ``layers`` the nodes that have INT8 weights unless it is kept, ``macs`` and ``parameters`` those of these layers.
    """

    name: str
    pattern: str
    modules: frozenset[str]
    layers: tuple[str, ...]
    macs: int
    parameters: int


class Effect(Frozen):
    """The logits of a graph against FP32's: SQNR over all images in dB, share of images with the same top class.

    ``top1`` is the share of images whose top class is the label, if there are labels.
    """

    sqnr_db: float
    agreement: float
    top1: float | None = None


class UnitSensitivity(Frozen):
    """One unit: the effect of having only it in INT8, and of having all but it in INT8. See ``Unit`` for the rest."""

    unit: str
    pattern: str
    layers: int
    macs: int
    mac_share: float
    parameters: int
    only_on: Effect
    only_off: Effect


class SensitivityReport(Frozen):
    """All units, the one that costs most by itself first. ``macs`` are those of the whole network, gates included."""

    model: str
    dataset: str
    images: int
    macs: int
    fp32: Effect
    all_int8: Effect
    units: Annotated[tuple[UnitSensitivity, ...], Field(strict=False)]


@dataclass(frozen=True)
class Evaluation:
    """Images, their labels if known, and what the FP32 graph says of them: computed once, then compared with."""

    spec: ModelSpec
    crops: Crops
    labels: Labels | None
    reference: Logits

    @classmethod
    def of(cls, model: ir.Model, spec: ModelSpec, crops: Crops, labels: Labels | None) -> Evaluation:
        """Runs the FP32 graph. Raises UsageError: no images, labels that do not fit. CalibrationError: see ``logits_of``."""
        if not len(crops):
            raise UsageError("there are no images to measure INT8 on", advice="give some with --data")
        checked = None if labels is None else _checked(labels, len(crops), spec)
        return cls(spec, crops, checked, logits_of(model, spec, crops, "nothing in INT8"))

    def part(self, count: int) -> Evaluation:
        """At most ``count`` of the images, spread evenly: images often come sorted by class. Runs nothing."""
        chosen = np.unique(np.linspace(0, len(self.crops) - 1, min(count, len(self.crops))).round().astype(int))
        return Evaluation(
            self.spec,
            [self.crops[index] for index in chosen],
            None if self.labels is None else self.labels[chosen],
            self.reference[chosen],
        )

    def logits(self, model: ir.Model, shown: str) -> Logits:
        """(N, classes). ``shown`` is what an error calls the graph."""
        return logits_of(model, self.spec, self.crops, shown)

    def effect(self, logits: Logits) -> Effect:
        """How far these logits are from FP32's."""
        same = logits.argmax(axis=1) == self.reference.argmax(axis=1)
        return Effect(
            sqnr_db=sqnr_db(1.0, self.noise(logits)),
            agreement=float(np.mean(same)),
            top1=None if self.labels is None else float(np.mean(self.correct(logits))),
        )

    def noise(self, logits: Logits) -> float:
        """Noise power by signal power: sum (logits - reference)^2 / sum reference^2."""
        signal = float(np.sum(self.reference**2))
        return float(np.sum((logits - self.reference) ** 2)) / max(signal, np.finfo(np.float64).tiny)

    def correct(self, logits: Logits) -> NDArray[np.bool_]:
        """Which images are right, (N,)."""
        assert self.labels is not None  # asked for with labels only
        right: NDArray[np.bool_] = logits.argmax(axis=1) == self.labels
        return right


def measure_sensitivity(
    model: ir.Model,
    spec: ModelSpec,
    ranges: Ranges,
    crops: Crops,
    labels: Labels | None = None,
    *,
    keep: tuple[str, ...] = (),
    keep_grouped: bool = False,
    dataset: str = "",
    progress: Progress | None = None,
) -> SensitivityReport:
    """Measures every unit of an FP32 graph, with FP32 as the fallback: 2 runs a unit over all images, and 2 more.

    ``crops`` are uint8 (N, H, W, C) or a sequence of (H, W, C), read once a run; ``labels`` (N,) class numbers. ``keep`` and
    ``keep_grouped`` (see ``place``) hold in every run, so a unit that is kept whole is not measured.

    Raises UsageError: no images, labels that do not fit. CalibrationError: see ``quantize``; logits that are not finite.
    """
    tell = progress or Silent()
    units = units_of(model, spec, keep, keep_grouped=keep_grouped)
    tell.update("FP32")
    evaluation = Evaluation.of(model, spec, crops, labels)

    def effect(patterns: tuple[str, ...], shown: str) -> Effect:
        done = quantize(model, spec, ranges, (*keep, *patterns), keep_grouped=keep_grouped, half=False)
        return evaluation.effect(evaluation.logits(done.model, shown))

    fp32 = evaluation.effect(evaluation.reference)
    total = sum(macs_of(model, spec.one_size).values())
    tell.update("all in INT8")
    all_int8 = effect((), "everything in INT8")
    rows = []
    for number, unit in enumerate(units, 1):
        tell.update(f"{unit.name}, {number} of {len(units)}")
        rows.append(
            UnitSensitivity(
                unit=unit.name,
                pattern=unit.pattern,
                layers=len(unit.layers),
                macs=unit.macs,
                mac_share=unit.macs / total,
                parameters=unit.parameters,
                only_on=effect(all_but(model, unit), f"only {unit.name} in INT8"),
                # Without its only unit nothing is INT8, and ``quantize`` makes no such graph.
                only_off=effect((unit.pattern,), f"all but {unit.name} in INT8") if len(units) > 1 else fp32,
            )
        )
    return SensitivityReport(
        model=spec.name,
        dataset=dataset,
        images=len(crops),
        macs=total,
        fp32=fp32,
        all_int8=all_int8,
        units=tuple(sorted(rows, key=lambda row: row.only_on.sqnr_db)),
    )


def sensitivity_of(
    bundle: Bundle,
    data: Path | None,
    num_images: int,
    progress: Progress | None = None,
    *,
    class_order: ClassOrder | None = None,
    assume_imagenet: bool = False,
) -> SensitivityReport:
    """Measures the units of an INT8 bundle's FP32 graph with its own ranges, those that its export kept too.

    Kept as the evidence ``sensitivity``.

    ``data``: images (see ``open_dataset``), of which ``num_images`` are used, a balanced choice; default: the card's own.
    Without labels there is no top-1. ``class_order``: how class folders are counted (``labels.py``). Grouped convolutions
    stay in the fallback if the export kept them there.

    Raises UsageError: a bundle without ranges, no images, labels that do not fit. IntegrityError: an altered artifact.
    CalibrationError: ranges of another network, unreadable images.
    """
    tell = progress or Silent()
    check_count(num_images, "--num-images")
    spec = bundle.manifest.model
    if data is not None or assume_imagenet:
        for note in require_preprocessing({str(bundle.folder): spec}, assume_imagenet):
            tell.note(note)
    recorded = bundle.artifact(RANGES)
    graph = bundle.artifact(MODEL)
    if recorded is None or graph is None:
        missing = RANGES if recorded is None else "FP32 graph"
        raise UsageError(
            f"{bundle.folder} has no {missing}: it is a bundle of {bundle.manifest.precision}",
            advice=f"export it with --int8: skdeploy export {spec.name} --int8 --calib DIR",
        )
    int8 = next((a for a in bundle.manifest.artifacts if a.precision and a.precision.integer), None)
    dataset = (
        open_dataset(data, archive=EVALUATION, spec=spec) if data is not None else default_dataset(spec, num_images)
    )
    if dataset.labels is not None:
        dataset = as_the_network_counts(dataset, spec, class_order)
    elif dataset.unlabelled and data is not None:
        tell.note(f"accuracy is not measured, because {dataset.name} has no labels: {dataset.unlabelled}")
    for note in dataset.notes:
        tell.note(note)
    dataset = select(dataset, num_images, seed=0)
    tell.update(f"reads {len(dataset)} images")
    read = list(read_crops(dataset, spec, lambda image: tell.note(f"left out {image.name}: {image.reason}")))
    report = measure_sensitivity(
        load_graph(bundle.check(graph)),
        spec,
        load_ranges(bundle.check(recorded)),
        [crop.pixels for _, crop in read],
        None if dataset.labels is None else dataset.labels[[index for index, _ in read]],
        keep_grouped=int8 is not None and bool(int8.provenance.options.get("keep_grouped")),
        dataset=dataset.name,
        progress=progress,
    )
    keep_evidence(bundle, "sensitivity", report, [graph, recorded], tell)
    return report


def units_of(
    model: ir.Model, spec: ModelSpec, keep: tuple[str, ...] = (), *, keep_grouped: bool = False
) -> tuple[Unit, ...]:
    """The units with a layer that can be INT8, in the graph's order. Raises UsageError for a pattern that matches no module."""
    weighted = set(place(model, keep, keep_grouped=keep_grouped).weighted)
    macs = macs_of(model, spec.one_size)
    unit_names = unit_of(model)
    layers: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        if node.name in weighted:
            layers.setdefault(unit_names[node.name or ""], []).append(node)
    modules = _modules(model)
    names = set(unit_names.values())
    inside: dict[str, set[str]] = {name: set() for name in names}
    for module in modules:
        around = [name for name in names if _lies_in(module, name)]
        if around:
            inside[max(around, key=len)].add(module)
    return tuple(
        Unit(
            name=name,
            pattern=_pattern(name, inside[name], modules),
            modules=frozenset(inside[name]),
            layers=tuple(node.name or "" for node in nodes),
            macs=sum(macs[node.name or ""] for node in nodes),
            parameters=sum(_parameters(node) for node in nodes),
        )
        for name, nodes in layers.items()
    )


def all_but(model: ir.Model, unit: Unit) -> tuple[str, ...]:
    """The pattern that keeps all modules but those of the unit; none if there are no others.

    Whatever the unit reads is then INT8 for its own readers alone, and what it makes is read by others as it is.
    """
    others = _modules(model) - unit.modules
    return (modules_pattern(others),) if others else ()


def logits_of(model: ir.Model, spec: ModelSpec, crops: Crops, shown: str) -> Logits:
    """The logits of a graph for all crops, (N, classes). Raises CalibrationError if they are not finite, naming ``shown``."""
    batch = min(MAX_BATCH, max(RUN_BATCH, BATCH_PIXELS // spec.places))
    found: list[Logits] = []
    with OnnxRuntimeSession(ir.to_proto(model).SerializeToString(), "cpu", None) as session:
        for outputs, count in outputs_by_batch(session, crops, spec, batch):
            problems = check_outputs(outputs, count, spec)
            if problems:
                raise CalibrationError(
                    f"{spec.name} with {shown} gives no logits to measure: {problems[0]}, {sum(map(len, found))} images on",
                    advice="calibrate again; if FP32 itself is not finite, check the weights",
                )
            found.append(outputs["logits"].astype(np.float64))
    return np.concatenate(found)


def _checked(labels: Labels, images: int, spec: ModelSpec) -> Labels:
    array = np.asarray(labels)
    if array.shape != (images,) or not np.issubdtype(array.dtype, np.integer):
        raise UsageError(
            f"labels are {array.dtype} of shape {array.shape}, but there are {images} images",
            advice="give one class number per image",
        )
    classes = spec.network.classes
    bad = np.flatnonzero((array < 0) | (array >= classes))
    if len(bad):
        raise UsageError(
            f"image {bad[0]} has label {array[bad[0]]}, but {spec.name} has {classes} classes",
            advice=f"labels must be from 0 to {classes - 1}, in the order of the network's outputs",
        )
    return array


def _modules(model: ir.Model) -> set[str]:
    return {module_of(node.name) for node in model.graph}


def _lies_in(module: str, unit: str) -> bool:
    return module == unit or (bool(unit) and module.startswith(f"{unit}."))


def _pattern(name: str, inside: Collection[str], modules: Collection[str]) -> str:
    """Short where a unit is a module and all below it; else, where other units lie below it, the list of its modules."""
    short = rf"^{re.escape(name)}(\.|$)"
    return (
        short if {module for module in modules if re.search(short, module)} == set(inside) else modules_pattern(inside)
    )


def _parameters(node: ir.Node) -> int:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return weights_of(node) + (0 if bias is None or bias.const_value is None else bias.const_value.size)
