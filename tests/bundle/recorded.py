"""Files put into a bundle as a station of the line would."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import Bundle, Recipe
from skdeploy.bundle.station_facts import EngineFacts, OtherFacts, StationFacts
from skdeploy.core.spec import Precision


def recipe(
    output: str,
    kind: str,
    *,
    station: str = "write",
    precision: Precision | None = None,
    parents: Mapping[str, str] | None = None,
    **options: str,
) -> Recipe:
    """Made by no tool whose version could change."""
    return Recipe(station, output, kind, precision, parents or {}, options, ())


def put(bundle: Bundle, made_by: Recipe, content: bytes, facts: StationFacts | None = None) -> Artifact:
    """Writes ``content`` and records it."""

    def make(path: Path) -> StationFacts:
        path.write_bytes(content)
        return facts or OtherFacts(station=made_by.station)

    return bundle.produce(made_by, make)


def put_engine(
    bundle: Bundle, path: str, plan: bytes, facts: EngineFacts, precision: Precision | None = Precision.FP16
) -> Artifact:
    """A plan that the manifest knows; that its bytes are one, nobody says."""
    return put(bundle, recipe(path, "engine", station="build", precision=precision), plan, facts)


def produced(bundle: Bundle, text: str = "content", output: str = "x.json", **options: str) -> Artifact:
    made_by = recipe(output, "json", **options)
    return put(bundle, made_by, text.encode(), OtherFacts.model_validate({"station": "write", "length": len(text)}))
