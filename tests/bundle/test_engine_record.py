"""What a manifest keeps of an engine is believed only in the form that a build writes."""

from __future__ import annotations

from typing import Any

import pytest

from skdeploy.bundle.artifact import Artifact, Provenance
from skdeploy.bundle.station_facts import EngineFacts
from skdeploy.core.errors import IntegrityError
from tests.refused import refused

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
        ({"compiler": "nvcc"}, "no compiler of this skdeploy: 'nvcc'"),
        ({"compiler": "tensorrt", "built_for": BUILT_FOR | {"glibc": "2.39"}}, "built_for.glibc: Extra inputs"),
        ({"compiler": "tensorrt", "built_for": {}}, "built_for.compiler: Field required"),
        ({"compiler": "tensorrt", "proof": {"source": "rumour"}}, "proof.source: Input should be"),
        ({"compiler": "tensorrt", "weights_memory_bytes": "many"}, "weights_memory_bytes: Input should be"),
    ],
    ids=["nothing", "compiler", "a later built_for", "an empty built_for", "proof", "memory"],
)
def test_anything_else_is_a_damaged_manifest(details: dict[str, Any], words: str) -> None:
    advice = "remove engines/x.engine from the bundle, and build it again"
    with refused(IntegrityError, f"engines/x.engine .*{words}", advice):
        engine(**details).facts_as(EngineFacts)
