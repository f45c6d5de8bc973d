"""Findings as JUnit XML, which Jenkins, GitLab and GitHub's actions show as tests: a test case for each judged fact."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from string import Formatter
from typing import Final
from xml.etree import ElementTree as ET

from skdeploy.core.files import write_text
from skdeploy.report.blocks import Block, Cell, Finding, Fold, Outcome, Table

SKIPPED: Final[tuple[Outcome, ...]] = ("skip", "undecided")
# XML 1.0, section 2.2: all characters but these may stand in a document, escaped or not.
NOT_XML: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_junit(path: Path, suite: str, blocks: Iterable[Block], seconds: float, verdict: str = "") -> None:
    """Write the findings among ``blocks``, and the rows of their tables that are test cases. Raises UsageError, IntegrityError.

    ``seconds`` is what all of them took together; ``verdict``, on the bundle, is a property of the suite.
    """
    cases = list(_cases(blocks))
    numbers = {
        "tests": str(len(cases)),
        "failures": str(sum(case.outcome == "fail" for case in cases)),
        "errors": "0",
        "skipped": str(sum(case.outcome in SKIPPED for case in cases)),
        "time": f"{seconds:.3f}",
    }
    root = ET.Element("testsuites", {"name": _xml(suite), **numbers})
    element = ET.SubElement(root, "testsuite", {"name": _xml(suite), **numbers})
    if verdict:
        properties = ET.SubElement(element, "properties")
        ET.SubElement(properties, "property", {"name": "verdict", "value": _xml(verdict)})
    for case in cases:
        names = {"classname": _xml(f"skdeploy.{case.group}"), "name": _xml(case.name), "time": "0"}
        node, whole = ET.SubElement(element, "testcase", names), _xml("\n".join(filter(None, (case.text, case.detail))))
        if case.outcome == "fail":
            ET.SubElement(node, "failure", {"message": _xml(case.text)}).text = whole
            continue
        if case.outcome in SKIPPED:
            ET.SubElement(node, "skipped", {"message": _xml(case.text)})
        ET.SubElement(node, "system-out").text = whole
    ET.indent(root)
    buffer = io.BytesIO()
    ET.ElementTree(root).write(buffer, encoding="utf-8", xml_declaration=True)
    write_text(path, buffer.getvalue().decode() + "\n")


def _cases(blocks: Iterable[Block]) -> Iterator[Finding]:
    for block in blocks:
        if isinstance(block, Finding):
            yield block
        elif isinstance(block, Fold):
            yield from _cases(block.blocks)
        elif isinstance(block, Table) and block.case:
            yield from filter(None, (_case(block, row) for row in block.rows))


def _case(table: Table, row: tuple[Cell, ...]) -> Finding | None:
    """A row of a table: its columns and their values."""
    if not all(row[int(field)].text for _, field, _, _ in Formatter().parse(table.case) if field):
        return None
    outcome: Outcome = next((cell.outcome for cell in row if cell.outcome is not None), "note")
    said = "; ".join(
        f"{column.label} {cell.whole}" for column, cell in zip(table.columns, row, strict=True) if cell.text
    )
    reason = "; ".join(cell.hint for cell in row if cell.outcome is not None and cell.hint)
    name = table.case.format(*(cell.text for cell in row))
    return Finding(table.group, name, outcome, reason or said, said if reason else "")


def _xml(text: str) -> str:
    return NOT_XML.sub("\ufffd", text)
