"""Images that come as bytes, in either layout: against formulas of grey levels, and what they are taken for."""

from __future__ import annotations

import numpy as np
import pytest

from skdeploy.backends.metrics import largest_difference
from skdeploy.core.precision import Precision
from skdeploy.core.spec import ModelSpec, TensorSpec
from skdeploy.parity.infer_task import gives_image
from skdeploy.parity.measured import measured
from skdeploy.parity.tasks import IMAGE_TO_IMAGE, TASKS
from tests import tiny

FIRST = TensorSpec(name="y", dtype="uint8", shape=("batch", 3, 16, 20))
LAST = TensorSpec(name="y", dtype="uint8", shape=("batch", 16, 20, 3))
TASK = TASKS[IMAGE_TO_IMAGE]


def spec_of(output: TensorSpec) -> ModelSpec:
    return tiny.spec().model_copy(update={"task": IMAGE_TO_IMAGE, "outputs": (output,)})


def test_bytes_that_are_a_level_off_have_48_decibels_in_either_layout() -> None:
    reference = np.random.default_rng(0).integers(1, 255, (2, 3, 16, 20), dtype=np.uint8)
    found = reference.copy()
    found[1] += 1
    tolerance = TASK.tolerance(spec_of(FIRST), Precision.FP16)
    metrics = measured(TASK, {"y": reference}, {"y": found}, tolerance, spec_of(FIRST))
    assert metrics.figures["psnr_db"] == pytest.approx(20 * np.log10(255), abs=1e-6)
    assert metrics.figures["same_8bit"] == 0.5
    assert metrics.figure_image == 1
    assert metrics.max_rel_error is None
    assert [problem.split()[0] for problem in TASK.violations(metrics, tolerance)] == ["PSNR"]  # 50 dB are asked for
    turned = {"y": reference.transpose(0, 2, 3, 1)}, {"y": found.transpose(0, 2, 3, 1)}
    last = measured(TASK, *turned, tolerance, spec_of(LAST))
    assert last.figures == metrics.figures
    pictures = [
        TASK.pictures({"y": reference}, {"y": found}, 1, spec_of(FIRST)),
        TASK.pictures(*turned, 1, spec_of(LAST)),
    ]
    assert pictures[0] == pictures[1] is not None


def test_one_level_in_a_hundred_pixels_is_within_fp16_and_not_within_fp32() -> None:
    reference = np.full((1, 3, 20, 20), 128, np.uint8)
    found = reference.copy()
    found.reshape(-1)[::100] += 1  # 48.1 + 20 = 68.1 dB
    for precision, good in ((Precision.FP16, True), (Precision.FP32, False)):
        tolerance = TASK.tolerance(spec_of(FIRST), precision)
        metrics = measured(TASK, {"y": reference}, {"y": found}, tolerance, spec_of(FIRST))
        assert (TASK.violations(metrics, tolerance) == ()) is good


def test_wide_integers_are_not_images() -> None:
    wide = FIRST.model_copy(update={"dtype": "int64"})
    assert "takes images, floating point or uint8" in TASK.refusal(spec_of(wide))
    assert TASK.refusal(spec_of(LAST)) == ""


@pytest.mark.parametrize(
    ("fed", "shape", "dtype", "image"),
    [
        ((2, 3, 16, 20), (2, 3, 16, 20), "uint8", True),
        ((2, 3, 16, 20), (2, 16, 20, 3), "uint8", True),
        ((2, 3, 16, 20), (2, 32, 40, 3), "float32", True),
        ((2, 3, 16, 20), (2, 1, 16, 20), "uint8", False),  # a mask
        ((2, 3, 16, 20), (2, 16, 20, 3), "int64", False),
        ((2, 3, 16, 20), (2, 8, 20, 3), "uint8", False),
        ((2, 5, 16, 20), (2, 3, 16, 20), "uint8", False),
    ],
)
def test_what_is_taken_for_an_image(fed: tuple[int, ...], shape: tuple[int, ...], dtype: str, image: bool) -> None:
    assert gives_image(fed, TensorSpec(name="y", dtype=dtype, shape=shape)) is image


def test_self_comparisons_count_a_level_as_a_255th() -> None:
    one = np.full((1, 100), 200, np.uint8)
    other = one.copy()
    other[0, :10] += 1
    assert largest_difference({"y": one}, {"y": other}) == pytest.approx(0.1 / 255)
    other[0, 0] += 4
    assert largest_difference({"y": one}, {"y": other}) == pytest.approx(4 / 255)
    mask = (one > 300).astype(np.uint8)
    assert largest_difference({"y": mask}, {"y": 1 - mask}) == 1
