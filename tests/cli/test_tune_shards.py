"""``tune`` divided by way: equal in every bit to one run, by parts in any order and by workers."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from skdeploy.core.errors import IntegrityError, UsageError
from skdeploy.core.progress import Silent
from skdeploy.shards.part import Part, decode, read_part, write_part
from skdeploy.shards.shard import Shard
from skdeploy.tuning.candidates import candidates
from skdeploy.tuning.options import TuneOptions
from skdeploy.tuning.report import TuneReport
from skdeploy.tuning.tune import tune
from skdeploy.tuning.tune_shards import Divided, collect_steps, part_of_worker, tune_shard
from tests.cli.conftest import Run
from tests.cli.evaluation_data import labelled
from tests.cli.signals import signalled, started
from tests.ports import free_port
from tests.shards.clusters import START_SECONDS, dask_cluster, workers_of


@pytest.fixture
def options(bundle: Path, images: Path, tmp_path: Path) -> TuneOptions:
    """60 images on each side decide on 60 points, so that no unit is kept. Four ways, which lose 40."""
    calib = Path(shutil.copytree(images, tmp_path / "tuning/calib"))
    data = labelled(bundle, tmp_path / "many.npz", 120)
    return TuneOptions(data, max_drop=60.0, calib=calib, methods=("minmax",), force=True)


def forget(folder: Path) -> None:
    """Removes what earlier runs have kept, so that all is computed again."""
    shutil.rmtree(folder / "cache", ignore_errors=True)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def files_of(bundle: Path, options: TuneOptions, counts: tuple[int, int], folder: Path) -> list[str]:
    """The parts of both steps, as files whose names sort in a random order; of no second step for a count of 0."""
    folder.mkdir(parents=True)
    names = random.sample(range(100), sum(counts))
    screened: list[str] = []
    for index in range(1, counts[0] + 1):
        screened.append(str(folder / f"part-{names.pop()}"))
        write_part(Path(screened[-1]), tune_shard(bundle, options, Shard(index, counts[0]), Silent()).encode())
    judged: list[str] = []
    for index in range(1, counts[1] + 1):
        collect = collect_steps(screened, Silent(), allow_mixed_cpus=False)
        judged.append(str(folder / f"part-{names.pop()}"))
        part = tune_shard(bundle, options, Shard(index, counts[1]), Silent(), collect=collect)
        write_part(Path(judged[-1]), part.encode())
    return [*screened, *judged]


def all_parts(bundle: Path, options: TuneOptions, count: int, folder: Path) -> list[str]:
    """The parts of every step that there is, each by ``count`` shards."""
    folder.mkdir(parents=True)
    files: list[str] = []
    while True:
        collect = collect_steps(files, Silent(), allow_mixed_cpus=False) if files else None
        step: list[str] = []
        for index in range(1, count + 1):
            try:
                part = tune_shard(bundle, options, Shard(index, count), Silent(), collect=collect)
            except UsageError as error:
                if "no work is left to divide" not in error.message:
                    raise
                return files
            step.append(str(folder / f"part-{len(files)}-{index}"))
            write_part(Path(step[-1]), part.encode())
        files += step


def merged(bundle: Path, options: TuneOptions, files: Sequence[str]) -> TuneReport:
    return tune(bundle, options, rounds=Divided(collect_steps(files, Silent(), allow_mixed_cpus=False)))


def figures(report: TuneReport) -> dict[str, Any]:
    return report.model_dump(exclude={"seconds"})


def changed(file: str, **facts: Any) -> None:
    part = read_part(Path(file))
    header = part.header.model_copy(update={"facts": {**part.header.facts, **facts}})
    write_part(Path(file), Part(header, part.arrays).encode())


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(1, 1), (2, 2), (7, 7), (3, 0)])
def test_any_number_of_shards_gives_the_report_and_the_recipe_of_one_run(
    bundle: Path, options: TuneOptions, tmp_path: Path, counts: tuple[int, int]
) -> None:
    whole = tune(bundle, options)
    assert whole.recipe is not None
    recipe = Path(whole.recipe).read_bytes()
    Path(whole.recipe).unlink()
    forget(tmp_path)
    files = files_of(bundle, options, counts, tmp_path / "parts")
    forget(tmp_path)
    assert figures(merged(bundle, options, files)) == figures(whole)
    assert Path(whole.recipe).read_bytes() == recipe


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize(("max_drop", "min_sqnr", "most"), [(20.0, None, 1), (None, 149.0, 2)])
def test_kept_units_and_bounds_of_one_run_where_no_way_keeps_the_limit(
    bundle: Path,
    options: TuneOptions,
    tmp_path: Path,
    count: int,
    max_drop: float | None,
    min_sqnr: float | None,
    most: int,
) -> None:
    """By labels, one unit kept is enough, and one run tries no more; parts have 1 and 2. Without a truth, none is enough."""
    strict = replace(options, max_drop=max_drop, min_sqnr=min_sqnr)
    whole = tune(bundle, strict)
    assert max(len(row.candidate.units) for row in whole.tried) == most
    forget(tmp_path)
    files = all_parts(bundle, strict, count, tmp_path / "parts")
    assert len(files) == 4 * count
    told: list[str] = []

    class Told(Silent):
        def note(self, text: str) -> None:
            told.append(text)

    forget(tmp_path)
    rounds = Divided(collect_steps(random.sample(files, len(files)), Silent(), allow_mixed_cpus=False))
    assert figures(tune(bundle, strict, Told(), rounds=rounds)) == figures(whole)
    assert not [text for text in told if "divides that, too" in text]
    if count == 2:  # the merge does what there are no parts of
        assert figures(merged(bundle, strict, files[: 3 * count])) == figures(whole)
        assert figures(merged(bundle, strict, files[: 2 * count])) == figures(whole)


def test_parts_that_do_not_belong_here_are_refused_by_name(bundle: Path, options: TuneOptions, tmp_path: Path) -> None:
    one, two, judged = files_of(bundle, options, (2, 1), tmp_path / "parts")
    with pytest.raises(UsageError, match=r"1 of 2 parts are missing: shard 2/2"):
        merged(bundle, options, [one, judged])
    with pytest.raises(UsageError, match="no part that screened"):
        merged(bundle, options, [judged])
    twin = shutil.copy(two, tmp_path / "twin")
    with pytest.raises(UsageError, match=r"are both shard 2/2"):
        merged(bundle, options, [one, two, str(twin)])
    with pytest.raises(UsageError, match=r"was made with other options:\n  --max-drop: 60.0 in the part, 61.0 here"):
        merged(bundle, replace(options, max_drop=61.0), [one, two])
    other = labelled(bundle, tmp_path / "other.npz", 118)
    with pytest.raises(UsageError, match=r"was made of other data: 120 samples"):
        merged(bundle, replace(options, data=other), [one, two])
    foreign = read_part(Path(two))
    job = foreign.header.job.model_copy(update={"verb": "evaluate", "options": {"batch": 8}})
    header = foreign.header.model_copy(update={"job": job})
    write_part(tmp_path / "foreign", Part(header, {}).encode())
    with pytest.raises(UsageError, match=r"foreign is a part of `skdeploy evaluate`, not of tune"):
        merged(bundle, options, [one, str(tmp_path / "foreign"), judged])
    Path(twin).write_bytes(Path(two).read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=r"twin is cut off or damaged"):
        merged(bundle, options, [one, str(twin)])
    before = {file: Path(file).read_bytes() for file in (one, two, judged)}
    rows = read_part(Path(judged)).header.facts["rows"]
    assert isinstance(rows, str)  # a part of tune was read, and facts may hold any JSON
    unjudged = json.dumps([{**row, "pair": None} for row in json.loads(rows)])
    for file, facts, error, words in (
        (two, {"rows": "[]"}, IntegrityError, "does not hold what shard 2/2"),
        (two, {"rows": "["}, IntegrityError, "does not hold what shard 2/2"),
        (judged, {"rows": unjudged}, IntegrityError, "does not hold what shard 1/1"),
        (one, {"samples_sha256": "0" * 64}, UsageError, "have another content here"),
    ):
        changed(file, **facts)
        with pytest.raises(error, match=f"{Path(file).name} .*{words}"):
            merged(bundle, options, [one, two, judged])
        Path(file).write_bytes(before[file])


def test_a_worker_gives_the_part_that_a_shard_gives(bundle: Path, options: TuneOptions) -> None:
    whole = tune_shard(bundle, options, Shard(1, 2), Silent())
    ways = candidates(options.methods)
    made = decode(part_of_worker(bundle, options, whole.header.job, ways, Shard(1, 2)), "part")
    assert made.header.facts == whole.header.facts
    other = whole.header.job.model_copy(update={"made_of": {"model.onnx": "0" * 64}})
    with pytest.raises(UsageError, match="this worker's share was made of another bundle"):
        part_of_worker(bundle, options, other, ways, Shard(1, 2))


def command(bundle: Path, options: TuneOptions, *more: object) -> list[object]:
    given: list[object] = ["tune", bundle, "--data", options.data, "--calib", str(options.calib), "--max-drop", 60]
    return [*given, "--calib-method", "minmax", *more]


def test_the_command_line_screens_judges_and_merges_to_the_output_of_one_run(
    run: Run, bundle: Path, options: TuneOptions, tmp_path: Path
) -> None:
    for shard in ("1/2", "2/2"):
        done = run(*command(bundle, options, "--shard", shard, "-o", tmp_path / f"screen-{shard[0]}"))
        assert (done.code, f"shard {shard} of 120 samples" in done.out) == (0, True), done.err
    screened, judged = tmp_path / "screen-*", tmp_path / "judge-1"
    assert run(*command(bundle, options, "--parts", screened, "--shard", "1/1", "-o", judged)).code == 0
    one = run(*command(bundle, options, "--parts", screened, "--json"))
    assert "4 ways run on all 60 labelled images that choose, here" in one.err
    two = run(*command(bundle, options, "--parts", screened, "--parts", judged, "--force", "--json"))
    assert "that choose, here" not in two.err
    forget(tmp_path)
    whole = run(*command(bundle, options, "--force", "--json"))
    assert [done.code for done in (one, two, whole)] == [0, 0, 0]
    first, *others = [
        {key: value for key, value in done.json.items() if key != "seconds"} for done in (whole, one, two)
    ]
    assert others == [first, first]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--shard", "1/2"), "--shard needs -o"),
        (("--shard", "1/2", "-o", "part", "--bench"), "--bench cannot be used with --shard"),
        (("--workers", "2", "--parts", "x"), "leave --shard and --parts out"),
        (("--workers", "2", "--dry-run"), "--dry-run runs nothing"),
        (("--fresh",), "--fresh requires --shard"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(
    run: Run, bundle: Path, options: TuneOptions, more: tuple[str, ...], words: str
) -> None:
    done = run(*command(bundle, options, *more))
    assert (done.code, words in done.err) == (2, True), done.err


def as_process(bundle: Path, options: TuneOptions, *more: object) -> list[str]:
    """The command, where a way with one unit kept is the first that keeps the limit: all steps come."""
    words = [str(word) for word in command(bundle, options, "--max-drop", 20, "--json", "--force", *more)]
    return [sys.executable, "-m", "skdeploy", *words]


def report_of(out: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(out).items() if key != "seconds"}


@pytest.fixture
def whole(run: Run, bundle: Path, options: TuneOptions, tmp_path: Path) -> dict[str, Any]:
    """The report of one run, which is forgotten."""
    done = run(*as_process(bundle, options)[3:])
    assert done.code == 0, done.err
    forget(tmp_path)
    return report_of(done.out)


def test_a_cluster_that_somebody_started_gives_the_report_of_one_run(
    bundle: Path, options: TuneOptions, tmp_path: Path, whole: dict[str, Any]
) -> None:
    port = free_port()
    with dask_cluster(tmp_path, port):
        words = as_process(bundle, options, "--cluster", f"tcp://127.0.0.1:{port}")
        done = subprocess.run(words, capture_output=True, text=True, timeout=START_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert report_of(done.stdout) == whole
    assert "1 kept" in whole["winner"]
    jobs = [read_part(path).header.job.options["step"] for path in (tmp_path / "cache").rglob("part-1")]
    assert sorted(map(str, jobs)) == ["choosing", "keeping", "noise", "screening"]


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_ends_it_and_the_same_command_goes_on(
    bundle: Path, options: TuneOptions, tmp_path: Path, whole: dict[str, Any], sent: signal.Signals, workers: int
) -> None:
    """Without workers the ranges are kept, with workers the parts, too."""
    words = as_process(bundle, options, *(("--workers", workers) if workers else ()))
    process = started(words)
    limit = time.monotonic() + START_SECONDS
    while not list((tmp_path / "cache").rglob("part-*" if workers else "tuning/*.json")):
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < limit, "nothing was finished"
        time.sleep(0.01)
    signalled(process, sent, tmp_path)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("tuning/*.json")}
    again = subprocess.run(words, capture_output=True, text=True, timeout=START_SECONDS, check=False)
    assert again.returncode == 0, again.stderr
    assert report_of(again.stdout) == whole
    assert {file: file.stat().st_mtime_ns for file in before} == before  # not calibrated again
    if workers:
        assert "shards of an earlier run are reused" in again.stderr


@pytest.mark.slow
def test_workers_of_which_one_is_killed_give_the_report_of_one_run(
    run: Run, bundle: Path, options: TuneOptions, tmp_path: Path
) -> None:
    whole = run(*command(bundle, options, "--json")).json
    forget(tmp_path)
    words = [str(word) for word in command(bundle, options, "--workers", 2, "--json", "--force")]
    process = subprocess.Popen(
        [sys.executable, "-m", "skdeploy", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    limit = time.monotonic() + START_SECONDS
    while not list((tmp_path / "cache").rglob("tuning/*.json")):  # the first ranges: both are at work
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < limit, "nothing was calibrated"
        time.sleep(0.02)
    workers_of(process.pid)[0].kill()
    out, err = process.communicate(timeout=START_SECONDS)
    assert process.returncode == 0, err
    found = json.loads(out)
    assert found.pop("seconds") != whole.pop("seconds")
    assert found == whole
    again = run(*command(bundle, options, "--workers", 1, "--json", "--force"))
    assert "shards of an earlier run are reused" in again.err
    assert {key: value for key, value in again.json.items() if key != "seconds"} == whole
