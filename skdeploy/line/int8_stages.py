"""The stations of an INT8 export: calibration images or a ranges file, ranges, units to keep, and the INT8 graph."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import Bundle, Product, Stage
from skdeploy.core.errors import CalibrationError, UsageError
from skdeploy.core.files import digest_file
from skdeploy.core.progress import Progress
from skdeploy.core.spec import CalibrationMethod, ClassOrder, ModelSpec, Precision
from skdeploy.images.audit_report import AuditReport
from skdeploy.images.dataset import Dataset, open_dataset
from skdeploy.line.int8_options import DEFAULT_NUMBER, DEFAULT_PERCENTILE, CalibrationOptions, Int8Options
from skdeploy.line.options import ExportOptions
from skdeploy.line.stages import GRAPH_TOOLS, write_graph
from skdeploy.quant.ranges import ALGORITHM_VERSION, Algorithm, Ranges, load_ranges

RANGES, MIXED, INT8 = "ranges.json", "mixed.json", "model.int8.onnx"
LEGACY_GRAPH, LEGACY_CACHE = "legacy/model.onnx", "legacy/calibration.cache"
CALIBRATION_TOOLS: Final = ("skdeploy", "numpy", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "pillow")
RTX_INT8: Final = (
    "NVIDIA documents INT8 on TensorRT-RTX for weights only: whether its GPUs run these convolutions in INT8 is shown by "
    "no document, so measure before you rely on it"
)
ONNX_RUNTIME_HALF: Final = (
    "INT8 beside FP16 is for TensorRT: ONNX Runtime's default optimiser rounds the FP16 biases of such a graph away (1.32), so "
    "to run model.int8.onnx there yourself, set session.disable_quant_qdq to 1, or export with --int8-fallback fp32"
)


@dataclass(frozen=True)
class CalibrationSet:
    """The images that calibrate, how many were asked for, and the algorithm."""

    dataset: Dataset
    asked: int
    algorithm: Algorithm
    exclude: tuple[str, ...] = ()


def calibration_set(options: CalibrationOptions, spec: ModelSpec) -> CalibrationSet:
    """Opens the images that ``options`` names, or the recipe; nothing is decoded yet.

    Raises UsageError: no images there. CalibrationError: a recipe of another model, or whose images are others.
    """
    from skdeploy.images.selection import random_images, select
    from skdeploy.quant.recipe import load_recipe, open_images

    if options.from_recipe:
        recipe, path = load_recipe(str(options.images))
        if recipe.model != spec.name:
            raise CalibrationError(
                f"the recipe {path} is for {recipe.model}, and this is {spec.name}",
                advice="give the images themselves with --calib, or write a recipe for this network",
            )
        dataset = open_images(recipe, path)
        algorithm = Algorithm(
            method=recipe.method,
            percentile=recipe.percentile,
            equalize=recipe.equalize,
            bias_correction=recipe.bias_correction,
            shift=recipe.shift,
            exact_input=recipe.exact_input,
            weight_scales=recipe.weight_scales,
            version=ALGORITHM_VERSION,
        )
        return CalibrationSet(
            select(_counted(dataset, spec), recipe.number, recipe.seed), recipe.number, algorithm, recipe.exclude
        )
    number, seed = options.number or DEFAULT_NUMBER, options.seed or 0
    method = options.method or CalibrationMethod.MSE
    uses_percentile = method is CalibrationMethod.PERCENTILE
    algorithm = Algorithm(
        method=method,
        percentile=(options.percentile or DEFAULT_PERCENTILE) if uses_percentile else None,
        equalize=options.equalize is not False,
        bias_correction=options.bias_correction is not False,
        shift=options.shift is not False,
        exact_input=options.exact_input is not False,
        weight_scales=options.weight_scales or "mse",
        version=ALGORITHM_VERSION,
    )
    if options.images is None:
        return CalibrationSet(random_images(spec, number, seed), number, algorithm)
    return CalibrationSet(select(_counted(open_dataset(options.images), spec), number, seed), number, algorithm)


def calibrate(
    bundle: Bundle, model: Artifact, images: CalibrationSet, options: Int8Options, progress: Progress
) -> Stage:
    """Calibration images to ranges; what they are is audited on the way."""
    dataset = images.dataset
    data = open_dataset(options.data, archive="evaluation.npz") if options.data is not None else None

    def make(path: Path) -> Product:
        from skdeploy.backends.onnxruntime import load_graph
        from skdeploy.images.duplicates import fingerprints
        from skdeploy.quant.calibrate import CalibrationSettings, calibrate

        spec = bundle.manifest.model
        ranges = calibrate(
            load_graph(bundle.check(model)),
            model.inputs,
            spec,
            dataset,
            CalibrationSettings(images.algorithm, images.asked, options.calibration.batch),
            evaluation=fingerprints(data, spec) if data is not None else None,
            progress=progress,
        )
        path.write_text(ranges.text(), encoding="utf-8")
        return Product(details=_details(ranges))

    return Stage(
        name="calibrate",
        output=RANGES,
        format="json",
        precision=None,
        parents={
            model.path: model.sha256,
            "images": dataset.digest,
            **({"data": data.digest} if data is not None else {}),
        },
        options={"algorithm": images.algorithm.model_dump(mode="json"), "number": images.asked, "name": dataset.name},
        tools=CALIBRATION_TOOLS,
        make=make,
    )


def given_ranges(file: Path) -> Stage:
    """A ranges file of an earlier calibration, read at once; whether it belongs to the network is checked where it is used.

    Raises CalibrationError for a file that is not there or holds no ranges.
    """
    ranges = load_ranges(file)

    def make(path: Path) -> Product:
        path.write_text(ranges.text(), encoding="utf-8")
        return Product(details=_details(ranges))

    return Stage(
        name="ranges",
        output=RANGES,
        format="json",
        precision=None,
        parents={"file": digest_file(file)},
        options={},
        tools=("skdeploy",),
        make=make,
    )


def calibration_notes(details: Mapping[str, JsonValue]) -> tuple[str, ...]:
    """What makes the calibration images a poor guide to the field, in words."""
    audit = details.get("audit")
    notes = AuditReport.model_validate_json(json.dumps(audit)).warnings() if audit else ()
    dead = details.get("dead_tensors")
    if isinstance(dead, list) and dead:
        more = f" and {len(dead) - 1} more" if len(dead) > 1 else ""
        notes = (*notes, f"zero on every calibration image: {dead[0]}{more}; it got a range that every format holds")
    return tuple(f"calibration: {note}" for note in notes)


def mixed(
    bundle: Bundle, model: Artifact, ranges: Artifact, options: ExportOptions, keep: tuple[str, ...], progress: Progress
) -> Stage:
    """The units that must stay in the fallback, so that INT8 costs no more than ``max_drop`` on the images with labels."""
    asked = options.int8
    assert asked.data is not None  # options.check
    assert asked.max_drop is not None
    max_drop = asked.max_drop
    spec = bundle.manifest.model
    data = labelled(asked.data, spec, asked.class_order)
    for note in data.notes:
        progress.note(note)
    assert data.labels is not None  # labelled raises where there are none
    labels = data.labels

    def make(path: Path) -> Product:
        from skdeploy.backends.onnxruntime import load_graph
        from skdeploy.quant.mixed import search

        found = search(
            load_graph(bundle.check(model)),
            spec,
            load_ranges(bundle.check(ranges)),
            data.load(spec),
            labels,
            max_drop,
            keep=(*keep, *options.keep_fp32),
            keep_grouped=asked.keep_grouped,
            dataset=data.name,
            progress=progress,
        )
        path.write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return Product(details={"keep": list(found.keep), "units": found.units, "evaluations": found.evaluations})

    return Stage(
        name="mixed",
        output=MIXED,
        format="json",
        precision=None,
        parents={
            model.path: model.sha256,
            ranges.path: ranges.sha256,
            "data": data.digest,
            "labels": hashlib.sha256(labels.tobytes()).hexdigest(),
        },
        options={
            "max_drop": max_drop,
            "exif": spec.preprocess.exif,
            "keep": [*keep, *options.keep_fp32],
            "keep_grouped": asked.keep_grouped,
            "name": data.name,
        },
        tools=CALIBRATION_TOOLS,
        make=make,
    )


def kept_for_the_budget(mixed: Artifact) -> tuple[str, ...]:
    """The patterns of the units that stay in the fallback."""
    keep = mixed.details["keep"]
    assert isinstance(keep, list)  # written by the stage above
    return tuple(map(str, keep))


def labelled(path: Path, spec: ModelSpec, order: ClassOrder | None) -> Dataset:
    """Images with labels, in the network's order. Raises UsageError where there are none."""
    from skdeploy.images.labels import as_the_network_counts

    return as_the_network_counts(open_dataset(path, archive="evaluation.npz"), spec, order)


