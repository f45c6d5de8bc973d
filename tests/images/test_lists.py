"""A list of images: what is read, and every way in which a line can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from skdeploy.core.errors import UsageError
from skdeploy.images.dataset import open_dataset
from tests.refused import refused
from tests.tiny import save


def test_a_list_is_read_in_its_own_order(tmp_path: Path) -> None:
    save(tmp_path, "b.png", "deep/a.png", "with, comma.png", "#x.png")
    lines = ["# photos of May", "", "deep/a.png", '  "with, comma.png"', "b.png  ", str(tmp_path / "b.png"), "./#x.png"]
    (tmp_path / "list.txt").write_text("\ufeff" + "\r\n".join(lines))
    dataset = open_dataset(tmp_path / "list.txt")
    names = [dataset.name_of(index) for index in range(len(dataset))]
    assert names == ["deep/a.png", "with, comma.png", "b.png", "b.png", "#x.png"]
    assert dataset.labels is None
    assert len(open_dataset(tmp_path / "list.txt", 2)) == 2


def test_a_list_may_give_labels(tmp_path: Path) -> None:
    save(tmp_path, "a.png", "b.png")
    (tmp_path / "list.txt").write_text("b.png,7\na.png, 0\n")
    dataset = open_dataset(tmp_path / "list.txt")
    assert dataset.labels.tolist() == [7, 0]
    assert [file.name for file in dataset.files] == ["b.png", "a.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png\n# gone\n\ngone.png\n", r"names 1 of 2 images that do not exist: line 4: 'gone\.png'\n"),
        ("\n".join(f"{i}.png" for i in range(7)), r"names 7 of 7 .*line 1: '0\.png', .*line 5: '4\.png' and 2 more\n"),
        ("a\0.png", r"line 1: 'a\\x00\.png'"),
        ("a" * 5000, "line 1: 'aaaa"),
        (".", "line 1: '.'"),
        ("a.png,cat", "line 1: the label 'cat' is not a whole number from 0"),
        ("a.png,-1", "line 1: the label '-1'"),
        ("a.png,1.5", "line 1: the label '1.5'"),
        ("a.png,", "line 1: the label ''"),
        ("a.png,1" + 30 * "0", "is not a whole number from 0"),
        ("a.png,1\na.png", "line 2 has no label, but others have one"),
        ("a.png\na.png\na.png,1", "line 1 has no label, but others have one"),
        ("a.png,1,2", "line 1: 3 fields"),
        ('"a.png', "cannot read the list"),
        ("", "no images in"),
        ("# nothing\n\n", "no images in"),
    ],
)
def test_a_list_that_is_wrong_is_refused_by_its_line(text: str, message: str, tmp_path: Path) -> None:
    save(tmp_path, "a.png")
    (tmp_path / "list.txt").write_text(text)
    with refused(UsageError, message):
        open_dataset(tmp_path / "list.txt")


def test_a_list_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(UsageError, match="not UTF-8 text"):
        open_dataset(tmp_path / "list.txt")


def test_a_list_reaches_a_name_with_a_line_break(tmp_path: Path) -> None:
    save(tmp_path, "a\nb.png")
    (tmp_path / "list.txt").write_text('"a\nb.png"')
    assert open_dataset(tmp_path / "list.txt").name_of(0) == r"a\nb.png"
