"""Which artifacts of a bundle are run, and on what: one entry for each, opened only when it is needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from skdeploy.backends import BACKENDS, DEFAULT, backend, running
from skdeploy.backends.base import Deployed, Session, options_of
from skdeploy.bundle import contents
from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import Bundle
from skdeploy.bundle.station_facts import EngineFacts
from skdeploy.checkpoints.load import Network
from skdeploy.core.errors import IntegrityError, UsageError
from skdeploy.core.spec import ModelSpec, Precision

if TYPE_CHECKING:
    from skdeploy.engines.compatibility import BuiltFor

TORCH: Final = "torch"  # in place of an artifact's name: the network itself, with the bundle's weights
RUNS: Final = ("onnx", "engine")


@dataclass(frozen=True)
class Runner:
    """An artifact of a bundle with the backend that runs it. ``prefix`` tells two bundles apart where both are shown.

    ``options`` are the backend's own, its ``OPTIONS``; its defaults if None.
    """

    bundle: Bundle
    artifact: Artifact
    backend: str
    prefix: str = ""
    options: Any = None

    @property
    def spec(self) -> ModelSpec:
        return self.bundle.manifest.model

    @property
    def precision(self) -> Precision:
        return self.artifact.precision or Precision.FP32

    @property
    def name(self) -> str:
        """The name in a report."""
        return self.prefix + (self.backend if self.is_module else self.artifact.path)

    @property
    def shown(self) -> str:
        return self.name if self.is_module else f"{self.name} on {self.backend}"

    @property
    def is_module(self) -> bool:
        """Whether it is the network itself, with the bundle's weights."""
        return backend(self.backend).FORMAT == "module"

    def open(self) -> Session:
        """A session, once the file's digest is the recorded one. Raises IntegrityError, DependencyError, EngineError."""
        what, options = self._arguments()
        return backend(self.backend).open_session(*what, **options)

    @contextmanager
    def open_deployed(self, threads: int) -> Iterator[Deployed]:
        """A session as the backend's users open it, on ``threads`` threads of the CPU. Raises as ``open``."""
        opens = getattr(backend(self.backend), "open_deployed", None)
        if opens is None:
            with self.open() as session:
                yield Deployed(session)
            return
        what, options = self._arguments()
        with opens(*what, precision=self.precision, threads=threads, **options) as deployed:
            yield deployed

    def _arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the backend's ``open_session``."""
        path = self.bundle.check(self.artifact)
        if self.is_module:
            return (Network(self.spec, path).module, self.spec), {}
        if self.artifact.format == "engine":
            return (path,), {"sha256": self.artifact.sha256, **_engine_options(self.bundle, self.artifact)}
        return (path,), {} if self.options is None else {"options": self.options}


def last_graph(bundle: Bundle, prefix: str = "") -> Runner:
    """The ONNX file at the end of the line: what engines are made of, and what is deployed where there is none."""
    if not bundle.graphs:
        raise IntegrityError(f"{bundle.folder} holds no ONNX file", advice="export it again")
    return Runner(bundle, bundle.graphs[-1], DEFAULT, prefix)


def fp32_graph(bundle: Bundle) -> Runner | None:
    """The simplified FP32 graph, which lower precisions are made from and measured against."""
    graph = bundle.artifact(contents.MODEL)
    return Runner(bundle, graph, DEFAULT) if graph is not None else None


def require_fp32_graph(bundle: Bundle) -> Artifact:
    """The artifact of ``fp32_graph``. Raises IntegrityError if there is none."""
    graph = bundle.artifact(contents.MODEL)
    if graph is None:
        raise IntegrityError(f"{bundle.folder} holds no {contents.MODEL}, the FP32 graph", advice="export it again")
    return graph


def first_fp32_graph(artifacts: Iterable[Artifact]) -> Artifact | None:
    """The earliest graph of the line in FP32: as it was traced or given, before any rewriting.

    Not ``fp32_graph``, which is simplified.
    """
    return next((a for a in artifacts if a.format == "onnx" and a.precision is Precision.FP32), None)


