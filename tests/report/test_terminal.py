"""What a narrow terminal leaves out of a table, and what stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from skdeploy.report.blocks import Cell, Facts, Finding, Fold, Section, Table, Text, columns
from skdeploy.report.progress import ConsoleProgress
from skdeploy.report.terminal import Terminal
from skdeploy.report.voice import harmless, speaking

HEADS = columns("artifact", ">error", ">size", "backend")
ROW = (Cell("model.onnx"), Cell("0.25", note="at most 0.5"), Cell("12 MB"), Cell("onnxruntime"))


def lines(
    width: int, table: Table, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[list[str]]:
    monkeypatch.setattr("skdeploy.report.terminal.LOG_WIDTH", width)
    Terminal().show(table)
    return [line.split() for line in capsys.readouterr().out.splitlines()]


# In full: 10 of the artifact, 18 of the error with its limit, 5, 11, and 2 between columns: 50.
@pytest.mark.parametrize(
    ("width", "notes_last", "expected"),
    [
        (50, False, "model.onnx 0.25 (at most 0.5) 12 MB onnxruntime"),
        (49, False, "model.onnx 0.25 (at most 0.5) 12 MB"),
        (36, False, "model.onnx 0.25 (at most 0.5)"),
        (29, False, "model.onnx 0.25 12 MB"),
        (20, False, "model.onnx 0.25"),
        (50, True, "model.onnx 0.25 (at most 0.5) 12 MB onnxruntime"),
        (49, True, "model.onnx 0.25 12 MB onnxruntime"),
        (36, True, "model.onnx 0.25 12 MB"),
    ],
)
def test_a_narrow_terminal_leaves_out_columns_on_the_right_and_limits(
    width: int, notes_last: bool, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = Table("", HEADS, (ROW,), least=2, notes_last=notes_last)
    assert " ".join(lines(width, table, monkeypatch, capsys)[1]) == expected


def test_a_table_that_says_no_least_loses_no_column(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = "".join(word for line in lines(30, Table("", HEADS, (ROW,)), monkeypatch, capsys) for word in line)
    assert "size" in shown
    assert "backend" in shown


def test_what_is_folded_is_told_only_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    section = Section("a", "A", "lead", (Text("always"), Fold("more", (Text("seldom"),))))
    Terminal().section(section)
    assert "seldom" not in capsys.readouterr().out
    Terminal().section(section, unfold=True)
    assert "always\nseldom\n" in capsys.readouterr().out


EVIL = "a\x1b]0;owned\x07\x9b31m\rb\u202egpj.exe\x00"


def test_no_text_of_a_file_steers_the_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with speaking() as own:
        own.open_log(tmp_path / "log")
        terminal = Terminal()
        terminal.headline(EVIL, (EVIL, "green"))
        terminal.say(EVIL)
        terminal.warn(EVIL)
        terminal.title(EVIL)
        terminal.facts({EVIL: EVIL})
        terminal.show(Table("", HEADS, ((Cell(EVIL), Cell("1"), Cell(EVIL, note=EVIL), Cell(EVIL)),)))
        with ConsoleProgress() as progress:
            progress.begin("trace")
            progress.update(EVIL)
            progress.note(EVIL)
        own.error(EVIL, EVIL)
    out, err = capsys.readouterr()
    log = (tmp_path / "log").read_text(encoding="utf-8")
    for text in (out, err, log):
        assert "gpj.exe" in text
        assert [sign for sign in text if not sign.isprintable() and sign != "\n"] == []
    assert r"a\x1b]0;owned\x07\x9b31m\rb\u202egpj.exe\x00" in out


def test_a_line_end_in_a_label_makes_no_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """A bundle's label could write a row of a table, or another image's result for ``--quiet``."""
    label = "cat\nevil.png: 100 %\u2028\tdog"
    with speaking() as own:
        own.quiet = True
        Terminal().brief(f"a.png: {label}")
    terminal = Terminal()
    terminal.title(label)
    terminal.table(["label"], [[label]])
    terminal.show(Table("", columns("label"), ((Cell(label, note=label),),)))
    for block in (
        Finding("", "", "pass", label, label),
        Text(label),
        Text(label, "warn"),
        Facts(((label, label),), label),
    ):
        terminal.show(block)
    shown = capsys.readouterr().out.split("\n")
    assert [line for line in shown if line.startswith("evil.png") or not (line + " ").isprintable()] == []
    assert sum(r"cat\nevil.png: 100 %\u2028\tdog" in line for line in shown) == 9


def test_tabs_and_other_alphabets_stay(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().say("größe\t寸法 שלום")
    assert "größe" in capsys.readouterr().out
    assert harmless("größe\t寸法 שלום\n") == "größe\t寸法 שלום\n"
