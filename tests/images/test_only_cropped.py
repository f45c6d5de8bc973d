"""Images of networks without ``resize``: their own pixels, which a resize would smooth; smaller ones are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from skdeploy.core.architecture import GraphSpec
from skdeploy.core.errors import CalibrationError
from skdeploy.core.spec import ModelSpec, Precision, TensorSpec
from skdeploy.images.dataset import default_dataset, open_dataset
from skdeploy.images.decoding import ImageError
from skdeploy.images.reading import read_crops
from skdeploy.images.selection import random_images
from skdeploy.line.calibration import CalibrationOptions, calibration_set
from skdeploy.line.formats import FORMATS
from skdeploy.line.int8_options import Int8Options
from skdeploy.line.options import ExportOptions
from skdeploy.line.parity_images import images_of_export
from skdeploy.parity.suites import other_sizes
from skdeploy.zoo.cardless import spec_without_card
from skdeploy.zoo.cards import read_card
from skdeploy.zoo.write_card import card_to_fill_in

HEIGHT, WIDTH = 24, 32
NOISE = np.random.default_rng(0).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
MIDDLES = NOISE[:, 8:32, 9:41]


def restoring(height: int = HEIGHT, width: int = WIDTH) -> ModelSpec:
    """A network without a card that gives images."""
    out = TensorSpec(name="out", dtype="float32", shape=("batch", 3, height, width))
    return spec_without_card("x", GraphSpec(), 3, (height, width), "image-to-image", (out,), gives_images=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, pixels in enumerate(NOISE):
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    return tmp_path


def asked(folder: Path) -> ExportOptions:
    int8 = Int8Options(calibration=CalibrationOptions(images=folder))
    return ExportOptions("x.onnx", precision=Precision.INT8, lowering={"int8": int8})


def test_calibration_parity_and_headroom_see_the_pixels_of_the_files(folder: Path) -> None:
    options = asked(folder)
    lowering = FORMATS[Precision.INT8](options.of_precision, options.accuracy)
    proof = images_of_export(options, lowering, restoring())  # parity's and headroom's
    assert np.array_equal(proof.load(restoring()), MIDDLES)
    calibration = calibration_set(CalibrationOptions(images=folder), restoring()).dataset
    crops = {calibration.name_of(index): crop.pixels for index, crop in read_crops(calibration, restoring())}
    for index, middle in enumerate(MIDDLES):
        assert np.array_equal(crops[f"{index}.png"], middle)


def test_a_card_with_a_resize_gets_one(folder: Path) -> None:
    spec = restoring()
    spec = spec.model_copy(update={"preprocess": spec.preprocess.model_copy(update={"resize": 32})})
    assert not np.array_equal(open_dataset(folder, spec=spec).load(spec), MIDDLES)


def test_arrays_are_cropped_as_files_are(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", NOISE)
    assert np.array_equal(open_dataset(tmp_path / "x.npy", spec=restoring()).load(restoring()), MIDDLES)


def test_a_smaller_image_is_named_with_both_sizes(folder: Path) -> None:
    large = restoring(48, 48)
    message = r"0\.png has 40 x 50 pixels, but the network takes 48 x 48, and nothing is enlarged"
    with pytest.raises(ImageError, match=message):
        open_dataset(folder, spec=large).load(large)
    with pytest.raises(CalibrationError, match=r"(?s)3 of the 3 images.*0\.png: 40 x 50 pixels, but the network"):
        list(read_crops(open_dataset(folder, spec=large), large))
    np.save(folder / "x.npy", NOISE)
    with pytest.raises(ImageError, match=r"images\[0\] has 40 x 50 pixels"):
        open_dataset(folder / "x.npy", spec=large).load(large)


def test_photographs_that_are_too_small_are_left_out_and_without_any_there_is_noise() -> None:
    few = default_dataset(restoring(600, 600), 16)
    assert few.chosen == "photographs"
    assert 0 < len(few) < 16
    assert few.load(restoring(600, 600)).shape == (len(few), 600, 600, 3)
    assert default_dataset(restoring(2000, 2000), 1).random


def test_noise_has_the_size_of_the_input() -> None:
    noise = random_images(restoring(), 2, 0)
    assert noise.pixels is not None
    assert np.array_equal(noise.load(restoring()), noise.pixels)


def test_other_sizes_take_the_same_images(folder: Path) -> None:
    for spec in other_sizes(restoring(40, 50)):
        assert open_dataset(folder, spec=spec).load(spec).shape == (3, spec.input.height, spec.input.width, 3)


def test_a_classifier_needs_a_resize_and_the_card_of_init_has_none_for_images(tmp_path: Path) -> None:
    text = card_to_fill_in(restoring(), "x.onnx")
    assert "resize =" not in text
    content = restoring().model_dump(by_alias=True)
    with pytest.raises(ValidationError, match=r"preprocess\.resize: missing"):
        ModelSpec.model_validate(content | {"task": "classification", "network": {"family": "onnx", "classes": 3}})
    (tmp_path / "x.toml").write_text(text)
    assert read_card(tmp_path / "x.toml").preprocess.resize is None
