"""A file is written whole or not at all, and its digest is what it says."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import pytest
from pydantic import ValidationError

from skdeploy.bundle.artifact import (
    Artifact,
    digest_file,
    digest_json,
    stage_key,
    tool_versions,
    write_error,
    write_text,
    written_whole,
)
from skdeploy.errors import IntegrityError, UsageError
from tests.disk_limit import file_size_limit


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

    def fail() -> None:
        with written_whole(path) as partial:
            partial.write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
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


def test_a_file_in_the_way_of_a_folder_is_the_users_to_move(tmp_path: Path) -> None:
    (tmp_path / "engines").write_text("a file")
    with pytest.raises(UsageError, match="cannot write") as error:
        write_text(tmp_path / "engines/x.engine", "plan")
    assert error.value.exit_code == 2
    assert (tmp_path / "engines").read_text() == "a file"


def test_a_folder_in_the_way_of_a_file_is_the_users_to_move(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(UsageError, match="Is a directory"):
        write_text(tmp_path / "x", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(
    ("code", "kind", "exit_code"),
    [
        (errno.ENOSPC, IntegrityError, 9),
        (errno.EDQUOT, IntegrityError, 9),
        (errno.EFBIG, IntegrityError, 9),
        (errno.EIO, IntegrityError, 9),
        (errno.EROFS, UsageError, 2),
        (errno.EACCES, UsageError, 2),
    ],
)
def test_what_the_system_says_decides_whose_error_it_is(code: int, kind: type[Exception], exit_code: int) -> None:
    error = write_error(Path("x"), OSError(code, "why"))
    assert type(error) is kind
    assert error.exit_code == exit_code
    assert "x: why" in error.message


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
    same = stage_key("s", {"a": "1"}, {"o": 1}, {"t": "1"})
    assert same == stage_key("s", {"a": "1"}, {"o": 1}, {"t": "1"})
    others = {
        stage_key("x", {"a": "1"}, {"o": 1}, {"t": "1"}),
        stage_key("s", {"a": "2"}, {"o": 1}, {"t": "1"}),
        stage_key("s", {"a": "1"}, {"o": 2}, {"t": "1"}),
        stage_key("s", {"a": "1"}, {"o": 1}, {"t": "2"}),
    }
    assert len(others | {same}) == 5


def test_a_tool_that_is_not_installed_is_absent() -> None:
    versions = tool_versions(("numpy", "no-such-distribution"))
    assert versions["numpy"][0].isdigit()
    assert versions["no-such-distribution"] == "absent"


@pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "", ".", "a\\b"])
def test_an_artifact_lies_inside_its_bundle(path: str) -> None:
    row = {"format": "onnx", "precision": None, "sha256": "0" * 64, "size_bytes": 1}
    provenance = {"stage": "s", "key": "k", "parents": {}, "options": {}, "tools": {}, "seconds": 0.0}
    assert Artifact.model_validate(row | {"path": "engines/x", "provenance": provenance}).path == "engines/x"
    with pytest.raises(ValidationError):
        Artifact.model_validate(row | {"path": path, "provenance": provenance})
