"""The record of a bundle: what was made, from what, and the proof. Its JSON Schema, ``manifest.schema.json``, is beside it."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import Field

from skdeploy.bundle.artifact import Artifact
from skdeploy.checkpoints.weights_record import WeightsRecord
from skdeploy.core.spec import Assumption, Frozen, ModelSpec, Precision


class Manifest(Frozen):
    """``manifest.json``. ``artifacts`` are in the order of the line.

    ``verdict``: ``verified`` if every artifact that could run on the machine of the export is in parity with torch; what could
    not run there is ``unproven`` in ``parity.json`` and named by every verb. ``incomplete`` until the line has ended.
    ``assumptions``: what nobody said of the network and skdeploy filled in; every verdict is about the network with these.
    """

    schema_version: Annotated[Literal[1], Field(alias="schema")] = 1
    skdeploy: str
    created: str
    model: ModelSpec
    weights: WeightsRecord
    precision: Annotated[Precision, Field(strict=False)]
    verdict: Literal["incomplete", "verified", "failed"] = "incomplete"
    artifacts: Annotated[tuple[Artifact, ...], Field(strict=False)] = ()
    notes: Annotated[tuple[str, ...], Field(strict=False)] = ()
    assumptions: Annotated[tuple[Assumption, ...], Field(strict=False)] = ()


def manifest_schema() -> str:
    """The JSON Schema of ``manifest.json``, as published."""
    schema = Manifest.model_json_schema(by_alias=True)
    return json.dumps(schema | {"$schema": "https://json-schema.org/draft/2020-12/schema"}, indent=2) + "\n"
