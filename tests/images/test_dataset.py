"""Images from a folder, a file or an array: what is taken, in which order, and what is refused."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from skdeploy.core.errors import DependencyError, UsageError
from skdeploy.images.dataset import PHOTOGRAPHS, Dataset, default_dataset, open_dataset, photographs
from skdeploy.zoo.cards import load_card
from tests.refused import refused
from tests.tiny import noise, save, spec, spec_of

FASHION = Path(__file__).parents[2] / "calibration/fashion"


def test_a_folder_is_read_in_the_order_of_its_sorted_names(tmp_path: Path) -> None:
    save(tmp_path, "b/2.PNG", "a/9.png", "b/10.png", "c.png")
    (tmp_path / "a/readme.txt").write_text("not an image")
    names = [path.relative_to(tmp_path).as_posix() for path in open_dataset(tmp_path).files]
    assert names == ["a/9.png", "b/10.png", "b/2.PNG", "c.png"]
    assert len(open_dataset(tmp_path, 2)) == 2


@pytest.mark.parametrize(
    ("name", "message", "advice"),
    [
        (".", "no images in", ".png"),
        ("gone", "no images at .*gone:", "give a folder"),
        ("gone.npz", r"no images at .*gone\.npz:", "give a folder"),
        ("gone.png", r"no images at .*gone\.png:", "give a folder"),
        ("x.md", "is not an image", "give a folder"),
    ],
)
def test_a_place_without_images_is_named(name: str, message: str, advice: str, tmp_path: Path) -> None:
    (tmp_path / "x.md").write_text("hello")
    with refused(UsageError, message, advice):
        open_dataset(tmp_path / name)


@pytest.mark.parametrize("limit", [0, -1])
def test_no_images_at_all_are_refused(limit: int, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", noise(3, 36, 36))
    for call in (lambda: open_dataset(tmp_path / "x.npy", limit), lambda: photographs(limit)):
        with pytest.raises(UsageError, match="at least 1"):
            call()


def test_opening_decodes_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no picture")
    (tmp_path / "list.txt").write_text("x.png")
    assert len(open_dataset(tmp_path)) == len(open_dataset(tmp_path / "list.txt")) == 1


# ----- a folder that holds an archive


def test_a_folder_with_an_archive_and_no_images_means_the_archive(tmp_path: Path) -> None:
    np.savez(tmp_path / "calibration.npz", images=noise(3, 36, 36))
    np.savez(tmp_path / "evaluation.npz", images=noise(5, 36, 36))
    assert (open_dataset(tmp_path).name, len(open_dataset(tmp_path, 2))) == ("calibration.npz", 2)
    assert len(open_dataset(tmp_path, archive="evaluation.npz")) == 5
    assert len(open_dataset(FASHION)) == 512


def test_a_folder_with_an_archive_and_images_is_ambiguous(tmp_path: Path) -> None:
    np.savez(tmp_path / "calibration.npz", images=noise(3, 36, 36))
    save(tmp_path, "x.png")
    with pytest.raises(UsageError, match=r"holds both calibration\.npz and 1 image files"):
        open_dataset(tmp_path)
    assert len(open_dataset(tmp_path, archive="evaluation.npz")) == 1


# ----- class folders


def test_class_folders_give_labels_in_the_order_of_their_names(tmp_path: Path) -> None:
    save(tmp_path, "cat/2.png", "cat/1.png", "Zebra/1.png", "ant/1.png")
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("Zebra", "ant", "cat")
    assert [dataset.name_of(index) for index in range(4)] == ["Zebra/1.png", "ant/1.png", "cat/1.png", "cat/2.png"]
    assert dataset.labels.tolist() == [0, 1, 2, 2]
    first = open_dataset(tmp_path, 2)
    assert (first.labels.tolist(), first.classes) == ([0, 1], dataset.classes)


# ----- hostile names


@pytest.mark.parametrize("name", ["a\nb", "tab\there", "\x1b[31mred", "r\u202etl", os.fsdecode(b"latin-\xe9")])
def test_a_name_that_does_not_print_is_escaped_and_its_image_read(name: str, tmp_path: Path) -> None:
    save(tmp_path, f"{name}/{name}.png", "b/1.png")
    dataset = open_dataset(tmp_path)
    names = [dataset.name_of(index) for index in range(2)]
    assert all(shown.isprintable() and shown.encode() for shown in (*names, *dataset.classes))
    assert len(set(names)) == 2
    assert dataset.load(spec_of()).shape == (2, 32, 32, 3)
    assert open_dataset(tmp_path / name).name.isprintable()


def test_a_name_in_any_script_is_shown_as_it_is(tmp_path: Path) -> None:
    save(tmp_path, "写真 été.png")
    (tmp_path / "list.txt").write_text("写真 été.png")
    for source in (tmp_path, tmp_path / "list.txt"):
        assert open_dataset(source).name_of(0) == "写真 été.png"


# ----- choosing


def test_chosen_images_keep_label_name_and_place(tmp_path: Path) -> None:
    images = noise(5, 36, 36, 3)
    np.savez(tmp_path / "x.npz", images=images, labels=[10, 11, 12, 13, 14])
    chosen = open_dataset(tmp_path / "x.npz").take([4, 1, 2]).take([0, 2])
    assert np.array_equal(chosen.pixels, images[[4, 2]])
    assert chosen.labels.tolist() == [14, 12]
    assert [chosen.name_of(0), chosen.name_of(1)] == ["images[4]", "images[2]"]
    save(tmp_path / "f", "a/0.png", "b/0.png", "b/1.png")
    files = open_dataset(tmp_path / "f").take([2, 0])
    assert ([files.name_of(0), files.name_of(1)], files.labels.tolist()) == (["b/1.png", "a/0.png"], [1, 0])


# ----- arrays


@pytest.mark.parametrize(("shape", "channels"), [((2, 36, 36), 1), ((2, 36, 36, 1), 1), ((2, 36, 36, 3), 3)])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_of_raw_pixels_are_images(shape: tuple[int, ...], channels: int, suffix: str, tmp_path: Path) -> None:
    images = noise(*shape)
    path = tmp_path / f"x{suffix}"
    if suffix == ".npy":
        np.save(path, images)
    else:
        np.savez_compressed(path, images=images, labels=np.arange(2))
    dataset = open_dataset(path, 1)
    assert len(dataset) == 1
    assert dataset.labels is None if suffix == ".npy" else np.array_equal(dataset.labels, [0])
    found = dataset.load(spec_of(channels, resize=36))
    assert np.array_equal(found[0], images.reshape(2, 36, 36, channels)[0, 2:34, 2:34])


@pytest.mark.parametrize("shape", [(8, 8), (2, 8, 8, 2), (2, 3, 8, 8), (2, 8, 8, 3, 1), (0, 8, 8, 3)], ids=str)
def test_arrays_of_another_shape_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=noise(*shape))
    advice = "images.transpose(0, 2, 3, 1)" if shape == (2, 3, 8, 8) else "raw uint8 pixels"
    with refused(UsageError, re.escape(f"holds uint8 of shape {shape}"), advice):
        open_dataset(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("images", "looks", "undo"),
    [
        (
            np.linspace(-2.1, 2.6, 192, dtype=np.float32),
            "from -2.1 to 2.6: these seem to be normalised already",
            "before mean and std",
        ),
        (np.linspace(0, 1, 192), "from 0 to 1: pixels scaled to 0..1", "np.rint(255 * images).astype(np.uint8)"),
        (np.linspace(0, 255, 192, dtype=np.float16), "from 0 to 255: pixels of 0..255 in", "np.rint(images).astype"),
        (np.arange(192), "from 0 to 191: pixels of 0..255 in the wrong type", "np.rint(images).astype(np.uint8)"),
        (np.arange(192, dtype=np.uint16) * 300, "more than 8 bits per channel", ""),
        (np.full(192, np.nan), "not finite", ""),
    ],
)
def test_what_an_array_of_other_values_looks_like_is_told(images: Any, looks: str, undo: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=images.reshape(1, 8, 8, 3))
    with refused(UsageError, f"holds {images.dtype} .*{looks}", undo):
        open_dataset(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.array([0.0, 1.0]), "not class numbers: float64 from 0.0 to 1.0"),
        (np.array([-1, 0]), "not class numbers: int64 from -1 to 0"),
        (np.array(["a", "b"]), "not class numbers: <U1"),
        (np.arange(3), r"2 inputs and labels of shape \(3,\)"),
        (np.zeros((2, 5)), r"2 inputs and labels of shape \(2, 5\)"),
        (np.int64(1), r"2 inputs and labels of shape \(\)"),
    ],
)
def test_labels_that_are_not_a_class_number_an_image_are_refused(labels: Any, words: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=noise(2, 8, 8), labels=labels)
    with refused(UsageError, words):
        open_dataset(tmp_path / "x.npz")


def test_an_npz_without_images_says_what_it_has(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=noise(2, 8, 8), y=noise(2))
    with pytest.raises(UsageError, match="no array named 'images', only 'x', 'y'"):
        open_dataset(tmp_path / "x.npz")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_a_truncated_array_is_refused(share: float, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    np.savez_compressed(path, images=noise(4, 36, 36)) if suffix == ".npz" else np.save(path, noise(4, 36, 36))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with refused(UsageError, f"cannot read {path}"):
        open_dataset(path)


def test_the_kind_of_an_array_file_is_told_by_its_content(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", noise(2, 36, 36))
    (tmp_path / "x.npy").rename(tmp_path / "x.npz")
    assert len(open_dataset(tmp_path / "x.npz")) == 2
    np.savez(tmp_path / "y.npz", images=noise(3, 36, 36))
    (tmp_path / "y.npz").rename(tmp_path / "y.npy")
    assert len(open_dataset(tmp_path / "y.npy")) == 3


# ----- what was measured


def test_the_digest_is_of_the_images_in_their_order(tmp_path: Path) -> None:
    images = noise(2, 36, 36, 3)
    others = (images, images[::-1], images[:1], images.reshape(2, 36, 108, 1))
    digests = {Dataset("a", pixels=pixels).digest for pixels in others}
    assert len(digests) == 4
    assert Dataset("b", pixels=images.copy()).digest in digests
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    files = tuple(sorted(tmp_path.iterdir()))
    assert Dataset("a", files=files).digest != Dataset("a", files=files[::-1]).digest


# ----- the card's own


def test_the_default_photographs_are_there_and_as_many_as_asked_for() -> None:
    card, _ = load_card("sknet50")
    assert len(default_dataset(card, 64)) == len(PHOTOGRAPHS)
    three = default_dataset(card, 3)
    assert [file.name for file in three.files] == list(PHOTOGRAPHS[:3])
    assert three.load(card).shape == (3, 224, 224, 3)


def test_a_cards_own_images_come_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # not found by luck of the current folder
    card, _ = load_card("sknet-fashion")
    dataset = default_dataset(card, 8)
    assert dataset.pixels is not None
    assert np.array_equal(dataset.load(card), dataset.pixels)  # 28 x 28 already
    assert len(dataset) == 8


def test_images_that_the_card_names_in_vain_are_named() -> None:
    card = spec().model_copy(update={"parity_images": "none/such.npz"})
    with pytest.raises(UsageError, match=r"calibration/none/such\.npz"):
        default_dataset(card, 1)


def test_photographs_that_are_missing_are_a_missing_dependency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    (tmp_path / "skimage").mkdir()
    (tmp_path / "skimage/__init__.py").touch()
    monkeypatch.delitem(sys.modules, "skimage", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with refused(DependencyError, r"does not have the photographs astronaut\.png"):
        photographs()
