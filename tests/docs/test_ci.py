"""The action and the workflows in docs/how-to/ci.md: they parse, and run as they say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml

from skdeploy.accuracy.baseline import read_baseline
from skdeploy.accuracy.evaluate import labelled_images
from skdeploy.cli import app
from skdeploy.zoo.cards import read_card

ROOT = Path(__file__).resolve().parents[2]
ACTION: Any = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
TEXT = (ROOT / "docs/how-to/ci.md").read_text(encoding="utf-8")
WORKFLOWS: Any = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)]
COMMANDS: Any = typer.main.get_command(app)
GIVEN = {"model": "tiny.toml", "images": "images.npz", "target": "onnx", "output": "out put"}
OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z0-9-]*(?![\w-])")


def scripts() -> list[str]:
    """Every shell script in the action and in the page."""
    steps = [*ACTION["runs"]["steps"]]
    for workflow in WORKFLOWS:
        jobs = workflow.get("jobs") or workflow
        for job in jobs.values():
            steps += job.get("steps", []) if isinstance(job, dict) else []
            steps += [{"run": line} for line in job.get("script", [])] if isinstance(job, dict) else []
    found = [step["run"] for step in steps if "run" in step]
    return found + re.findall(r"^```sh\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def unknown_options(script: str) -> list[str]:
    """What a script gives to a verb that does not take it. Options may be collected in an array before the verb is run."""
    problems = []
    verbs = re.findall(r"^skdeploy ([a-z]+)", script, re.MULTILINE)
    for verb in verbs:
        command = COMMANDS.commands.get(verb)
        if command is None:
            problems.append(verb)
            continue
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        lines = [line for line in script.splitlines() if line.startswith(f"skdeploy {verb}") or "options" in line]
        for line in lines:
            words = re.sub(r"\[ -n \S+ \]", "", line)
            problems += [f"{verb} {option}" for option in OPTION.findall(words) if option not in known]
    return problems


def test_every_command_exists_with_these_options() -> None:
    found = scripts()
    assert sum("skdeploy" in script for script in found) >= 12
    assert [problem for script in found for problem in unknown_options(script)] == []


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("skdeploy exprot x", "exprot"),
        ("skdeploy verify x --junit a --junitt b", "verify --junitt"),
        ('options=(--fp16 --fp17)\nskdeploy export "${options[@]}"', "export --fp17"),
    ],
)
def test_a_command_that_does_not_exist_is_noticed(script: str, problem: str) -> None:
    assert unknown_options(script) == [problem]


def test_workflows_use_only_inputs_that_the_action_has() -> None:
    uses = [
        step
        for workflow in WORKFLOWS
        for job in (workflow.get("jobs") or {}).values()
        for step in job["steps"]
        if "/skdeploy@" in step.get("uses", "")
    ]
    assert uses
    for step in uses:
        assert set(step["with"]) <= set(ACTION["inputs"])
        required = {name for name, entry in ACTION["inputs"].items() if entry.get("required")}
        assert required <= set(step["with"])


def test_every_input_is_used_and_every_one_that_is_used_is_declared() -> None:
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"inputs\.([a-z-]+)", text)) == set(ACTION["inputs"])


def test_no_input_is_pasted_into_a_script() -> None:
    """`run: echo ${{ inputs.x }}` would run whatever the input says."""
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step.get("run", "")
        assert "uses" in step or step["shell"] == "bash"


def test_exit_codes_are_those_of_the_reference() -> None:
    table = TEXT.split("## Exit codes")[1].split("##")[0]
    listed = {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE) for code in row.split(",")}
    reference = (ROOT / "docs/reference/exit-codes.md").read_text(encoding="utf-8")
    assert listed <= {int(code) for code in re.findall(r"^\| (\d+) \|", reference, re.MULTILINE)}


def test_the_committed_baselines_are_of_the_committed_images() -> None:
    spec = read_card(ROOT / "models/sknet-fashion.toml")
    dataset = labelled_images(ROOT / "calibration/fashion", spec, None)
    for precision in ("fp16", "int8"):
        baseline = read_baseline(ROOT / f"tests/golden/accuracy/sknet-fashion-{precision}.json")
        assert baseline.dataset_sha256 == dataset.digest
        assert baseline.images == len(dataset)
        assert [entry.precision for entry in baseline.artifacts] == ["fp32", precision]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """What a user's job has checked out, after the action has run there, and its exit codes. Do not change the folder: take
    ``workspace``.
    """
    folder = tmp_path_factory.mktemp("first")
    shutil.copy(ROOT / "tests/fixtures/tiny.toml", folder / "tiny.toml")
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (12, 40, 44, 3), dtype=np.uint8)
    np.savez(folder / "images.npz", images=pixels[:4])
    np.savez(folder / "evaluation.npz", images=pixels, labels=random.integers(0, 5, 12))
    (folder / "skdeploy.toml").write_text('[export]\nexporter = "torchscript"\n', encoding="utf-8")  # the quick one
    return folder, run_action(folder, **GIVEN, data="evaluation.npz")


@pytest.fixture
def workspace(first: tuple[Path, dict[str, int]], tmp_path: Path) -> Path:
    """A copy of it, as a runner has it that keeps its folders: without the results."""
    copied = Path(shutil.copytree(first[0], tmp_path / "again"))
    shutil.rmtree(copied / "out put/results")
    for name in ("summary.md", "github-output"):
        (copied / name).unlink()
    return copied


def evaluated(text: str, inputs: dict[str, str], outputs: dict[str, str]) -> str:
    """A runner's expressions, of the two kinds that the action has: an input, and an output of the step ``paths``."""

    def value(match: re.Match[str]) -> str:
        kind, _, key = match[1].strip().partition(".")
        return inputs[key] if kind == "inputs" else outputs[key.removeprefix("paths.outputs.")]

    return re.sub(r"\$\{\{(.*?)\}\}", value, text)


