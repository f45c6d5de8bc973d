"""Networks that take arrays, from Python: dicts of arrays in and out, by the names of inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import skdeploy
from skdeploy.api.bundle import Bundle
from skdeploy.core.errors import UsageError
from tests.graphs.array_networks import Bands, Pair, Speaker, sample

Folder = Callable[[type], Path]


@pytest.fixture
def pair(array_bundle: Folder) -> Bundle:
    return skdeploy.load_bundle(array_bundle(Pair) / "bundle")


def alone(bundle: Bundle, feeds: dict[str, Any]) -> Any:
    (found,) = onnxruntime.InferenceSession(bundle.folder / "model.onnx").run(None, feeds)
    return found


def test_a_session_takes_a_dict_of_inputs_and_gives_a_dict_of_outputs(pair: Bundle, array_bundle: Folder) -> None:
    files = sorted((array_bundle(Pair) / "samples").iterdir())
    batch = pair.preprocess([files[0], dict(np.load(files[1])), files[2]])
    assert {name: array.shape for name, array in batch.items()} == {
        "before": (3, 3, 12, 12),
        "after": (3, 3, 12, 12),
        "step": (3, 2),
    }
    expected = alone(pair, batch)
    with pair.session("model.onnx") as run:
        np.testing.assert_allclose(run(batch), expected, atol=1e-5)  # the same graph in the same type
        wide = {name: array.astype(np.float64) if name != "step" else array for name, array in batch.items()}
        np.testing.assert_allclose(run.outputs(wide)["out"], expected, atol=1e-5)
    each = pair.outputs(files[:3])
    assert [list(outputs) for outputs in each] == [["out"]] * 3
    np.testing.assert_allclose(each[2]["out"], expected[2], atol=0.03)  # FP16, of values up to 5


def test_a_session_takes_any_multiple_of_a_free_size(array_bundle: Folder) -> None:
    bundle = skdeploy.load_bundle(array_bundle(Speaker) / "bundle")
    features = np.random.default_rng(0).standard_normal((2, 20, 52), np.float32)
    with bundle.session("model.onnx") as run:
        np.testing.assert_allclose(run(features), alone(bundle, {"features": features}), atol=1e-5)
        with pytest.raises(UsageError, match="frames 13 is not a multiple of 4") as raised:
            run(features[..., :13])
        assert "give frames 16" in raised.value.advice
        with pytest.raises(UsageError, match="frames is 0"):
            run(features[..., :0])


def test_a_classifier_of_arrays_predicts_arrays(array_bundle: Folder) -> None:
    bundle = skdeploy.load_bundle(array_bundle(Bands) / "bundle")
    planes = np.stack([sample(Bands, seed)["planes"] for seed in range(5)])
    expected = alone(bundle, {"planes": planes}).argmax(1).tolist()
    assert [found.predictions[0].top[0].number for found in bundle.predict(planes)] == expected
    assert [found.image for found in bundle.predict([planes[0], planes[1:]])] == [f"sample {at}" for at in range(5)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"step": None}, "no array named 'step'"),
        ({"more": np.zeros(1)}, "an array named 'more', which is not an input"),
        ({"step": np.zeros((1, 2))}, "step is float64, but int64 is needed"),
        ({"step": np.zeros((1, 3), np.int64)}, r"step has shape \(1, 3\)"),
        ({"step": np.zeros((2, 2), np.int64)}, "1 of before, 1 of after, 2 of step"),
        ({"before": np.zeros((1, 12, 12), np.float32)}, "of rank 3"),
        ({"before": np.full((1, 3, 12, 12), "a")}, "before is <U1, not numbers"),
    ],
)
def test_what_does_not_fit_is_named(pair: Bundle, change: dict[str, Any], said: str) -> None:
    feeds = {name: array[None] for name, array in sample(Pair, 0).items()} | change
    given = {name: array for name, array in feeds.items() if array is not None}
    with pair.session() as run, pytest.raises(UsageError, match=said):
        run(given)
    with pytest.raises(UsageError):
        pair.outputs(given)


@pytest.mark.parametrize("given", [[], 3, "missing.npz", {"before": 1}])
def test_what_is_not_a_sample_is_refused(pair: Bundle, given: Any) -> None:
    for call in (pair.preprocess, pair.outputs):
        with pytest.raises(UsageError):
            call(given)


def test_values_that_are_not_finite_are_refused(pair: Bundle) -> None:
    row = sample(Pair, 0)
    row["after"][0, 0, 0] = np.nan
    with pytest.raises(UsageError, match="1 of the 432 values of after are NaN"):
        pair.outputs(row)


def test_a_network_without_classes_names_the_method_for_it(pair: Bundle) -> None:
    with pytest.raises(UsageError, match="no classes to predict") as raised:
        pair.predict(sample(Pair, 0))
    assert "outputs()" in raised.value.advice
