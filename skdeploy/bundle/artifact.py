"""A file with its digest and where it came from, and the only way that skdeploy writes one: whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from skdeploy.core.files import digest_json
from skdeploy.core.spec import Frozen, InnerPath, Precision, TensorSpec


class Provenance(Frozen):
    """How an artifact was made. ``key`` is the digest of all the rest but ``seconds``: equal keys, equal work."""

    stage: str
    key: str
    parents: dict[str, str]
    options: dict[str, JsonValue]
    tools: dict[str, str]
    seconds: float


class Artifact(Frozen):
    """One file of a bundle; ``path`` is relative to the bundle's folder and stays inside it."""

    path: InnerPath
    format: Literal["safetensors", "onnx", "engine", "json", "cache"]
    precision: Annotated[Precision | None, Field(strict=False)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    size_bytes: int
    inputs: Annotated[tuple[TensorSpec, ...], Field(strict=False)] = ()
    outputs: Annotated[tuple[TensorSpec, ...], Field(strict=False)] = ()
    details: dict[str, JsonValue] = Field(default_factory=dict)
    provenance: Provenance


def tool_versions(distributions: tuple[str, ...]) -> dict[str, str]:
    """Installed versions, read from package metadata without importing anything."""
    versions = {}
    for name in distributions:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions


def stage_key(
    stage: str, parents: Mapping[str, str], options: Mapping[str, JsonValue], tools: Mapping[str, str]
) -> str:
    """What decides whether a stage must run again."""
    return digest_json([stage, dict(parents), dict(options), dict(tools)])
