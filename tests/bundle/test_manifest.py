"""The published JSON Schema is the one of the code, and a manifest that an export wrote is valid by it."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from skdeploy.bundle.folder import Recipe, bundle_for_writing
from skdeploy.bundle.manifest import Manifest, manifest_schema
from skdeploy.bundle.station_facts import HalfFacts
from skdeploy.checkpoints.weights_record import WeightsRecord
from skdeploy.core.spec import Precision, TensorSpec
from tests.bundle.recorded import put
from tests.tiny import head

PUBLISHED = resources.files("skdeploy.bundle") / "manifest.schema.json"


@pytest.fixture
def written(tmp_path: Path) -> Any:
    """The manifest.json of a bundle with one artifact, read by nothing of ours."""
    weights = WeightsRecord(source="checkpoint", file="x", sha256="0" * 64)
    made_by = Recipe("half", "model.fp16.onnx", "onnx", Precision.FP16, {"a": "b"}, {"c": [1]}, ("numpy",))
    inputs = (TensorSpec(name="input", dtype="float32", shape=("batch", 3, 32, 32)),)
    with bundle_for_writing(tmp_path, head(Precision.FP16, weights=weights, notes=("one",))) as bundle:
        put(bundle, made_by, b"graph", HalfFacts(inputs=inputs, nodes=3, kept_fp32={"Pow": "it must"}))
    return json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))


def test_the_published_schema_is_up_to_date() -> None:
    """When this fails: write ``manifest_schema()`` to the file, and see whether readers of old manifests still work."""
    assert PUBLISHED.read_text(encoding="utf-8") == manifest_schema()


def test_the_published_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(manifest_schema()))


def test_a_written_manifest_is_valid_by_the_published_schema(written: Any) -> None:
    jsonschema.validate(written, json.loads(PUBLISHED.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "change", [{"schema": 3}, {"verdict": "fine"}, {"extra": 1}, {"artifacts": [{}]}, {"model": None}]
)
def test_the_schema_refuses_what_no_export_writes(written: Any, change: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(written | change, json.loads(manifest_schema()))


def test_a_manifest_reads_back_as_it_was_written(written: Any) -> None:
    read = Manifest.model_validate_json(json.dumps(written))
    assert json.loads(read.model_dump_json(by_alias=True)) == written
