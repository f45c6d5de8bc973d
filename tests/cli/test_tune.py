"""``skdeploy tune`` as a user meets it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skdeploy import load_bundle
from skdeploy.accuracy.kept import Kept
from skdeploy.bundle.runners import Runner
from skdeploy.line.stations.calibrate import Calibrate
from skdeploy.quant.recipe import load_recipe
from tests.cli.conftest import QUICK, Run, Snapshot
from tests.cli.evaluation_data import labelled


@pytest.fixture
def calib(tmp_path: Path, images: Path) -> Path:
    """The calibration images in a folder where a recipe may be written."""
    return Path(shutil.copytree(images, tmp_path / "tuning/calib"))


@pytest.fixture
def sweep(bundle: Path, evaluation: Path, calib: Path) -> list[object]:
    """A sweep of four ways. 20 images on each side decide nothing on 1 point, so that units are kept, too."""
    return ["tune", bundle, "--data", evaluation, "--calib", calib, "--max-drop", 1, "--calib-method", "mse"]


@pytest.fixture
def short(bundle: Path, calib: Path, tmp_path: Path) -> list[object]:
    """The same where 60 images on each side decide on 20 points, so that no unit is kept."""
    data = labelled(bundle, tmp_path / "many.npz", 120)
    return ["tune", bundle, "--data", data, "--calib", calib, "--max-drop", 20, "--calib-method", "mse"]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which sessions were opened, and which ranges were measured."""
    found: list[str] = []
    real_open, real_make = Runner.open, Calibrate.make

    def open_session(self: Runner) -> Any:
        found.append(f"session {self.artifact.path}")
        return real_open(self)

    def make(self: Calibrate, *what: Any) -> Any:
        found.append("calibration")
        return real_make(self, *what)

    monkeypatch.setattr(Runner, "open", open_session)
    monkeypatch.setattr(Calibrate, "make", make)
    return found


def test_the_winner_is_written_as_a_recipe_that_an_export_follows(
    run: Run, sweep: list[object], bundle: Path, card: Path, weights: Path, calib: Path, snapshot: Snapshot
) -> None:
    before = snapshot(bundle)
    found = run(*sweep, "--json")
    assert found.code == 10, found.err
    assert snapshot(bundle) == before  # nothing is written there
    report = found.json
    assert report["confirmed"]["decision"] == "inconclusive"
    assert (report["error"]["type"], report["error"]["exit_code"]) == ("AccuracyError", 10)
    assert "--allow-inconclusive" in report["error"]["advice"]
    assert (report["images"], report["choosing"], report["confirming"]) == (40, 20, 20)
    assert [row["chosen"] for row in report["tried"]] == [True] + [False] * (len(report["tried"]) - 1)
    names = [row["name"] for row in report["tried"]]
    assert {"mse, gptq, fp16 fallback", "mse, nearest, fp32 fallback"} < set(names)
    assert any(name.endswith("1 kept") for name in names)  # since none was proven to keep the budget
    recipe, path = load_recipe(report["recipe"])
    assert path == calib.parent / "tiny-tuned.toml"
    winner = report["tried"][0]["candidate"]
    assert (recipe.method, recipe.fallback, list(recipe.exclude)) == ("mse", winner["fallback"], winner["keep"])
    assert recipe.weight_rounding == winner["calibration"]["weight_rounding"]
    made = calib.parent / "made"
    exported = run("export", card, "--int8", *QUICK, "--weights", weights, "--calib", path, "-o", made, "--json")
    assert exported.code in (0, 6), exported.err
    artifacts = {artifact.path: artifact for artifact in load_bundle(made).manifest.artifacts}
    options = artifacts["model.int8.onnx"].provenance.options
    assert (options["fallback"], options["keep"]) == (winner["fallback"], winner["keep"])
    assert artifacts["model.int8.onnx"].facts.int8_macs == pytest.approx(report["tried"][0]["int8_mac_share"])  # type: ignore[attr-defined]  # INT8's facts


