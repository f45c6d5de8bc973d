"""A finding is worded once: the terminal, the page, Markdown and JUnit say the same of one bundle."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from skdeploy.bundle.folder import Bundle
from skdeploy.report.accuracy import accuracy_findings
from skdeploy.report.attention import attention_findings
from skdeploy.report.blame import blame_findings
from skdeploy.report.blocks import Facts, Finding, Section, Table, Text
from skdeploy.report.calibration import calibration_findings
from skdeploy.report.findings import Findings, read_findings
from skdeploy.report.headroom import headroom_findings
from skdeploy.report.int8 import sensitivity_findings
from skdeploy.report.junit import write_junit
from skdeploy.report.latency import bench_findings, benched
from skdeploy.report.markdown import write_markdown
from skdeploy.report.parity import OF_THE_LINE, parity_findings
from skdeploy.report.terminal import Terminal
from tests.report.pages import page
from tests.report.reported import GRAPHS, bench, comparison, full_bundle, receipt
from tests.report.reported import parity as parity_report


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """With every finding, an engine that did not run here, and a device's figures of it."""
    unproven = comparison("model.plan", "unproven", "tensorrt", reason="no GPU here")
    report = parity_report(*map(comparison, GRAPHS), unproven)
    made = full_bundle(tmp_path_factory.mktemp("media") / "b", report=report, engine=True)
    receipt(made, "recorded", "latency", **bench(1.84, others=0.4))
    return made


def accuracy(found: Findings) -> Section:
    assert found.accuracy is not None
    return accuracy_findings(found.accuracy)


def parity(found: Findings) -> Section:
    return parity_findings(found.bundle, found.parity)


def blame(found: Findings) -> Section:
    assert found.blame is not None
    return blame_findings(found.blame)


def headroom(found: Findings) -> Section:
    assert found.headroom is not None
    return headroom_findings(found.headroom)


def int8(found: Findings) -> Section:
    assert found.sensitivity is not None
    return sensitivity_findings(found.sensitivity)


def calibration(found: Findings) -> Section:
    assert found.ranges is not None
    return calibration_findings(found.ranges)


def latency(found: Findings) -> Section:
    (one,) = benched(found.receipts)
    return bench_findings([one.measured], one.latency.comparisons)


def attention(found: Findings) -> Section:
    assert found.attention is not None
    return attention_findings(found.attention)


# By the page's section
SUBJECTS: dict[str, Callable[[Findings], Section]] = {
    subject.__name__: subject for subject in (accuracy, parity, blame, headroom, int8, calibration, latency, attention)
}


def plain(text: str) -> str:
    """Letters, digits and signs: neither how a medium wraps lines nor how it begins and ends a sentence."""
    return "".join(text.split()).casefold().rstrip(".")


def judged(section: Section) -> Iterator[str]:
    """What JUnit has test cases of."""
    for block in section.blocks:
        if isinstance(block, Finding):
            yield from (block.text, block.detail)
        elif isinstance(block, Table) and block.case:
            yield from (text for row in block.rows for cell in row for text in (cell.text, cell.note))


def said(section: Section) -> Iterator[str]:
    yield section.lead
    for block in section.blocks:
        if isinstance(block, Text):
            yield block.text
        elif isinstance(block, Facts):
            yield from (text for row in block.rows for text in row)
        elif isinstance(block, Table):
            yield from (column.label for column in block.columns)
            yield from (text for row in block.rows for cell in row for text in (cell.text, cell.note))
    yield from judged(section)


def missing(texts: Iterator[str], medium: str) -> list[str]:
    return [text for text in texts if plain(text) not in plain(medium)]


def terminal(section: Section, capsys: pytest.CaptureFixture[str]) -> str:
    Terminal().section(section)
    return capsys.readouterr().out


def markdown(section: Section, folder: Path) -> str:
    write_markdown(folder / "s.md", "title", section)
    return html.unescape((folder / "s.md").read_text(encoding="utf-8"))


def junit(section: Section, folder: Path) -> str:
    write_junit(folder / "j.xml", "suite", section.blocks, 1.0)
    return "".join(ET.parse(folder / "j.xml").getroot().itertext())


@pytest.mark.parametrize("subject", SUBJECTS)
def test_all_media_have_the_same_words(
    bundle: Bundle, subject: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("skdeploy.report.terminal.LOG_WIDTH", 1000)  # nothing is wrapped, no column is left out
    section = SUBJECTS[subject](read_findings(bundle))
    assert missing(said(section), terminal(section, capsys)) == []
    found = page(bundle)  # size, time, precision and digest of an artifact are on its line there
    on_page = (text for text in said(section) if subject != "parity" or text not in OF_THE_LINE)
    assert missing(on_page, found.text if subject == "parity" else found.sections[subject]) == []
    assert missing(said(section), markdown(section, tmp_path)) == []
    assert missing(judged(section), junit(section, tmp_path)) == []


def test_another_word_in_one_medium_is_found(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    section = accuracy(read_findings(bundle))
    other = replace(section, blocks=(*section.blocks, Finding("drop", "x", "fail", "a graph drops", "by 3 points")))
    assert missing(said(other), page(bundle).sections["accuracy"]) == ["a graph drops", "by 3 points"]
    assert missing(judged(other), junit(section, tmp_path)) == ["a graph drops", "by 3 points"]
    assert missing(said(other), markdown(section, tmp_path)) == ["a graph drops", "by 3 points"]
    assert missing(said(other), terminal(section, capsys)) == ["a graph drops", "by 3 points"]
