"""Whose files are loaded as engines, and whose are not."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from skdeploy.backends.engine_cache import DIGESTS, default_root, engine_folder, is_whole
from skdeploy.core.errors import UsageError

ENGINE = "TensorrtExecutionProvider_TRTKernel_graph_0_0_sm89.engine"


def filled(root: Path) -> Path:
    with engine_folder(root, "key") as folder:
        (folder / ENGINE).write_bytes(b"native code, perhaps")
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {DIGESTS, ".lock"}


@pytest.mark.parametrize("mask", [0o002, 0o022, 0o077])
def test_every_folder_that_it_makes_is_this_users_alone(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        folder = filled(tmp_path / "cache" / "engines")
    finally:
        os.umask(before)
    assert [part.stat().st_mode & 0o777 for part in (folder, *folder.parents[:2])] == [0o700] * 3


def test_what_was_written_is_there_the_next_time(tmp_path: Path) -> None:
    before = (filled(tmp_path) / ENGINE).stat()
    with engine_folder(tmp_path, "key") as folder:
        assert names(folder) == {ENGINE}
        assert (folder / ENGINE).stat().st_mtime_ns == before.st_mtime_ns
    with engine_folder(tmp_path, "another") as folder:
        assert names(folder) == set()


@pytest.mark.parametrize("damage", ["changed", "cut short", "added", "linked", "digests", "no digests"])
def test_what_is_not_as_it_was_written_is_not_loaded(tmp_path: Path, damage: str) -> None:
    folder = filled(tmp_path)
    assert is_whole(folder)
    engine = folder / ENGINE
    if damage == "changed":
        engine.write_bytes(engine.read_bytes().replace(b"native", b"foreig"))
    elif damage == "cut short":
        engine.write_bytes(engine.read_bytes()[:-1])
    elif damage == "added":
        (folder / "another.engine").write_bytes(b"from elsewhere")
    elif damage == "linked":
        (folder / "another.engine").symlink_to("nowhere")
    elif damage == "digests":
        (folder / DIGESTS).write_text("{")
    else:  # a run that was killed before they were written
        (folder / DIGESTS).unlink()
    assert not is_whole(folder)
    with engine_folder(tmp_path, "key") as folder:
        assert names(folder) == set()
    assert is_whole(folder)


def test_a_build_that_failed_leaves_nothing_to_load(tmp_path: Path) -> None:
    def fail() -> None:
        with engine_folder(tmp_path, "key") as folder:
            (folder / ENGINE).write_bytes(b"half an eng")
            raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        fail()
    with engine_folder(tmp_path, "key") as folder:
        assert names(folder) == set()


@pytest.mark.parametrize("who", ["group", "others"])
@pytest.mark.parametrize("where", ["key", "root", "above"])
def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path, who: str, where: str) -> None:
    root = tmp_path / "above" / "engines"
    filled(root)
    shared = {"key": root / "key", "root": root, "above": tmp_path / "above"}[where]
    shared.chmod(0o720 if who == "group" else 0o702)
    with pytest.raises(UsageError, match=f"other users can write to {shared} ") as refusal, engine_folder(root, "key"):
        pytest.fail("the folder was given")
    assert "cache=off" in refusal.value.advice
    assert (root / "key" / ENGINE).exists()  # what is not ours to judge is left alone


def test_a_sticky_folder_above_is_as_good_as_tmp(tmp_path: Path) -> None:
    above = tmp_path / "above"
    above.mkdir()
    above.chmod(0o1777)
    filled(above / "engines")
    (above / "engines").chmod(0o1777)  # but not the folder itself: anyone may add an engine to it
    (above / "engines" / "key").chmod(0o1777)
    with pytest.raises(UsageError, match="other users can write"), engine_folder(above / "engines", "key"):
        pytest.fail("the folder was given")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = filled(tmp_path)
    os.chown(folder, 65534, 65534)
    with pytest.raises(UsageError, match="owner 65534"), engine_folder(tmp_path, "key"):
        pytest.fail("the folder was given")


def test_a_place_that_takes_no_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"), engine_folder(tmp_path / "file", "key"):
        pytest.fail("the folder was given")


def _hold(root: Path, held: object, seconds: float) -> None:
    with engine_folder(root, "key") as folder:
        held.set()  # type: ignore[attr-defined]  # an Event of multiprocessing
        time.sleep(seconds)
        (folder / ENGINE).write_bytes(b"built by the first")


def test_a_second_process_waits_and_finds_the_engine(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    first = context.Process(target=_hold, args=(tmp_path, held, 0.5))
    first.start()
    assert held.wait(30)
    with engine_folder(tmp_path, "key") as folder:
        assert (folder / ENGINE).read_bytes() == b"built by the first"
    first.join(30)
    assert first.exitcode == 0


def test_engines_are_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "skdeploy" / "onnxruntime-engines"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_root().parts[-3:] == (".cache", "skdeploy", "onnxruntime-engines")
