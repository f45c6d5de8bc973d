"""A file is written whole or not at all, and its digest is what it says."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import socket
import tracemalloc
from pathlib import Path

import pytest
from pydantic import ValidationError

from skdeploy.bundle.artifact import Artifact, recipe_key, tool_versions
from skdeploy.core.errors import IntegrityError, UsageError
from skdeploy.core.files import (
    digest_file,
    digest_json,
    open_file,
    read_file,
    write_error,
    write_text,
    written_whole,
)
from tests.disk_limit import file_size_limit


def fail_to_write(path: Path) -> None:
    with written_whole(path) as partial:
        partial.write_text("half")
        raise ZeroDivisionError


def test_a_file_appears_under_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "engines/x.engine"
    with written_whole(path) as partial:
        partial.write_bytes(b"half")
        assert not path.exists()
        assert partial.parent == path.parent  # a rename within one folder is atomic
    assert path.read_bytes() == b"half"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError):
        fail_to_write(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_and_says_how_to_go_on(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with file_size_limit(10_000), pytest.raises(IntegrityError) as error:
        write_text(path, "new" * 10_000)
    assert error.value.exit_code == 9
    assert f"no space left to write {path}" in error.value.message
    assert "run the same command again" in error.value.advice
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_removes_the_folders_that_were_made_for_the_file(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ZeroDivisionError):
        fail_to_write(tmp_path / "there/made/made too/x")
    assert [entry.name for entry in tmp_path.rglob("*")] == ["there"]


def test_a_folder_that_cannot_be_made_leaves_none_of_those_above_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name too long"):
        write_text(tmp_path / "made" / ("long" * 100) / "x", "text")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_that_was_there_before_stays(tmp_path: Path) -> None:
    (tmp_path / "engines").mkdir()
    with pytest.raises(ZeroDivisionError):
        fail_to_write(tmp_path / "engines/x")
    assert [entry.name for entry in tmp_path.rglob("*")] == ["engines"]


def test_what_another_process_puts_into_a_new_folder_stays(tmp_path: Path) -> None:
    folder = tmp_path / "made/made too"

    def fail() -> None:
        with written_whole(folder / "x"):
            (folder.parent / "other").write_text("another's")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [entry.relative_to(tmp_path).as_posix() for entry in tmp_path.rglob("*")] == ["made", "made/other"]


def test_a_folder_that_another_process_makes_at_the_same_time_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, is_dir, asked = tmp_path / "engines", Path.is_dir, []

    def not_yet_there(path: Path) -> bool:
        """The other process makes the folder right after this one has found none."""
        if path == folder and not asked:
            asked.append(path)
            folder.mkdir()
            return False
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", not_yet_there)
    with pytest.raises(ZeroDivisionError):
        fail_to_write(folder / "x")
    assert asked
    assert list(tmp_path.iterdir()) == [folder]
    write_text(folder / "x", "text")
    assert (folder / "x").read_text() == "text"


def test_a_new_folder_that_another_process_has_removed_is_no_other_error(tmp_path: Path) -> None:
    def fail() -> None:
        with written_whole(tmp_path / "made/x"):
            (tmp_path / "made").rmdir()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("/proc/x", "No such file"),
        ("folder", "Is a directory"),
        ("file/x", "File exists"),
        ("n" * 234, "File name too long"),
    ],
    ids=["proc", "folder", "file", "name"],
)
def test_a_place_that_takes_no_file_is_told_before_the_work(tmp_path: Path, place: str, why: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("a file")
    with pytest.raises(UsageError, match=f"cannot write .*: {why}"), written_whole(tmp_path / place):
        pytest.fail("minutes of work")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "a file"


def test_the_longest_name_that_the_advice_allows_is_written(tmp_path: Path) -> None:
    advised = write_error(Path("x"), OSError(errno.ENAMETOOLONG, "why")).advice
    path = tmp_path / ("n" * int(re.findall("[0-9]+", advised)[0]))
    write_text(path, "x")
    assert path.read_text() == "x"


@pytest.mark.parametrize(
    ("code", "kind", "exit_code"),
    [
        (errno.ENOSPC, IntegrityError, 9),
        (errno.EDQUOT, IntegrityError, 9),
        (errno.EFBIG, IntegrityError, 9),
        (errno.EIO, IntegrityError, 9),
        (errno.EROFS, UsageError, 2),
        (errno.EACCES, UsageError, 2),
        (errno.ENAMETOOLONG, UsageError, 2),
        (errno.ELOOP, UsageError, 2),
    ],
)
def test_what_the_system_says_decides_whose_error_it_is(code: int, kind: type[Exception], exit_code: int) -> None:
    error = write_error(Path("x"), OSError(code, "why"))
    assert type(error) is kind
    assert error.exit_code == exit_code
    assert "x: why" in error.message
    assert "--output" not in error.advice  # not every verb has it


def test_the_digest_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5_000  # more than one buffer
    (tmp_path / "x").write_bytes(content)
    assert digest_file(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def test_a_file_that_cannot_be_read_has_no_digest(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"cannot read .*: No such file"):
        digest_file(tmp_path / "gone")


def test_the_digest_of_a_value_does_not_depend_on_the_order_of_keys() -> None:
    assert digest_json({"a": 1, "b": [2]}) == digest_json({"b": [2], "a": 1})
    assert digest_json({"a": 1}) != digest_json({"a": 2})


def test_a_stages_key_depends_on_each_of_its_parts() -> None:
    same = recipe_key("s", {"a": "1"}, {"o": 1}, {"t": "1"})
    assert same == recipe_key("s", {"a": "1"}, {"o": 1}, {"t": "1"})
    others = {
        recipe_key("x", {"a": "1"}, {"o": 1}, {"t": "1"}),
        recipe_key("s", {"a": "2"}, {"o": 1}, {"t": "1"}),
        recipe_key("s", {"a": "1"}, {"o": 2}, {"t": "1"}),
        recipe_key("s", {"a": "1"}, {"o": 1}, {"t": "2"}),
    }
    assert len(others | {same}) == 5


def test_a_tool_that_is_not_installed_is_absent() -> None:
    versions = tool_versions(("numpy", "no-such-distribution"))
    assert versions["numpy"][0].isdigit()
    assert versions["no-such-distribution"] == "absent"


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "", ".", "a\\b"])
def test_an_artifact_lies_inside_its_bundle(path: str) -> None:
    row = {"format": "onnx", "precision": None, "sha256": "0" * 64, "size_bytes": 1, "facts": {"station": "s"}}
    provenance = {"key": "k", "parents": {}, "options": {}, "tools": {}, "seconds": 0.0}
    assert Artifact.model_validate(row | {"path": "engines/x", "provenance": provenance}).path == "engines/x"
    with pytest.raises(ValidationError):
        Artifact.model_validate(row | {"path": path, "provenance": provenance})


def test_only_files_of_a_bounded_size_are_opened(tmp_path: Path) -> None:
    file, pipe = tmp_path / "x", tmp_path / "pipe"
    file.write_bytes(b"12345")
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        assert read_file(file, 5) == b"12345"
        for path, reason in (
            (pipe, "it is a pipe, not a file"),
            (tmp_path, "it is a folder, not a file"),
            (Path("/dev/null"), "it is a device, not a file"),
            (tmp_path / "socket", "No such device or address"),
            (tmp_path / "gone", "No such file or directory"),
            (tmp_path / "n\0ul", "a file name cannot hold the character NUL"),
        ):
            with pytest.raises(OSError, match=re.escape(f"] {reason}: ")):
                open_file(path)
    with pytest.raises(OSError, match="it has 5 bytes; at most 4 are read"):
        read_file(file, 4)


def test_a_length_beyond_the_end_of_a_file_reserves_no_memory(tmp_path: Path) -> None:
    """As of a PNG whose chunk says that it has 2 GB: CPython reserves what it is asked for before it reads."""
    (tmp_path / "x").write_bytes(bytes(range(256)) * 8192)  # 2 MiB
    tracemalloc.start()
    try:
        with open_file(tmp_path / "x") as file:
            file.seek(10)
            assert file.read(1 << 31) == (bytes(range(256)) * 8192)[10:]
            assert file.read(1 << 31) == b""
            file.seek(5 << 20)
            assert file.read(1 << 31) == b""
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_file_that_is_not_taken_is_closed_again(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(50):
        with pytest.raises(OSError, match="at most 4"):
            open_file(tmp_path / "x", 4)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_two_processes_with_one_process_id_never_share_a_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process of each container has the id 1, and a volume may be in many of them."""
    monkeypatch.setattr("os.getpid", lambda: 1)
    target = tmp_path / "x"
    with written_whole(target) as first:
        first.write_text("first")
        with written_whole(target) as second:
            assert second != first
            second.write_text("second")
        assert target.read_text() == "second"
        assert first.read_text() == "first"
    assert target.read_text() == "first"