def graph_of(bundle: Bundle, engine: Artifact) -> Artifact:
    """The ONNX file that an engine was built from. Raises IntegrityError if the bundle does not hold it, or another by now."""
    for graph in bundle.graphs:
        if engine.provenance.parents.get(graph.path) == graph.sha256:
            return graph
    raise IntegrityError(
        f"{bundle.folder} does not hold the graph that {engine.path} was built from",
        advice=f"build the engine again: skdeploy build {bundle.folder}",
    )


def runner_named(bundle: Bundle, name: str, prefix: str = "") -> Runner:
    """An ONNX file or engine by its path in the bundle, or ``torch``. Raises UsageError."""
    if name in running("module"):
        weights = bundle.artifact(contents.WEIGHTS)
        if weights is None:
            raise UsageError(
                f"{bundle.folder} holds no weights for {name}: it was made from an ONNX file or from code",
                advice="name one of its ONNX files",
            )
        return Runner(bundle, weights, name, prefix)
    artifact = bundle.artifact(name)
    runnable = [a.path for a in bundle.manifest.artifacts if a.format in RUNS]
    if artifact is None or artifact.path not in runnable:
        raise UsageError(
            f"{bundle.folder} has nothing to run named {name!r}", advice=f"choose one of {', '.join(runnable)}, torch"
        )
    return Runner(bundle, artifact, backend_of(artifact), prefix)


def check_graph_backend(name: str) -> str:
    """The name of a backend that runs ONNX files. Raises UsageError."""
    taken = running("onnx")
    if name not in taken:
        raise UsageError(f"--backend {name} cannot run ONNX files", advice=f"choose one of {', '.join(taken)}")
    return name


def runner_on(bundle: Bundle, name: str, options: Sequence[str] = (), prefix: str = "") -> Runner:
    """Choose what a backend runs: the bundle's weights on ``torch``, its last graph on ONNX Runtime, or an engine of its
    compiler.

    ``options`` are texts NAME=VALUE, see ``base.options_of``. The last of several engines is taken. Raises UsageError for an
    unknown backend, for options that it does not take, or if the bundle holds nothing for it.
    """
    if name not in BACKENDS:
        raise UsageError(f"--backend {name} does not exist", advice=f"choose one of {', '.join(BACKENDS)}")
    given = options_of(name, options)
    if name in running("module"):
        return runner_named(bundle, name, prefix)
    if name in running("onnx"):
        return replace(last_graph(bundle, prefix), backend=name, options=given)
    engines = [runner for runner in engines_of(bundle, prefix) if runner.backend == name]
    if not engines:
        raise UsageError(
            f"--backend {name}: {bundle.folder} holds no engine for it",
            advice=f"build one with `skdeploy build {bundle.folder} --target {name}`, or choose {DEFAULT}",
        )
    return engines[-1]


def engines_of(bundle: Bundle, prefix: str = "") -> tuple[Runner, ...]:
    """Every engine of the bundle, whether or not it runs here."""
    return tuple(Runner(bundle, engine, backend_of(engine), prefix) for engine in bundle.engines)


def backend_of(artifact: Artifact) -> str:
    """The backend that runs an artifact; an engine says which compiler made it. Raises IntegrityError where it does not."""
    return artifact.facts_as(EngineFacts).compiler if artifact.format == "engine" else DEFAULT


def open_artifact(bundle: Bundle, artifact: Artifact, runs_on: str, options: Any = None) -> Session:
    """A session of an ONNX file or engine on a backend. Raises as ``Runner.open``."""
    return Runner(bundle, artifact, runs_on, options=options).open()


def _engine_options(bundle: Bundle, artifact: Artifact) -> dict[str, BuiltFor | Path]:
    """The build record of an engine, to compare with this machine; empty in bundles of earlier versions. Of a stripped
    one also the graph that it was built from, for its weights.
    """
    built_for = artifact.facts_as(EngineFacts).built_for
    if built_for is None:
        return {}
    if not built_for.stripped:
        return {"built_for": built_for}
    return {"built_for": built_for, "weights": bundle.check(graph_of(bundle, artifact))}
