"""The choice among calibration methods: who wins, on which images, and what the ranges file says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from pydantic import ValidationError

from skdeploy.core.errors import CalibrationError
from skdeploy.core.spec import CalibrationMethod, ModelSpec
from skdeploy.images.dataset import Dataset
from skdeploy.quant import calibrate as calibrating
from skdeploy.quant import choose as choosing
from skdeploy.quant.choose import score_db
from skdeploy.quant.methods import (
    CANDIDATES,
    FALLBACK,
    FEWEST_IMAGES,
    MOST_SCORED,
    TIE_DB,
    Choice,
    Round,
    chosen,
    fitted_images,
    scored_images,
    winner,
)
from skdeploy.quant.ranges import Ranges, load_ranges
from tests.conftest import FAST, TinySpec
from tests.graphs.networks import card, traced
from tests.quant.noise import calibrated, dataset

AUTO: dict[str, Any] = {"method": CalibrationMethod.AUTO}


@pytest.fixture
def spec(tiny_spec: TinySpec) -> ModelSpec:
    return card(tiny_spec())


@pytest.fixture
def graph(spec: ModelSpec) -> ir.Model:
    return traced(spec, FAST)


def test_images_are_scored_that_no_range_was_fitted_to() -> None:
    assert fitted_images(512) == 384
    for images in (FEWEST_IMAGES, 100, 512, 5000):
        places = scored_images(images, images)
        assert len(places) == len(set(places)) == min(MOST_SCORED, images - fitted_images(images))
        assert fitted_images(images) <= min(places)
        assert max(places) < images
    assert scored_images(FEWEST_IMAGES - 1, FEWEST_IMAGES - 1) == []
    assert scored_images(4000, 2900) == []  # the last quarter could not be read


def test_the_best_wins_and_among_equals_the_first() -> None:
    far = {"mse": 30.0, "minmax": 35.0, "percentile 99.999": 33.0}
    assert str(winner(far)) == "minmax"
    assert winner({**far, "mse": 35.0 - TIE_DB / 2}) == FALLBACK
    assert str(winner({**far, "mse": 35.0 - 2 * TIE_DB})) == "minmax"
    with pytest.raises(ValueError, match="none of the scores"):
        winner({"median": 40.0})


def test_a_choice_that_the_scores_do_not_bear_out_is_refused() -> None:
    rounds = [Round(images=8, scores={"mse": 30.0, "minmax": 35.0})]
    assert chosen(rounds, 24).method is CalibrationMethod.MINMAX
    with pytest.raises(ValidationError, match="mse did not win"):
        Choice(method=CalibrationMethod.MSE, fitted=24, rounds=tuple(rounds))


def test_the_score_is_the_signal_by_the_error_and_outputs_count_alike() -> None:
    reference = np.array([[3.0, 4.0]])
    assert score_db([reference], [reference + 0.5]) == pytest.approx(10 * np.log10(25 / 0.5))
    small = reference / 1000
    both = score_db([reference, small], [reference, small * 1.1])
    assert both == pytest.approx(10 * np.log10(2 / 0.01))  # of noise to signal 0 and 0.01


def test_the_ranges_are_those_of_the_method_that_wins_fitted_to_all_images(
    spec: ModelSpec, graph: ir.Model, tmp_path: Path
) -> None:
    images = dataset(64)
    found = calibrated(graph, spec, images, **AUTO)
    choice = found.choice
    assert choice is not None
    assert (choice.fitted, [each.images for each in choice.rounds]) == (48, [4, 16])
    first, last = (each.scores for each in choice.rounds)
    assert list(first) == [str(candidate) for candidate in CANDIDATES]
    assert set(last) == set(sorted(first, key=lambda name: -first[name])[:3])
    alone = calibrated(graph, spec, images, method=choice.method, percentile=choice.percentile)
    assert found.tensors == alone.tensors
    assert found.channel_means == alone.channel_means
    found.write(tmp_path / "r.json")
    assert load_ranges(tmp_path / "r.json") == found


def test_the_score_is_that_of_a_calibration_on_the_first_images_alone(spec: ModelSpec, graph: ir.Model) -> None:
    """A round of one method by hand: fitted to 48 images, run on the other 16."""
    from skdeploy.backends.logits import run_images
    from skdeploy.backends.onnxruntime import open_model
    from skdeploy.quant.quantize import quantize

    images = dataset(64)
    found = calibrated(graph, spec, images, equalize=False, **AUTO).choice
    assert found is not None
    by_hand = calibrated(
        graph, spec, images.take(range(48)), method=CalibrationMethod.MSE, equalize=False, bias_correction=False
    )
    whole = calibrated(graph, spec, images, method=CalibrationMethod.MSE, equalize=False)
    ranges = whole.with_tensors(
        {
            name: (seen.minimum, seen.maximum, by_hand.tensors[name].threshold, by_hand.tensors[name].shifted_threshold)
            for name, seen in whole.tensors.items()
        }
    )
    held_back = images.take(range(48, 64)).load(spec)
    made = quantize(graph, spec, ranges, half=False).model
    logits = []
    for model in (graph.clone(), made):
        with open_model(model) as session:
            logits.append(run_images(session, held_back, spec)["logits"])
    last = found.rounds[-1].scores
    if "mse" in last:  # else it was among the last two after the first images
        assert last["mse"] == pytest.approx(score_db(logits[:1], logits[1:]), abs=0.006)  # two digits are kept


def test_few_images_are_not_divided_and_the_fallback_is_used(spec: ModelSpec, graph: ir.Model) -> None:
    images = dataset(FEWEST_IMAGES - 1)
    found = calibrated(graph, spec, images, **AUTO)
    assert found.choice == Choice(method=FALLBACK.method)
    assert found.tensors == calibrated(graph, spec, images, method=FALLBACK.method).tensors


def test_outputs_that_are_not_finite_have_no_score(
    spec: ModelSpec, graph: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outputs(model: ir.Model, spec: ModelSpec, images: Dataset, batch: int, most: int | None) -> list[Any]:
        return [np.full((len(images), 10), np.nan, np.float32)]

    monkeypatch.setattr(choosing, "_outputs", outputs)
    with pytest.raises(CalibrationError, match="outputs in FP32 that are not finite"):
        calibrated(graph, spec, dataset(FEWEST_IMAGES), **AUTO)


def test_large_outputs_of_fewer_images_are_kept(
    spec: ModelSpec, graph: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "MOST_BYTES", 1)
    found = calibrated(graph, spec, dataset(64), **AUTO).choice
    assert found is not None
    assert [each.images for each in found.rounds] == [2, 8]  # a batch of 8


def test_a_file_whose_method_and_choice_do_not_go_together_is_refused(spec: ModelSpec, graph: ir.Model) -> None:
    found = calibrated(graph, spec, dataset(8), **AUTO)
    content = json.loads(found.text())
    del content["choice"]
    with pytest.raises(ValidationError, match="choice belong together"):
        Ranges.model_validate_json(json.dumps(content))


def test_auto_is_what_runs_where_nothing_is_asked() -> None:
    from skdeploy.line.calibration import CalibrationOptions, calibration_set
    from skdeploy.zoo.cards import load_card

    spec, _ = load_card("sknet-fashion")
    made = calibration_set(CalibrationOptions(allow_random=True, number=4), spec).algorithm
    assert (made.method, made.weight_rounding) == (CalibrationMethod.AUTO, "gptq")
    assert calibrating.FALLBACK.method is CalibrationMethod.MSE
