"""The file of a part: what is written is read, and anything else is refused, naming the file."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import zipfile
from pathlib import Path
from random import Random

import numpy as np
import pytest

from skdeploy.core.errors import IntegrityError
from skdeploy.shards.part import MAGIC, decode, earlier_part, read_part, write_part
from tests.disk_limit import file_size_limit
from tests.shards.parts import part_of
from tools.torture.mutate import of_part


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


def test_damage_behind_the_digest_is_refused_too() -> None:
    """Whoever changes a part can take its digest anew. Archives that are packed, encrypted or claim a lot; any header."""
    content = part_of(1).encode()
    refused = []
    for seed in range(400):
        try:
            decode(of_part(content, Random(seed)), "part-x")
        except IntegrityError as error:
            refused.append(error.message)
    assert len(refused) > 200
    assert all("part-x" in message for message in refused)


def test_a_part_holds_no_more_than_its_bytes() -> None:
    """1 TB of zeros that 1 kB claims to be."""
    packed = io.BytesIO()
    header = (
        b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000,), }".ljust(117)
        + b"\n"
    )
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("logits0.npy", header)
    rest = part_of(1).header.model_dump_json().encode() + b"\n" + packed.getvalue()
    content = b"%s %s\n%s" % (MAGIC, hashlib.sha256(rest).hexdigest().encode(), rest)
    with pytest.raises(IntegrityError, match="the file holds 128 bytes"):
        decode(content, "part-x")


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
