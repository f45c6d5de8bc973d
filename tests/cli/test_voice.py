"""How much a verb prints: --quiet, --verbose, --log-file, each note once, and no word broken on a terminal."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest

from skdeploy.cli import VERBS
from skdeploy.report.progress import ConsoleProgress
from skdeploy.report.terminal import Terminal
from skdeploy.report.voice import speaking, voice, whole_lines
from tests.cli.conftest import Run

SHOWN = [name for name, verb in VERBS.items() if not verb.hidden]


class Screen(io.StringIO):
    """A terminal that keeps what it gets."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("verb", SHOWN)
def test_every_verb_has_the_options_of_its_voice(verb: str, run: Run) -> None:
    out = run(verb, "-h").out
    assert "-q, --quiet" in out
    assert "-v, --verbose" in out
    assert "--log-file FILE" in out


def test_a_quiet_export_prints_its_verdict_and_nothing_else(run: Run, again: list[object], tmp_path: Path) -> None:
    result = run(*again, "-o", tmp_path / "new", "--quiet")
    assert (result.code, result.out, result.err) == (0, "verified\n", "")
    shown = run("inspect", tmp_path / "new")
    assert shown.out.startswith("verified\n")
    assert len(shown.out.splitlines()) > 5


def test_a_quiet_failure_prints_the_error_alone(run: Run, tmp_path: Path) -> None:
    result = run("verify", tmp_path, "-q")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")


def test_every_quiet_line_says_something(run: Run, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verbs without a verdict leave one line of their result."""
    monkeypatch.chdir(desk)
    for command in (
        "predict bundle images/0.png images/1.png",
        "models tiny.toml",
        "inspect bundle/model.onnx",
        "plan bundle --device orin-nano",
        "doctor",
    ):
        lines = run(*command.split(), "--quiet").out.splitlines()
        assert len(lines) == (2 if command.startswith("predict") else 1), (command, lines)


def test_quiet_json_is_the_json(run: Run, bundle: Path) -> None:
    assert json.loads(run("inspect", bundle, "--json", "--quiet").out)["verdict"]["state"] == "verified"


def test_quiet_and_verbose_contradict_each_other(run: Run, bundle: Path) -> None:
    assert run("inspect", bundle, "-q", "-v").code == 2


def test_each_note_is_said_once(run: Run, again: list[object], bundle: Path) -> None:
    result = run(*again, "-o", bundle)
    both = result.out + result.err
    (note,) = {line for line in both.splitlines() if line.startswith("! no engine")}
    assert both.count(note) == 1


def test_a_note_that_no_result_repeats_is_said_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with speaking(), ConsoleProgress() as progress:
        progress.note("first")
        progress.note("second")
        assert capsys.readouterr().err == ""
        Terminal().warn("second")
    captured = capsys.readouterr()
    assert captured.err == "! first\n"
    assert captured.out == "! second\n"


def test_a_library_users_notes_are_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleProgress().note("first")
    assert "first" in capsys.readouterr().err


def test_the_log_has_what_quiet_leaves_out_and_the_error_with_its_place(
    run: Run, again: list[object], bundle: Path, tmp_path: Path
) -> None:
    log = tmp_path / "skdeploy.log"
    assert run(*again, "-o", bundle, "--quiet", "--log-file", log).code == 0
    text = log.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:.+-]+  ", line) for line in lines)
    for part in ("--quiet", "begin parity", "end parity", "note: no engine", "model.fp16.onnx", "verified"):
        assert part in text
    assert run("verify", tmp_path, "--log-file", log).code == 2
    longer = log.read_text(encoding="utf-8")
    assert longer.startswith(text)
    assert "Traceback" in longer
    assert "error: " in longer


def test_a_log_that_cannot_be_written_is_refused_before_anything_runs(run: Run, bundle: Path, tmp_path: Path) -> None:
    result = run("verify", bundle, "--log-file", tmp_path / "none/x.log")
    assert result.code == 2
    assert "none/x.log" in result.err


def test_verbose_prints_details_and_where_an_error_came_from(
    run: Run, again: list[object], bundle: Path, tmp_path: Path
) -> None:
    details = run("verify", bundle, "--images", again[again.index("--images") + 1], "--verbose").err
    assert "model.fp16.onnx on onnxruntime" in details
    assert "Traceback" in run("verify", tmp_path, "--verbose").err
    assert "Traceback" not in run("verify", tmp_path).err


def test_stages_leave_the_terminal_to_the_result_unless_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def last_screen(*, fails: bool) -> str:
        screen = Screen()
        monkeypatch.setattr(sys, "stderr", screen)
        monkeypatch.setenv("TERM", "xterm")
        with speaking():
            try:
                with ConsoleProgress() as progress:
                    progress.begin("trace")
                    progress.end("trace", 1.0, reused=False)
                    progress.begin("simplify")
                    if fails:
                        raise ValueError
                    progress.end("simplify", 1.0, reused=False)
            except ValueError:
                pass
        _, _, after = screen.getvalue().rpartition("\x1b[2K")  # all above is erased, line by line
        return after

    assert "simplify" not in last_screen(fails=False)
    failed = last_screen(fails=True)
    assert "PyTorch to ONNX" in failed
    assert "✗" in failed


def test_a_terminal_breaks_lines_between_words_and_keeps_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "40")
    text = "onnxruntime-tensorrt refuses it: run `skdeploy export net.toml --fp16` and try again"
    Terminal().say((text, "green"))
    plain = re.sub(r"\x1b\[[\d;]*m", "", screen.getvalue())
    assert plain.splitlines() == [
        "onnxruntime-tensorrt refuses it: run",
        "  `skdeploy export net.toml --fp16` and",
        "  try again",
    ]


def test_a_file_gets_lines_as_long_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    Terminal().say("word " * 40)
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize("width", [20, 33, 80, 140])
def test_lines_lose_no_word_and_are_as_long_as_the_terminal_at_most(width: int) -> None:
    text = (
        "a run of words, onnxruntime-tensorrt-and-more-than-20 among them, and `a command` too\n  indented words go on"
    )
    lines = whole_lines(text, width)
    assert " ".join(lines).split() == text.split()
    assert all(len(line) <= width or len(line.split()) <= 2 for line in lines)
    later = next(number for number, line in enumerate(lines) if "indented" in line) + 1
    assert all(line.startswith("    ") for line in lines[later:])


def test_a_run_inside_a_run_speaks_with_the_outer_voice() -> None:
    with speaking() as outer:
        assert voice() is outer
    assert voice() is not outer
