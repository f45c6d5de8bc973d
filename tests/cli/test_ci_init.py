"""``skdeploy ci-init``: the job that it writes, run step by step in a fresh clone as CI would, but for ``pip install``."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from skdeploy.bundle.folder import load_bundle
from skdeploy.core.spec import Precision
from skdeploy.line.calibration import CalibrationOptions
from skdeploy.line.export import export
from skdeploy.line.int8_options import Int8Options
from skdeploy.line.options import ExportOptions
from tests.cli.conftest import QUICK, Result, Run, Snapshot
from tests.cli.evaluation_data import CLASSES, colours, seen_by
from tests.graphs import foreign

WORKFLOW: Final = ".github/workflows/skdeploy.yml"
WEIGHTS: Final = "-my weights.safetensors"
DATA: Final = 'owner\'s "set" $HOME'

Steps = dict[str, str]
Job = Callable[[Path, str], dict[str, Result]]


def git(folder: Path, *arguments: str) -> str:
    named = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    return subprocess.run(["git", *named, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def class_folders(bundle: Path, folder: Path) -> None:
    """20 images in folders of the classes that the FP32 graph sees, so that all of them are right."""
    images = colours(20)
    for name in range(CLASSES):
        (folder / str(name)).mkdir(parents=True)
    for index, (label, pixels) in enumerate(zip(seen_by(bundle, images), images, strict=True)):
        Image.fromarray(pixels).save(folder / str(label) / f"{index}.png")
    for name in range(CLASSES):  # git keeps no empty folder, and a class without images is a class
        (folder / str(name) / ".keep").touch()


@pytest.fixture
def repository(exported: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's repository with weights and labelled images under awkward names, committed; the tests run in it."""
    root = tmp_path / "a repository"
    git(tmp_path, "init", "-q", root.name)
    shutil.copy(weights, root / WEIGHTS)
    class_folders(exported, root / DATA)
    (root / ".gitignore").write_text("build/\n", encoding="utf-8")
    git(root, "add", ".")
    git(root, "commit", "-qm", "weights and images")
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def made(repository: Path, asked: ExportOptions, exported: Path) -> Path:
    """An FP16 bundle of the repository's own weights, as an export there would record it."""
    return recorded(repository, asked, exported)


def recorded(repository: Path, asked: ExportOptions, bundle: Path) -> Path:
    folder = Path(shutil.copytree(bundle, repository / "build/bundle"))
    text = (folder / "manifest.json").read_text(encoding="utf-8")
    assert asked.weights is not None
    (folder / "manifest.json").write_text(text.replace(asked.weights, WEIGHTS), encoding="utf-8")
    return folder


@pytest.fixture
def clone(repository: Path, tmp_path: Path) -> Callable[[], Path]:
    """What CI has: a checkout of all that is committed, after ``git add deploy .github``."""

    def cloned() -> Path:
        git(repository, "add", "--", *[name for name in ("deploy", ".github", ".gitlab-ci.yml") if Path(name).exists()])
        git(repository, "commit", "-qm", "CI")
        git(tmp_path, "clone", "-q", repository.name, "clone")
        return tmp_path / "clone"

    return cloned


def damage(weights: Path) -> None:
    """Give each row of the classifier another class: a sound network of the same architecture that is wrong everywhere."""
    state = load_file(weights)
    save_file(
        {key: t.roll(1, 0).contiguous() if key.startswith("classifier") else t for key, t in state.items()}, weights
    )


def github_steps(folder: Path) -> Steps:
    content: Any = yaml.safe_load((folder / WORKFLOW).read_text(encoding="utf-8"))
    return {step["name"]: step["run"] for step in content["jobs"]["skdeploy"]["steps"] if "run" in step}


