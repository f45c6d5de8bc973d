"""The JSON that verbs print with ``--json``, as types, and their JSON Schema: ``skdeploy VERB --json-schema``.

Every document has ``schema``, the version of all of them, and ``error`` if the run failed; a run that failed before it had a
result prints a ``Failure`` alone. Keys are added without a new version; a key that goes or changes its meaning makes one.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, JsonValue, create_model
from pydantic.json_schema import models_json_schema

from skdeploy.accuracy.gate import Evaluation
from skdeploy.accuracy.quality import Quality
from skdeploy.checkpoints.weights_record import WeightsRecord
from skdeploy.cli.encoding import JSON_SCHEMA
from skdeploy.core.architecture import Frozen
from skdeploy.core.packages import Availability
from skdeploy.core.spec import Assumption, ModelSpec
from skdeploy.parity.report import Comparison, ParityReport, TensorHeadroom

DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"


class ErrorDocument(Frozen):
    type: str
    message: str
    advice: str
    exit_code: int


class Failure(Frozen):
    error: ErrorDocument


class PointDocument(Frozen):
    label: str
    text: str


class VerdictDocument(Frozen):
    state: str
    text: str
    points: list[PointDocument]
    next: list[str]


class ArtifactDocument(Frozen):
    """An artifact; ``details`` are the facts of its station, as in the manifest."""

    path: str
    format: str
    precision: str | None
    size_bytes: int
    sha256: str
    details: dict[str, JsonValue]
    seconds: float
    reused: bool
    parity: Comparison | None


class PartDocument(Frozen):
    """A verb with ``--shard``. ``samples`` are those of all shards; ``reused``: the part was there already."""

    part: str
    shard: str
    samples: int
    reused: bool
    cpu: str
    seconds: float


class BundleDocument(Frozen):
    """``verify``, and ``inspect`` of a bundle."""

    bundle: str
    model: str
    precision: str
    weights: WeightsRecord
    verdict: VerdictDocument
    unproven: list[str]
    notes: list[str]
    assumptions: list[Assumption]
    seconds: float | None
    artifacts: list[ArtifactDocument]
    least_headroom: TensorHeadroom | None
    parity: ParityReport | None


class ExportDocument(BundleDocument):
    accuracy: Evaluation | Quality | None
    on_the_device: list[str]


class FileDocument(BaseModel):
    """``inspect`` of a file: what its kind shows."""

    model_config = ConfigDict(extra="allow")


class EnginesDocument(Frozen):
    """``inspect --engine``."""

    bundle: str
    engines: list[dict[str, JsonValue]]


# An evaluation's fields, and what the verb adds: its own ``verdict`` is a property, which a subclass could not replace.
_EVALUATION: Final[dict[str, Any]] = {
    name: (field.annotation, field) for name, field in Evaluation.model_fields.items()
}
EvaluationDocument = create_model(
    "EvaluationDocument",
    __base__=Frozen,
    **_EVALUATION,
    decision=(str | None, ...),
    verdict=(VerdictDocument, ...),
)

_QUALITY: Final[dict[str, Any]] = {name: (field.annotation, field) for name, field in Quality.model_fields.items()}
QualityDocument = create_model(
    "QualityDocument",
    __base__=Frozen,
    **_QUALITY,
    decision=(str | None, ...),
    verdict=(VerdictDocument, ...),
)


class RangesDocument(Frozen):
    ranges: str
    model: str
    model_sha256: str
    images: int
    random: bool
    algorithm: dict[str, JsonValue]
    tensors: int
    audit: dict[str, JsonValue] | None


class BuildDocument(Frozen):
    bundle: str
    engine: str
    sha256: str
    size_bytes: int
    reused: bool
    build_seconds: float
    seconds: float
    reason: str
    unproven: str
    proof: str
    options: dict[str, JsonValue]
    details: dict[str, JsonValue]


class ConvertDocument(Frozen):
    weights: str
    sha256: str
    card: str | None
    layout: str
    base: str | None
    tensors: int
    network: dict[str, JsonValue]
    input: list[int]
    notes: list[str]
    assumptions: list[Assumption]


class CardsDocument(Frozen):
    cards: list[ModelSpec]


class DoctorDocument(Frozen):
    skdeploy: str
    python: str
    platform: str
    parts: list[Availability]
    problems: list[str]
    auto_target: str


class ReportDocument(Frozen):
    bundle: str
    report: str
    size_bytes: int


class ProbeDocument(Frozen):
    artifact: str
    backend: str
    open_ms: float
    latency_ms: float


class TritonDocument(Frozen):
    """``triton``: ``models`` are names in the repository, the network's first; ``max_batch`` is 0 for a fixed batch."""

    repository: str
    models: list[str]
    version: int
    artifact: str
    sha256: str
    max_batch: int
    notes: list[str]
    kserve: str | None


def schema_of(title: str, documents: Sequence[str]) -> dict[str, Any]:
    """The JSON Schema of what a verb prints: any of the ``documents``, each ``module:Class``, or a failure."""
    kinds: list[type[BaseModel]] = [*map(_class, documents), Failure]
    references, definitions = models_json_schema(
        [(kind, "serialization") for kind in kinds], by_alias=True, title=title
    )
    found = [references[kind, "serialization"] for kind in kinds]
    for reference in found:
        definition = definitions["$defs"][reference["$ref"].rpartition("/")[2]]
        properties = definition.setdefault("properties", {})
        properties["schema"] = {"const": JSON_SCHEMA}
        properties.setdefault("error", {"$ref": "#/$defs/ErrorDocument"})
        definition["required"] = ["schema", *definition.get("required", [])]
    return {"$schema": DRAFT, "title": title, "anyOf": found, "$defs": definitions["$defs"]}


def _class(place: str) -> type[BaseModel]:
    module, _, name = place.partition(":")
    found: type[BaseModel] = getattr(import_module(module), name)
    return found
