"""Class folders as people make them: links, deeper folders, strays, loops. What is taken is what torchvision would take."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from skdeploy.core.errors import UsageError
from skdeploy.images.dataset import open_dataset
from skdeploy.images.folders import read_folder
from skdeploy.images.labels import as_the_network_counts
from skdeploy.zoo.cards import load_card

FASHION, _ = load_card("sknet-fashion")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def samples(root: Path) -> list[tuple[str, int]]:
    """torchvision.datasets.folder's make_dataset in its own few steps, for PNG files."""
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    found = []
    for number, name in enumerate(classes):
        for below, _, files in sorted(os.walk(root / name, followlinks=True)):
            found += [(str(Path(below, file)), number) for file in sorted(files) if file.endswith(".png")]
    return found


def test_links_deep_folders_and_empty_classes_are_as_torchvision_has_them(tmp_path: Path) -> None:
    touch(tmp_path, "store/c/1.png", "store/c/2.png", "store/d/9.png")
    touch(tmp_path / "data", "a/1.png", "b/2019/may/1.png", "b/2020/1.png", "b/1.png", "e/1.png")
    (tmp_path / "data/empty").mkdir()
    (tmp_path / "data/c").symlink_to("../store/c")  # a class
    (tmp_path / "data/b/more").symlink_to(tmp_path / "store/d")  # a folder of a class
    (tmp_path / "data/e/2.png").symlink_to("../../store/d/9.png")  # an image
    found = read_folder(tmp_path / "data")
    assert found.classes == ("a", "b", "c", "e", "empty")
    ours = sorted(zip(map(str, found.files), found.labels, strict=True))
    assert ours == sorted(samples(tmp_path / "data"))
    assert len(ours) == 9


def test_links_that_lead_back_end_the_search(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/deep/1.png")
    for link, target in (("a/up", ".."), ("b/deep/self", "."), ("b/deep/above", ".."), ("loop", ".")):
        (tmp_path / link).symlink_to(target)
    found = read_folder(tmp_path)
    assert found.classes == ("a", "b")
    assert [file.relative_to(tmp_path).as_posix() for file in found.files] == ["a/1.png", "b/deep/1.png"]


def test_a_folder_linked_twice_in_a_class_is_read_once(tmp_path: Path) -> None:
    touch(tmp_path, "a/x/1.png", "b/1.png")
    (tmp_path / "a/y").symlink_to("x")
    assert len(read_folder(tmp_path).files) == 2


@pytest.mark.parametrize("link", ["a/2.png", "c", "a/more"])
def test_a_link_to_nothing_is_named(link: str, tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / link).symlink_to("gone")
    with pytest.raises(UsageError, match=f"cannot follow the link {tmp_path / link}"):
        open_dataset(tmp_path)


def test_a_link_to_itself_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "c").symlink_to("c")
    with pytest.raises(UsageError, match=r"cannot follow the link .*/c: Too many levels"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("bag/1.png", "coat/1.png", "stray.png"), "stray.png lies beside the class folders"),
        (("bag/1.png", "bag/2.png"), "all its files are in one folder: if .*/bag holds the class folders, give that"),
        (("all/bag/1.png", "all/coat/1.png"), "if .*/all holds the class folders, give that"),
        (("train/bag/1.png", "val/bag/2.png"), "parts of a data set, not classes: train, val"),
        (("1.png", "2.png"), "are not in class folders"),
    ],
)
def test_images_without_classes_say_why(names: tuple[str, ...], reason: str, tmp_path: Path) -> None:
    touch(tmp_path, *names)
    dataset = open_dataset(tmp_path)
    assert len(dataset) == len(names)  # calibration takes them all the same
    with pytest.raises(UsageError, match=f"accuracy needs labels, and .* has none: .*{reason}"):
        as_the_network_counts(dataset, FASHION)


def test_files_that_are_no_images_change_nothing(tmp_path: Path) -> None:
    touch(tmp_path, "bag/1.png", "coat/1.png")
    before = open_dataset(tmp_path)
    touch(tmp_path, ".DS_Store", "Thumbs.db", "README.md", "bag/.hidden.png", "bag/Thumbs.db", ".cache/x/1.png")
    after = open_dataset(tmp_path)
    assert (after.files, after.classes, after.notes) == (before.files, before.classes, ())


def test_images_of_other_kinds_are_said(tmp_path: Path) -> None:
    touch(tmp_path, "bag/1.png", "coat/1.png", "coat/2.GIF", "coat/3.gif", "bag/x.heic")
    (note,) = open_dataset(tmp_path).notes
    assert "2 .gif, 1 .heic (first: bag/x.heic)" in note
    touch(tmp_path / "only", "x.gif")
    with pytest.raises(UsageError, match=r"no images in .*1 \.gif"):
        open_dataset(tmp_path / "only")


def test_a_class_folder_that_may_not_be_listed_is_named(
    tmp_path: Path, modes_bind: Callable[[], AbstractContextManager[None]]
) -> None:
    touch(tmp_path, "a/1.png", "b/deep/1.png")
    (tmp_path / "b/deep").chmod(0)
    with modes_bind(), pytest.raises(UsageError, match=f"cannot list the images in {tmp_path}/b/deep: Permission"):
        open_dataset(tmp_path)
