"""The record of a bundle: what was made, from what, and the proof. Its JSON Schema, ``manifest.schema.json``, is beside it."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import Field
from pydantic.json_schema import models_json_schema

from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.schema_1 import upgraded
from skdeploy.bundle.station_facts import FACTS
from skdeploy.checkpoints.weights_record import WeightsRecord
from skdeploy.core.spec import Assumption, Frozen, ModelSpec, Precision


class Manifest(Frozen):
    """``manifest.json``. ``artifacts`` are in the order of the line.

    ``verdict``: ``verified`` if every artifact that could run on the exporting machine is in parity with torch. Artifacts
    that could not run there are ``unproven`` in ``parity.json``, and every verb names them. ``incomplete`` until the line has
    ended. ``assumptions``: values that skdeploy filled in because nothing gave them; every verdict is about the network with
    these.
    """

    schema_version: Annotated[Literal[2], Field(alias="schema")] = 2
    skdeploy: str
    created: str
    model: ModelSpec
    weights: WeightsRecord
    precision: Precision
    verdict: Literal["incomplete", "verified", "failed"] = "incomplete"
    artifacts: Annotated[tuple[Artifact, ...], Field(strict=False)] = ()
    notes: Annotated[tuple[str, ...], Field(strict=False)] = ()
    assumptions: Annotated[tuple[Assumption, ...], Field(strict=False)] = ()


def read_manifest(text: str) -> Manifest:
    """A manifest of this schema or of an earlier one. Raises pydantic's ValidationError."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None  # pydantic says where it is broken
    if isinstance(content, dict) and content.get("schema", 1) == 1:
        text = json.dumps(upgraded(content))
    return Manifest.model_validate_json(text)


def manifest_schema() -> str:
    """The JSON Schema of ``manifest.json``, as published: facts of the stations that skdeploy has, or of any other."""
    schema = Manifest.model_json_schema(by_alias=True)
    _, facts = models_json_schema([(kind, "validation") for kind in dict.fromkeys(FACTS.values())])
    other = {"not": {"enum": list(FACTS)}, "type": "string"}
    schema["$defs"] = {
        **schema["$defs"],
        **facts["$defs"],
        "StationFacts": {
            "anyOf": [
                *({"$ref": f"#/$defs/{kind.__name__}"} for kind in dict.fromkeys(FACTS.values())),
                {"type": "object", "properties": {"station": other}, "required": ["station"]},
            ]
        },
    }
    return json.dumps(schema | {"$schema": "https://json-schema.org/draft/2020-12/schema"}, indent=2) + "\n"