def int8(bundle: Bundle, model: Artifact, ranges: Artifact, options: ExportOptions, keep: tuple[str, ...]) -> Stage:
    """FP32 graph and ranges to an explicit Q/DQ graph, the rest in the fallback precision."""
    asked = options.int8
    patterns = (*keep, *options.keep_fp32)
    half = asked.fallback is Precision.FP16

    def make(path: Path) -> Product:
        from skdeploy.backends.onnxruntime import load_graph
        from skdeploy.passes.half import HalfPrecision
        from skdeploy.quant.macs import share_of_macs
        from skdeploy.quant.quantize import quantize

        spec = bundle.manifest.model
        graph = load_graph(bundle.check(model))
        done = quantize(
            graph, spec, load_ranges(bundle.check(ranges)), patterns, keep_grouped=asked.keep_grouped, half=half
        )
        halving = HalfPrecision(options.keep_fp32)
        result = halving(done.model).model if half else done.model
        details: dict[str, JsonValue] = {
            "int8_tensors": len(done.placement.tensors),
            "shifted_tensors": len(done.offsets),
            "int8_weights": list(done.placement.weighted),
            "int8_macs": share_of_macs(graph, done.placement.weighted, (spec.input.height, spec.input.width)),
            "kept": dict(done.placement.kept),
            "raised_steps": dict(done.raised),
            "fallback": asked.fallback.value,
        }
        if half:
            details |= {"fp16_tensors": list(halving.halved), "kept_fp32": dict(halving.kept)}
        return write_graph(result, path, spec, **details)

    return Stage(
        name="int8",
        output=INT8,
        format="onnx",
        precision=Precision.INT8,
        parents={model.path: model.sha256, ranges.path: ranges.sha256},
        options={
            "keep": list(patterns),
            "keep_grouped": asked.keep_grouped,
            "fallback": asked.fallback.value,
            "keep_fp32": list(options.keep_fp32),
        },
        tools=(*GRAPH_TOOLS, "numpy"),
        make=make,
    )


