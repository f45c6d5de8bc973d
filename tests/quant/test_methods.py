"""The choice among calibration methods: who wins, on which images, and what the ranges file says of it."""

from __future__ import annotations

import json
import threading
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
from skdeploy.quant import methods
from skdeploy.quant.choose import noise_of_images
from skdeploy.quant.methods import (
    CANDIDATES,
    FALLBACK,
    FEWEST_IMAGES,
    MOST_SCORED,
    Choice,
    Score,
    chosen,
    fitted_images,
    going_on,
    looks,
    scored_images,
    with_rounding_of,
)
from skdeploy.quant.quantize import quantize
from skdeploy.quant.ranges import Ranges, load_ranges
from skdeploy.quant.rounding import as_text
from tests.conftest import FAST, TinySpec
from tests.graphs.networks import card, traced
from tests.quant.noise import calibrated, dataset

AUTO: dict[str, Any] = {"method": CalibrationMethod.AUTO}


def test_images_are_scored_that_no_range_was_fitted_to() -> None:
    assert fitted_images(512) == 384
    for images in (FEWEST_IMAGES, 100, 512, 5000):
        places = scored_images(images, range(images))
        assert len(places) == len(set(places)) == min(MOST_SCORED, images - fitted_images(images))
        assert fitted_images(images) <= min(places)
        assert max(places) < images
    assert sorted(scored_images(512, range(512))[:16]) == list(range(384, 512, 8))
    assert scored_images(FEWEST_IMAGES - 1, range(FEWEST_IMAGES - 1)) == []
    assert scored_images(4000, range(2900)) == []  # the last quarter could not be read


def test_the_best_wins_unless_an_earlier_one_cannot_be_told_from_it() -> None:
    random = np.random.default_rng(0)
    base = random.uniform(0.5, 1.5, 128)

    def best(**more: float) -> str:
        """Of methods whose noise is that much more than the same, on average, with the same spread between images."""
        spread = 0.2 * random.standard_normal(128)
        spread -= spread.mean()  # a standard error of the sum: 0.2 sqrt(128) = 2.26, or 0.0177 an image
        noise = {
            "mse": base,
            **{name.replace("_", " ", 1).replace("_", "."): base + spread + m for name, m in more.items()},
        }
        return str(chosen({name: values.tolist() for name, values in noise.items()}, 128, 384).candidate)

    assert best(minmax=-0.1) == "minmax"
    assert best(minmax=-0.03) == "mse"  # within two standard errors, and mse is the first of these two
    assert best(percentile_99_999=-0.03) == "mse"
    assert best(percentile_99_999=-0.04) == "percentile 99.999"
    assert best(percentile_99_99=-0.03, minmax=-0.03) == "mse"
    assert str(chosen({"mse": [1.0, 2.0], "minmax": [1.0, 2.0]}, 2, 6).candidate) == "mse"
    with pytest.raises(ValueError, match="no method"):
        chosen({"median": [1.0]}, 1, 3)


def test_methods_are_compared_each_time_that_the_images_have_doubled() -> None:
    assert looks(128) == [16, 32, 64, 128]
    assert looks(40) == [16, 32, 40]
    assert looks(16) == [16]
    assert looks(8) == [8]


def test_methods_go_on_only_where_more_images_may_decide_between_them() -> None:
    base = np.full(16, 1.0)
    spread = np.tile([0.2, -0.2], 8)  # a standard error of the sum: 0.8, or 0.05 an image

    def left(**more: float) -> list[str]:
        """Of methods whose noise is that much more than that of mse, on average, with the same spread between images."""
        noise = {"mse": base, **{name: base + spread + each for name, each in more.items()}}
        return going_on({name: values.tolist() for name, values in noise.items()})

    assert left(minmax=-0.25) == ["minmax"]  # mse is worse by five standard errors
    assert left(minmax=-0.12) == ["mse", "minmax"]  # by two and a half
    assert left(minmax=0.0) == ["mse", "minmax"]  # minmax may yet be better by 5 %, which is 0.2 dB
    assert left(minmax=0.01) == ["mse"]
    assert going_on({"mse": [1.0, 2.0], "minmax": [1.0, 2.0]}) == ["mse"]  # the same graph, perhaps
    assert going_on({"minmax": [1.0]}) == ["minmax"]


