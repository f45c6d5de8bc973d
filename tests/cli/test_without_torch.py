"""What runs a bundle needs neither torch nor what else only an export takes; what needs it says so and what to install."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from skdeploy.core.packages import install_command

ABSENT = ("torch", "onnxscript", "onnxsim", "safetensors", "tomli_w", "skimage", "scipy")

# Every command in one process, since each process of its own would import ONNX Runtime again.
PROGRAM = """
import contextlib, importlib.abc, io, json, sys

absent, commands = json.loads(sys.argv[1])

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from skdeploy.__main__ import main

results = []
for command in commands:
    sys.argv = ["skdeploy", *command]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    results.append([code, out.getvalue(), err.getvalue()])
print(json.dumps([results, sorted(set(absent) & {name.partition(".")[0] for name in sys.modules})]))
"""


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def run_without(absent: tuple[str, ...], commands: list[list[str]], folder: Path) -> tuple[list[Ended], list[str]]:
    """How each command ended where ``absent`` cannot be imported, and which of these were imported all the same."""
    program = [sys.executable, "-c", PROGRAM, json.dumps([absent, commands])]
    root = Path(__file__).parents[2]
    environment = os.environ | {"COLUMNS": "200", "PYTHONPATH": str(root)}
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    results, imported = json.loads(done.stdout)
    return [Ended(*result) for result in results], imported


RUNNING = {
    "verify": ["verify", "BUNDLE", "--images", "IMAGES", "--json"],
    "verify for people": ["verify", "BUNDLE", "--images", "IMAGES", "--junit", "verify.xml"],
    "predict": ["predict", "BUNDLE", "IMAGES/0.png", "--json"],
    "evaluate": ["evaluate", "BUNDLE", "--data", "LABELLED", "--json"],
    "inspect": ["inspect", "BUNDLE"],
    "plan": ["plan", "BUNDLE", "--device", "orin-nano"],
    "models": ["models"],
    "models sknet50": ["models", "sknet50"],
    "doctor": ["doctor", "--json"],
}
MAKING = {
    "export": ["export", "sknet-fashion"],
    "export a graph": ["export", "some.onnx"],
    "export a module": ["export", "torch.nn:Identity"],
    "convert": ["convert", "some.pth", "--output", "some.safetensors"],
    "calibrate a card": ["calibrate", "sknet-fashion", "--calib", "IMAGES", "--output", "ranges.json"],
    "predict by torch": ["predict", "BUNDLE", "IMAGES/0.png", "--all"],
    "verify on photographs": ["verify", "BUNDLE"],
}


@pytest.fixture(scope="module")
def ended(exported: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    folder = tmp_path_factory.mktemp("without-torch")
    labelled = folder / "labelled.csv"
    labelled.write_text("".join(f"{images / f'{n}.png'},{n}\n" for n in range(4)), encoding="utf-8")
    bundle = shutil.copytree(exported, folder / "bundle")  # evaluate leaves evidence in it
    places = {"BUNDLE": str(bundle), "IMAGES/0.png": str(images / "0.png"), "IMAGES": str(images)}
    places["LABELLED"] = str(labelled)
    commands = RUNNING | MAKING
    filled = [[places.get(word, word) for word in command] for command in commands.values()]
    results, imported = run_without(ABSENT, filled, folder)
    assert imported == []
    (report,) = folder.glob("verify.xml")
    assert "verified against model.traced.onnx on onnxruntime" in report.read_text(encoding="utf-8")
    return dict(zip(commands, results, strict=True))


@pytest.mark.parametrize("what", RUNNING)
def test_what_runs_a_bundle_works_without_torch(what: str, ended: dict[str, Ended]) -> None:
    assert ended[what].code == 0, ended[what].err


def test_verify_says_that_it_compared_with_the_bundles_own_graph(ended: dict[str, Ended]) -> None:
    reference = "model.traced.onnx on onnxruntime, the bundle's own first FP32 graph, not torch"
    assert json.loads(ended["verify"].out)["parity"]["reference"] == reference
    assert f"reference: {reference}, on 4 images" in ended["verify for people"].out
    assert "not torch: torch cannot be imported here" in ended["verify for people"].err


def test_models_tells_what_is_published_and_that_it_was_not_counted(ended: dict[str, Ended]) -> None:
    assert "27,479,784 as published, not counted: no torch here" in ended["models sknet50"].out


def test_doctor_finds_no_problem_and_says_what_torch_is_for(ended: dict[str, Ended]) -> None:
    diagnosis = json.loads(ended["doctor"].out)
    assert diagnosis["problems"] == []
    (torch,) = (part for part in diagnosis["parts"] if part["name"] == "torch")
    assert not torch["available"]
    assert "needed to make a bundle, not to run one" in torch["install"]


@pytest.mark.parametrize("what", MAKING)
def test_what_needs_torch_names_the_extra_and_ends_with_3(what: str, ended: dict[str, Ended]) -> None:
    assert ended[what].code == 3, ended[what].err
    assert install_command("export,cpu") in ended[what].err
    assert "Traceback" not in ended[what].err


def test_message_names_what_is_missing(ended: dict[str, Ended]) -> None:
    assert "this needs torch, safetensors, onnxscript, onnxsim, not installed here" in ended["export"].err
    assert "this needs onnxscript, onnxsim, not installed here" in ended["export a graph"].err
    assert "this needs torch, safetensors, tomli_w, not installed here" in ended["convert"].err


def test_attach_says_what_to_install(tmp_path: Path) -> None:
    program = "import sys; sys.modules['torch'] = None; from skdeploy import attach_selective_kernels"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert "DependencyError: this needs torch, not installed here" in done.stderr
    assert install_command("export,cpu") in done.stderr


def test_check_sees_a_verb_that_needs_an_absent_package(exported: Path, images: Path, tmp_path: Path) -> None:
    """Without ONNX Runtime nothing runs: the finder does keep packages away."""
    command = ["predict", str(exported), str(images / "0.png")]
    (ended,), _ = run_without(("onnxruntime",), [command], tmp_path)
    assert ended.code == 3
    assert install_command("cpu") in ended.err
