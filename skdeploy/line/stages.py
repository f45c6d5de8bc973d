"""The stations of the line as stages: for each, its output file, what decides whether it must run again, and how it is made."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import JsonValue, TypeAdapter

from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.contents import HALF, HEADROOM, MODEL, PARITY, PARSER_REFUSAL, READ, TRACED, WEIGHTS
from skdeploy.bundle.folder import Bundle, Product, Stage
from skdeploy.checkpoints.network import Network, OwnNetwork
from skdeploy.checkpoints.weights_record import WeightsRecord
from skdeploy.core.architecture import GraphSpec, ModuleSpec, NetworkSpec
from skdeploy.core.files import digest_json
from skdeploy.core.progress import Progress
from skdeploy.core.spec import Assumed, ModelSpec, Precision, TensorSpec
from skdeploy.devices import cuda
from skdeploy.images.dataset import Dataset
from skdeploy.line.options import ExportOptions

if TYPE_CHECKING:
    import onnx_ir as ir

    from skdeploy.parity.report import ParityReport
    from skdeploy.parity.witness import Witness


GRAPH_TOOLS: Final = ("skdeploy", "onnx", "onnx-ir")
TRACE_TOOLS: Final = (*GRAPH_TOOLS, "torch", "onnxscript")
RUN_TOOLS: Final = ("skdeploy", "torch", "onnxruntime", "onnxruntime-gpu")
HEADROOM_BATCH: Final = 2  # every tensor of every image is held at once


def weights(spec: ModelSpec, record: WeightsRecord, checkpoint: Path | None) -> Stage:
    """A checkpoint of any known layout to canonical weights, or random ones from a seed."""

    def make(path: Path) -> Product:
        from skdeploy.checkpoints.importing import import_checkpoint, random_weights, save_weights

        imported = import_checkpoint(checkpoint, spec) if checkpoint else random_weights(spec, record.seed or 0)
        save_weights(imported.state, path)
        return Product(
            details={
                "layout": imported.layout,
                "network": imported.spec.network.model_dump(mode="json"),
                "notes": list(imported.notes),
                "assumed": imported.spec.assumed.model_dump(mode="json"),
            }
        )

    return Stage(
        name="weights",
        output=WEIGHTS,
        format="safetensors",
        precision=Precision.FP32,
        parents={
            "card": digest_json(  # what a card says, and what it leaves to the layout
                spec.model_dump(mode="json", include={"network", "input", "assumed"}, exclude_unset=True)
            ),
            "weights": record.sha256 or f"random, seed {record.seed}",
        },
        options={},
        tools=("skdeploy", "torch", "safetensors"),
        make=make,
    )


def imported(spec: ModelSpec, weights: Artifact) -> tuple[ModelSpec, tuple[str, ...]]:
    """The spec that canonical weights fit exactly, and what the import had to say."""
    details = weights.details
    network: NetworkSpec = TypeAdapter(NetworkSpec).validate_json(json.dumps(details["network"]))
    notes = details["notes"]
    assert isinstance(notes, list)  # written by the stage above
    assumed = Assumed.model_validate_json(json.dumps(details.get("assumed", {})))  # not in bundles of 1.0
    return spec.model_copy(update={"network": network, "assumed": assumed}), tuple(map(str, notes))


def trace(network: Network | OwnNetwork, parents: Mapping[str, str], options: ExportOptions) -> Stage:
    """Network to ONNX. A module of the user's own is traced anew each time: nothing tells whether its code has changed."""
    spec = network.spec
    first = READ if isinstance(network, OwnNetwork) else TRACED if options.simplify else MODEL

    def make(path: Path) -> Product:
        from skdeploy.passes.trace import trace

        return write_graph(trace(network.module, spec, options.trace), path, spec)

    return Stage(
        name="trace",
        output=first,
        format="onnx",
        precision=Precision.FP32,
        parents={
            "card": digest_json(spec.model_dump(mode="json", include={"network", "input", "preprocess"})),
            **parents,
        },
        options=dataclasses.asdict(options.trace),
        tools=TRACE_TOOLS,
        make=make,
        reusable=isinstance(network, Network),
    )