@pytest.mark.parametrize("given_up", [0.0, 1e9])
def test_no_more_images_run_when_one_method_is_left(
    spec: ModelSpec, graph: ir.Model, given_up: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "FIRST_LOOK", 4)
    monkeypatch.setattr(methods, "GIVEN_UP", given_up)
    monkeypatch.setattr(methods, "TOLERATED", -np.inf)
    real, ran = choosing._outputs, []

    def outputs(model: Any, spec: ModelSpec, images: Dataset) -> Any:
        ran.append(len(images))
        return real(model, spec, images)

    monkeypatch.setattr(choosing, "_outputs", outputs)
    choice = calibrated(graph, spec, dataset(64), **AUTO).choice
    assert choice is not None
    if not given_up:  # only the best of four images is left
        assert choice.scored == 4
        assert ran == [4] * (1 + len(CANDIDATES))
    else:
        assert choice.scored == 16
        assert ran == [4] * (1 + len(CANDIDATES)) * 2 + [8] * (1 + len(CANDIDATES))
    assert {score.images for score in choice.scores.values()} == {choice.scored}


def test_a_choice_that_the_scores_do_not_bear_out_is_refused() -> None:
    def made(method: CalibrationMethod, tied: tuple[str, ...], minmax_images: int = 8) -> Choice:
        scores = {"mse": Score(images=8, sqnr_db=30.0), "minmax": Score(images=minmax_images, sqnr_db=35.0)}
        return Choice(method=method, fitted=24, scored=8, scores=scores, tied=tied)

    assert made(CalibrationMethod.MINMAX, ("minmax",)).candidate.method is CalibrationMethod.MINMAX
    assert made(CalibrationMethod.MSE, ("mse", "minmax")).candidate.method is CalibrationMethod.MSE
    assert made(CalibrationMethod.MSE, ("mse",), 4).ranking == [
        "mse",
        "minmax",
    ]  # given up: 35 dB on the first four only
    for method, tied, images in (
        (CalibrationMethod.MSE, ("mse",), 8),  # the best is not among them
        (CalibrationMethod.MINMAX, ("mse", "minmax"), 8),  # mse comes first
        (CalibrationMethod.MINMAX, ("minmax",), 4),  # given up before
        (CalibrationMethod.MINMAX, (), 8),
    ):
        with pytest.raises(ValidationError, match=r"is not the best|no method"):
            made(method, tied, images)


def test_weights_to_nearest_win_where_they_make_less_noise_than_chance_would() -> None:
    def made(*nearest: float) -> Choice:
        return with_rounding_of(chosen({"mse": [1.0, 2.0, 3.0]}, 3, 9), [1.0, 2.0, 3.0], nearest)

    assert made(0.7, 1.6, 2.6).weight_rounding == "nearest"
    assert made(3.0, 1.0, 1.0).weight_rounding == "gptq"  # less in all, but not by two standard errors
    assert made(3.0, 2.0, 1.0).weight_rounding == "gptq"  # as much
    given_up = made(3.0, 1.0)
    assert given_up.weight_rounding == "gptq"
    assert given_up.nearest is not None
    assert given_up.nearest.images == 2


def test_a_rounding_that_the_scores_do_not_bear_out_is_refused() -> None:
    scores = {"mse": Score(images=8, sqnr_db=30.0)}
    kept: dict[str, Any] = {
        "method": CalibrationMethod.MSE,
        "fitted": 24,
        "scored": 8,
        "scores": scores,
        "tied": ("mse",),
    }
    better, worse, part = (Score(images=n, sqnr_db=db) for n, db in ((8, 31.0), (8, 29.0), (4, 35.0)))
    assert Choice(**kept, nearest=better, weight_rounding="nearest").nearest == better
    assert Choice(**kept, nearest=worse, weight_rounding="gptq").nearest == worse
    for nearest in (worse, part):
        with pytest.raises(ValidationError, match="not better by the scores"):
            Choice(**kept, nearest=nearest, weight_rounding="nearest")
    with pytest.raises(ValidationError, match="belong together"):
        Choice(**kept, nearest=better)


