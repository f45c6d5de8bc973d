"""Pairs as they come from elsewhere: 16 bits, transparency, palettes, upper-case suffixes, other dtypes, empty folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from skdeploy.core.errors import UsageError
from skdeploy.images.pairs import open_pairs
from tests.images.test_pairs import SPEC, gives, pairs_in, refused, write
from tests.tiny import noise

MASK = noise(12, 14) % 3


def test_sixteen_bits_are_refused_on_either_side(tmp_path: Path) -> None:
    """As 8 bits they would lose what they are for, or be clipped to white."""
    folder = pairs_in(tmp_path, "input", "target", 1)
    deep = Image.fromarray(noise(12, 14).astype(np.uint16) * 257)
    deep.save(folder / "target/0.png")
    assert "target/0.png has more than 8 bits per channel" in refused(folder)
    write(folder, "target/0.png", noise(12, 14, 3))
    deep.save(folder / "input/0.png")
    assert "input/0.png" in (said := refused(folder))
    assert "8 bits" in said


def test_sixteen_bit_masks_hold_class_numbers(tmp_path: Path) -> None:
    write(tmp_path, "images/a.png", noise(10, 10, 3))
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.full((10, 10), 300, np.uint16)).save(tmp_path / "masks/a.png")
    assert set(np.unique(open_pairs(tmp_path, SPEC).read(0, SPEC, "mask")[1])) == {300}


def test_transparency_is_left_out_on_both_sides_alike(tmp_path: Path) -> None:
    pixels = noise(12, 14, 4)
    write(tmp_path, "input/a.png", pixels)
    write(tmp_path, "target/a.png", pixels)
    crop, target = open_pairs(tmp_path, gives(3)).read(0, gives(3), "image")
    np.testing.assert_array_equal(crop, target)
    np.testing.assert_array_equal(target, pixels[2:10, 3:11, :3])


def test_a_mask_with_transparency_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "images/a.png", noise(10, 10, 3))
    write(tmp_path, "masks/a.png", noise(10, 10, 2))
    assert "masks/a.png has colours (mode LA)" in refused(tmp_path, "mask")


def test_suffixes_in_capitals_are_the_same(tmp_path: Path) -> None:
    write(tmp_path, "images/a.PNG", noise(10, 10, 3))
    write(tmp_path, "masks/a.png", MASK[:10, :10])
    write(tmp_path, "images/b.JPG", noise(10, 10, 3), format="JPEG")
    np.save(tmp_path / "masks" / "b.npy", MASK[:10, :10])
    (tmp_path / "masks" / "b.npy").rename(tmp_path / "masks" / "b.NPY")
    pairs = open_pairs(tmp_path, SPEC)
    assert len(pairs) == 2
    for index in range(2):
        assert pairs.read(index, SPEC, "mask")[1].shape == (8, 8)


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint16", "bool"])
def test_masks_of_any_whole_numbers_are_taken(dtype: str, tmp_path: Path) -> None:
    masks = np.stack([MASK % 2 if dtype == "bool" else MASK] * 2).astype(dtype)
    np.savez(tmp_path / "p.npz", images=noise(2, 12, 14, 3), targets=masks)
    found = open_pairs(tmp_path / "p.npz", SPEC).read(1, SPEC, "mask")[1]
    assert found.dtype == np.int64
    assert found.max() <= 2


@pytest.mark.parametrize(
    ("arrays", "kind", "said"),
    [
        ({"targets": (MASK / 2)[None].astype(np.float32)}, "mask", "is not a mask of classes: float32"),
        ({"targets": -MASK[None].astype(np.int64)}, "mask", "which is not a class"),
        ({"targets": MASK[None].astype(np.int64) + 70_000}, "mask", "which is not a class"),
        ({"targets": noise(1, 12, 14, 3) / np.float32(255)}, "image", "is float32 of shape (12, 14, 3)"),
        ({"targets": noise(1, 12, 14, 3).astype(np.uint16)}, "image", "is uint16 of shape (12, 14, 3)"),
        ({"targets": np.zeros((0, 12, 14, 3), np.uint8)}, "image", "1 inputs and 0 targets"),
        ({"targets": np.array(None, object)}, "image", "object"),
        ({"images": noise(1, 12, 14, 3) / np.float32(255), "targets": noise(1, 12, 14, 3)}, "image", "float32"),
        ({"images": noise(0, 12, 14, 3), "targets": noise(0, 12, 14, 3)}, "image", "(0, 12, 14, 3)"),
    ],
)
def test_arrays_of_other_types_are_refused(
    arrays: dict[str, NDArray[Any]], kind: str, said: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "p.npz", **({"images": noise(1, 12, 14, 3)} | arrays))
    assert said in refused(tmp_path / "p.npz", kind)


@pytest.mark.parametrize("made", [(), ("input",), ("input", "target")])
def test_empty_folders_are_refused_with_the_layout(made: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    for name in made:
        (folder / name).mkdir()
    with pytest.raises(UsageError, match="no folder of inputs") as caught:
        open_pairs(folder, gives(3))
    assert "input/ and target/" in caught.value.advice


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none"):
        open_pairs(tmp_path / "none", gives(3))
