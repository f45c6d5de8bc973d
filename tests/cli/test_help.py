"""Help: `-h` for every verb, panels where an option says its own, whole words on 80 columns, and examples that run."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from skdeploy import engines
from skdeploy.cli import VERBS
from skdeploy.cli.help_text import text_and_examples
from skdeploy.core.panel import Panel
from skdeploy.line.calibration import CalibrationOptions
from skdeploy.line.init_card import init_card
from tests.checkpoints.cifar_network import trained
from tests.cli.conftest import QUICK, Result, Run

SHOWN = [name for name, verb in VERBS.items() if not verb.hidden]
PANELS = {
    "export": ["Arguments", *(panel.value for panel in Panel if panel is not Panel.SHARDS)],
    "verify": ["Arguments", "Parity", "Engine", "Output"],
    "evaluate": ["Arguments", "Input", "Accuracy", "Engine", "Many machines", "Output"],
    "build": ["Arguments", "Engine", "Output"],
}
# What examples leave out for their readers, and a test needs: an export of a second, a bench of blinks, no engine.
TAKES = {
    "export": (*QUICK, "--images", "calib"),
    "bench": ("--seconds", "0.02", "--backend", "onnxruntime"),
    "verify": ("--images", "calib"),
    "start": (),
    "tune": ("--calib-method", "mse", "--force"),
}
JUDGES = {"evaluate", "ci-init", "tune"}  # the drop of a network of noise may be beyond a budget, or not decided
SLOW = {"bench", "tune"}  # one times each artifact with each batch, the other makes INT8 in every way that there is
COMPLETE = "_SKDEPLOY_COMPLETE"


def examples(out: str) -> list[str]:
    """The commands below the last heading."""
    return [line.strip() for line in out.partition("\nExamples:\n")[2].splitlines() if line.strip()]


def headings(out: str) -> list[str]:
    return [line[:-1] for line in out.splitlines() if line.endswith(":") and not line.startswith(" ")]


@pytest.mark.parametrize("verb", SHOWN)
def test_h_is_help_and_every_word_of_it_is_whole_on_80_columns(
    verb: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    narrow = run(verb, "-h")
    assert narrow.code == 0
    assert narrow.out == run(verb, "--help").out
    assert max(map(len, narrow.out.splitlines())) <= 80
    monkeypatch.setenv("COLUMNS", "200")
    assert set(narrow.out.split()) == set(run(verb, "-h").out.split())
    assert len(examples(narrow.out)) == 2
    assert all(line.startswith(f"skdeploy {verb}") for line in examples(narrow.out))


@pytest.mark.parametrize("verb", PANELS)
def test_options_are_listed_in_panels_in_one_order(verb: str, run: Run) -> None:
    assert headings(run(verb, "-h").out) == [*PANELS[verb], "Examples"]


def test_a_panel_is_the_one_that_the_model_of_an_option_declares(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def panel_of(option: str) -> str:
        above, _, _ = run("calibrate", "-h").out.partition(f"\n  {option} ")
        return headings(above)[-1]

    from skdeploy.cli.calibrate import _calibrate
    from skdeploy.cli.flags import flattened

    assert panel_of("--calib-num <int>") == CalibrationOptions.panel == Panel.CALIBRATION
    monkeypatch.setattr(CalibrationOptions, "panel", Panel.PARITY)
    monkeypatch.setattr("skdeploy.cli.calibrate.calibrate", flattened(_calibrate))
    assert panel_of("--calib-num <int>") == Panel.PARITY


def test_verbs_are_listed_in_the_order_of_use(run: Run) -> None:
    out = run("-h").out
    places = [out.index(f"\n  {name} ") for name in SHOWN]
    assert places == sorted(places)
    assert headings(out) == [*dict.fromkeys(VERBS[name].panel for name in SHOWN), "Options"]


@pytest.fixture(scope="module")
def shelf(desk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the examples name. Do not change it."""
    folder = tmp_path_factory.mktemp("shelf")
    state = {f"model.{name}": tensor for name, tensor in trained().state_dict().items()}
    torch.save({"state_dict": state, "epoch": 29}, folder / "mynet.ckpt")
    (folder / "labels.txt").write_text("".join(f"class {number}\n" for number in range(5)), encoding="utf-8")
    shutil.copytree(desk / "bundle", folder / "build/mynet-fp16")
    shutil.copytree(desk / "int8", folder / "build/mynet-int8")
    shutil.copytree(desk / "images", folder / "calib")
    shutil.copy(desk / "images/0.png", folder / "cat.png")
    shutil.copy(desk / "images/1.png", folder / "dog.png")
    shutil.copy(desk / "bundle/model.onnx", folder / "mynet.onnx")
    shutil.copy(desk / "official.caffemodel", folder / "mynet.caffemodel")
    (folder / "eval").mkdir()
    (folder / "cards").mkdir()
    shutil.copy(desk / "evaluation.npz", folder / "eval")
    card, _ = init_card(str(folder / "mynet.onnx"), folder / "mynet.toml")
    card.write_text(card.read_text(encoding="utf-8").partition("[assumed.preprocessing]")[0], encoding="utf-8")
    return folder


