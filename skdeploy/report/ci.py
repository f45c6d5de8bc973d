"""Results for machines that run jobs: JUnit XML, which they show as tests, and Markdown, for the page of the job."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from xml.etree import ElementTree as ET

from skdeploy.accuracy.gate import Evaluation, PairedReport, Share
from skdeploy.core.files import write_text

Outcome = Literal["pass", "fail", "skip"]

# XML 1.0, section 2.2: all characters but these may stand in a document, escaped or not.
NOT_XML: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# What begins markup, HTML, a mention, a link or a table's cell in GitHub's and GitLab's Markdown; file names are no markup.
MARKUP: Final = re.compile(r"[\\`*_\[\]<>#|~@&$]|:(?=//)|^[-+]|^[0-9]+[.)](?= )")
MARKS: Final = {"pass": "✅", "fail": "❌", "skip": "⚪"}


@dataclass(frozen=True)
class Check:
    """One thing that was checked. ``group`` and ``name`` identify it from run to run; ``message`` says what was found, in one
    line, ``details`` the rest.
    """

    group: str
    name: str
    outcome: Outcome
    message: str
    details: str = ""


def write_junit(path: Path, suite: str, checks: Sequence[Check], seconds: float, verdict: str = "") -> None:
    """One test case a check, in the form that Jenkins, GitLab and GitHub's actions read. Raises UsageError, IntegrityError.

    ``seconds`` is what all of them took together; ``verdict``, on the bundle, is a property of the suite.
    """
    counts = {outcome: sum(check.outcome == outcome for check in checks) for outcome in MARKS}
    numbers = {
        "tests": str(len(checks)),
        "failures": str(counts["fail"]),
        "errors": "0",
        "skipped": str(counts["skip"]),
        "time": f"{seconds:.3f}",
    }
    root = ET.Element("testsuites", {"name": _xml(suite), **numbers})
    element = ET.SubElement(root, "testsuite", {"name": _xml(suite), **numbers})
    if verdict:
        properties = ET.SubElement(element, "properties")
        ET.SubElement(properties, "property", {"name": "verdict", "value": _xml(verdict)})
    for check in checks:
        case = ET.SubElement(
            element, "testcase", {"classname": _xml(check.group), "name": _xml(check.name), "time": "0"}
        )
        if check.outcome == "fail":
            ET.SubElement(case, "failure", {"message": _xml(check.message)}).text = _xml(check.details or check.message)
        elif check.outcome == "skip":
            ET.SubElement(case, "skipped", {"message": _xml(check.message)})
        if check.outcome != "fail":
            ET.SubElement(case, "system-out").text = _xml(check.details or check.message)
    ET.indent(root)
    buffer = io.BytesIO()
    ET.ElementTree(root).write(buffer, encoding="utf-8", xml_declaration=True)
    write_text(path, buffer.getvalue().decode() + "\n")


def write_markdown(
    path: Path,
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    checks: Sequence[Check],
    notes: Sequence[str] = (),
) -> None:
    """A heading, a table, the checks and the notes. Every text is shown as it is: none is markup. Raises UsageError,
    IntegrityError.
    """
    lines = [f"## {markdown(title)}", ""]
    if rows:
        lines += [
            _row(columns),
            _row(["---"] * len(columns)),
            *(_row([markdown(cell) for cell in row]) for row in rows),
            "",
        ]
    lines += [f"- {MARKS[check.outcome]} {markdown(check.message)}" for check in checks]
    lines += [f"- {markdown(note)}" for note in notes]
    write_text(path, "\n".join(lines) + "\n")


def markdown(text: str) -> str:
    """A text on one line, whatever is in it, that Markdown shows as it is."""
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    return MARKUP.sub(lambda found: "".join(f"&#{ord(sign)};" for sign in found[0]), line)


def evaluation_checks(evaluation: Evaluation, *, allow_inconclusive: bool = False) -> list[Check]:
    """What an evaluation checked: that each artifact ran, and what the gate decided on each pair."""
    checks = [
        Check(
            "skdeploy.accuracy",
            report.shown,
            "pass",
            f"{report.shown}: top-1 {share_text(report.top1)} on {report.images:,} images of {evaluation.dataset}",
        )
        for report in evaluation.accuracies
    ]
    for pair in evaluation.pairs:
        outcome: Outcome = "skip" if pair.decision == "inconclusive" and allow_inconclusive else "fail"
        if pair.decision in ("pass", None):
            outcome = "pass"
        details = f"{pair.sentence}\n{pair_text(pair)}"
        message = f"inconclusive: {pair.sentence}" if pair.decision == "inconclusive" else pair.sentence
        checks.append(Check("skdeploy.drop", f"{pair.second} against {pair.first}", outcome, message, details))
    checks += [
        Check("skdeploy.baseline", row.artifact, row.verdict, row.sentence)
        for row in (evaluation.baseline.rows if evaluation.baseline else ())
    ]
    for absent in evaluation.not_evaluated:
        name = f"{absent.artifact} on {absent.backend}"
        checks.append(Check("skdeploy.accuracy", name, "skip", f"{name}: not evaluated here: {absent.reason}"))
    return checks


def evaluation_notes(evaluation: Evaluation, shown: int = 5) -> list[str]:
    """What the figures do not cover, in sentences."""
    notes = list(evaluation.image_notes)
    bad, missing = evaluation.unreadable, evaluation.missing_classes
    if bad:
        names = "; ".join(f"{image.name}: {image.reason}" for image in bad[:shown])
        notes.append(f"{len(bad)} images cannot be read and are in no figure: {names}{_more(bad, shown)}")
    if missing:
        names = ", ".join(missing[:shown]) + _more(missing, shown)
        notes.append(
            f"{len(missing)} of {len(evaluation.classes)} classes have no image, and nothing is known of them: {names}"
        )
    return notes


def write_evaluation(
    evaluation: Evaluation,
    *,
    junit: Path | None,
    summary: Path | None,
    allow_inconclusive: bool = False,
    verdict: str = "",
) -> None:
    """The files that were asked for; ``verdict`` is on the bundle, and empty where two bundles are compared."""
    checks = evaluation_checks(evaluation, allow_inconclusive=allow_inconclusive)
    if junit is not None:
        write_junit(junit, f"skdeploy {evaluation.kind}", checks, evaluation.seconds, verdict)
    if summary is None:
        return
    rows = [
        [
            report.shown,
            report.precision,
            share_text(report.top1),
            share_text(report.top5) if report.top5 else "",
            report.sha256[:12],
        ]
        for report in evaluation.accuracies
    ]
    measured = f"accuracy on {evaluation.images:,} images of {evaluation.dataset}"
    title = verdict or measured.capitalize()
    verdicts = [check for check in checks if check.group != "skdeploy.accuracy" or check.outcome != "pass"]
    write_markdown(
        summary,
        title,
        ("artifact", "precision", "top-1", "top-5", "sha256"),
        rows,
        verdicts,
        [*([measured] if verdict else []), *evaluation_notes(evaluation)],
    )


def pair_text(pair: PairedReport) -> str:
    """How many images each of two artifacts has right, and whether that is chance."""
    counts = pair.pairs
    return (
        f"both right {counts.both_right:,}, only the first {counts.only_first:,}, only the second {counts.only_second:,}, "
        f"both wrong {counts.both_wrong:,}; McNemar p {pair.mcnemar_p:.2g}; same class {pair.agreement:.2%}"
    )


def share_text(share: Share) -> str:
    """94.90 % (93.85 to 95.78)."""
    if share.accuracy is None:
        return "no image"
    return f"{100 * share.accuracy:.2f} % ({100 * share.low:.2f} to {100 * share.high:.2f})"


def _more(items: Sequence[object], shown: int) -> str:
    return f" and {len(items) - shown} more" if len(items) > shown else ""


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _xml(text: str) -> str:
    return NOT_XML.sub("\ufffd", text)
