"""Reports for CI: what a hostile name becomes in JUnit and in Markdown."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

from skdeploy.report.blocks import Cell, Finding, Fold, Section, Table, Text, columns
from skdeploy.report.junit import write_junit
from skdeploy.report.markdown import markdown, write_markdown

HOSTILE = 'a]]><script>alert("1")</script>|\n# b & `c` \x00\x1b[31m\ud800 [x](http://y) @me $z$'


def test_hostile_names_stay_text_in_junit(tmp_path: Path) -> None:
    checks = [
        Finding("g", HOSTILE, "fail", HOSTILE, HOSTILE),
        Finding(HOSTILE, "n", "skip", HOSTILE),
        Finding("g", "p", "pass", HOSTILE),
    ]
    write_junit(tmp_path / "junit.xml", HOSTILE, checks, 1.5)
    root = ET.parse(tmp_path / "junit.xml").getroot()  # parses: well-formed
    assert [element.tag for element in root.iter()] == [
        "testsuites", "testsuite", "testcase", "failure", "testcase", "skipped", "system-out", "testcase", "system-out",
    ]  # fmt: skip
    text = root.findtext("testsuite/testcase/failure")
    assert text is not None
    assert '<script>alert("1")</script>' in text
    assert "\x00" not in text
    assert "\x1b" not in text


def test_hostile_names_stay_text_in_markdown(tmp_path: Path) -> None:
    table = Table("", columns("a", "b"), ((Cell(HOSTILE), Cell("x")),))
    blocks = (table, Finding("g", "n", "fail", HOSTILE), Text(HOSTILE))
    write_markdown(tmp_path / "s.md", HOSTILE, Section("", "", HOSTILE, blocks))
    text = (tmp_path / "s.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) == 10  # title, blank, lead, blank, three of the table, blank, check, note
    for sign in ("<script", "`", "[x]", "http://", "@me", "$z", "\x1b", "\x00"):
        assert sign not in text
    assert text.splitlines()[6].count("|") == 3  # the cells' own
    assert text.count("&#60;script&#62;") == 5
    assert markdown("1. first") == "&#49;&#46; first"
    assert markdown("94.90 % (93.85 to 95.78)") == "94.90 % (93.85 to 95.78)"
    assert (
        markdown("model.fp16.onnx on onnxruntime: -0.25 to +0.25 %")
        == "model.fp16.onnx on onnxruntime: -0.25 to +0.25 %"
    )


ROWS = (
    (Cell("a.onnx"), Cell("failed", tone="bad", outcome="fail", hint="a.onnx: 9 dB, at least 10"), Cell("cpu")),
    (Cell("b.plan"), Cell("not run yet", outcome="skip"), Cell("trt")),
    (Cell("weights"), Cell(""), Cell("")),
)
FOLDED = Fold("more", (Table("t", columns("artifact", "parity", "backend"), ROWS, group="parity", case="{0} on {2}"),))


def test_a_row_is_a_test_case_with_its_outcome_and_one_without_a_name_is_none(tmp_path: Path) -> None:
    write_junit(tmp_path / "junit.xml", "s", (FOLDED,), 1.0)
    failed, skipped = ET.parse(tmp_path / "junit.xml").getroot().iter("testcase")
    assert (failed.get("name"), skipped.get("name")) == ("a.onnx on cpu", "b.plan on trt")
    failure = failed.find("failure")
    assert failure is not None
    assert failure.get("message") == "a.onnx: 9 dB, at least 10"
    assert failure.text == "a.onnx: 9 dB, at least 10\nartifact a.onnx; parity failed; backend cpu"
    assert skipped.find("skipped") is not None


def test_a_table_after_a_list_is_a_table(tmp_path: Path) -> None:
    write_markdown(tmp_path / "s.md", "t", Section("", "", "lead", (Text("one"), FOLDED)))
    lines = (tmp_path / "s.md").read_text(encoding="utf-8").splitlines()
    table = lines.index("| artifact | parity | backend |")
    assert lines[table - 1] == ""
    assert lines[table + 2] == "| a.onnx | ❌ failed | cpu |"
    assert lines[lines.index("- one") + 2] == "<details><summary>more</summary>"
