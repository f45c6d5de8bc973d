"""Manifests of schema 1, which kept what a station said as an untyped dictionary, in the form of today."""

from __future__ import annotations

from typing import Any

from skdeploy.bundle.station_facts import FACTS, StationFacts


def upgraded(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest of schema 1 as one of schema 2. What is malformed is left for the validation to name."""
    artifacts = manifest.get("artifacts")
    rows = artifacts if isinstance(artifacts, list) else []
    return manifest | {"schema": 2} | ({"artifacts": [_artifact(row) for row in rows]} if rows else {})


def _artifact(row: Any) -> Any:
    if not isinstance(row, dict) or not isinstance(row.get("provenance"), dict):
        return row
    provenance = {key: value for key, value in row["provenance"].items() if key != "stage"}
    details = row.get("details", {})
    facts = _facts(str(row["provenance"].get("stage")), details if isinstance(details, dict) else {})
    return {key: value for key, value in row.items() if key != "details"} | {"facts": facts, "provenance": provenance}


def _facts(stage: str, details: dict[str, Any]) -> dict[str, Any]:
    """Keys that facts of today do not have are left out. One station did what two do now."""
    if stage == "rewrite":
        stage = "regroup" if "regrouped" in details else "average pool"
        before, after = details.get("regrouped_weight_bytes", (0, 0))
        details = details | {"weight_bytes_before": before, "weight_bytes_after": after}
    if not details.get("audit", True):
        details = details | {"audit": None}
    kind: type[StationFacts] | None = FACTS.get(stage)
    known = details if kind is None else {key: value for key, value in details.items() if key in kind.model_fields}
    return {"station": stage, **known}