def read(graph: ir.Model, record: WeightsRecord) -> Stage:
    """An ONNX file made elsewhere, with our names and a known opset. Read anew each time: its data may lie in other files."""

    def make(path: Path) -> Product:
        return _write(graph, path, any_rank=True)

    return Stage(
        name="read",
        output=READ,
        format="onnx",
        precision=Precision.FP32,
        parents={"file": record.sha256 or ""},
        options={},
        tools=GRAPH_TOOLS,
        make=make,
        reusable=False,
    )


def select(bundle: Bundle, graph: Artifact, options: ExportOptions) -> Stage:
    """Naive selective kernel blocks to their deploy form."""

    def make(path: Path) -> Product:
        from skdeploy.backends.onnxruntime import load_graph
        from skdeploy.passes.select import RewriteSelect

        rewrite = RewriteSelect()
        result = rewrite(load_graph(bundle.check(graph))).model
        report = rewrite.report
        return _write(
            result,
            path,
            any_rank=True,
            rewritten=list(report.found),
            in_deploy_form=list(report.deployed),
            near_misses=[f"{where}: {why}" for where, why in report.near_misses],
        )

    return Stage(
        name="select",
        output=TRACED if options.simplify else MODEL,
        format="onnx",
        precision=Precision.FP32,
        parents={graph.path: graph.sha256},
        options={},
        tools=(*GRAPH_TOOLS, "onnxruntime", "onnxruntime-gpu"),
        make=make,
    )


def blocks_found(selected: Artifact) -> tuple[str, ...]:
    """What the search for selective kernel blocks came to, in words."""
    found, deployed, missed = (selected.details[key] for key in ("rewritten", "in_deploy_form", "near_misses"))
    assert isinstance(found, list)  # written by the stage above
    assert isinstance(deployed, list)
    assert isinstance(missed, list)
    said = f"selective kernel blocks: {len(found)} rewritten to the deploy form, {len(deployed)} in it already"
    if not found and not deployed:
        said = "no selective kernel blocks found: the graph is deployed as it is"
    return (said, *(f"left as it is, {miss}" for miss in missed))


def simplify(bundle: Bundle, traced: Artifact) -> Stage:
    """ONNX to a smaller ONNX of the same function."""

    def make(path: Path) -> Product:
        from skdeploy.backends.onnxruntime import load_graph
        from skdeploy.passes.simplify import simplify

        return write_graph(simplify(load_graph(bundle.check(traced))), path, bundle.manifest.model)

    return Stage(
        name="simplify",
        output=MODEL,
        format="onnx",
        precision=Precision.FP32,
        parents={traced.path: traced.sha256},
        options={},
        tools=(*GRAPH_TOOLS, "onnxsim"),
        make=make,
    )


def half(bundle: Bundle, model: Artifact, options: ExportOptions) -> Stage:
    """FP32 graph to a strongly typed FP16 graph."""

    def make(path: Path) -> Product:
        from skdeploy.backends.onnxruntime import load_graph
        from skdeploy.passes.half import HalfPrecision

        halving = HalfPrecision(options.keep_fp32)
        result = halving(load_graph(bundle.check(model))).model
        return write_graph(
            result,
            path,
            bundle.manifest.model,
            fp16_tensors=list(halving.halved),
            kept_fp32=dict(halving.kept),
            constants_flushed_to_zero=dict(halving.flushed),
        )

    return Stage(
        name="half",
        output=HALF,
        format="onnx",
        precision=Precision.FP16,
        parents={model.path: model.sha256},
        options={"keep_fp32": list(options.keep_fp32)},
        tools=GRAPH_TOOLS,
        make=make,
    )


def headroom(bundle: Bundle, model: Artifact, halved: Artifact, dataset: Dataset) -> Stage:
    """How much of FP16's range real images use, tensor by tensor, when ``model`` runs: FP32, or the INT8 graph itself."""

    def make(path: Path) -> Product:
        from skdeploy.images.feeds import batches_of
        from skdeploy.parity.headroom import measure_headroom

        spec = bundle.manifest.model
        names = halved.details["fp16_tensors"]
        assert isinstance(names, list)  # written by the stage above
        batches = batches_of(dataset.load(spec), spec, model.inputs, HEADROOM_BATCH)
        report = measure_headroom(bundle.check(model), [str(name) for name in names], batches, dataset.name)
        path.write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
        least = report.tensors[0]
        return Product(details={"least_headroom": least.headroom, "tensor": least.tensor})

    return Stage(
        name="headroom",
        output=HEADROOM,
        format="json",
        precision=None,
        parents={model.path: model.sha256, halved.path: halved.sha256, "images": dataset.digest},
        options={},
        tools=RUN_TOOLS,
        make=make,
    )


