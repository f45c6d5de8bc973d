"""Pairs that could spoil a figure: an exact image, one that makes NaN, a single one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from skdeploy.accuracy.evaluate import EvaluationOptions
from skdeploy.accuracy.evaluate_quality import evaluate_quality
from skdeploy.accuracy.measures import CEILING_DB, Psnr
from skdeploy.core.errors import ParityError, UsageError
from skdeploy.core.spec import TensorSpec
from skdeploy.line.export import export
from skdeploy.line.options import ExportOptions
from tests import tiny
from tests.conftest import FAST

pytestmark = pytest.mark.usefixtures("cache")
SIDE = 16


class Divides(nn.Module):
    """An image by its own largest value: a black one becomes NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * 0.01 + x / x.amax((1, 2, 3), keepdim=True)


def divides() -> nn.Module:
    torch.manual_seed(0)
    return Divides().eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, and pairs of which the fourth is black."""
    folder = tmp_path_factory.mktemp("odd")
    for side in ("input", "target"):
        (folder / "pairs" / side).mkdir(parents=True)
        for number in range(6):
            pixels = np.zeros((SIDE, SIDE, 3), np.uint8) if number == 3 else tiny.noise(SIDE, SIDE, 3, seed=number)
            Image.fromarray(pixels).save(folder / "pairs" / side / f"{number}.png")
    export(
        ExportOptions(
            f"{__name__}:divides",
            image_size=(SIDE, SIDE),
            task="image-to-image",
            trace=FAST,
            target="onnx",
            images=folder / "pairs" / "input" / "0.png",
            output=folder / "bundle",
        )
    )
    return folder


def test_an_output_that_is_not_finite_names_its_own_input(folder: Path) -> None:
    with pytest.raises(ParityError, match=r"gives no usable outputs for input/3\.png: \d+ values of output are NaN"):
        evaluate_quality(folder / "bundle", EvaluationOptions(folder / "pairs"))


def test_a_single_pair_is_too_few(folder: Path) -> None:
    with pytest.raises(UsageError, match="1 pair is too few: an interval needs at least 2"):
        evaluate_quality(folder / "bundle", EvaluationOptions(folder / "pairs", num_images=1))


def test_a_budget_needs_two_artifacts(folder: Path) -> None:
    alone = EvaluationOptions(folder / "pairs", artifacts=("model.onnx",), max_drop=1)
    with pytest.raises(UsageError, match=r"--max-drop needs two artifacts, but model\.onnx is the only one"):
        evaluate_quality(folder / "bundle", alone)


def test_an_exact_image_counts_no_more_than_the_rounding_of_its_target() -> None:
    """Uniform rounding to 8 bits has an error of 1/12 in power, whatever the image."""
    random = np.random.default_rng(0)
    levels = random.uniform(0, 255, (1, 3, 64, 64))
    (rounding,) = Psnr.compare(levels, np.rint(levels))
    assert rounding == pytest.approx(CEILING_DB, abs=0.2)  # of 12,288 values: 0.04 dB of spread
    spec = tiny.spec_of(height=64, width=64).model_copy(
        update={"outputs": (TensorSpec(name="y", dtype="float32", shape=("batch", 3, 64, 64)),)}
    )
    target = np.rint(levels[0]).astype(np.uint8)
    mean, std = (np.reshape(given, (3, 1, 1)) for given in (spec.preprocess.mean, spec.preprocess.std))
    exact = ((target / 255 - mean) / std).astype(np.float32)
    (found,) = Psnr().of({"y": exact}, target.transpose(1, 2, 0), "t", spec)
    assert found == CEILING_DB
