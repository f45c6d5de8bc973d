"""ONNX to an engine. On another GPU or driver it is another engine, so both are part of what decides it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import JsonValue

from skdeploy import engines
from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import Bundle
from skdeploy.bundle.station_facts import EngineFacts
from skdeploy.core.spec import ModelSpec, Precision
from skdeploy.devices import cuda
from skdeploy.devices.jetson import is_jetson
from skdeploy.engines.options import BatchProfile, BuildOptions, require_supported
from skdeploy.line.options import DEFAULT_PROFILE
from skdeploy.line.station import Inputs, Station
from skdeploy.line.stations.parity import device_names


@dataclass(frozen=True)
class Engine(Station[BuildOptions, EngineFacts]):
    """``last_seconds``: what the last build of the same engine took, which is shown while people wait."""

    compiler: str
    last_seconds: float | None = None

    name, words, format, facts = "build", "engine", "engine", EngineFacts
    tools = ("skdeploy",)

    def output(self, inputs: Inputs) -> str:
        return engine_path(self.compiler, inputs.artifacts["graph"])

    def settings(self, inputs: Inputs, options: BuildOptions) -> Mapping[str, JsonValue]:
        """Raises UsageError for options that the compiler does not take here, or that do not fit the graph."""
        graph, gpus, version = inputs.artifacts["graph"], cuda.devices(), engines.version(self.compiler)
        require_supported(
            self.compiler,
            version,
            options,
            on_jetson=is_jetson(),
            gpu=gpus[0].compute_capability if gpus else None,
            precision=graph.precision or Precision.FP32,
        )
        ahead = engines.compiler(self.compiler).AHEAD_OF_TIME
        on_device = [] if ahead else [*device_names(), f"CUDA {cuda.driver_version()}"]
        return {
            "compiler": self.compiler,
            "version": version,
            **fitted(options, graph, inputs.spec).record(),
            "device": on_device,
        }

    def make(self, inputs: Inputs, options: BuildOptions, out: Path) -> EngineFacts:
        graph = inputs.artifacts["graph"]
        last = f"; the last build took {self.last_seconds:.1f} s" if self.last_seconds is not None else ""

        def show(phase: str, fraction: float) -> None:
            inputs.progress.update(f"{phase} {fraction:.0%}{last}")

        asked = fitted(options, graph, inputs.spec)
        report = engines.build(self.compiler, inputs.paths["graph"], out, asked, show)
        facts = EngineFacts.model_validate_json(report.model_dump_json())
        return facts.model_copy(update={"inputs": graph.inputs, "outputs": graph.outputs})

    def notes(self, facts: EngineFacts) -> tuple[str, ...]:
        """An engine that may hold INT8 weights in a wider type."""
        stored = facts.proof.stored if facts.proof is not None else None
        return () if stored is None or stored.found == stored.weights else (f"engine: {stored.text()}",)


def engine_station(bundle: Bundle, compiler: str, graph: Artifact) -> Engine:
    """The station of a graph's engine, which knows how long the last build took."""
    before = bundle.artifact(engine_path(compiler, graph))
    return Engine(compiler, before.provenance.seconds if before else None)


def engine_path(compiler: str, graph: Artifact) -> str:
    """Where in a bundle the engine of a graph is."""
    return f"engines/{compiler}-{graph.precision or Precision.FP32}.engine"


def fitted(options: BuildOptions, graph: Artifact, spec: ModelSpec) -> BuildOptions:
    """With what the graph decides where nothing else was asked for: its batch if that is fixed, else 1/8/32, and the sizes of
    images if these are dynamic. Raises UsageError if it cannot be together.
    """
    batch, *others = graph.inputs[0].shape
    profile = (batch,) * 3 if isinstance(batch, int) else DEFAULT_PROFILE
    if not spec.takes_images:
        free = {size for each in graph.inputs for size in each.shape[1:] if isinstance(size, str)}
        ranges = {name: (size.smallest, size.usual, size.largest) for name, size in spec.sizes.items() if name in free}
        return replace(
            options,
            profile=options.profile or BatchProfile(*profile),
            dimensions=options.dimensions or tuple(sorted(ranges.items())),
        )
    dynamic_size = not {"height", "width"}.isdisjoint(others)
    return replace(
        options,
        profile=options.profile or BatchProfile(*profile),
        sizes=options.sizes or (image_sizes(spec) if dynamic_size else None),
    )


def image_sizes(spec: ModelSpec) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Smallest, best and largest (height, width) of an engine with dynamic size: from half to twice the card's."""
    height, width = spec.input.height, spec.input.width
    return ((max(1, height // 2), max(1, width // 2)), (height, width), (2 * height, 2 * width))
