"""The InferenceService against a schema: the fields that KServe's CRD has on the way, and what it requires."""

from __future__ import annotations

from typing import Any, Final

import jsonschema
import pytest
import yaml

from skdeploy.core.errors import UsageError
from skdeploy.serve.triton.kserve import SCHEMES, service


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


TEXT: Final = {"type": "string"}
# Of serving.kserve.io_inferenceservices.yaml (kserve/kserve, config/crd/full, August 2026), which is 2 MB: these fields, with
# their types and `required`. A field that KServe does not know is dropped there in silence, so here none else is allowed.
QUANTITY: Final = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]*)?([KMGTPE]i|[numkMGTPE])?$"}
MODEL: Final = _object(
    ["modelFormat", "storageUri"],
    modelFormat=_object(["name"], name={"const": "triton"}),
    protocolVersion={"enum": ["v2", "grpc-v2"]},  # of the ClusterServingRuntime kserve-tritonserver
    storageUri={"type": "string", "pattern": "^[a-z0-9]+://."},
    resources=_object([], limits={"type": "object", "additionalProperties": QUANTITY}),
)
SCHEMA: Final = _object(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "serving.kserve.io/v1beta1"},
    kind={"const": "InferenceService"},
    metadata=_object(["name"], name={"type": "string", "pattern": "^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$"}),
    spec=_object(["predictor"], predictor=_object(["model"], model=MODEL)),
)


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_service_is_what_the_schema_asks_for(scheme: str, gpu: bool) -> None:
    document = yaml.safe_load(service("SKNet_50.v2", f'{scheme}://bucket/a "b"#c'.replace(" ", ""), gpu=gpu))
    jsonschema.validate(document, SCHEMA)
    assert document["metadata"]["name"] == "sknet-50-v2"
    model = document["spec"]["predictor"]["model"]
    assert model["storageUri"] == f'{scheme}://bucket/a"b"#c'
    assert ("resources" in model) is gpu


def test_the_schema_refuses_a_service_without_its_place() -> None:
    document = yaml.safe_load(service("net", "s3://a/b"))
    del document["spec"]["predictor"]["model"]["storageUri"]
    with pytest.raises(jsonschema.ValidationError, match="storageUri"):
        jsonschema.validate(document, SCHEMA)


@pytest.mark.parametrize(
    ("name", "uri", "said"),
    [
        ("net", None, "needs --storage-uri"),
        ("net", "/models", "does not read"),
        ("net", "ftp://host/models", "does not read"),
        ("net", "s3://", "does not read"),
        ("net", "s3://a b", "does not read"),
        ("net", "s3://a\nb", "does not read"),
        ("50net", "s3://a/b", "cannot name"),
        ("n" * 64, "s3://a/b", "cannot name"),
    ],
)
def test_what_kubernetes_would_refuse_is_refused_here(name: str, uri: str | None, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        service(name, uri)
