"""The pictures of the worst image: that they show it, the right part of it, in few bytes, and nothing but a PNG."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from skdeploy.core.spec import Precision, TensorSpec
from skdeploy.parity.pictures import LARGEST, pictures_of_classes, pictures_of_image
from skdeploy.parity.tasks import task_of
from skdeploy.parity.worst_image import SIDE, Pictures, colour_of
from tests import tiny

FILES = ("reference", "found", "difference")


def opened(file: str) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(base64.b64decode(file))) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def noise(*shape: int) -> NDArray[np.float64]:
    return np.random.default_rng(0).uniform(0, 255, shape)


def test_the_three_are_the_reference_what_was_found_and_the_difference_times_the_factor() -> None:
    reference = noise(3, 20, 30)
    found = np.clip(reference + 3, 0, 255)
    shown = pictures_of_image(reference, found)
    assert (shown.width, shown.height, shown.part) == (30, 20, "")
    assert (opened(shown.reference) == np.rint(reference).transpose(1, 2, 0)).all()
    assert (opened(shown.found) == np.rint(found).transpose(1, 2, 0)).all()
    assert shown.gain == 50  # 3 x 100 would be clipped
    assert (opened(shown.difference) == np.rint(50 * (found - reference)).transpose(1, 2, 0)).all()


@pytest.mark.parametrize(
    ("error", "gain"), [(255.0, 1), (128, 1), (127.5, 2), (51, 5), (0.3, 500), (1e-7, 2e9), (0, 1)]
)
def test_the_factor_is_the_largest_that_clips_nothing(error: float, gain: float) -> None:
    shown = pictures_of_image(np.zeros((1, 8, 8)), np.full((1, 8, 8), error))
    assert shown.gain == gain
    assert opened(shown.difference).max() == pytest.approx(error * gain, abs=0.5)


def test_a_large_image_is_cut_to_where_it_differs_most_and_that_is_said() -> None:
    reference = np.zeros((1, 700, 1000))
    found = reference.copy()
    found[0, 600:650, 900:990] = 40
    found[0, 10, 10] = 200  # the largest error of a pixel, but not the most of it
    shown = pictures_of_image(reference, found)
    assert (shown.width, shown.height) == (SIDE, SIDE)
    assert shown.part == "320 x 320 of 1,000 x 700 pixels, where they differ most"
    assert np.count_nonzero(opened(shown.found) == 40) == 50 * 90


def test_what_does_not_compress_is_cut_smaller() -> None:
    shown = pictures_of_image(noise(3, 900, 900), noise(3, 900, 900)[:, ::-1])
    assert sum(len(base64.b64decode(getattr(shown, name))) for name in FILES) <= LARGEST
    assert shown.width < SIDE
    assert opened(shown.found).shape == (shown.height, shown.width, 3)
    assert f"{shown.width} x {shown.height} of 900 x 900 pixels" in shown.part


def test_of_other_channels_the_one_that_differs_most_is_shown() -> None:
    reference = noise(18, 9, 9)
    found = reference.copy()
    found[6] = 255 - found[6]
    shown = pictures_of_image(reference, found)
    assert shown.part == "channel 7 of 18"
    assert (opened(shown.reference) == np.rint(reference[6])).all()


def test_classes_are_in_colours_and_pixels_that_differ_are_white() -> None:
    reference = np.random.default_rng(0).integers(0, 12, (20, 24))
    found = reference.copy()
    found[3, 4:10] = (reference[3, 4:10] + 1) % 12
    shown = pictures_of_classes(reference, found)
    assert shown is not None
    assert shown.gain is None
    assert shown.classes == tuple(range(12))
    assert (opened(shown.difference) == 255 * (reference != found)).all()
    colours = {tuple(bytes.fromhex(colour_of(number)[1:])): number for number in range(12)}
    assert len(colours) == 12
    for file, classes in ((shown.reference, reference), (shown.found, found)):
        assert [[colours[tuple(pixel)] for pixel in row] for row in opened(file).tolist()] == classes.tolist()
    assert shown.apart == f"{100 * 6 / 480:.3g} % of its pixels have another class"


def test_of_a_volume_the_worst_slice_is_shown_and_a_sequence_has_no_pictures() -> None:
    reference = np.zeros((5, 6, 7), np.int64)
    found = reference.copy()
    found[3, 2:4] = 1
    shown = pictures_of_classes(reference, found)
    assert shown is not None
    assert shown.part == "slice 4 of 5"
    assert np.count_nonzero(opened(shown.difference)) == 14
    assert pictures_of_classes(reference[0, 0], found[0, 0]) is None


@pytest.mark.parametrize("file", ["", 'iVBORw0KGgo"><script>', "PHN2Zz4=", "iVBORw0KGgo'"])
def test_nothing_but_a_png_is_read(file: str) -> None:
    pictures = pictures_of_image(noise(1, 8, 8), noise(1, 8, 8)).model_dump()
    Pictures.model_validate(pictures)
    with pytest.raises(ValidationError):
        Pictures.model_validate(pictures | {"found": file})


def spec_of(task: str, channels: int) -> Any:
    outputs = (TensorSpec(name="y", dtype="float32", shape=("batch", channels, 8, 8)),)
    preprocess = tiny.spec().preprocess.model_copy(update={"mean": (0.0,) * 3, "std": (1.0,) * 3})
    return tiny.spec().model_copy(update={"task": task, "outputs": outputs, "preprocess": preprocess})


@pytest.mark.parametrize("worst", [0, 2])
@pytest.mark.parametrize("task", ["image-to-image", "segmentation"])
def test_a_task_names_the_image_that_is_worst_by_its_own_figures(task: str, worst: int) -> None:
    """Of images: another one, bright and so with the better ratio of signal to noise, has the larger error."""
    spec = spec_of(task, 3)
    reference = np.random.default_rng(0).uniform(0, 0.1, (3, 3, 8, 8)).astype(np.float32)
    reference[worst] = np.roll(reference[worst], 1) + (0.8 if task == "image-to-image" else 0)
    found = reference + np.float32(0.01 if task == "image-to-image" else 0)
    found[worst] = reference[worst] + 0.02 if task == "image-to-image" else -reference[worst]
    metrics = task_of(spec).measure({"y": reference}, {"y": found}, spec.tolerance[Precision.INT8], spec)
    assert metrics.figure_image == worst
    if task == "image-to-image":
        assert metrics.worst_image != worst
    shown = task_of(spec).pictures({"y": reference}, {"y": found}, worst, spec)
    assert shown is not None
    if task == "image-to-image":
        assert (opened(shown.reference) == np.rint(255.0 * reference[worst]).transpose(1, 2, 0)).all()
        assert shown.apart == f"PSNR {metrics.figures['psnr_db']:.1f} dB"
    else:
        differs = reference[worst].argmax(0) != found[worst].argmax(0)
        assert (opened(shown.difference) == 255 * differs).all()


def test_logits_have_no_pictures() -> None:
    logits = {"logits": np.zeros((2, 5), np.float32)}
    assert task_of(tiny.spec()).pictures(logits, logits, 0, tiny.spec()) is None
