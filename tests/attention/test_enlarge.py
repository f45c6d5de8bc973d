"""Enlarging the central object: what it does to areas, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from skdeploy.attention.enlarge import check_scales, enlarged, read_scales
from skdeploy.core.errors import UsageError
from skdeploy.images.decoding import crop_array
from tests.attention.networks import SIDE, spec_of, square


@pytest.mark.parametrize(("scale", "side"), [(1.0, 4), (1.5, 6), (2.0, 8), (3.0, 12), (4.0, 16)])
def test_the_area_of_a_centred_square_grows_with_the_square_of_the_scale(scale: float, side: int) -> None:
    crop = crop_array(square(4), enlarged(spec_of(), scale)).pixels
    assert np.array_equal(crop, square(side))
    assert np.count_nonzero(crop) == round(4 * 4 * scale**2)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_scale_1_is_what_the_network_sees_anyway(interpolation: str) -> None:
    photograph = np.random.default_rng(0).integers(0, 256, (40, 56, 1), dtype=np.uint8)
    spec = spec_of(resize=20, interpolation=interpolation)
    expected = crop_array(photograph, spec).pixels
    assert np.array_equal(crop_array(photograph, enlarged(spec, 1.0)).pixels, expected)
    assert not np.array_equal(crop_array(photograph, enlarged(spec, 1.25)).pixels, expected)


def test_a_photograph_is_cropped_to_its_centre_and_resized_once_with_the_cards_filter() -> None:
    photograph = np.random.default_rng(1).integers(0, 256, (64, 64), dtype=np.uint8)
    found = crop_array(photograph[..., None], enlarged(spec_of(interpolation="bilinear"), 2.0)).pixels[..., 0]
    # Pillow's own crop and resize in one step: the central half of the picture, with the pixels around it for the filter.
    expected = Image.fromarray(photograph).resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=(16, 16, 48, 48))
    assert np.abs(found.astype(int) - np.asarray(expected).astype(int)).max() <= 1  # two roundings to 8 bits, or one


def test_scales_come_in_ascending_order() -> None:
    assert check_scales(read_scales("2, 1.0,1.5"), spec_of()) == (1.0, 1.5, 2.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.0,big", "'big' is not a number"),
        ("1.0,,2.0", "'' is not a number"),
        ("1.0", "1 scale, but the experiment compares scales"),
        ("0.5,1.0", "0.5 is not from 1 to 4"),
        ("1.0,5", "5 is not from 1 to 4"),
        ("1.0,nan", "nan is not from 1 to 4"),
        ("1.0,inf", "inf is not from 1 to 4"),
        ("-1,2", "-1 is not from 1 to 4"),
        ("1.0,2,2.0", "2 and 2 both resize to 32 pixels"),
        ("1.0,1.01", "1 and 1.01 both resize to 16 pixels"),
    ],
)
def test_scales_that_make_no_sense_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        check_scales(read_scales(text), spec_of())
    assert message in error.value.message
    assert "--scales 1.0,1.5,2.0" in error.value.advice