def run_action(workspace: Path, **inputs: str) -> dict[str, int]:
    """The action's own scripts, as a runner runs them: exit codes by the name of the step, up to the first that fails."""
    values = {name: entry.get("default", "") for name, entry in ACTION["inputs"].items()} | inputs
    values = {name: str(value) for name, value in values.items()}
    outputs: dict[str, str] = {}
    codes: dict[str, int] = {}
    github = workspace / "github-output"
    for step in ACTION["runs"]["steps"]:
        name = step["name"]
        wanted = "cancelled" in str(step.get("if")) or not any(codes.values())
        if name == "Install" or "run" not in step or not wanted or (name == "Evaluate" and not values["data"]):
            continue

        given = {key: evaluated(text, values, outputs) for key, text in step.get("env", {}).items()}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {
            "PATH": path,
            "HOME": str(workspace),
            "GITHUB_OUTPUT": str(github),
            "XDG_CACHE_HOME": str(workspace),
        }
        environment |= {"GITHUB_STEP_SUMMARY": str(workspace / "summary.md")} | given
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=workspace,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        codes[name] = done.returncode
        if github.exists():
            outputs |= dict(line.split("=", 1) for line in github.read_text(encoding="utf-8").splitlines())
    return codes


def test_the_action_exports_verifies_evaluates_and_reports(first: tuple[Path, dict[str, int]]) -> None:
    workspace, codes = first
    assert codes == dict.fromkeys(("Inputs", "Paths", "Export", "Verify", "Evaluate", "Report", "Summary"), 0)
    results = workspace / "out put/results"
    assert {path.name for path in results.iterdir()} == {
        "verify.xml", "verify.md", "evaluate.xml", "evaluate.md", "report.html",
    }  # fmt: skip
    summary = (workspace / "summary.md").read_text(encoding="utf-8")
    assert "## tiny fp16: verified" in summary
    assert "on 12 images" in summary


def test_the_action_stops_at_what_fails_and_still_reports(workspace: Path) -> None:
    codes = run_action(workspace, **GIVEN, **{"require-engine": "true"})
    assert codes == {
        "Inputs": 0,
        "Paths": 0,
        "Export": 0,
        "Verify": 2,
        "Report": 0,
        "Summary": 0,
    }  # there is no engine to require


def test_an_input_that_is_a_command_is_a_name_and_nothing_else(tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests/fixtures/tiny.toml", tmp_path)
    codes = run_action(tmp_path, model='tiny.toml"; touch owned; "', precision="fp16")
    assert codes["Export"] == 2
    assert not (tmp_path / "owned").exists()
    assert run_action(tmp_path, model="tiny.toml", precision="fp8")["Export"] == 2


@pytest.mark.parametrize("name", ACTION["inputs"])
@pytest.mark.parametrize("value", ["out\nresults=/elsewhere", "a\r::add-mask::b", "a\n", "\x1b[31m"])
def test_no_input_adds_outputs_or_commands_for_the_runner(name: str, value: str, tmp_path: Path) -> None:
    first = ACTION["runs"]["steps"][0]
    given = {
        key: evaluated(text, dict.fromkeys(ACTION["inputs"], "") | {name: value}, {})
        for key, text in first["env"].items()
    }
    script = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", first["run"]]
    for variables, code in ((given, 2), (dict.fromkeys(given, "a b"), 0)):
        variables = {"PATH": os.environ["PATH"], **variables}
        done = subprocess.run(script, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == code
        assert ("control character" in done.stderr) == bool(code)
        assert "elsewhere" not in done.stderr


def test_what_skdeploy_prints_is_no_command_for_the_runner() -> None:
    for step in ACTION["runs"]["steps"]:
        script = step.get("run", "").replace("skdeploy ", "printf '%s\\n' '::set-output name=a::b'; false ")
        if "false " not in script:
            continue
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
        given = {"PATH": os.environ["PATH"], "PRECISION": "fp16"}
        done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
        first, *_, last = done.stdout.splitlines()
        assert done.returncode == 1
        assert "::set-output name=a::b" in done.stdout.splitlines()[1:-1]
        token = first.removeprefix("::stop-commands::")
        assert re.fullmatch("[0-9a-f]{32}", token)
        assert last == f"::{token}::"  # a failure, too, gives the runner its commands back


def test_the_action_installs_the_versions_that_were_tested() -> None:
    (step,) = [step for step in ACTION["runs"]["steps"] if step["name"] == "Install"]
    assert '--constraint "$ACTION/constraints.txt"' in step["run"]
    assert (ROOT / "constraints.txt").is_file()
