"""The stations of the line as stages: for each, its output file, what decides whether it must run again, and how it is made."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import JsonValue

from skdeploy import engines
from skdeploy.backends import cuda
from skdeploy.bundle.artifact import Artifact, digest_json
from skdeploy.bundle.folder import Bundle, Product, Stage
from skdeploy.bundle.manifest import WeightsRecord
from skdeploy.options import ExportOptions
from skdeploy.progress import Progress
from skdeploy.quant.dataset import Dataset
from skdeploy.spec import ModelSpec, Precision, TensorSpec

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

TRACED, MODEL, HALF = "model.traced.onnx", "model.onnx", "model.fp16.onnx"
HEADROOM, PARITY = "headroom.json", "parity.json"

GRAPH_TOOLS: Final = ("skdeploy", "onnx", "onnx-ir")
TRACE_TOOLS: Final = (*GRAPH_TOOLS, "torch", "onnxscript")
RUN_TOOLS: Final = ("skdeploy", "torch", "onnxruntime", "onnxruntime-gpu")
HEADROOM_BATCH: Final = 2  # every tensor of every image is held at once


@dataclass(frozen=True)
class Network:
    """A card with its weights; the module is built when a stage first asks for it, so that a resumed export builds none."""

    spec: ModelSpec
    record: WeightsRecord
    path: Path | None

    @cached_property
    def module(self) -> nn.Module:
        from skdeploy.checkpoints.load import load_network

        return load_network(self.spec, self.record, self.path)

    def digests(self) -> dict[str, str]:
        """What the network's function depends on."""
        spec = self.spec.model_dump(mode="json", include={"network", "input", "preprocess"})
        return {"card": digest_json(spec), "weights": self.record.sha256 or f"random, seed {self.record.seed}"}


def trace(network: Network, options: ExportOptions) -> Stage:
    """Network to ONNX."""

    def make(path: Path) -> Product:
        from skdeploy.graph.trace import trace

        return _write(trace(network.module, network.spec, options.trace), path)

    return Stage(
        name="trace",
        output=TRACED if options.simplify else MODEL,
        format="onnx",
        precision=Precision.FP32,
        parents=network.digests(),
        options=dataclasses.asdict(options.trace),
        tools=TRACE_TOOLS,
        make=make,
    )


def simplify(bundle: Bundle, traced: Artifact) -> Stage:
    """ONNX to a smaller ONNX of the same function."""

    def make(path: Path) -> Product:
        from skdeploy.backends.onnxruntime import load_graph
        from skdeploy.graph.simplify import simplify

        return _write(simplify(load_graph(bundle.check(traced))), path)

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
        from skdeploy.graph.half import HalfPrecision

        halving = HalfPrecision(options.keep_fp32)
        result = halving(load_graph(bundle.check(model))).model
        return _write(
            result,
            path,
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
    """How much of FP16's range real images use, tensor by tensor."""

    def make(path: Path) -> Product:
        from skdeploy.graph.headroom import measure_headroom
        from skdeploy.parity.compare import batches_of

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


def build(bundle: Bundle, graph: Artifact, compiler: str, options: ExportOptions, progress: Progress) -> Stage:
    """ONNX to an engine. On another GPU or driver it is another engine, so both are part of the key."""
    low, opt, high = options.batch_profile()
    precision = graph.precision or Precision.FP32
    sizes = image_sizes(bundle.manifest.model) if options.trace.dynamic_size else None

    def make(path: Path) -> Product:
        from skdeploy.engines._build import BatchProfile, BuildOptions

        settings = BuildOptions(
            profile=BatchProfile(low, opt, high),
            workspace_bytes=options.workspace_bytes,
            compute_capabilities=options.compute_capabilities,
            sizes=sizes,
        )

        def show(phase: str, fraction: float) -> None:
            progress.update(f"{phase} {fraction:.0%}")

        report = engines.compiler(compiler).build(bundle.check(graph), path, settings, show)
        return Product(inputs=graph.inputs, outputs=graph.outputs, details=report.model_dump(mode="json"))

    return Stage(
        name="build",
        output=f"engines/{compiler}-{precision}.engine",
        format="engine",
        precision=precision,
        parents={graph.path: graph.sha256},
        options={
            "compiler": compiler,
            "version": engines.version(compiler),
            "profile": [low, opt, high],
            "sizes": [list(size) for size in sizes or ()],
            "workspace_bytes": options.workspace_bytes,
            "compute_capabilities": list(options.compute_capabilities),
            "device": _devices() if compiler == "tensorrt" else [],
        },
        tools=("skdeploy",),
        make=make,
    )


def parity(
    bundle: Bundle, artifacts: tuple[Artifact, ...], dataset: Dataset, network: Network, progress: Progress
) -> Stage:
    """Every artifact against torch, on real images."""
    spec = bundle.manifest.model

    def make(path: Path) -> Product:
        from skdeploy.parity.prove import prove

        report = prove(bundle, artifacts, dataset, network.module, progress)
        path.write_text(report.model_dump_json(indent=1) + "\n", encoding="utf-8")
        return Product(details={"verdict": report.verdict})

    return Stage(
        name="parity",
        output=PARITY,
        format="json",
        precision=None,
        parents={artifact.path: artifact.sha256 for artifact in artifacts}
        | {"images": dataset.digest}
        | network.digests(),
        options={
            "tolerance": spec.model_dump(mode="json", include={"tolerance"}),
            "devices": _devices(),
        },
        tools=RUN_TOOLS,
        make=make,
    )


def image_sizes(spec: ModelSpec) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Smallest, best and largest (height, width) of an engine with dynamic size: from half to twice the card's."""
    height, width = spec.input.height, spec.input.width
    return ((max(1, height // 2), max(1, width // 2)), (height, width), (2 * height, 2 * width))


def _devices() -> list[JsonValue]:
    return [f"{device.name}, compute capability {device.compute_capability}" for device in cuda.devices()]


def _write(model: ir.Model, path: Path, **details: JsonValue) -> Product:
    from skdeploy.graph.admission import admit
    from skdeploy.graph.trace import save_model

    admit(model)
    save_model(model, path)
    return Product(
        inputs=tuple(_tensor_spec(value) for value in model.graph.inputs),
        outputs=tuple(_tensor_spec(value) for value in model.graph.outputs),
        details={"nodes": len(model.graph), **details},
    )


def _tensor_spec(value: ir.Value) -> TensorSpec:
    assert value.dtype is not None  # admitted
    assert value.shape is not None  # admitted
    shape = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)
    return TensorSpec(name=value.name or "", dtype=str(value.dtype.numpy()), shape=shape)