@pytest.fixture
def step(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, str], Result]:
    """Runs a step's text with bash. ``skdeploy`` in it keeps its words, as bash splits them, and these run in this process."""
    kept, shim = tmp_path / "words", tmp_path / "bin/skdeploy"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nprintf "%s\\0" "$@" > {kept}\n', encoding="utf-8")
    shim.chmod(shim.stat().st_mode | stat.S_IXUSR)

    def call(folder: Path, text: str) -> Result:
        kept.write_text("", encoding="utf-8")
        path = f"{shim.parent}:{os.environ['PATH']}"
        environment = {"PATH": path, "HOME": "/nowhere", "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md")}
        bash = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", text]
        done = subprocess.run(bash, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        words = kept.read_text(encoding="utf-8").split("\0")[:-1]
        if done.returncode or not words:
            return Result(done.returncode, done.stdout, done.stderr)
        monkeypatch.chdir(folder)
        return run(*words)

    return call


def test_the_job_passes_in_a_fresh_clone_and_fails_when_the_weights_are_damaged(
    run: Run,
    made: Path,
    repository: Path,
    clone: Callable[[], Path],
    step: Callable[[Path, str], Result],
    tmp_path: Path,
) -> None:
    result = run("ci-init", made, "--data", DATA)
    assert result.code == 0, result.err
    assert "model.onnx has 20 of 20 images right" in result.out
    assert "not committed" not in result.out
    fresh = clone()
    assert not (fresh / "build").exists()
    steps = github_steps(fresh)
    assert list(steps) == ["Install", "Export", "Verify", "Evaluate", "Report", "Summary"]
    assert re.fullmatch(r"python -m pip install 'skdeploy\[cpu,export,report\].*'\n", steps.pop("Install"))
    for name, text in steps.items():
        done = step(fresh, text)
        assert done.code == 0, (name, done.err)
    assert "## tiny fp16" in (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert (fresh / "build/skdeploy-ci/report.html").is_file()

    shutil.rmtree(fresh / "build")
    damage(fresh / WEIGHTS)
    codes = {name: step(fresh, steps[name]).code for name in ("Export", "Verify", "Evaluate")}
    assert codes == {"Export": 0, "Verify": 0, "Evaluate": 10}


def test_int8_takes_the_ranges_of_the_bundle_and_no_calibration_images(
    run: Run, repository: Path, asked: ExportOptions, step: Callable[[Path, str], Result], tmp_path: Path
) -> None:
    images, card = tmp_path / "images.npy", tmp_path / "tiny.toml"
    np.save(images, colours(20))
    # Nobody trained this network, whose INT8 noise is at the card's own limit of 10 dB: that is not the subject.
    text = Path(asked.model).read_text(encoding="utf-8").partition("[tolerance.int8]")[0]
    limits = "max_rel_error = 1.0\nmin_cosine = 0.8\nmin_sqnr_db = 3.0\n"
    card.write_text(f"{text}[tolerance.int8]\n{limits}", encoding="utf-8")
    lower = Int8Options(
        calibration=CalibrationOptions(images=images), fallback=Precision.FP32, keep=(r"^stages\.1\.0",)
    )
    int8 = replace(asked, model=str(card), precision=Precision.INT8, lowering={"int8": lower})
    export(replace(int8, output=tmp_path / "int8", images=images))
    bundle = recorded(repository, asked, tmp_path / "int8")
    assert run("ci-init", bundle, "--data", DATA).code == 0
    exports = github_steps(repository)["Export"]
    assert "--ranges deploy/tiny-int8.ranges.json" in exports
    assert step(repository, exports).code == 0
    assert digests(repository / "build/skdeploy-ci/bundle") == digests(bundle)
    damage(repository / WEIGHTS)  # ranges belong to the weights that they were measured with
    assert step(repository, exports).code == 6


def test_gitlab_gets_the_same_commands(run: Run, made: Path, repository: Path) -> None:
    assert run("ci-init", made, "--data", DATA).code == 0
    result = run("ci-init", made, "--data", DATA, "--provider", "gitlab", "--force")
    assert result.code == 0, result.err
    pipeline: Any = yaml.safe_load((repository / ".gitlab-ci.yml").read_text(encoding="utf-8"))
    steps = github_steps(repository)
    assert pipeline["skdeploy"]["script"] == [steps[name] for name in ("Install", "Export", "Verify", "Evaluate")]
    assert pipeline["skdeploy"]["after_script"] == [steps["Report"]]


@pytest.mark.parametrize("kind", ["onnx", pytest.param("module", marks=pytest.mark.slow), "zoo"])
def test_every_kind_of_source_is_named_as_its_export_was(
    kind: str,
    run: Run,
    asked: ExportOptions,
    card: Path,
    repository: Path,
    step: Callable[[Path, str], Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without --data: nothing has to be classified, and the step Evaluate is not there."""
    bundle = repository / "build/bundle"
    common = ("--images", asked.images, "--output", bundle)
    if kind == "onnx":
        foreign.export(foreign.live(foreign.Classifier(foreign.Sliced())), repository / "a net.onnx", shape=(3, 32, 32))
        done = run("export", "a net.onnx", "--target", "onnx", *common)
    elif kind == "module":
        text = (
            "from tests import tiny\nfrom skdeploy.zoo.build import build\ndef own():\n    return build(tiny.spec())\n"
        )
        (repository / f"own_{os.getpid()}.py").write_text(text, encoding="utf-8")
        done = run("export", f"own_{os.getpid()}:own", "--imgsz", 32, *QUICK, *common)
    else:
        for module in ("serve.ci", "zoo.cards"):
            monkeypatch.setattr(f"skdeploy.{module}.packaged", lambda _: card.parent)
        done = run("export", "tiny", "--seed", 3, *QUICK, *common)
    assert done.code == 0, done.err
    result = run("ci-init", bundle)
    assert result.code == 0, result.err
    assert "the job checks parity, and no accuracy" in result.out
    assert ("commit the code of own_" in result.out) == (kind == "module")
    assert ("1 files that are not committed: a net.onnx" in result.out) == (kind == "onnx")
    assert (repository / "deploy").exists() == (kind != "zoo")  # a packaged card is there wherever skdeploy is
    steps = github_steps(repository)
    assert "Evaluate" not in steps
    if kind == "zoo":
        assert steps["Export"].startswith("skdeploy export tiny \\\n  --seed 3 ")
        return
    done = step(repository, steps["Export"])
    assert done.code == 0, done.err
    again = repository / "build/skdeploy-ci/bundle"
    assert digests(again) == digests(bundle)


def digests(bundle: Path) -> dict[str, str]:
    return {artifact.path: artifact.sha256 for artifact in load_bundle(bundle).graphs}


# What it refuses


def refuse(result: Result, code: int, *texts: str) -> None:
    assert result.code == code, result.err
    for text in texts:
        assert text in result.err


def test_nothing_is_overwritten_and_a_refused_run_leaves_nothing(
    run: Run, made: Path, repository: Path, snapshot: Snapshot
) -> None:
    (repository / WORKFLOW).parent.mkdir(parents=True)
    (repository / WORKFLOW).write_text("mine", encoding="utf-8")
    before = snapshot(repository)
    refuse(run("ci-init", made, "--data", DATA), 2, WORKFLOW, "--force")
    assert snapshot(repository) == before
    assert run("ci-init", made, "--data", DATA, "--force").code == 0
    assert "mine" not in (repository / WORKFLOW).read_text(encoding="utf-8")


def test_a_write_that_fails_takes_the_other_files_with_it(
    run: Run, made: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_text

    def full(path: Path, text: str, **options: Any) -> int:
        if ".skdeploy.yml" in path.name:
            raise OSError(28, "No space left on device")
        return write(path, text, **options)

    monkeypatch.setattr(Path, "write_text", full)
    refuse(run("ci-init", made), 9, "no space left")
    assert not (repository / "deploy").exists()
    assert not (repository / ".github").exists()


def test_what_ci_would_not_find_is_refused_or_named(
    run: Run, made: Path, repository: Path, evaluation: Path, weights: Path, tmp_path: Path
) -> None:
    refuse(run("ci-init", made, "--data", evaluation), 2, "outside the repository", "git lfs track")
    (repository / "linked").symlink_to(weights.parent)
    refuse(run("ci-init", made, "--data", "linked"), 2, "outside the repository", f"leads to {weights.parent}")
    (repository / "list.txt").write_text(f"{tmp_path / 'one.png'},0\n", encoding="utf-8")
    Image.fromarray(colours(1)[0]).save(tmp_path / "one.png")
    refuse(run("ci-init", made, "--data", "list.txt"), 2, "the image", "one.png")
    shutil.copy(evaluation, repository / "build/evaluation.npz")
    result = run("ci-init", made, "--data", "build/evaluation.npz")
    assert result.code == 0, result.err
    assert "1 files that are not committed: build/evaluation.npz" in result.out
    with (repository / WEIGHTS).open("ab") as file:
        file.write(b"\0")
    refuse(run("ci-init", made, "--data", DATA, "--force"), 9, WEIGHTS, "export again")
    (repository / WEIGHTS).unlink()
    refuse(run("ci-init", made, "--data", DATA, "--force"), 2, WEIGHTS, "is not here")


@pytest.mark.parametrize("name", ["${{ github.token }}", "two\nlines", "a\u2028b", "bell\a", "not utf \udcff"])
def test_a_path_that_no_workflow_can_hold_is_refused(name: str, run: Run, made: Path, repository: Path) -> None:
    shutil.copytree(repository / DATA, repository / name)
    refuse(run("ci-init", made, "--data", name), 2, "cannot stand in a workflow", "rename it")
    assert not (repository / WORKFLOW).exists()


def test_a_job_that_would_fail_at_once_is_not_written(
    run: Run, made: Path, other: Path, repository: Path, asked: ExportOptions
) -> None:
    refuse(run("ci-init", made, "--data", DATA, "--max-drop", 0.5), 10, "too few images", "nothing was written")
    refuse(run("ci-init", other, "--data", DATA, "--max-drop", 1), 2, "leave --max-drop out")
    refuse(run("ci-init", made, "--max-drop", 1), 2, "--max-drop requires --data")
    refuse(run("ci-init", made, "--class-order", "name"), 2, "--class-order requires --data")
    refuse(run("ci-init", made, "--data", "absent"), 2, "absent")
    export(replace(asked, output=repository / "build/f", precision=Precision.FP32))
    failed = repository / "build/f/manifest.json"
    failed.write_text(failed.read_text(encoding="utf-8").replace('"verified"', '"failed"'), encoding="utf-8")
    refuse(run("ci-init", repository / "build/f"), 9, "must not be deployed")
    assert not (repository / "deploy").exists()


def test_a_folder_without_a_repository_is_refused(
    run: Run, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refuse(run("ci-init", made), 2, "is not in a Git repository", "git init")
    monkeypatch.setenv("PATH", str(tmp_path))
    refuse(run("ci-init", made), 3, "git is not installed")
    np.testing.assert_equal(list(tmp_path.glob("deploy")), [])
