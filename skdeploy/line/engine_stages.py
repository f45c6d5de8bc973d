"""The station of the line that makes engines, and what an engine that is made after the export means for the parity report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from skdeploy import engines
from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.contents import PARITY
from skdeploy.bundle.folder import Bundle, Product, Stage
from skdeploy.core.progress import Progress
from skdeploy.core.spec import ModelSpec, Precision
from skdeploy.devices import cuda
from skdeploy.devices.jetson import is_jetson
from skdeploy.engines.options import BatchProfile, BuildOptions, recorded, require_supported
from skdeploy.line.options import DEFAULT_PROFILE, ExportOptions
from skdeploy.line.stages import device_names, image_sizes, write_report

if TYPE_CHECKING:
    from skdeploy.parity.report import Comparison, Rebuild, RunToRun, SuiteResult

    Finding = TypeVar("Finding", Comparison, SuiteResult, RunToRun, Rebuild)


def build_options(options: ExportOptions) -> BuildOptions:
    """What an export asks of the engine that it makes; the rest is ``fitted`` to its graph."""
    return BuildOptions(
        profile=BatchProfile(*options.profile) if options.profile else None,
        workspace_bytes=options.workspace_bytes,
        compute_capabilities=options.compute_capabilities,
    )


def fitted(options: BuildOptions, graph: Artifact, spec: ModelSpec) -> BuildOptions:
    """With what the graph decides where nothing else was asked for: its batch if that is fixed, else 1/8/32, and the sizes of
    images if these are dynamic. Raises UsageError if it cannot be together.
    """
    batch, *others = graph.inputs[0].shape
    profile = (batch,) * 3 if isinstance(batch, int) else DEFAULT_PROFILE
    dynamic_size = not {"height", "width"}.isdisjoint(others)
    return replace(
        options,
        profile=options.profile or BatchProfile(*profile),
        sizes=options.sizes or (image_sizes(spec) if dynamic_size else None),
    )


def build(bundle: Bundle, graph: Artifact, compiler: str, options: BuildOptions, progress: Progress) -> Stage:
    """ONNX to an engine. On another GPU or driver it is another engine, so both are part of the key.

    Raises UsageError for options that the compiler does not take here, or that do not fit the graph.
    """
    precision = graph.precision or Precision.FP32
    output = f"engines/{compiler}-{precision}.engine"
    version, gpus = engines.version(compiler), cuda.devices()
    capability = gpus[0].compute_capability if gpus else None
    require_supported(compiler, version, options, on_jetson=is_jetson(), gpu=capability, precision=precision)
    options = fitted(options, graph, bundle.manifest.model)
    before = bundle.artifact(output)

    def make(path: Path) -> Product:
        last = f"; the last build took {before.provenance.seconds:.1f} s" if before else ""

        def show(phase: str, fraction: float) -> None:
            progress.update(f"{phase} {fraction:.0%}{last}")

        report = engines.compiler(compiler).build(bundle.check(graph), path, options, show)
        return Product(inputs=graph.inputs, outputs=graph.outputs, details=report.model_dump(mode="json"))

    return Stage(
        name="build",
        output=output,
        format="engine",
        precision=precision,
        parents={graph.path: graph.sha256},
        options={
            "compiler": compiler,
            "version": version,
            **recorded(options),
            "device": [*device_names(), f"CUDA {cuda.driver_version()}"] if compiler == "tensorrt" else [],
        },
        tools=("skdeploy",),
        make=make,
    )


def unproven_engine(bundle: Bundle, parity: Artifact, engine: Artifact, reason: str) -> Stage:
    """The parity report of an export, with an engine that was built after it: named, and not proven. The rest is kept."""
    measured = parity.provenance

    def make(path: Path) -> Product:
        from skdeploy.parity.report import Comparison, ParityReport

        report = ParityReport.model_validate_json(bundle.check(parity).read_text(encoding="utf-8"))
        comparison = Comparison(
            artifact=engine.path,
            backend=str(engine.details["compiler"]),
            precision=engine.precision or Precision.FP32,
            verdict="unproven",
            reason=reason,
        )

        def others(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
            return tuple(finding for finding in findings if finding.artifact != engine.path)

        report = report.model_copy(
            update={
                "comparisons": (*others(report.comparisons), comparison),
                "suites": others(report.suites),
                "run_to_run": others(report.run_to_run),
                "rebuilds": others(report.rebuilds),
            }
        )
        return write_report(report, path)

    return Stage(
        name="parity",
        output=PARITY,
        format="json",
        precision=None,
        parents={**measured.parents, engine.path: engine.sha256},
        # Whatever was measured was measured with the tools of then. An export has none of these two, so it measures anew.
        options={"measured_with": dict(measured.tools), **measured.options, "built_since": engine.sha256},
        tools=("skdeploy",),
        make=make,
        reusable=False,
    )
