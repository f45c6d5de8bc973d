"""The published JSON Schema is the one of the code, and a manifest that an export wrote is valid by it."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import jsonschema
import pytest

from skdeploy.bundle.artifact import Artifact, Provenance
from skdeploy.bundle.folder import Recipe, bundle_for_writing
from skdeploy.bundle.manifest import Manifest, manifest_schema
from skdeploy.bundle.station_facts import EngineFacts, HalfFacts, StationFacts
from skdeploy.checkpoints.weights_record import WeightsRecord
from skdeploy.core.errors import IntegrityError
from skdeploy.core.spec import Precision, TensorSpec
from tests.bundle.recorded import put
from tests.refused import refused
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


class OutsideFacts(StationFacts):
    """Of a station that another package registers."""

    station: Literal["outside"] = "outside"
    rounded: int = 0


def test_facts_of_a_station_that_is_not_known_here_are_kept_and_read_by_who_knows_it(written: Any) -> None:
    (row,) = written["artifacts"]
    outside = written | {"artifacts": [row | {"facts": {"station": "outside", "rounded": 3}}]}
    read = Manifest.model_validate_json(json.dumps(outside))
    assert json.loads(read.model_dump_json(by_alias=True)) == outside
    assert read.artifacts[0].facts_as(OutsideFacts) == OutsideFacts(rounded=3)
    with refused(IntegrityError, "the station 'outside' made", "restore the manifest"):
        read.artifacts[0].facts_as(HalfFacts)

    outside["artifacts"][0]["facts"]["rounded"] = "many"
    with refused(IntegrityError, "facts of model.fp16.onnx: rounded: Input should be a valid integer", "restore"):
        Manifest.model_validate_json(json.dumps(outside)).artifacts[0].facts_as(OutsideFacts)


# ----- what it keeps of an engine is believed only in the form that a build writes


BUILT_FOR = {"compiler": "tensorrt", "version": "11.4.1", "system": "Linux", "machine": "aarch64"}


def engine(**details: Any) -> Artifact:
    return Artifact(
        path="engines/x.engine",
        format="engine",
        precision="fp16",
        sha256="0" * 64,
        size_bytes=1,
        facts={"station": "build", **details},
        provenance=Provenance(key="k", parents={}, options={}, tools={}, seconds=0.0),
    )


def test_what_is_not_read_may_be_anything_and_the_rest_has_its_types() -> None:
    record = engine(
        compiler="tensorrt", built_for=BUILT_FOR, runs_on=["Orin"], tactic_bytes=4, kernels="a later version's"
    ).facts_as(EngineFacts)
    assert record.built_for.machine == "aarch64"
    assert record.runs_on == ("Orin",)
    assert record.memory == {"tactic_bytes": 4}
    assert record.proof is None


def test_an_engine_of_an_earlier_version_has_its_compiler_alone() -> None:
    record = engine(compiler="tensorrt_rtx").facts_as(EngineFacts)
    assert (record.compiler, record.built_for, record.memory) == ("tensorrt_rtx", None, {})


@pytest.mark.parametrize(
    ("details", "words"),
    [
        ({}, "compiler: Field required"),
        ({"compiler": "nvcc"}, "this skdeploy has no compiler 'nvcc'"),
        ({"compiler": "tensorrt", "built_for": BUILT_FOR | {"glibc": "2.39"}}, "built_for.glibc: Extra inputs"),
        ({"compiler": "tensorrt", "built_for": {}}, "built_for.compiler: Field required"),
        ({"compiler": "tensorrt", "proof": {"source": "rumour"}}, "proof.source: Input should be"),
        ({"compiler": "tensorrt", "weights_memory_bytes": "many"}, "weights_memory_bytes: Input should be"),
    ],
    ids=["nothing", "compiler", "a later built_for", "an empty built_for", "proof", "memory"],
)
def test_anything_else_is_a_damaged_manifest(details: dict[str, Any], words: str) -> None:
    advice = "remove engines/x.engine from the bundle, and build it again"
    with refused(IntegrityError, f"engines/x.engine: .*{words}", advice):
        engine(**details).facts_as(EngineFacts)
