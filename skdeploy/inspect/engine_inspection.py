"""Facts about a bundle's engines: the proof of their precision, what they were built for, whether they run here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skdeploy import engines
from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import Bundle, load_bundle
from skdeploy.bundle.runners import graph_of
from skdeploy.bundle.station_facts import EngineFacts
from skdeploy.core.errors import EngineError, UsageError
from skdeploy.engines.compatibility import Obstacle, PlanHeader, here, obstacles, read_header
from skdeploy.engines.inspect import prove_plan
from skdeploy.engines.proof import PrecisionProof
from skdeploy.engines.stored import with_stored_weights


@dataclass(frozen=True)
class InspectedEngine:
    """One engine of a bundle, with the ``record`` of its build. ``obstacles`` are reasons why it cannot run here. ``proof`` is
    that of the plan if it runs here, else that of its build; None if an older skdeploy built the engine.
    """

    artifact: Artifact
    plan: Path
    header: PlanHeader
    record: EngineFacts
    obstacles: tuple[Obstacle, ...]
    proof: PrecisionProof | None

    @property
    def runs_here(self) -> str:
        """In words: "yes", or "no: ..."."""
        if not self.obstacles:
            return "yes, according to its manifest and header"
        first = self.obstacles[0]
        return f"no: {first.reason}; {first.advice}"

    @property
    def built_with(self) -> str:
        """The compiler and its version, of the plan's header or else of the manifest."""
        built = self.record.built_for
        return f"{self.header.compiler} {self.header.version or (built.version if built else '')}".strip()

    def check(self) -> None:
        """Raises EngineError if layers run wider than the graph says, or nothing tells what they run in."""
        if self.proof is None:
            raise EngineError(
                f"{self.plan} has no proof of its precision: an older skdeploy built it",
                advice="build it again: skdeploy build BUNDLE",
            )
        self.proof.check(self.plan)

    def as_json(self) -> dict[str, Any]:
        """All of it, for machines."""
        proof, built = self.proof, self.record.built_for
        return {
            "path": self.artifact.path,
            "sha256": self.artifact.sha256,
            "precision": self.artifact.precision,
            "size_bytes": self.artifact.size_bytes,
            "compiler": self.header.compiler,
            "version": self.header.version,
            "built_for": built.model_dump(mode="json") if built else None,
            "memory": self.record.memory,
            "runs_here": not self.obstacles,
            "obstacles": [{"of": o.of, "reason": o.reason, "advice": o.advice} for o in self.obstacles],
            "proof": None
            if proof is None
            else {
                "source": proof.source,
                "text": proof.text(),
                "as_asked": not proof.wider,
                "wider": [layer.node for layer in proof.wider],
                "unproven": [layer.node for layer in proof.unproven],
                "share_of_layers": proof.share_of_layers,
                "share_of_macs": proof.share_of_macs,
                "stored_int8": None if proof.stored is None else proof.stored.model_dump(mode="json"),
                "weighted": [layer.model_dump(mode="json") for layer in proof.weighted],
                "layers": [layer.model_dump(mode="json") for layer in proof.layers],
            },
        }


def inspect_engines(folder: Path) -> tuple[InspectedEngine, ...]:
    """Every engine of a bundle, digest first. Raises UsageError if it has none, IntegrityError, and EngineError for a plan that
    is none, or that its compiler refuses though nothing spoke against it.
    """
    bundle = load_bundle(folder)
    found = bundle.engines
    if not found:
        raise UsageError(
            f"{folder} holds no engine",
            advice=f"build one with: skdeploy build {folder} --target tensorrt_rtx (needs no GPU), or --target "
            "tensorrt",
        )
    return tuple(_facts(bundle, artifact) for artifact in found)


def _facts(bundle: Bundle, artifact: Artifact) -> InspectedEngine:
    path, plan = bundle.path(artifact), bundle.read_checked(artifact)  # the bytes that are loaded, and no others
    header = read_header(path, plan)
    record = artifact.facts_as(EngineFacts)
    against = obstacles(record.compiler, record.built_for, header, here(record.compiler))
    proof = record.proof if against else _prove(record.compiler, path, plan, bundle.check(graph_of(bundle, artifact)))
    return InspectedEngine(artifact, path, header, record, against, proof)


def _prove(name: str, path: Path, plan: bytes, graph: Path) -> PrecisionProof:
    from skdeploy.engines._log import capture
    from skdeploy.engines._made import runtime

    trt = engines.load(name)
    with capture(trt) as (logger, log):
        loader = runtime(trt, logger, log)  # alive as long as its engine
        engine = loader.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(
                f"{trt.__name__} {trt.__version__} cannot load {path}: {log.reasons()}", advice="build it again here"
            )
        return with_stored_weights(prove_plan(trt, log, engine, graph), graph, plan)
