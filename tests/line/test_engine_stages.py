"""What a graph decides of an engine that is built from it."""

from __future__ import annotations

from typing import Any

import pytest

from skdeploy.bundle.artifact import Artifact
from skdeploy.core.errors import UsageError
from skdeploy.core.spec import ModelSpec
from skdeploy.engines.options import BatchProfile, BuildOptions
from skdeploy.line.stations.engine import fitted
from tests import tiny


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return tiny.spec()


def graph(*shape: int | str) -> Artifact:
    provenance: dict[str, Any] = {"key": "k", "parents": {}, "options": {}, "tools": {}, "seconds": 0.0}
    return Artifact.model_validate(
        {
            "path": "model.onnx",
            "format": "onnx",
            "precision": "fp32",
            "sha256": "0" * 64,
            "size_bytes": 1,
            "inputs": [{"name": "input", "dtype": "float32", "shape": shape}],
            "facts": {"station": "simplify"},
            "provenance": provenance,
        }
    )


def test_a_fixed_batch_is_the_profile(spec: ModelSpec) -> None:
    """64 is outside of 1/8/32: an engine with that profile could not be built."""
    assert fitted(BuildOptions(), graph(64, 3, 32, 32), spec).profiles == (BatchProfile(64, 64, 64),)


def test_an_open_batch_has_a_default(spec: ModelSpec) -> None:
    assert fitted(BuildOptions(), graph("batch", 3, 32, 32), spec).profiles == (BatchProfile(1, 8, 32),)


def test_what_was_asked_for_stays(spec: ModelSpec) -> None:
    asked = BuildOptions(BatchProfile(2, 4, 8), more_profiles=(BatchProfile(16, 16, 16),), optimization_level=4)
    assert fitted(asked, graph("batch", 3, 32, 32), spec) == asked
    sizes = ((16, 16), (32, 32), (48, 48))
    assert fitted(BuildOptions(sizes=sizes), graph("batch", 3, "height", "width"), spec).sizes == sizes


def test_open_sizes_are_from_half_to_twice_the_cards(spec: ModelSpec) -> None:
    height, width = spec.input.height, spec.input.width
    expected = ((height // 2, width // 2), (height, width), (2 * height, 2 * width))
    assert fitted(BuildOptions(), graph("batch", 3, "height", "width"), spec).sizes == expected
    assert fitted(BuildOptions(), graph("batch", 3, height, width), spec).sizes is None


def test_a_dla_is_refused_once_the_graph_turns_out_to_have_an_open_batch(spec: ModelSpec) -> None:
    assert fitted(BuildOptions(dla_core=0), graph(8, 3, 32, 32), spec).profile == BatchProfile(8, 8, 8)
    with pytest.raises(UsageError, match="only static shapes"):
        fitted(BuildOptions(dla_core=0), graph("batch", 3, 32, 32), spec)
