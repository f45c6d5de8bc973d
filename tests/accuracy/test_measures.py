"""Figures against ground truth: against scikit-image, and against IoU counted pixel by pixel."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from skdeploy.accuracy.measures import MeanIoU, Own, Psnr, Ssim, measures_of
from skdeploy.accuracy.own_metric import load_metric
from skdeploy.core.errors import UsageError
from skdeploy.core.spec import ModelSpec, TensorSpec
from tests.tiny import noise, spec_of


def gives(task: str, channels: int, *, mean: float = 0.5, std: float = 0.25) -> ModelSpec:
    shape = ("batch", channels, 16, 16)
    spec = spec_of(mean=(mean,) * 3, std=(std,) * 3)
    outputs = (TensorSpec(name="y", dtype="float32", shape=shape),)
    return spec.model_copy(update={"task": task, "outputs": outputs})


def test_psnr_and_ssim_are_scikit_images() -> None:
    """The output is normalised as the input is: by mean 0.5 and std 0.25."""
    spec, target = gives("image-to-image", 3), noise(16, 16, 3)
    found = np.clip(target + np.random.default_rng(1).normal(0, 9, target.shape), 0, 255)
    output = {"y": ((found / 255 - 0.5) / 0.25).transpose(2, 0, 1).astype(np.float32)}
    psnr, ssim = (measure.of(output, target, "t", spec)[0] for measure in (Psnr(), Ssim()))
    # float32 keeps 7 digits of the output
    assert psnr == pytest.approx(peak_signal_noise_ratio(target.astype(float), found, data_range=255), abs=1e-4)
    expected = structural_similarity(target.astype(float), found, data_range=255, channel_axis=2)
    assert ssim == pytest.approx(expected, abs=1e-5)


def test_an_input_has_figures_too() -> None:
    target = noise(16, 16, 3)
    other = noise(16, 16, 3, seed=1)
    expected = peak_signal_noise_ratio(target, other)
    assert Psnr().untouched(other, target) == pytest.approx(expected)
    assert Psnr().untouched(other[:8], target) is None


def test_miou_is_counted_over_all_images_without_what_is_ignored() -> None:
    spec, random = gives("segmentation", 4), np.random.default_rng(0)
    measure, rows, shared, union = MeanIoU(), [], np.zeros(4), np.zeros(4)
    for _ in range(3):
        maps = random.normal(size=(4, 16, 16)).astype(np.float32)
        maps[3] = -9  # nobody has the last class
        mask = random.choice([0, 1, 2, 255], (16, 16))
        rows.append(measure.of({"y": maps}, mask, "m", spec))
        for truth, best in zip(mask.ravel(), maps.argmax(0).ravel(), strict=True):
            if truth == 255:
                continue
            for each in range(4):
                shared[each] += truth == each == best
                union[each] += each in (truth, best)
    expected = 100 * np.mean(shared[:3] / union[:3])
    assert measure.figure(np.array(rows), np.ones((1, 3)))[0] == pytest.approx(expected)
    # an image twice is as much as a weight of 2
    twice = measure.figure(np.array([*rows, rows[1]]), np.ones((1, 4)))
    assert measure.figure(np.array(rows), np.array([[1.0, 2.0, 1.0]])) == pytest.approx(twice)


def test_outputs_of_another_size_are_refused() -> None:
    image, mask = noise(32, 32, 3), np.zeros((32, 32), np.int64)
    with pytest.raises(UsageError, match=r"the network gives 3 x 16 x 16 .* but t is 3 x 32 x 32"):
        Psnr().of({"y": np.zeros((3, 16, 16), np.float32)}, image, "t", gives("image-to-image", 3))
    with pytest.raises(UsageError, match="gives maps of 16 x 16, but m is cut to 32 x 32"):
        MeanIoU().of({"y": np.zeros((4, 16, 16), np.float32)}, mask, "m", gives("segmentation", 4))


def test_other_tasks_need_a_metric() -> None:
    assert [one.name for one in measures_of(gives("image-to-image", 3), None)] == ["PSNR", "SSIM"]
    with pytest.raises(UsageError, match="no measure of accuracy for the task 'raw'") as caught:
        measures_of(gives("raw", 3), None)
    assert "--metric module:function" in caught.value.advice


# ----- the user's own metric


def off_by(outputs: dict[str, Any], target: Any) -> float:
    return float(np.abs(outputs["y"] - target).mean())


off_by.lower_is_better = True  # type: ignore[attr-defined]  # as a user writes it


def broken(outputs: dict[str, Any], target: Any) -> float:
    return float(outputs["z"].mean() + target)


def no_number(outputs: dict[str, Any], target: Any) -> Any:
    return [outputs, target]


def not_finite(outputs: dict[str, Any], target: Any) -> float:
    return float("nan") if outputs and len(target) else 0.0


def test_a_metric_of_the_users_own() -> None:
    own = load_metric(f"{__name__}:off_by")
    assert (own.name, own.file, own.sign) == (f"{__name__}:off_by", __file__, -1)
    (measure,) = measures_of(gives("raw", 3), own)
    assert isinstance(measure, Own)  # this is the claim: not one of the built-in measures
    assert (measure.kind, measure.sign) == ("array", -1)
    assert measure.of({"y": np.full(3, 2.0)}, np.full(3, 5.0), "t", gives("raw", 3)) == [3.0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("broken", "failed on t: KeyError: 'z'"),
        ("no_number", "returned list for t, not a finite number"),
        ("not_finite", "returned nan for t"),
    ],
)
def test_a_metric_that_does_not_measure_is_refused(name: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_metric(f"{__name__}:{name}").of({"y": np.zeros(3)}, np.zeros(3), "t")
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("metric", "must be module:function"),
        ("no_such_module_anywhere:f", "ModuleNotFoundError"),
        (f"{__name__}:absent", "AttributeError"),
        (f"{__name__}:SimpleNamespace", ""),
        (f"{__name__}:__file__", "is a str, not a function"),
    ],
)
def test_a_metric_that_is_not_there_is_refused(place: str, said: str) -> None:
    if not said:
        assert load_metric(place).function is SimpleNamespace
        return
    with pytest.raises(UsageError, match=said):
        load_metric(place)