def run_example(run: Run, verb: str, line: str) -> Result:
    _, *words = shlex.split(line)
    if verb == "start":
        words[1:1] = ["--backend", "onnxruntime"]
    return run(*words, *TAKES.get(verb, ()))


@pytest.mark.parametrize(
    "verb", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in SHOWN]
)
def test_every_example_runs(verb: str, run: Run, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if verb == "build" and (reason := engines.obstacle("tensorrt_rtx")[0]):
        pytest.skip(reason)
    monkeypatch.chdir(shutil.copytree(shelf, tmp_path / "shelf"))
    if verb == "ci-init":  # is for a repository that has all that its bundle is made from
        subprocess.run(["git", "init", "--quiet"], check=True)
        # FP16: in INT8 this network is not in parity on images of noise.
        made = run("export", "mynet.ckpt", "--fp16", "--images", "calib", "-o", "build/mynet-int8", *QUICK)
        assert made.code == 0, made.err
    monkeypatch.setattr("skdeploy.bench.timing.WARM_UP_SECONDS_AT_MOST", 0.3)  # the figures are not what is asked here
    for line in examples(run(verb, "-h").out):
        if verb == "init":
            Path("mynet.toml").unlink(missing_ok=True)  # an init overwrites no card
        shutil.rmtree("deploy", ignore_errors=True)  # nor does a ci-init
        result = run_example(run, verb, line)
        assert result.code in ({0, 10} if verb in JUDGES else {0}), f"{line}\n{result.err}"


def test_an_example_that_does_not_run_is_noticed(
    run: Run, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shutil.copytree(shelf, tmp_path / "shelf"))
    assert run_example(run, "inspect", "skdeploy inspect build/mynet-fp61").code == 2


def test_examples_are_cut_from_a_docstring_and_kept_as_they_are_typed() -> None:
    text = "Do it.\n\n    More of it.\n\n    Examples:\n        a  b\n        c\n    "
    assert text_and_examples(text) == ("Do it.\n\nMore of it.", "a  b\nc")
    assert text_and_examples("Do it.") == ("Do it.", "")


def completed(line: str) -> tuple[list[str], list[str]]:
    """What bash is told for the last word of a line, and which verbs were imported for it."""
    code = """
import atexit, sys
sys.argv[0] = "skdeploy"
own = "skdeploy.cli."
atexit.register(lambda: print(*(m[len(own):] for m in sys.modules if m.startswith(own)), file=sys.stderr))
from skdeploy.__main__ import main
main()
"""
    words = line.split(" ")
    environment = {COMPLETE: "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split(), [name for name in done.stderr.split() if name in VERBS]


def test_a_shell_completes_verbs_without_importing_one_and_options_with_that_one() -> None:
    assert completed("skdeploy ver") == (["verify"], [])
    names, imported = completed("skdeploy inspect --la")
    assert (names, imported) == (["--layers"], ["inspect"])
    assert completed("skdeploy sensitivity --class-order n")[0] == ["number", "name"]


def test_completion_can_be_shown(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.completion._get_shell_name", lambda: "bash")
    result = run("--show-completion")
    assert result.code == 0
    assert "complete -o default" in result.out
