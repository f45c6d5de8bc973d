"""``--shard`` and ``--parts`` as a user and a job of a cluster meet them."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from skdeploy.shards.part import read_part
from skdeploy.shards.shard import Shard
from tests.cli.conftest import Run


def made(run: Run, bundle: Path, evaluation: Path, folder: Path, count: int) -> str:
    """The pattern of all parts."""
    for index in range(1, count + 1):
        done = run(
            "evaluate", bundle, "--data", evaluation, "--shard", f"{index}/{count}", "-o", folder / f"part-{index}"
        )
        assert done.code == 0, done.err
        assert f"shard {index}/{count} of 40 samples" in done.out
    return f"{folder}/part-*"


def test_parts_give_the_result_the_gate_and_the_evidence_of_one_run(
    run: Run, bundle: Path, evaluation: Path, tmp_path: Path
) -> None:
    one = run("evaluate", bundle, "--data", evaluation, "--max-drop", 20, "--json").report
    pattern = made(run, bundle, evaluation, tmp_path, 3)
    evidence = bundle / "evidence/accuracy.json"
    evidence.unlink()
    done = run("evaluate", bundle, "--data", evaluation, "--parts", pattern, "--max-drop", 20, "--json")
    merged = done.report
    for changing in ("seconds", "reused"):
        one.pop(changing), merged.pop(changing)
    assert merged == one
    assert evidence.is_file()


def test_a_part_that_is_there_is_left_and_fresh_makes_it_again(
    run: Run, bundle: Path, evaluation: Path, tmp_path: Path
) -> None:
    made(run, bundle, evaluation, tmp_path, 2)
    before = (tmp_path / "part-1").stat().st_mtime_ns
    command = ("evaluate", bundle, "--data", evaluation, "--shard", "1/2", "-o", tmp_path / "part-1")
    assert "there already" in run(*command).out
    assert (tmp_path / "part-1").stat().st_mtime_ns == before
    assert run(*command, "--fresh", "--json").json["reused"] is False
    assert (tmp_path / "part-1").stat().st_mtime_ns != before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--shard", "1/2"), "--shard needs -o"),
        (("--shard", "3/2", "-o", "part"), "not a shard"),
        (("--shard", "1/2", "-o", "part", "--parts", "x"), "cannot be used together"),
        (("--shard", "1/2", "-o", "part", "--max-drop", "1"), "--max-drop cannot be used with --shard"),
        (("--shard", "1/2", "-o", "part", "--allow-mixed-cpus"), "--allow-mixed-cpus requires --parts"),
        (("--parts", "nothing-*"), "--parts nothing-*: no such file"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(
    run: Run, bundle: Path, evaluation: Path, options: tuple[str, ...], words: str
) -> None:
    done = run("evaluate", bundle, "--data", evaluation, *options)
    assert done.code == 2
    assert words in done.err


def test_a_missing_and_a_damaged_part_end_with_their_own_exit_codes_and_names(
    run: Run, bundle: Path, evaluation: Path, tmp_path: Path
) -> None:
    pattern = made(run, bundle, evaluation, tmp_path, 2)
    second = tmp_path / "part-2"
    second.write_bytes(second.read_bytes()[:-1])
    done = run("evaluate", bundle, "--data", evaluation, "--parts", pattern)
    assert (done.code, str(second) in done.err) == (9, True)
    second.unlink()
    done = run("evaluate", bundle, "--data", evaluation, "--parts", pattern)
    assert done.code == 2
    assert "1 of 2 parts are missing: shard 2/2" in done.err


def test_two_processes_into_one_part_leave_one_whole_part(bundle: Path, evaluation: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    command = [sys.executable, "-m", "skdeploy", "evaluate", bundle, "--data", evaluation, "-o", part, "--shard"]
    runs = [subprocess.Popen([*map(str, command), shard], stdout=subprocess.DEVNULL) for shard in ("1/2", "2/2")]
    codes = sorted(run.wait(timeout=120) for run in runs)
    assert codes in ([0, 2], [0, 0])  # the second sees the first one's part, unless both write at the same moment
    assert read_part(part).header.index in (1, 2)
    assert [file.name for file in tmp_path.iterdir() if "part" in file.name] == ["part"]


def test_a_shard_does_not_replace_another_one_of_the_same_division(
    run: Run, bundle: Path, evaluation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same -o for all is a slip that the merge would find only after hours."""
    part = tmp_path / "part"
    command = ("evaluate", bundle, "--data", evaluation, "-o", part, "--shard")
    assert run(*command, "1/2").code == 0
    before = part.read_bytes()
    refused = f"{part} holds shard 1/2, which shard 2/2 would replace"
    done = run(*command, "2/2")
    assert (done.code, refused in done.err, part.read_bytes() == before) == (2, True, True)
    looks = iter([None])  # nothing was there when it began
    monkeypatch.setattr("skdeploy.shards.part.earlier_part", lambda path: next(looks, read_part(path)))
    done = run(*command, "2/2")
    assert (done.code, refused in done.err, part.read_bytes() == before) == (2, True, True)
    monkeypatch.undo()
    assert run(*command, "1/3").code == 0  # another division
    assert run(*command, "2/3", "--fresh").code == 0
    assert read_part(part).header.shard == Shard(2, 3)


def test_a_calibration_by_parts_and_by_workers_is_that_of_one_run(
    run: Run, bundle: Path, evaluation: Path, tmp_path: Path
) -> None:
    calibrate = ("calibrate", bundle, "--calib", evaluation)
    whole, merged, farmed = (tmp_path / f"{name}.json" for name in ("whole", "merged", "farmed"))
    assert run(*calibrate, "-o", whole).code == 0
    for index in (1, 2):
        done = run(*calibrate, "--shard", f"{index}/2", "-o", tmp_path / f"part-{index}")
        assert f"shard {index}/2 of 40 samples" in done.out
    done = run(*calibrate, "--parts", tmp_path / "part-*", "-o", merged)
    assert f"ranges  ->  {merged}" in done.out
    assert merged.read_bytes() == whole.read_bytes()
    (tmp_path / "part-1").unlink()
    done = run(*calibrate, "--parts", tmp_path / "part-*", "-o", merged)
    assert (done.code, "1 of 2 parts are missing: shard 1/2" in done.err) == (2, True)
    assert run(*calibrate, "--workers", 2, "-o", farmed).code == 0
    assert farmed.read_bytes() == whole.read_bytes()


def test_parts_are_made_again_only_where_they_are_kept(run: Run, bundle: Path, evaluation: Path) -> None:
    done = run("calibrate", bundle, "--calib", evaluation, "--fresh")
    assert (done.code, "--fresh requires --shard" in done.err) == (2, True)


def test_a_part_of_another_verb_is_refused(run: Run, bundle: Path, evaluation: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    assert run("evaluate", bundle, "--data", evaluation, "--shard", "1/1", "-o", part).code == 0
    done = run("calibrate", bundle, "--calib", evaluation, "--parts", part, "-o", tmp_path / "ranges.json")
    assert (done.code, "part is a part of `skdeploy evaluate`, not of calibrate" in done.err) == (2, True)


def test_a_part_for_which_the_disk_is_too_full_is_not_there(bundle: Path, evaluation: Path, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    command = [sys.executable, "-m", "skdeploy", "evaluate", bundle, "--data", evaluation, "--shard", "1/1", "-o"]
    done = subprocess.run(
        [*map(str, command), str(folder / "part")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "no space left to write" in done.stderr) == (9, True), done.stderr
    assert list(folder.iterdir()) == []
