"""An engine without its weights is given the graph that it was built from, and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from skdeploy.backends import tensorrt
from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import Bundle, load_bundle
from skdeploy.bundle.runners import open_artifact
from skdeploy.bundle.station_facts import EngineFacts
from skdeploy.core.errors import IntegrityError
from skdeploy.engines.compatibility import BuiltFor
from tests.cli.conftest import asked, card, exported, images, weights  # noqa: F401 - one small bundle
from tests.cli.evaluation_data import with_engine
from tests.refused import refused


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Bundle:  # noqa: F811
    return load_bundle(with_engine(exported, tmp_path / "engine"))


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the backend is given, which would want a GPU."""
    found: dict[str, Any] = {}
    monkeypatch.setattr(tensorrt, "open_session", lambda path, **options: found.update(options))
    return found


def engine_of(bundle: Bundle, parents: dict[str, str], *, stripped: bool) -> Artifact:
    engine = bundle.artifact("engines/tensorrt-fp16.engine")
    built_for = {"compiler": "tensorrt", "version": "10.13.0", "system": "Linux", "machine": "x86_64"}
    facts = EngineFacts(compiler="tensorrt", built_for=BuiltFor(**built_for, stripped=stripped))
    provenance = engine.provenance.model_copy(update={"parents": parents})
    return engine.model_copy(update={"facts": facts, "provenance": provenance})


def test_stripped_engine_gets_the_graph_it_was_built_from(bundle: Bundle, given: dict[str, Any]) -> None:
    graph = bundle.artifact("model.fp16.onnx")
    open_artifact(bundle, engine_of(bundle, {graph.path: graph.sha256}, stripped=True), "tensorrt")
    assert given["weights"] == bundle.folder / "model.fp16.onnx"
    assert given["built_for"].stripped


def test_whole_engine_gets_none(bundle: Bundle, given: dict[str, Any]) -> None:
    open_artifact(bundle, engine_of(bundle, {"model.fp16.onnx": "0" * 64}, stripped=False), "tensorrt")
    assert "weights" not in given
    assert not given["built_for"].stripped


def test_graph_that_has_changed_since_is_refused(bundle: Bundle, given: dict[str, Any]) -> None:
    """TensorRT: other weights than those that a plan was stripped of are undefined behaviour."""
    with refused(IntegrityError, "does not hold the graph", "build the engine again"):
        open_artifact(bundle, engine_of(bundle, {"model.fp16.onnx": "0" * 64}, stripped=True), "tensorrt")
    assert given == {}
