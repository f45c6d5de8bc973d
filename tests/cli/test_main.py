"""What every verb has in common: help, JSON on stdout alone, and the exit codes of what is nobody's mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.main import get_command

import skdeploy
from skdeploy.cli import app
from tests.cli.conftest import Run

VERBS = sorted(get_command(app).commands)  # type: ignore[attr-defined]  # Typer's own group


@pytest.mark.parametrize("verb", VERBS)
def test_help_documents_every_option_of_a_verb(run: Run, verb: str) -> None:
    result = run(verb, "--help")
    assert result.code == 0
    command = get_command(app).commands[verb]  # type: ignore[attr-defined]  # Typer's own group
    assert len(command.params) > 0
    shown = "".join(result.out.split())  # the help is broken into lines, at hyphens too
    for parameter in (each for each in command.params if not getattr(each, "hidden", False)):
        assert parameter.help, f"{verb} {parameter.name} has no help"
        assert "".join(parameter.help.split()) in shown
        for name in parameter.opts if parameter.param_type_name == "option" else ():
            assert name in shown


def test_version_is_the_packages(run: Run) -> None:
    result = run("--version")
    assert result.code == 0
    assert result.out.strip() == skdeploy.__version__


def test_no_verb_shows_the_verbs(run: Run) -> None:
    result = run()
    assert result.code == 2
    assert "export" in result.err + result.out


# Runs a verb like the installed command does, and says on stderr which frameworks it took.
ASK = """
import atexit, sys
sys.argv[0] = "skdeploy"
heavy = ("torch", "onnxruntime", "onnxsim", "onnxscript")
atexit.register(lambda: print("imported:", [name for name in heavy if name in sys.modules], file=sys.stderr))
from skdeploy.__main__ import main
main()
"""


def process(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", ASK, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_an_export_that_is_up_to_date_imports_no_framework_and_prints_json_alone(
    again: list[object], bundle: Path
) -> None:
    done = process(*again, "-o", bundle, "--json")
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["verdict"]["state"] == "verified"
    assert all(row["reused"] for row in content["artifacts"])
    assert "up to date" in done.stderr
    assert "imported: []" in done.stderr


def test_the_import_check_sees_a_verb_that_takes_a_framework(exported: Path, images: Path) -> None:
    assert "'onnxruntime'" in process("predict", exported, images / "0.png").stderr


ENDS = """
import atexit, sys, types
sys.modules["torch"] = types.ModuleType("torch")  # as if a verb had taken it
sys.argv = ["skdeploy", *sys.argv[1:]]
atexit.register(lambda: print("registered"))
import skdeploy.__main__
class Slow:
    def __del__(self):
        print("taken apart")
skdeploy.kept = Slow()
skdeploy.__main__.process()
"""


@pytest.mark.parametrize(("argument", "code"), [("--version", 0), ("no-such-verb", 2)])
def test_a_process_with_torch_ends_at_once_and_loses_nothing(argument: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", ENDS, argument], capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines() == [*([skdeploy.__version__] if code == 0 else []), "registered"]
    assert ("no-such-verb" in done.stderr) == (code == 2)


def test_a_process_without_torch_ends_as_python_does() -> None:
    without = "\n".join(line for line in ENDS.splitlines() if "torch" not in line)
    done = subprocess.run([sys.executable, "-c", without, "--version"], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "taken apart"


@pytest.mark.parametrize(
    ("arguments", "kind", "code"),
    [
        (["export", "sknt50", "--json"], "CardError", 2),
        (["export", "sknet50", "--no-such-option", "--json"], "UsageError", 2),
        (["verify", "--json"], "UsageError", 2),
        (["inspect", "no/such/bundle", "--json"], "UsageError", 2),
    ],
)
def test_an_error_is_json_on_stdout_too(run: Run, arguments: list[str], kind: str, code: int) -> None:
    result = run(*arguments)
    assert result.code == code
    error = result.json["error"]
    assert (error["type"], error["exit_code"]) == (kind, code)
    assert error["message"]
    assert error["advice"]
    assert result.err


def test_a_failed_integrity_check_is_json_too(run: Run, bundle: Path) -> None:
    (bundle / "model.onnx").unlink()
    result = run("verify", bundle, "--json")
    assert result.code == result.json["error"]["exit_code"] == 9


def test_cards_as_json_are_what_the_cards_say(run: Run, card: Path) -> None:
    assert len(run("models", "--json").json["cards"]) > 1
    (content,) = run("models", card, "--json").json["cards"]
    assert content["name"] == "tiny"
    assert content["network"]["classes"] == 5


def test_a_bug_shows_its_traceback_and_how_to_report_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("a slip of ours")

    monkeypatch.setattr("skdeploy.inspect.diagnosis.diagnose", broken)
    result = run("doctor", "--json")
    assert result.code == 1
    assert "Traceback" in result.err
    assert "This is a bug in skdeploy. Please report it" in result.err
    assert result.json["error"]["type"] == "ZeroDivisionError"


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_an_interrupt_is_no_bug(
    number: signal.Signals, code: int, word: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> None:
        os.kill(os.getpid(), number)
        time.sleep(5)  # the kernel may hand the signal to a thread of some library: then it takes a moment

    monkeypatch.setattr("skdeploy.inspect.diagnosis.diagnose", interrupted)
    result = run("doctor", "--json")
    assert result.code == result.json["error"]["exit_code"] == code
    assert f"{word}: no file is half-written" in result.err
    assert "Traceback" not in result.err


def test_an_interrupt_while_packages_are_imported_ends_like_any_other(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("skdeploy.cli.encoding.print_anything", interrupted)
    ended = run("doctor")
    assert ended.code == 130
    assert ended.err.splitlines() == ["interrupted: no file is half-written; run the same command again to continue"]
