"""Pairs of inputs and targets from folders and archives, and what does not fit together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from skdeploy.core.errors import UsageError
from skdeploy.core.spec import ModelSpec, TensorSpec
from skdeploy.images.pairs import open_pairs
from skdeploy.images.targets import check_classes
from skdeploy.zoo.cards import read_card
from tests.tiny import noise, spec_of

SPEC = spec_of(height=8, width=8, resize=10)


def gives(channels: int, spec: ModelSpec = SPEC) -> ModelSpec:
    shape = ("batch", channels, 8, 8)
    return spec.model_copy(update={"outputs": (TensorSpec(name="y", dtype="float32", shape=shape),)})


def write(folder: Path, name: str, pixels: NDArray[Any], **options: Any) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def pairs_in(folder: Path, inputs: str, targets: str, count: int = 3) -> Path:
    for index in range(count):
        write(folder, f"{inputs}/{index}.png", noise(12, 14, 3, seed=index))
        write(folder, f"{targets}/{index}.png", noise(12, 14, 3, seed=10 + index))
    return folder


@pytest.mark.parametrize(
    ("inputs", "targets"),
    [("input", "target"), ("blur", "sharp"), ("Hazy", "GT"), ("LQ", "HQ"), ("images", "masks"), ("low", "high")],
)
def test_folders_of_the_usual_names_are_pairs(tmp_path: Path, inputs: str, targets: str) -> None:
    pairs = open_pairs(pairs_in(tmp_path / "d", inputs, targets), gives(3))
    assert len(pairs) == 3
    crop, target = pairs.read(1, gives(3), "image")
    np.testing.assert_array_equal(
        crop, noise(12, 14, 3, seed=1)[2:10, 3:11]
    )  # nothing is resized, though the card says 10
    np.testing.assert_array_equal(target, noise(12, 14, 3, seed=11)[2:10, 3:11])


def test_pairs_may_lie_deeper_as_gopros_do(tmp_path: Path) -> None:
    for scene in ("GOPR1", "GOPR2"):
        pairs_in(tmp_path / "test" / scene, "blur", "sharp", 2)
    pairs = open_pairs(tmp_path, gives(3))
    assert [pairs.name_of(index) for index in range(len(pairs))] == [
        "test/GOPR1/blur/0.png",
        "test/GOPR1/blur/1.png",
        "test/GOPR2/blur/0.png",
        "test/GOPR2/blur/1.png",
    ]
    np.testing.assert_array_equal(pairs.read(3, gives(3), "image")[1], noise(12, 14, 3, seed=11)[2:10, 3:11])


def test_a_target_may_be_larger_and_is_cut_at_the_same_place(tmp_path: Path) -> None:
    write(tmp_path, "lr/a.png", noise(12, 14, 3))
    large = noise(24, 28, 3, seed=1)
    write(tmp_path, "hr/a.png", large)
    np.testing.assert_array_equal(open_pairs(tmp_path, gives(3)).read(0, gives(3), "image")[1], large[4:20, 6:22])


def test_an_archive_holds_pairs(tmp_path: Path) -> None:
    images, targets = noise(3, 12, 14, 3), noise(3, 12, 14, 3, seed=1)
    np.savez(tmp_path / "p.npz", images=images, targets=targets)
    pairs = open_pairs(tmp_path / "p.npz", gives(3)).take([2, 0])
    crop, target = pairs.read(0, gives(3), "image")
    np.testing.assert_array_equal(crop, images[2, 2:10, 3:11])
    np.testing.assert_array_equal(target, targets[2, 2:10, 3:11])


def test_a_mask_goes_the_way_of_its_image(tmp_path: Path) -> None:
    """Resized to 10 by the nearest neighbour, and cut to 8: computed here by index."""
    mask = (np.arange(20 * 20).reshape(20, 20) % 7).astype(np.uint8)
    write(tmp_path, "images/a.jpg", noise(20, 20, 3))
    write(tmp_path, "masks/a.png", mask)
    pairs = open_pairs(tmp_path, SPEC)
    crop, found = pairs.read(0, SPEC, "mask")
    assert crop.shape == (8, 8, 3)
    np.testing.assert_array_equal(found, mask[1::2, 1::2][1:9, 1:9])


def test_palette_masks_are_numbers_not_colours(tmp_path: Path) -> None:
    write(tmp_path, "images/a.png", noise(10, 10, 3))
    mask = np.full((10, 10), 2, np.uint8)
    image = Image.fromarray(mask, "P")
    image.putpalette([0, 0, 0, 255, 0, 0, 9, 99, 199])
    (tmp_path / "masks").mkdir()
    image.save(tmp_path / "masks/a.png")
    assert set(np.unique(open_pairs(tmp_path, SPEC).read(0, SPEC, "mask")[1])) == {2}


def refused(folder: Path, kind: Any = "image", spec: ModelSpec | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        open_pairs(folder, spec or gives(3)).read(0, spec or gives(3), kind)
    return f"{caught.value.message} | {caught.value.advice}"


def test_what_does_not_match_is_named(tmp_path: Path) -> None:
    folder = pairs_in(tmp_path / "d", "input", "target")
    (folder / "target/1.png").unlink()
    assert "1 of the 3 inputs" in refused(folder)
    assert "input/1.png" in refused(folder)
    write(folder, "target/1.png", noise(12, 14, 3))
    write(folder, "target/9.png", noise(12, 14, 3))
    assert "1 of the 4 targets" in refused(folder)
    assert "target/9.png" in refused(folder)


def test_other_layouts_are_refused_with_the_layout(tmp_path: Path) -> None:
    folder = pairs_in(tmp_path / "d", "cats", "dogs")
    assert "no folder of inputs; its folders of files are cats, dogs" in refused(folder)
    assert "input/ and target/" in refused(folder)
    pairs_in(folder, "input", "target")
    pairs_in(folder, "blur", "target")
    assert "several folders of inputs: blur, input" in refused(folder)
    np.savez(tmp_path / "p.npz", images=noise(3, 12, 14, 3), targets=noise(2, 12, 14, 3))
    assert "3 inputs and 2 targets" in refused(tmp_path / "p.npz")
    np.savez(tmp_path / "q.npz", images=noise(3, 12, 14, 3))
    assert "no array named 'targets'" in refused(tmp_path / "q.npz")


def test_a_target_of_another_size_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "input/a.png", noise(12, 14, 3))
    write(tmp_path, "target/a.png", noise(18, 14, 3))
    assert "target/a.png has 18 x 14 pixels, but its input 12 x 14" in refused(tmp_path)
    write(tmp_path, "target/a.png", noise(18, 14))
    assert "has 18 x 14 pixels, but its image 12 x 14" in refused(tmp_path, "mask")


def test_an_input_smaller_than_the_network_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "input/a.png", noise(7, 14, 3))
    write(tmp_path, "target/a.png", noise(7, 14, 3))
    assert "input/a.png has 7 x 14 pixels, but the network takes 8 x 8" in refused(tmp_path)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    folder = pairs_in(tmp_path / "d", "input", "target", 1)
    whole = (folder / "target/0.png").read_bytes()
    (folder / "target/0.png").write_bytes(whole[:60])
    assert f"cannot read the target {folder}/target/0.png" in refused(folder)
    (folder / "target/0.png").write_bytes(b"no image")
    assert "target/0.png: cannot identify image file" in refused(folder)
    assert "_Bounded" not in refused(folder)  # the object that Pillow read from
    (folder / "target/0.png").write_bytes(whole)
    (folder / "input/0.png").write_bytes(b"no image")
    assert f"cannot read the image {folder}/input/0.png" in refused(folder)


def test_a_colour_mask_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "images/a.png", noise(10, 10, 3))
    write(tmp_path, "masks/a.png", noise(10, 10, 3))
    assert "masks/a.png has colours (mode RGB)" in refused(tmp_path, "mask")


def test_values_beyond_the_classes_are_refused_and_255_is_not() -> None:
    mask = np.array([[0, 1, 255]])
    np.testing.assert_array_equal(check_classes(mask, 2, "m"), mask)
    with pytest.raises(UsageError, match="m holds the value 3, but the network has 3 classes, 0 to 2"):
        check_classes(np.array([[0, 3]]), 3, "m")


def test_one_class_is_written_as_1_or_as_255() -> None:
    np.testing.assert_array_equal(check_classes(np.array([[0, 255]]), 1, "m"), [[0, 1]])
    np.testing.assert_array_equal(check_classes(np.array([[0, 1]]), 1, "m"), [[0, 1]])


# ----- networks that take arrays

CUBES = """schema = 1
name = "cubes"
summary = "Five bands to a number"
task = "raw"
[[inputs]]
name = "cube"
shape = [5, 8, 8]
[network]
family = "module"
[source]
paper = ""
url = ""
licence = ""
[tolerance]
"""


def test_arrays_have_targets_of_any_shape_in_folders_and_archives(tmp_path: Path) -> None:
    (tmp_path / "card.toml").write_text(CUBES)
    spec = read_card(tmp_path / "card.toml")
    cubes = np.random.default_rng(0).normal(size=(3, 5, 8, 8)).astype(np.float32)
    for side in ("input", "target"):
        (tmp_path / "pairs" / side).mkdir(parents=True)
    for number, cube in enumerate(cubes):
        np.save(tmp_path / f"pairs/input/{number}.npy", cube)
        np.savez(tmp_path / f"pairs/target/{number}.npz", target=np.full(3, number))
    np.savez(tmp_path / "pairs.npz", cube=cubes, targets=np.arange(3))
    for place, expected in ((tmp_path / "pairs", [2, 2, 2]), (tmp_path / "pairs.npz", 2)):
        crop, target = open_pairs(place, spec).read(2, spec, "array")
        np.testing.assert_array_equal(crop["cube"], cubes[2])
        np.testing.assert_array_equal(target, expected)


def test_an_image_may_have_an_array_as_its_target(tmp_path: Path) -> None:
    """A depth in metres, say, which no image file holds."""
    write(tmp_path, "images/a.png", noise(10, 10, 3))
    (tmp_path / "gt").mkdir()
    np.save(tmp_path / "gt/a.npy", np.full((10, 10), 1.5))
    crop, target = open_pairs(tmp_path, SPEC).read(0, SPEC, "array")
    assert crop.shape == (8, 8, 3)
    assert target.shape == (10, 10)