def parity(
    bundle: Bundle,
    artifacts: tuple[Artifact, ...],
    dataset: Dataset,
    network: Network | OwnNetwork | None,
    progress: Progress,
    witness: Witness | None = None,
) -> Stage:
    """Every artifact against torch, or against the file as it came, on real images; or against what its author computes.

    Nothing tells whether the author's code has changed, so that one is asked anew each time.
    """
    from skdeploy.parity.golden import Golden
    from skdeploy.parity.suites import SYNTHETIC

    spec = bundle.manifest.model

    def make(path: Path) -> Product:
        from skdeploy.parity.prove import prove

        module = network.module if network else None
        return write_report(prove(bundle, artifacts, dataset, module, progress, witness=witness), path)

    golden = {"golden": witness.sha256} if isinstance(witness, Golden) else {}

    return Stage(
        name="parity",
        output=PARITY,
        format="json",
        precision=None,
        parents={artifact.path: artifact.sha256 for artifact in artifacts} | {"images": dataset.digest} | golden,
        options={
            "preprocess": spec.preprocess.model_dump(mode="json") | {"exif": spec.preprocess.exif},
            "tolerance": spec.model_dump(mode="json", include={"tolerance"}),
            "suites": list(SYNTHETIC),
            "chosen": dataset.chosen,
            "devices": device_names(),
        },
        tools=RUN_TOOLS,
        make=make,
        reusable=not isinstance(network, OwnNetwork) and (witness is None or isinstance(witness, Golden)),
    )


def image_sizes(spec: ModelSpec) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Smallest, best and largest (height, width) of an engine with dynamic size: from half to twice the card's."""
    height, width = spec.input.height, spec.input.width
    return ((max(1, height // 2), max(1, width // 2)), (height, width), (2 * height, 2 * width))


def device_names() -> list[JsonValue]:
    """The GPUs of this machine in words, as keys of stages that depend on them."""
    return [f"{device.name}, compute capability {device.compute_capability}" for device in cuda.devices()]


def write_graph(model: ir.Model, path: Path, spec: ModelSpec, **details: JsonValue) -> Product:
    """Checks and saves a graph. One of somebody else's making may have tensors of any rank."""
    return _write(model, path, any_rank=isinstance(spec.network, GraphSpec | ModuleSpec), **details)


def write_report(report: ParityReport, path: Path) -> Product:
    """Saves a parity report."""
    path.write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return Product(details={"verdict": report.verdict})


def _write(model: ir.Model, path: Path, *, any_rank: bool, **details: JsonValue) -> Product:
    """Saves a graph, and admits the file: valid by the schemas, loaded by ONNX Runtime, parsed by TensorRT-RTX."""
    from skdeploy.backends.admission import above_max_rank, admit, admit_file
    from skdeploy.engines.parsing import parser_refusal
    from skdeploy.passes.trace import save_model

    admit(model, any_rank=any_rank)
    save_model(model, path)
    admit_file(path)
    if refused := parser_refusal(path):
        details[PARSER_REFUSAL] = refused
    high: list[JsonValue] = [*above_max_rank(model)]
    return Product(
        inputs=tuple(_tensor_spec(value) for value in model.graph.inputs),
        outputs=tuple(_tensor_spec(value) for value in model.graph.outputs),
        details={"nodes": len(model.graph), **({"rank_above_4": high} if high else {}), **details},
    )


def _tensor_spec(value: ir.Value) -> TensorSpec:
    assert value.dtype is not None  # admitted
    assert value.shape is not None  # admitted
    shape = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)
    return TensorSpec(name=value.name or "", dtype=str(value.dtype.numpy()), shape=shape)
