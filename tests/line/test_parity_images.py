"""Which images decide parity, and why these."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skdeploy.core.spec import ModelSpec, Precision
from skdeploy.images.dataset import Dataset, ImageError
from skdeploy.line.accuracy_options import AccuracyOptions
from skdeploy.line.calibration import CalibrationOptions
from skdeploy.line.export import calibrate
from skdeploy.line.formats import FORMATS
from skdeploy.line.int8_options import Int8Options
from skdeploy.line.options import ExportOptions
from skdeploy.line.parity_images import images_of_export
from tests import tiny
from tests.conftest import FAST

SPEC: ModelSpec = tiny.spec()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images each of classes a and b, and what each option would take."""
    noise = np.random.default_rng(0).integers(0, 256, (10, 40, 40, 3), dtype=np.uint8)
    for name in ("a", "b"):
        (tmp_path / "calib" / name).mkdir(parents=True)
        for index, pixels in enumerate(noise):
            Image.fromarray(pixels).save(tmp_path / "calib" / name / f"{index}.png")
    np.savez(tmp_path / "eval.npz", images=noise, labels=np.zeros(10, np.int64))
    np.save(tmp_path / "own.npy", noise[:3])
    return tmp_path


def asked(folder: Path, *given: str, precision: Precision = Precision.INT8, number: int = 4) -> ExportOptions:
    calibration = CalibrationOptions(images=folder / "calib" if "calib" in given else None)
    ranges = folder / "ranges.json" if "ranges" in given else None
    data = folder / "eval.npz" if "data" in given else None
    int8, accuracy = Int8Options(calibration=calibration, ranges=ranges), AccuracyOptions(data=data)
    images = folder / "own.npy" if "images" in given else None
    return ExportOptions(
        "tiny", precision=precision, lowering={"int8": int8}, accuracy=accuracy, images=images, num_images=number
    )


def chosen_for(options: ExportOptions) -> Dataset:
    lowering = FORMATS[options.precision](options.of_precision, options.accuracy)
    return images_of_export(options, lowering, SPEC)


@pytest.mark.parametrize(
    ("given", "name", "chosen"),
    [
        (("images", "calib", "data"), "own.npy", "images"),
        (("calib", "data"), "eval.npz", "data"),
        (("calib",), "calib", "calib"),
    ],
)
def test_the_users_own_images_decide_where_any_are_given(
    folder: Path, given: tuple[str, ...], name: str, chosen: str
) -> None:
    found = chosen_for(asked(folder, *given))
    assert (found.name, found.chosen) == (name, chosen)
    assert len(found) == (3 if chosen == "images" else 4)


def test_a_finished_calibration_has_no_images(folder: Path) -> None:
    calibration = CalibrationOptions(images=folder / "own.npy")
    calibrate(ExportOptions(str(tiny.CARD), trace=FAST), calibration, folder / "ranges.json")
    assert chosen_for(asked(folder, "ranges")).chosen == "photographs"


def test_calibration_images_decide_nothing_of_fp16_and_labelled_ones_do(folder: Path) -> None:
    assert chosen_for(asked(folder, "calib", precision=Precision.FP16)).chosen == "photographs"
    assert chosen_for(asked(folder, "data", precision=Precision.FP16)).chosen == "data"


def test_images_are_spread_over_the_classes_and_damaged_ones_are_passed_over(folder: Path) -> None:
    (folder / "calib/a/0.png").write_bytes(b"no image")
    found = chosen_for(asked(folder, "calib"))
    assert [found.name_of(index) for index in range(len(found))] == ["a/1.png", "a/5.png", "b/0.png", "b/5.png"]


def test_images_none_of_which_can_be_read_are_named(folder: Path) -> None:
    for file in (folder / "calib").rglob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"a/0\.png"):
        chosen_for(asked(folder, "calib"))
