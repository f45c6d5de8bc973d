"""A bundle that takes no files: what only reads it works, prints what it measured, and says what it could not keep."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import ModesBind, Run, Snapshot

NOT_KEPT = "the result is not saved for the bundle's report"
MEASURED = ["--num-images", "4"]
ELSEWHERE = "--output FILE writes it elsewhere"
ADVICE = {
    "verify": "what is printed is all of it",
    "attention": ELSEWHERE,
    "sensitivity": ELSEWHERE,
    "evaluate": ELSEWHERE,
}


def close(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)


@pytest.fixture
def data(images: Path, tmp_path: Path) -> Path:
    """The images in a folder a class."""
    for index, image in enumerate(sorted(images.iterdir())):
        (tmp_path / "data" / str(index)).mkdir(parents=True)
        shutil.copy(image, tmp_path / "data" / str(index) / image.name)
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("verb", "as_json"), [("verify", True), ("attention", False), ("sensitivity", False), ("evaluate", True)]
)
def test_a_finding_that_cannot_be_kept_is_printed(
    verb: str, as_json: bool, run: Run, request: Any, data: Path, snapshot: Snapshot, modes_bind: ModesBind
) -> None:
    bundle: Path = request.getfixturevalue("int8" if verb == "sensitivity" else "bundle")
    given = ["--blame", "--images", data] if verb == "verify" else ["--data", data]
    before = snapshot(bundle)
    close(bundle)
    with modes_bind():
        result = run(verb, bundle, *given, *MEASURED, *(["--json"] if as_json else []))
    assert result.code == 0, result.err
    assert f"{NOT_KEPT}: cannot write {bundle / 'evidence'}" in result.err
    assert f"Permission denied; {ADVICE[verb]}" in result.err
    assert result.json if as_json else result.out
    assert snapshot(bundle) == before


@pytest.mark.parametrize("verb", ["attention", "sensitivity", "evaluate"])
def test_output_takes_the_finding_that_the_bundle_would_keep(
    verb: str, run: Run, request: Any, data: Path, tmp_path: Path, snapshot: Snapshot, modes_bind: ModesBind
) -> None:
    bundle: Path = request.getfixturevalue("int8" if verb == "sensitivity" else "bundle")
    before = snapshot(bundle)
    close(bundle)
    with modes_bind():
        result = run(verb, bundle, "--data", data, *MEASURED, "--output", tmp_path / "found.json", "--json")
    assert result.code == 0, result.err
    assert NOT_KEPT not in result.err
    assert snapshot(bundle) == before
    name = {"evaluate": "accuracy"}.get(verb, verb)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["name"] == name
    same = result.json.keys() & found["content"].keys()
    assert same
    assert {key: found["content"][key] for key in same} == {key: result.json[key] for key in same}
    # Put where the bundle keeps it, it is what the report reads.
    shutil.copytree(bundle, tmp_path / "open")
    for path in [tmp_path / "open", *(tmp_path / "open").rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    (tmp_path / "open/evidence").mkdir(exist_ok=True)
    shutil.copy(tmp_path / "found.json", tmp_path / f"open/evidence/{name}.json")
    assert run("report", tmp_path / "open").code == 0


def test_a_report_needs_a_place_and_says_how_to_give_one(
    run: Run, bundle: Path, tmp_path: Path, modes_bind: ModesBind, monkeypatch: pytest.MonkeyPatch
) -> None:
    close(bundle)
    with modes_bind():
        result = run("report", bundle)
        assert result.code == 2
        assert f"cannot write {bundle / 'report.html'}: Permission denied" in result.err
        assert "give --output FILE outside of the bundle" in result.err
        assert run("report", bundle, "--output", tmp_path / "report.html").code == 0
    assert (tmp_path / "report.html").stat().st_size > 0


@pytest.mark.parametrize("verb", ["bench", "evaluate", "verify"])
def test_receipts_are_refused_before_anything_is_measured(
    verb: str, run: Run, bundle: Path, data: Path, modes_bind: ModesBind
) -> None:
    given = {"bench": ["--seconds", "3000"], "evaluate": ["--data", data], "verify": ["--images", data]}[verb]
    close(bundle)
    with modes_bind():
        result = run(verb, bundle, *given, "--receipt")
    assert result.code == 2
    assert f"cannot write {bundle / 'receipts'}: Permission denied" in result.err
    assert "✓" not in result.err  # no stage ran


@pytest.mark.parametrize(
    ("verb", "option"),
    [
        ("evaluate", "--junit"),
        ("evaluate", "--markdown"),
        ("evaluate", "--save-baseline"),
        ("verify", "--junit"),
        ("verify", "--markdown"),
        ("attention", "--csv"),
        ("attention", "--figure"),
        ("attention", "--output"),
        ("evaluate", "--output"),
        ("calibrate", "--output"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(
    verb: str, option: str, run: Run, bundle: Path, data: Path, tmp_path: Path, modes_bind: ModesBind
) -> None:
    given = {"evaluate": ["--data", data], "calibrate": ["--calib", data]}.get(verb, [])
    (tmp_path / "theirs").mkdir(mode=0o555)
    target = tmp_path / "theirs" / "new" / "out.svg"
    with modes_bind():
        result = run(verb, bundle, *given, option, target)
    assert result.code == 2
    assert f"cannot write {target}: Permission denied" in result.err
    assert "✓" not in result.err
    assert list((tmp_path / "theirs").iterdir()) == []


def test_a_device_is_not_replaced_by_a_file(run: Run, bundle: Path, data: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    result = run("evaluate", bundle, "--data", data, "--junit", tmp_path / "pipe")
    assert result.code == 2
    assert f"cannot write {tmp_path / 'pipe'}: it is a device or a pipe" in result.err
    assert (tmp_path / "pipe").is_fifo()


# A read-only file system refuses more than a folder's mode does: there, even removing a file that is not there is an error.
MOUNT = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'


def in_mounts_of_its_own(folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
    """Runs a command for which ``folder`` is a read-only file system, by user namespaces, which any user may have."""
    wrapped = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", MOUNT, "sh", folder, *command]
    return subprocess.run(list(map(str, wrapped)), capture_output=True, text=True, check=False, timeout=120)


# Both verbs in one process: what it imports takes longer than they do.
VERBS = """
import json, sys
from skdeploy.__main__ import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["skdeploy", *arguments]
    try:
        main()
    except SystemExit as end:
        print("ended with", end.code, file=sys.stderr)
"""


def test_a_read_only_file_system_is_told_as_such(bundle: Path, images: Path) -> None:
    tried = in_mounts_of_its_own(bundle, "true")
    if tried.returncode != 0:
        pytest.skip(f"no user namespaces with mounts here: {tried.stderr.strip()}")
    given = [["report", str(bundle)], ["attention", str(bundle), "--data", str(images), *MEASURED]]
    done = in_mounts_of_its_own(bundle, sys.executable, "-c", VERBS, json.dumps(given))
    assert done.returncode == 0, done.stderr
    report, attention, _ = re.split("(?<=ended with [0-9])\\n", done.stderr)
    assert report.endswith("ended with 2"), report
    assert f"cannot write {bundle / 'report.html'}: Read-only file system" in report
    assert attention.endswith("ended with 0"), attention
    assert NOT_KEPT in " ".join(attention.split())
    assert "Read-only file system" in " ".join(attention.split())
    assert "FP16" in done.stdout