def int8_notes(graph: Artifact) -> tuple[str, ...]:
    """Where FP16's range made INT8 worse than FP32 beside it would."""
    raised = graph.details.get("raised_steps")
    if not isinstance(raised, dict) or not raised:
        return ()
    name = next(iter(raised))
    more = f", and in {len(raised) - 1} more" if len(raised) > 1 else ""
    said = (
        f"INT8 beside FP16: {raised[name]} output channel(s) of {name}{more} have weights so small that FP16 does not hold "
        "their INT8 step; they got FP16's smallest and lose precision. --int8-fallback fp32 or --int8-keep keeps it"
    )
    return (said,)


def legacy_graph(bundle: Bundle, model: Artifact, ranges: Artifact) -> Stage:
    """The FP32 graph that a calibration cache belongs to: with its channels equalized as the ranges were measured."""

    def make(path: Path) -> Product:
        from skdeploy.backends.onnxruntime import load_graph
        from skdeploy.quant.quantize import equalized

        graph = load_graph(bundle.check(model))
        found = load_ranges(bundle.check(ranges))
        return write_graph(equalized(graph, bundle.manifest.model, found), path, bundle.manifest.model)

    return Stage(
        name="legacy graph",
        output=LEGACY_GRAPH,
        format="onnx",
        precision=Precision.FP32,
        parents={model.path: model.sha256, ranges.path: ranges.sha256},
        options={},
        tools=GRAPH_TOOLS,
        make=make,
    )


def legacy_cache(bundle: Bundle, graph: Artifact, ranges: Artifact, version: str) -> Stage:
    """The calibration cache that weakly typed TensorRT builds of ``graph`` and DLA read."""

    def make(path: Path) -> Product:
        from skdeploy.backends.onnxruntime import load_graph
        from skdeploy.quant.legacy_cache import spread_scales, write_legacy_cache
        from skdeploy.quant.quantize import scales_in_graph

        network = load_graph(bundle.check(graph))
        scales = spread_scales(network, scales_in_graph(network, load_ranges(bundle.check(ranges))))
        path.write_text(write_legacy_cache(scales, version), encoding="ascii")
        return Product(details={"tensorrt": version, "tensors": len(scales)})

    return Stage(
        name="legacy cache",
        output=LEGACY_CACHE,
        format="cache",
        precision=None,
        parents={graph.path: graph.sha256, ranges.path: ranges.sha256},
        options={"version": version},
        tools=("skdeploy",),
        make=make,
    )


def _counted(dataset: Dataset, spec: ModelSpec) -> Dataset:
    """With the labels as the network counts them where that can be told: calibration needs none, they balance the choice."""
    from skdeploy.images.labels import as_the_network_counts

    try:
        return as_the_network_counts(dataset, spec)
    except UsageError:
        return dataset


def _details(ranges: Ranges) -> dict[str, JsonValue]:
    from skdeploy.quant.calibrate import dead_tensors

    return {
        "images": ranges.data.images,
        "dataset": ranges.data.name,
        "random": ranges.data.random,
        "method": ranges.algorithm.method.value,
        "tensors": len(ranges.tensors),
        "dead_tensors": list(dead_tensors(ranges)),
        "audit": dict(ranges.audit),
    }
