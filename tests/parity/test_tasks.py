"""What each task measures, against formulas written here, and when it fails."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from skdeploy.core.interface import ArrayInput
from skdeploy.core.precision import PRECISIONS
from skdeploy.core.spec import ModelSpec, Precision, TensorSpec, Tolerance
from skdeploy.parity.features import equal_error_rate, pair_error
from skdeploy.parity.infer_task import inferred_task
from skdeploy.parity.limits import IMAGES
from skdeploy.parity.segmentation import classes_of_pixels, confusions, mean_iou
from skdeploy.parity.tasks import TASKS, task_of
from tests import tiny

Array = NDArray[np.float32]
LOOSE = Tolerance(max_rel_error=1e6, min_cosine=1e-9, min_sqnr_db=-500, min_top1_agreement=0)


def spec_of(task: str, **shapes: tuple[int | str, ...]) -> ModelSpec:
    outputs = tuple(TensorSpec(name=name, dtype="float32", shape=shape) for name, shape in shapes.items())
    preprocess = tiny.spec().preprocess.model_copy(update={"mean": (0.0,) * 3, "std": (1.0,) * 3})
    return tiny.spec().model_copy(update={"task": task, "outputs": outputs, "preprocess": preprocess})


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def measured(task: str, reference: Array, found: Array, tolerance: Tolerance = LOOSE) -> Any:
    spec = spec_of(task, y=("batch", *reference.shape[1:]))
    return task_of(spec).measure({"y": reference}, {"y": found}, tolerance, spec)


# ----- image-to-image


def images(*shape: int) -> Array:
    return np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32)


def test_an_image_that_is_off_by_a_grey_level_has_48_decibels() -> None:
    reference = np.round(images(2, 3, 16, 16) * 250) / 255
    found = reference + np.float32(1 / 255)
    figures = measured("image-to-image", reference, found).figures
    assert figures["psnr_db"] == pytest.approx(20 * np.log10(255), abs=1e-3)
    assert figures["same_8bit"] == 0
    found[0] = reference[0]
    figures = measured("image-to-image", reference, found).figures
    assert figures["same_8bit"] == 0.5
    assert figures["psnr_db"] == pytest.approx(20 * np.log10(255), abs=1e-3)  # of the worst


def test_what_is_clipped_is_no_error() -> None:
    reference = np.full((1, 3, 8, 8), 1.5, np.float32)
    assert measured("image-to-image", reference, reference + 1).figures["psnr_db"] == 300


def test_arrays_are_measured_on_their_own_range() -> None:
    """18 channels of reflectance from -2 to 6, each off by a 255th of that."""
    reference = np.random.default_rng(0).uniform(-2, 6, (2, 18, 16, 16)).astype(np.float32)
    spec = spec_of("image-to-image", y=("batch", 18, 16, 16))
    inputs = (ArrayInput(name="x", shape=(18, 16, 16)),)
    spec = spec.model_copy(update={"image": None, "image_preprocess": None, "inputs": inputs})
    found = {"y": reference - np.ptp(reference) / 255}
    metrics = task_of(spec).measure({"y": reference}, found, LOOSE, spec)
    assert metrics.figures["psnr_db"] == pytest.approx(20 * np.log10(255), abs=0.05)  # the least values are clipped


@pytest.mark.parametrize("limit", ["min_psnr_db", "min_ssim"])
def test_each_limit_of_an_image_decides(limit: str) -> None:
    task = TASKS["image-to-image"]
    reference = images(2, 3, 16, 16)
    metrics = measured("image-to-image", reference, reference + noise(2, 3, 16, 16) / 50)
    value = metrics.figures[limit.removeprefix("min_")]
    assert task.violations(metrics, LOOSE.model_copy(update={limit: value - 1e-6})) == ()
    (problem,) = task.violations(metrics, LOOSE.model_copy(update={limit: value + 1e-6}))
    assert problem.startswith("PSNR" if "psnr" in limit else "SSIM")


# ----- segmentation


def test_the_mean_iou_is_that_of_sets() -> None:
    one, other = np.random.default_rng(0).integers(0, 4, (2, 3, 20, 20))
    each = [((one == k) & (other == k)).sum() / ((one == k) | (other == k)).sum() for k in range(4)]
    assert mean_iou(confusions(one, other, 7)) == pytest.approx(
        np.mean(each)
    )  # three classes that nobody has are no zeros


def test_pixels_that_rounding_could_flip_are_not_judged() -> None:
    reference = np.zeros((1, 2, 1, 10), np.float32)
    reference[0, 0] = 1.0
    reference[0, 1, 0, :5] = 0.99  # five pixels with a margin of 0.01, five with 1
    near, far = reference.copy(), reference.copy()
    near[0, 1, 0, :2] = 1.01
    far[0, 1, 0, 9] = 1.01
    tolerance = LOOSE.model_copy(update={"max_rel_error": 0.02, "min_top1_agreement": 1.0})
    for found, decided in ((near, 1.0), (far, 0.8)):
        figures = measured("segmentation", reference, found, tolerance).figures
        assert figures["decided_pixels"] == pytest.approx(decided)
    assert measured("segmentation", reference, near).figures["same_pixels"] == pytest.approx(0.8)
    assert measured("segmentation", reference, near).figures["miou"] == pytest.approx((0.8 + 0) / 2)
    said = TASKS["segmentation"].violations(measured("segmentation", reference, far, tolerance), tolerance)
    assert any("class agreement 0.8000 of decided pixels" in problem for problem in said)


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 5.0), (0.5, 0.4)])
def test_one_class_begins_at_zero_of_logits_and_at_a_half_of_probabilities(shift: float, scale: float) -> None:
    signs = np.sign(noise(2, 1, 8, 8))
    reference = (shift + scale * signs).astype(np.float32)
    flipped = reference.copy()
    flipped[0, 0, 0, :] = shift - (reference[0, 0, 0, :] - shift)
    figures = measured("segmentation", reference, flipped).figures
    assert figures["same_pixels"] == pytest.approx(1 - 8 / 128)
    assert classes_of_pixels(reference, shift).sum() == (signs > 0).sum()


def test_volumes_have_classes_too() -> None:
    reference = noise(2, 3, 4, 5, 6)
    assert measured("segmentation", reference, reference).figures["miou"] == 1
    assert measured("segmentation", reference, -reference).figures["miou"] < 0.3


def test_the_limit_of_masks_decides() -> None:
    reference = noise(2, 4, 8, 8)
    metrics = measured("segmentation", reference, reference + noise(2, 4, 8, 8, seed=1) / 10)
    task = TASKS["segmentation"]
    assert 0.5 < metrics.figures["miou"] < 1
    limits = [LOOSE.model_copy(update={"min_miou": metrics.figures["miou"] + step}) for step in (-1e-6, 1e-6)]
    assert [len(task.violations(metrics, limit)) for limit in limits] == [0, 1]


# ----- features


def naive_equal_error_rate(same: Array, other: Array) -> float:
    """By trying every threshold, those between scores too."""
    scores = np.unique(np.concatenate([same, other]))
    rates = [(np.mean(same < t), np.mean(other >= t)) for t in [*scores, *(scores[:-1] + scores[1:]) / 2]]
    return float(min(max(rate) for rate in rates))


@pytest.mark.parametrize("gap", [0.0, 0.7, 2.0, 9.0])
def test_the_equal_error_rate_is_that_of_all_thresholds(gap: float) -> None:
    same, other = noise(301) + np.float32(gap), noise(300, seed=1)
    assert equal_error_rate(same, other) == pytest.approx(
        naive_equal_error_rate(same, other), abs=2 / 300
    )  # two steps of a share


def test_pairs_that_stay_on_their_side_are_no_error() -> None:
    vectors = noise(20, 8)
    assert pair_error(vectors, vectors) == 0
    assert pair_error(vectors, 3 * vectors) == 0  # a cosine does not know lengths
    assert 0.3 < pair_error(vectors, noise(20, 8, seed=5)) < 0.7  # vectors of something else: as good as a coin


def test_the_limit_of_pairs_decides_and_four_images_are_too_few() -> None:
    reference = noise(20, 8)
    metrics = measured("features", reference, reference + noise(20, 8, seed=1) / 4)
    task, error = TASKS["features"], metrics.figures["pair_error"]
    assert 0 < error < 0.5
    limits = [LOOSE.model_copy(update={"max_pair_error": error + step}) for step in (1e-6, -1e-6)]
    assert [len(task.violations(metrics, limit)) for limit in limits] == [0, 1]
    assert measured("features", reference[:4], reference[:4]).figures == {}


def test_maps_have_no_pairs() -> None:
    assert measured("features", noise(6, 3, 4, 4), noise(6, 3, 4, 4)).figures == {}


# ----- limits


@pytest.mark.parametrize(("task", "limit"), [("image-to-image", "min_psnr_db"), ("segmentation", "min_miou")])
def test_a_card_overrides_the_limit_of_a_task(task: str, limit: str) -> None:
    spec = spec_of(task, y=("batch", 3, 8, 8))
    own = [getattr(task_of(spec).tolerance(spec, p), limit) for p in (Precision.FP32, Precision.FP16, Precision.INT8)]
    assert own == sorted(own, reverse=True)  # narrower types may be further away
    assert len(set(own)) == 3
    card = spec.tolerance[Precision.FP16].model_copy(update={limit: 0.25})
    spec = spec.model_copy(update={"tolerance": {**spec.tolerance, Precision.FP16: card}})
    found = task_of(spec).tolerance(spec, Precision.FP16)
    assert getattr(found, limit) == 0.25
    assert found.min_sqnr_db == tiny.spec().tolerance[Precision.FP16].min_sqnr_db


def test_a_classifiers_limits_are_the_cards_alone() -> None:
    for precision, tolerance in tiny.spec().tolerance.items():
        assert task_of(tiny.spec()).tolerance(tiny.spec(), precision) == tolerance
        assert "psnr" not in tolerance.model_dump_json()


# ----- shapes


@pytest.mark.parametrize(
    ("fed", "outputs", "task"),
    [
        ((2, 3, 32, 48), [(2, 3, 32, 48)], "image-to-image"),
        ((2, 3, 32, 48), [(2, 3, 128, 192)], "image-to-image"),  # super-resolution
        ((2, 3, 32, 48), [(2, 3, 128, 96)], "features"),  # twice as wide and four times as high is no image of it
        ((2, 3, 32, 48), [(2, 21, 32, 48)], "segmentation"),
        ((2, 1, 32, 48), [(2, 4, 32, 48)], "segmentation"),
        ((2, 3, 32, 48), [(2, 1, 32, 48)], "raw"),  # a mask, or a depth
        ((2, 1, 32, 48), [(2, 1, 32, 48)], "raw"),  # a mask, or an image
        ((2, 18, 32, 48), [(2, 18, 32, 48)], "raw"),
        ((2, 3, 32, 48), [(2, 256, 4, 6)], "features"),
        ((2, 3, 32, 48), [(2, 64, 16, 24), (2, 128, 8, 12)], "features"),
        ((2, 3, 32, 48), [(2, 100)], "classification"),
        ((2, 3, 32, 48), [(2, 84, 1000)], "raw"),  # boxes
        ((2, 3, 32, 48), [(2, 64, 16, 24), (2, 10)], "raw"),
        ((2, 80, 300), [(2, 192)], "classification"),
        ((2, 1, 8, 16, 16), [(2, 5, 8, 16, 16)], "segmentation"),
        ((2, 80, 300), [(2, 80, 300)], "raw"),
    ],
)
def test_shapes_suggest_a_task(fed: tuple[int, ...], outputs: list[tuple[int, ...]], task: str) -> None:
    assert inferred_task(fed, outputs)[0] == task


@pytest.mark.parametrize("task", ["image-to-image", "segmentation"])
def test_a_vector_is_no_map(task: str) -> None:
    assert "but the network gives logits: float32[batch, 5]" in task_of(spec_of(task)).refusal(spec_of(task))


def test_what_rounds_more_than_fp16_has_the_wider_limits_of_a_task() -> None:
    """A restoration in BF16 has 8 times FP16's error, so 18 dB less of FP16's 50: INT8's 30 are near it."""
    for precision in PRECISIONS.values():
        filled = IMAGES.fill(precision.tolerance, precision)
        expected = {Precision.FP32: 70.0, Precision.FP16: 50.0}.get(precision, 30.0)
        assert filled.min_psnr_db == expected, precision
