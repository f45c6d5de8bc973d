"""Where the parts of a job are kept: in a folder that nobody else can write to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from skdeploy.accuracy.kept_parts import KEPT_JOBS, parts_folder
from skdeploy.core.errors import UsageError
from tests.refused import refused
from tests.shards.parts import JOB


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "skdeploy/parts"


def test_it_is_made_for_this_user_alone(folder: Path) -> None:
    before = os.umask(0)
    try:
        assert parts_folder(JOB).parent == folder
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_parts_of_a_folder_that_others_may_write_to_are_not_taken(folder: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    with refused(UsageError, "other users may write to", "XDG_CACHE_HOME"):
        parts_folder(JOB)
    folder.rmdir()
    folder.write_text("")
    with refused(UsageError, "File exists", "XDG_CACHE_HOME"):
        parts_folder(JOB)


def test_links_that_lead_nowhere_and_old_jobs_end_nothing(folder: Path) -> None:
    folder.mkdir(parents=True, mode=0o700)
    (folder / "none").symlink_to("nowhere")
    for number in range(KEPT_JOBS + 3):
        (folder / str(number)).mkdir()
    parts_folder(JOB)
    assert len([each for each in folder.iterdir() if each.is_dir()]) < KEPT_JOBS
