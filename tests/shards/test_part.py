"""The file of a part: what is written is read, and anything else is refused, naming the file."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from skdeploy.core.errors import IntegrityError
from skdeploy.shards.part import decode, earlier_part, read_part, write_part
from tests.disk_limit import file_size_limit
from tests.shards.parts import part_of


def test_a_part_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = part_of(2)
    write_part(tmp_path / "part-2", written.encode())
    found = read_part(tmp_path / "part-2")
    assert found.header == written.header
    np.testing.assert_array_equal(found.arrays["logits0"], written.arrays["logits0"])
    assert found.name == str(tmp_path / "part-2")


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.6, 0.99])
def test_a_part_that_is_cut_off_is_refused(share: float) -> None:
    content = part_of(1).encode()
    with pytest.raises(IntegrityError, match="part-x"):
        decode(content[: int(share * len(content))], "part-x")


def test_any_changed_byte_is_found() -> None:
    content = part_of(1).encode()
    for place in range(len(content)):
        spoilt = bytearray(content)
        spoilt[place] ^= 1
        with pytest.raises(IntegrityError, match="part-x"):
            decode(bytes(spoilt), "part-x")


def test_a_file_of_another_kind_and_one_that_is_missing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a,1\n")
    with pytest.raises(IntegrityError, match=r"list\.txt is not a part"):
        read_part(tmp_path / "list.txt")
    with pytest.raises(IntegrityError, match="gone: No such file"):
        read_part(tmp_path / "gone")


def test_a_part_that_is_there_is_found_and_a_damaged_one_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "part-1"
    assert earlier_part(path) is None
    write_part(path, part_of(1).encode())
    found = earlier_part(path)
    assert found is not None
    path.write_bytes(path.read_bytes()[:-1])
    assert earlier_part(path) is None


def write_often(path: Path, index: int) -> None:
    for _ in range(100):
        write_part(path, part_of(index).encode())


def test_two_runs_into_one_file_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "part"
    write_part(path, part_of(1).encode())
    context = multiprocessing.get_context("fork")
    runs = [context.Process(target=write_often, args=(path, index)) for index in (1, 2)]
    for run in runs:
        run.start()
    seen = set()
    while any(run.is_alive() for run in runs):
        seen.add(read_part(path).header.index)  # whole at any moment
    assert all(run.exitcode == 0 for run in runs)
    assert seen <= {1, 2}
    assert [file.name for file in tmp_path.iterdir()] == ["part"]


def test_a_full_disk_leaves_the_earlier_part_whole(tmp_path: Path) -> None:
    path = tmp_path / "part"
    write_part(path, part_of(1).encode())
    content = part_of(2).encode()
    with file_size_limit(len(content) // 2), pytest.raises(IntegrityError, match="no space left"):
        write_part(path, content)
    assert read_part(path).header.index == 1
    assert [file.name for file in tmp_path.iterdir()] == ["part"]
