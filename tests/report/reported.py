"""Bundles with every finding that a report shows, of made-up figures: a report reads no graph, so these need none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from skdeploy.accuracy.gate import AccuracyReport, ClassAccuracy, Evaluation, PairedReport, share
from skdeploy.accuracy.statistics import Decision, Pairs
from skdeploy.attention.report import (
    Activity,
    Agreement,
    AttentionReport,
    Curve,
    Growth,
    MeasuredGraph,
    Profile,
    UnitAttention,
)
from skdeploy.backends.metrics import Metrics
from skdeploy.bench.report import BatchLatency, LatencyReceipt
from skdeploy.bench.report import Comparison as BenchComparison
from skdeploy.bench.statistics import Ratio
from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.evidence import write_evidence
from skdeploy.bundle.folder import Bundle, bundle_for_writing, load_bundle
from skdeploy.bundle.manifest import Manifest
from skdeploy.bundle.station_facts import read_facts_of
from skdeploy.checkpoints.weights_record import WeightsRecord
from skdeploy.core.files import digest_json
from skdeploy.core.precision import precision_named
from skdeploy.core.spec import Frozen, ModelSpec, Precision
from skdeploy.devices.machine_state import MachineState
from skdeploy.parity.blame_report import BlameReport, LayerResult, StageResult
from skdeploy.parity.pictures import pictures_of_image
from skdeploy.parity.report import Comparison, HeadroomReport, ParityReport, TensorHeadroom
from skdeploy.parity.worst_image import WorstImage
from skdeploy.quant.effect import Effect
from skdeploy.quant.sensitivity import SensitivityReport, UnitSensitivity
from tests import tiny
from tests.bundle.recorded import put, recipe

# A name that means to be markup, a template, a reordering of text, and the end of every element that it may be in.
HOSTILE = "<script>ran = 1</script>\"'><img src=x onerror='ran = 2'>{{ 7 * 7 }}\n\u202egnp.exe&amp;</title></style>"
GRAPHS = {"model.onnx": Precision.FP32, "model.int8.onnx": Precision.INT8}


def metrics(sqnr_db: float = 31.25) -> Metrics:
    return Metrics(
        images=64, max_abs_error=0.1, max_rel_error=0.0215, min_cosine=0.98765, min_sqnr_db=sqnr_db, sqnr_db=sqnr_db + 7,
        top1_agreement=63 / 64, top1_decided=1.0,
    )  # fmt: skip


def comparison(artifact: str, verdict: str = "pass", backend: str = "onnxruntime", **more: Any) -> Comparison:
    precision = GRAPHS.get(artifact, Precision.INT8)
    found = None if verdict == "unproven" else metrics(31.25 if precision is Precision.INT8 else 124.5)
    return Comparison.model_validate(
        {"artifact": artifact, "backend": backend, "precision": precision, "verdict": verdict, "metrics": found} | more
    )


def parity(*comparisons: Comparison) -> ParityReport:
    return ParityReport(
        reference="torch float32, training form",
        dataset="images.npz",
        dataset_sha256="0" * 64,
        images=64,
        comparisons=comparisons or tuple(map(comparison, GRAPHS)),
    )


def worst_image(name: str = "a.png") -> WorstImage:
    """In pictures of noise, the largest there are."""
    reference, found = np.random.default_rng(0).uniform(0, 255, (2, 3, 900, 900))
    return WorstImage(found=name, against=name, image=name, pictures=pictures_of_image(reference, found))


def headroom(tensors: int = 20) -> HeadroomReport:
    rows = [
        TensorHeadroom(
            tensor=f"stages.{i}/Conv", modules=(), max_abs=65504 / (912.5 * (i + 1)), headroom=912.5 * (i + 1)
        )
        for i in range(tensors)
    ]
    return HeadroomReport(images=64, dataset="images.npz", tensors=tuple(rows))


def ranges(spec: ModelSpec, tensors: int = 6) -> dict[str, Any]:
    """The content of a ranges file."""
    tables = {"preprocess": spec.preprocess.model_dump(mode="json"), "input": spec.input.model_dump(mode="json")}
    form = {f"{table}.{key}": value for table, content in tables.items() for key, value in content.items()}
    algorithm = {
        "method": "mse", "percentile": None, "equalize": False, "bias_correction": False, "shift": True,
        "exact_input": True, "weight_scales": "mse", "version": 1,
    }  # fmt: skip
    none = {"count": 0, "pairs": []}
    return {
        "schema": 1,
        "skdeploy": "0",
        "tools": {},
        "model": spec.name,
        "model_sha256": "0" * 64,
        **tables,
        "preprocess_sha256": digest_json(form),
        "data": {"name": "calibration.npz", "sha256": "0" * 64, "images": 512},
        "algorithm": algorithm,
        "algorithm_sha256": digest_json(algorithm),
        "tensors": {
            f"stages.{i}.relu/Relu": {"minimum": 0.0, "maximum": 8.5 + i, "threshold": 6.25 + i} for i in range(tensors)
        },
        "audit": {
            "dataset": "calibration.npz", "random": False, "asked": 512, "used": 512, "unreadable": [], "classes": None,
            "exact": {"count": 3, "pairs": [["a.png", "b.png"]]}, "near": none, "overlap": None,
            "constant": {"count": 0, "names": []}, "clipped": {"count": 0, "names": []},
            "enlarged": {"count": 0, "names": []}, "converted": {},
        },
    }  # fmt: skip


def evaluation(spec: ModelSpec, decision: Decision | None = "pass", classes: int | None = None) -> Evaluation:
    names = spec.labels or tuple(f"class {i}" for i in range(classes or spec.network.classes))
    counts = len(names)
    reports = tuple(
        AccuracyReport(
            artifact=artifact,
            backend="onnxruntime",
            precision=precision,
            sha256="0" * 64,
            images=100 * counts,
            top1=share(94 * counts - 2 * index, 100 * counts, 0.95),
            top5=None,
            per_class=tuple(ClassAccuracy(label=name, top1=share(94, 100, 0.95)) for name in names),
            confusion=tuple(
                tuple(94 if i == j else 6 if j == (i + 1) % counts else 0 for j in range(counts)) for i in range(counts)
            ),
        )
        for index, (artifact, precision) in enumerate(GRAPHS.items())
    )
    pair = PairedReport(
        first="model.onnx on onnxruntime",
        second="model.int8.onnx on onnxruntime",
        pairs=Pairs(both_right=94 * counts - 5, only_first=5, only_second=3, both_wrong=6 * counts - 3),
        mcnemar_p=0.7266,
        drop=0.37,
        drop_low=-0.81,
        drop_high=1.61,
        confidence=95.0,
        agreement=0.991,
        max_drop=None if decision is None else 0.5,
        decision=decision,
    )
    return Evaluation(
        dataset="eval", dataset_sha256="0" * 64, labels_sha256="0" * 64, images=100 * counts, reused=0, unreadable=(),
        classes=names, missing_classes=(), accuracies=reports, pairs=(pair,), not_evaluated=(), confidence=95.0, seconds=1.0,
    )  # fmt: skip


def blame(guilty: str | None = None, layers: int = 30) -> BlameReport:
    stages = (
        StageResult(stage="torch float64", precision=Precision.FP32, verdict="reference"),
        StageResult(
            stage="model.int8.onnx", precision=Precision.INT8, verdict="fail" if guilty else "pass", before="torch float64",
            sqnr_before_db=8.75, sqnr_first_db=8.75, problems=("SQNR 8.7 dB, at least 10 dB",) if guilty else (),
        ),
    )  # fmt: skip
    rows = tuple(
        LayerResult(
            tensor=f"stages.{i}/Conv", module=f"stages.{i}", own_db=40.0 - i / 2, run_db=35.0 - i / 2, inputs_db=None
        )
        for i in range(layers)
    )
    return BlameReport(
        model="tiny", dataset="images.npz", images=1, first="torch float64", stages=stages, guilty=guilty, image="0.png",
        layers=rows, floor_db=10.0, note="many errors add up" if guilty else "",
    )  # fmt: skip


def sensitivity(units: int = 4) -> SensitivityReport:
    rows = [
        UnitSensitivity(
            unit=f"stages.{i}", pattern=f"^stages\\.{i}", layers=4, macs=1000, mac_share=1 / units, parameters=1234,
            only_on=Effect(sqnr_db=41.75 + i, agreement=1.0, top1=0.9), only_off=Effect(sqnr_db=37.0, agreement=1.0, top1=0.9),
        )
        for i in range(units)
    ]  # fmt: skip
    effect = Effect(sqnr_db=36.5, agreement=0.99, top1=0.9)
    return SensitivityReport(
        model="tiny", dataset="images.npz", images=128, macs=4000, fp32=effect, all_int8=effect, units=tuple(rows)
    )


def attention(units: int = 2, channels: int = 16) -> AttentionReport:
    scales, graphs = (1.0, 1.5, 2.0), ("fp32", "fp16", "int8")
    profiles = tuple(
        Profile(scale=s, attention=tuple(0.4 + 0.2 * c / channels for c in range(channels))) for s in (1.0, 2.0)
    )
    growth = Growth(mean=0.125, standard_error=0.01, margin=0.02, share=0.9)
    curves = tuple(
        Curve(
            graph=g,
            branch=b,
            differences=(0.0, 0.06, 0.125),
            standard_errors=(0.01,) * 3,
            growth=growth,
            profiles=profiles,
        )
        for g in graphs
        for b in (0, 1)
    )
    return AttentionReport(
        model="tiny", dataset="images.npz", dataset_sha256="0" * 64, images=128, unreadable=(), enlargement="resize",
        interpolation="bilinear", interpolated=0.0, scales=scales, sizes=(36, 54, 72),
        graphs=tuple(
            MeasuredGraph(name=g, bundle="b", artifact="a", precision=precision_named(g), sha256="0" * 64) for g in graphs
        ),
        units=tuple(
            UnitAttention(
                unit=f"stages.{i}", paper_name=f"SK_{i}", channels=channels, branches=("3x3", "5x5"), reference=0,
                curves=curves,
                activity=tuple(Activity(graph=g, spread=0.02, mean_abs_difference=1e-3) for g in graphs),
                agreements=tuple(
                    Agreement(graph=g, branch=1, correlation=0.9987, max_difference=1e-3) for g in graphs[1:]
                ),
            )
            for i in range(units)
        ),
    )  # fmt: skip


def write(
    bundle: Bundle,
    output: str,
    content: str,
    parents: Mapping[str, str],
    precision: Precision | None = None,
    **facts: Any,
) -> Artifact:
    """A file of ``content``, as the station that makes such a file records it."""
    kind = {"onnx": "onnx", "plan": "engine", "json": "json"}[output.rsplit(".", 1)[-1]]
    names = {
        "headroom.json": "headroom",
        "model.onnx": "simplify",
        "parity.json": "parity",
        "mixed.json": "mixed",
        "ranges.json": "calibrate",
        "model.int8.onnx": "int8",
        "model.plan": "build",
    }
    station = names.get(output, "trace")
    made_by = recipe(output, kind, station=station, precision=precision, parents=parents)
    return put(bundle, made_by, content.encode(), read_facts_of({"station": station, **facts}))


def make_bundle(
    folder: Path,
    *,
    verdict: Any = "verified",
    report: ParityReport | None = None,
    spec: ModelSpec | None = None,
    notes: tuple[str, ...] = (),
    engine: bool = False,
    tensors: int = 20,
) -> Bundle:
    """An INT8 bundle: graphs, ranges, headroom and parity, and an engine if asked for."""
    card = spec or tiny.spec()
    head = Manifest(
        skdeploy="0.1.0",
        created="2026-01-02T03:04:05+00:00",
        model=card,
        weights=WeightsRecord(source="checkpoint", file="tiny.safetensors", sha256="a" * 64),
        precision=Precision.INT8,
        notes=notes,
    )
    with bundle_for_writing(folder, head) as bundle:
        made = [write(bundle, "model.onnx", "fp32" * 999, {}, Precision.FP32)]
        parents = {"model.onnx": made[0].sha256}
        made.append(write(bundle, "ranges.json", json.dumps(ranges(card)), parents, images=64))
        details = {
            "int8_weights": ["a", "b", "c"],
            "int8_macs": 0.9876,
            "kept": {"d": "part of a gate"},
            "fallback": "fp16",
        }
        made.append(write(bundle, "model.int8.onnx", "int8" * 250, parents, Precision.INT8, **details))
        if engine:
            made.append(write(bundle, "model.plan", "plan", parents, Precision.INT8, compiler="tensorrt_rtx"))
        parents = {artifact.path: artifact.sha256 for artifact in made}
        made.append(
            write(bundle, "headroom.json", headroom(tensors).model_dump_json(), parents, least_headroom=9.0, tensor="x")
        )
        made.append(write(bundle, "parity.json", (report or parity()).model_dump_json(), parents, verdict="pass"))
        if verdict != "incomplete":
            bundle.finish(tuple(made), verdict)
    return load_bundle(folder)


def add(bundle: Bundle, **evidence: Frozen) -> None:
    """Writes evidence by name, of all artifacts."""
    for name, report in evidence.items():
        write_evidence(bundle, name, report, bundle.manifest.artifacts)


def full_bundle(folder: Path, **options: Any) -> Bundle:
    """With every finding."""
    bundle = make_bundle(folder, **options)
    spec = bundle.manifest.model
    add(bundle, accuracy=evaluation(spec), blame=blame(), sensitivity=sensitivity(), attention=attention())
    return bundle


def receipt(bundle: Bundle, verdict: str, kind: str = "parity", **content: Any) -> Path:
    """Of the engine, as a device writes it."""
    artifact = bundle.artifact("model.plan")
    assert artifact is not None
    rest = {
        "schema": 1, "kind": kind, "artifact": artifact.path, "sha256": artifact.sha256, "backend": "tensorrt",
        "device": {"name": "GPU <b>9000</b>", "compute_capability": "9.0", "driver": "CUDA 13.0", "system": "Linux"},
        "runtime": {"tensorrt": "10.14"}, "skdeploy": "0.1.0", "created": "2026-02-03T00:00:00+00:00", "verdict": verdict,
        "content": content,
    }  # fmt: skip
    path = bundle.folder / f"receipts/{kind}-gpu-{artifact.sha256[:12]}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(rest | {"digest": digest_json(rest)}))
    return path


def bench(ratio: float, others: float = 0.0) -> dict[str, Any]:
    """The content of a receipt of kind latency: the engine takes ``ratio`` times as long as one in FP16."""
    times = {"min": 1.9 * ratio, "p50": 2.0 * ratio, "p90": 2.1 * ratio, "p99": 2.2 * ratio}
    machine = MachineState(
        before=(), during=(), after=(), load_average=0.0, cores=8, others=others, stolen=0.0,
        warnings=(f"the machine was not idle: other processes used {others:.0%} of the cores' time",) if others else (),
    )  # fmt: skip
    batches = tuple(
        BatchLatency.model_validate(
            {"batch": batch, "runs": 500, "host_ms": times, "device_ms": times, "images_per_second": 500 * batch / ratio,
             "warm_up_runs": 30, "warm_up_seconds": 1.0, "warm_up_stable": True}
        )
        for batch in (1, 8)
    )  # fmt: skip
    compared = tuple(
        BenchComparison(
            artifact="model.plan", against="other/model.plan", backend="tensorrt", batch=batch, same_network=True,
            ratio=Ratio(ratio=ratio, low=0.9 * ratio, high=1.1 * ratio, pairs=40, verdict="slower"),
            int8=f"INT8 pays against FP16 on tensorrt, batch {batch}",
        )
        for batch in (1, 8)
    )  # fmt: skip
    content = LatencyReceipt(
        precision=Precision.INT8, session="CUDA graph", threads=None, cuda_graph=True, seed=0, seconds=3.0, batches=batches,
        machine=machine, comparisons=compared,
    )  # fmt: skip
    return content.model_dump(mode="json")


def hostile_spec() -> ModelSpec:
    spec = tiny.spec()
    update = {"labels": tuple(f"{i}{HOSTILE}" for i in range(5)), "summary": HOSTILE}
    return spec.model_copy(update=update)


def hostile_bundle(folder: Path) -> Bundle:
    """Names that mean to be markup, in every place that names get into a report from."""
    bundle = make_bundle(
        folder,
        spec=hostile_spec(),
        notes=(HOSTILE,),
        report=parity().model_copy(update={"dataset": HOSTILE, "worst": worst_image(HOSTILE)}),
    )
    units = attention().units
    hurt = attention().model_copy(
        update={"dataset": HOSTILE, "units": tuple(u.model_copy(update={"unit": HOSTILE}) for u in units)}
    )
    rows = tuple(row.model_copy(update={"unit": HOSTILE}) for row in sensitivity().units)
    layers = tuple(layer.model_copy(update={"tensor": HOSTILE}) for layer in blame().layers)
    add(
        bundle,
        accuracy=evaluation(bundle.manifest.model).model_copy(update={"dataset": HOSTILE}),
        sensitivity=sensitivity().model_copy(update={"units": rows}),
        blame=blame().model_copy(update={"layers": layers}),
        attention=hurt,
    )
    (bundle.folder / "evidence" / "<script>alert(3)<>\u202e.json").write_text("{}")
    return bundle