def test_a_second_run_measures_nothing_again(
    run: Run, short: list[object], opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(*short, "--json").json
    assert opened.count("calibration") == 2  # of two ways to round weights; both fallbacks have the same ranges
    saved: list[Path | None] = []
    monkeypatch.setattr(Kept, "save", lambda self, *_: saved.append(self.path))
    opened.clear()
    again = run(*short, "--json", "--force").json
    assert "calibration" not in opened
    assert saved == []  # every prediction was there
    for report in (first, again):
        del report["seconds"]
    assert again == first


@pytest.mark.slow
def test_a_run_that_is_ended_goes_on_where_it_was(
    run: Run, short: list[object], opened: list[str], tmp_path: Path
) -> None:
    """SIGTERM in the middle, as of a job that is cancelled: no recipe, nothing half written, and no calibration again."""
    command = [sys.executable, "-m", "skdeploy", *map(str, short)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        kept = tmp_path / "cache/skdeploy/predictions"
        while not (kept.is_dir() and list(kept.glob("*.npz"))) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode in (143, -signal.SIGTERM)
    assert not list(tmp_path.rglob("*-tuned.toml"))
    assert not list(tmp_path.rglob("*.partial"))
    run(*short, "--json")
    assert opened.count("calibration") <= 1  # of two: the first was there when it was ended


@pytest.mark.slow
def test_two_at_once_give_the_same(short: list[object], tmp_path: Path, calib: Path) -> None:
    commands = [
        [sys.executable, "-m", "skdeploy", *map(str, short), "--json", "-o", str(calib.parent / f"{name}.toml")]
        for name in "ab"
    ]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    reports = [json.loads(process.communicate(timeout=300)[0]) for process in runs]
    assert [row["sqnr_db"] for row in reports[0]["tried"]] == [row["sqnr_db"] for row in reports[1]["tried"]]
    assert reports[0]["confirmed"] == reports[1]["confirmed"]
    assert (calib.parent / "a.toml").read_text() == (calib.parent / "b.toml").read_text()


def test_a_dry_run_prints_the_ways_and_runs_nothing(
    run: Run, sweep: list[object], opened: list[str], calib: Path
) -> None:
    plan = run(*sweep, "--dry-run", "--json").json
    assert plan["candidates"] == [
        f"mse, {rounding}, {fallback} fallback" for rounding in ("gptq", "nearest") for fallback in ("fp16", "fp32")
    ]
    assert (plan["screening"], plan["choosing"], plan["confirming"]) == (20, 20, 20)
    assert "4 ways would be screened on 20 images" in run(*sweep, "--dry-run").out
    assert opened == []
    assert not list(calib.parent.glob("*.toml"))


@pytest.fixture
def nothing_runs(opened: list[str]) -> Iterator[None]:
    yield
    assert opened == []


@pytest.mark.usefixtures("nothing_runs")
def test_what_cannot_be_tuned_is_refused_before_anything_runs(
    run: Run, sweep: list[object], bundle: Path, evaluation: Path, calib: Path, tmp_path: Path
) -> None:
    (calib.parent / "tiny-tuned.toml").write_text("mine")
    taken = run(*sweep)
    assert (taken.code, "exists already" in taken.err, "--force" in taken.err) == (2, True, True)
    assert (calib.parent / "tiny-tuned.toml").read_text() == "mine"
    elsewhere = run(*sweep, "-o", tmp_path / "elsewhere/x.toml")
    assert elsewhere.code == 2
    assert "a recipe names images inside its own folder" in elsewhere.err
    assert "ends in .toml" in run(*sweep, "-o", calib.parent / "x.txt").err
    same = run("tune", bundle, "--data", evaluation, "--calib", evaluation, "--max-drop", 1)
    assert "images that calibrate cannot judge" in same.err
    assert "give --calib" in run("tune", bundle, "--data", evaluation, "--max-drop", 1).err
    assert run(*sweep, "--device", "toaster", "-o", calib.parent / "new.toml").code == 2
    with np.load(evaluation) as content:
        np.savez(tmp_path / "other.npz", images=content["images"], labels=content["labels"] + 7)
        np.savez(tmp_path / "one.npz", images=content["images"][:1], labels=content["labels"][:1])
    shutil.copytree(calib, tmp_path / "tuning/classes/1")
    shutil.copytree(calib, tmp_path / "tuning/classes/2")
    folder = tmp_path / "tuning/classes"
    both = run("tune", bundle, "--data", folder, "--calib", folder, "--max-drop", 1, "-o", folder.parent / "new.toml")
    assert (both.code, "images that calibrate cannot judge" in both.err) == (2, True), both.err
    rest = ["--calib", calib, "--max-drop", 1, "-o", calib.parent / "new.toml"]
    other = run("tune", bundle, "--data", tmp_path / "other.npz", *rest)
    assert (other.code, "has 5 classes" in other.err) == (2, True)
    one = run("tune", bundle, "--data", tmp_path / "one.npz", *rest)
    assert (one.code, "has 1 image" in one.err) == (2, True)


def test_a_recipe_and_the_command_line_may_not_contradict_each_other(
    run: Run, card: Path, weights: Path, calib: Path
) -> None:
    recipe = calib.parent / "own.toml"
    recipe.write_text(
        'schema = 1\nmodel = "tiny"\nimages = "calib"\nsplit = "s"\nnumber = 4\nmethod = "mse"\n'
        'fallback = "fp16"\nregroup = 2\n'
    )
    export = ["export", card, "--int8", *QUICK, "--weights", weights, "--calib", recipe, "-o", calib.parent / "out"]
    refused = run(*export, "--int8-fallback", "fp32")
    assert (refused.code, "contradict each other" in refused.err) == (2, True)
    refused = run(*export, "--regroup", 1)
    assert (refused.code, "contradict each other" in refused.err) == (2, True)
    run(*export)
    assert (calib.parent / "out/model.int8.regrouped.onnx").is_file()


def test_from_python(short: list[object], bundle: Path, calib: Path) -> None:
    data = Path(str(short[3]))
    report = load_bundle(bundle).tune(data, max_drop=20, calib=calib, methods=["mse"], progress=False)
    assert report.confirmed.decision == "pass"
    assert report.recipe == str(calib.parent / "tiny-tuned.toml")
    assert [row.name for row in report.tried if row.chosen] == [report.winner]
    report.check()