@pytest.mark.parametrize("worse", [False, True])
def test_a_rounding_that_loses_on_images_held_back_is_not_used(
    spec: ModelSpec, graph: ir.Model, worse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights one or two steps off, in place of what GPTQ found: the file then has those to nearest, and says so."""
    real = calibrating.measure_rounding

    def measured(*given: Any) -> Any:
        found, nearest = real(*given), given[-2].nearest
        off = np.random.default_rng(3)
        steps = {
            name: np.clip(weight.values + off.integers(-2, 3, weight.values.shape), -127, 127).astype(np.int8)
            for name, weight in nearest.items()
        }
        return {name: as_text(steps[name], nearest[name]) for name in found} if worse else found

    monkeypatch.setattr(calibrating, "measure_rounding", measured)
    images = dataset(64)
    found = calibrated(graph, spec, images, weight_rounding="gptq", **AUTO)
    assert found.choice is not None
    assert found.choice.nearest is not None
    assert found.choice.weight_rounding == ("nearest" if worse else "gptq")
    made = quantize(graph, spec, found, half=False)
    plain = calibrated(
        graph, spec, images, method=found.choice.method, percentile=found.choice.percentile, weight_rounding="nearest"
    )
    other = quantize(graph, spec, plain, half=False)
    same = ir.to_proto(made.model).SerializeToString() == ir.to_proto(other.model).SerializeToString()
    assert same == worse


def test_the_error_of_an_image_is_by_the_signal_of_all_and_outputs_count_alike() -> None:
    signals, errors = np.array([[25.0], [25.0]]), np.array([[0.5], [0.02]])
    assert noise_of_images(errors, signals) == pytest.approx([0.5 / 50, 0.02 / 50])
    small = signals / 1000
    both = noise_of_images(np.hstack([0 * signals, 0.01 * small]), np.hstack([signals, small]))
    assert sum(both) == pytest.approx(0.01 / 2)  # of noise to signal 0 and 0.01


@pytest.mark.parametrize(("seed", "rounding"), [(0, "nearest"), (1, "gptq"), (2, "nearest")])
def test_no_method_is_better_on_the_images_held_back_by_more_than_chance(
    tiny_spec: TinySpec, seed: int, rounding: str
) -> None:
    """Every method by hand on all of them: fitted to 48 images, run on the other 16."""
    from skdeploy.backends.logits import run_images
    from skdeploy.backends.onnxruntime import open_model

    spec = card(tiny_spec())
    graph = traced(spec, FAST)
    images = dataset(64, seed=seed)
    competing: dict[str, Ranges] = {}
    real = calibrating.choose

    def watched(model: ir.Model, spec: ModelSpec, candidates: Any, *rest: Any) -> Any:
        competing.update(candidates)
        return real(model, spec, candidates, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrating, "choose", watched)
        choice = calibrated(graph, spec, images, weight_rounding=rounding, **AUTO).choice
    assert choice is not None
    assert (choice.fitted, choice.scored) == (48, 16)
    assert list(choice.scores) == list(competing) == [str(candidate) for candidate in CANDIDATES]
    held_back = images.take(range(48, 64)).load(spec)
    with open_model(graph.clone()) as session:
        reference = run_images(session, held_back, spec)["logits"].astype(np.float64)
    by_hand, errors = {}, {}
    for name, ranges in competing.items():
        assert ranges.algorithm.weight_rounding == rounding
        with open_model(quantize(graph, spec, ranges, half=False).model) as session:
            error = run_images(session, held_back, spec)["logits"] - reference
        by_hand[name] = 10 * np.log10((reference**2).sum() / (error**2).sum())
        errors[name] = (error**2).sum(axis=1) / (reference**2).sum()
    best = min(errors, key=lambda name: errors[name].sum())
    within = [
        name
        for name, made in errors.items()
        if made.sum() - errors[best].sum() <= 2 * np.sqrt(len(made)) * np.std(made - errors[best]) + 1e-9 * made.sum()
    ]
    assert str(choice.candidate) == within[0]
    assert choice.ranking[0] == best
    for name, score in choice.scores.items():
        assert score.images == choice.scored  # 16 are compared once
        # float32 sums of other batches differ in the last bits; four digits are kept
        assert score.sqnr_db == pytest.approx(by_hand[name], abs=1e-3)


def test_ranges_are_fitted_to_the_first_images_for_the_choice_and_then_to_all(
    spec: ModelSpec, graph: ir.Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    competing: dict[str, Ranges] = {}
    real = calibrating.choose

    def watched(model: ir.Model, spec: ModelSpec, candidates: Any, *rest: Any) -> Any:
        competing.update(candidates)
        return real(model, spec, candidates, *rest)

    monkeypatch.setattr(calibrating, "choose", watched)
    images = dataset(64)
    found = calibrated(graph, spec, images, **AUTO)
    choice = found.choice
    assert choice is not None
    method: dict[str, Any] = {"method": choice.method, "percentile": choice.percentile}
    alone = calibrated(graph, spec, images, **method)
    assert found.tensors == alone.tensors
    assert found.channel_means == alone.channel_means
    early = calibrated(graph, spec, images.take(range(48)), **method)
    tried = competing[str(choice.candidate)].tensors
    assert {name: seen.threshold for name, seen in tried.items()} == {
        name: seen.threshold for name, seen in early.tensors.items()
    }
    found.write(tmp_path / "r.json")
    assert load_ranges(tmp_path / "r.json") == found


def test_a_method_that_wins_is_what_it_is_alone_with_its_weights_too(
    spec: ModelSpec, graph: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are rounded by images that score no method, and by ranges of the first one: here nothing is told apart."""
    monkeypatch.setattr(methods, "TOLD_APART", 1e9)
    images = dataset(64)
    found = calibrated(graph, spec, images, weight_rounding="gptq", **AUTO)
    alone = calibrated(graph, spec, images, weight_rounding="gptq", method=FALLBACK.method)
    assert found.choice is not None
    assert found.choice.candidate == FALLBACK
    assert found.rounding == alone.rounding != {}
    assert found.tensors == alone.tensors


def test_the_batch_does_not_change_the_choice(spec: ModelSpec, graph: ir.Model) -> None:
    images = dataset(64)
    first, second = (calibrated(graph, spec, images, batch=batch, **AUTO) for batch in (3, 8))
    assert first.choice == second.choice


def test_few_images_are_not_divided_and_the_fallback_is_used(spec: ModelSpec, graph: ir.Model) -> None:
    images = dataset(FEWEST_IMAGES - 1)
    found = calibrated(graph, spec, images, **AUTO)
    assert found.choice == Choice(method=FALLBACK.method)
    assert found.tensors == calibrated(graph, spec, images, method=FALLBACK.method).tensors


def test_outputs_that_are_not_finite_have_no_score(
    spec: ModelSpec, graph: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outputs(model: Any, spec: ModelSpec, images: Dataset) -> Any:
        yield [np.full((len(images), 10), np.nan, np.float32)]

    monkeypatch.setattr(choosing, "_outputs", outputs)
    with pytest.raises(CalibrationError, match="outputs in FP32 that are not finite"):
        calibrated(graph, spec, dataset(FEWEST_IMAGES), **AUTO)


def test_the_next_graph_is_made_while_one_runs(
    spec: ModelSpec, graph: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each graph waits here until the next one is there, which fails if that is made only afterwards."""
    made = threading.Semaphore(0)
    real_quantize, real_outputs, waits = choosing.quantize, choosing._outputs, iter([True] * len(CANDIDATES))

    def quantized(*given: Any, **options: Any) -> Any:
        found = real_quantize(*given, **options)
        made.release()
        return found

    def outputs(*given: Any) -> Any:
        if next(waits, False):
            assert made.acquire(timeout=60)
        return real_outputs(*given)

    monkeypatch.setattr(choosing, "quantize", quantized)
    monkeypatch.setattr(choosing, "_outputs", outputs)
    assert calibrated(graph, spec, dataset(64), **AUTO).choice is not None


def test_large_outputs_of_fewer_images_are_kept(
    spec: ModelSpec, graph: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "MOST_BYTES", 1)
    found = calibrated(graph, spec, dataset(64), **AUTO).choice
    assert found is not None
    assert found.scored == 8  # a batch
    assert found.scores[str(found.candidate)].images == 8


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
