"""What ``skdeploy verify`` says: sentences for people, checks for machines that run jobs."""

from __future__ import annotations

from pathlib import Path

from skdeploy.line.verification import Verification
from skdeploy.parity.report import (
    MEMORY,
    BatchInvariance,
    Comparison,
    ParityReport,
    Rebuild,
    ReceiptNote,
    RunToRun,
    SuiteResult,
    suite_name,
)
from skdeploy.report.blocks import Block, Cell, Finding, Outcome, Section, Table, Text, columns
from skdeploy.report.junit import write_junit
from skdeploy.report.markdown import write_markdown


def verification_lines(verification: Verification) -> list[str]:
    """What the table of artifacts does not say: suites, repeated runs, engines built again, receipts."""
    report = verification.report
    lines = suite_lines(report)
    lines += [_run_to_run_line(report)] if report.run_to_run else []
    lines += [rebuild_line(again) for again in report.rebuilds]
    for comparison in report.comparisons:
        lines += receipt_lines(comparison)
    lines += [f"receipt written: {path}" for path in verification.written]
    return lines


def suite_lines(report: ParityReport) -> list[str]:
    """One sentence a suite, the error of each artifact; and one for each reason why some are not judged."""
    lines = []
    for name in dict.fromkeys(map(suite_name, report.suites)):
        results = [result for result in report.suites if suite_name(result) == name]
        lines.append(f"{name}: " + "; ".join(_suite_text(result) for result in results))
    if report.suites_reference:
        lines.append(f"these inputs: against {report.suites_reference}; the saved outputs are of other inputs")
    notes = dict.fromkeys(result.note for result in report.suites if result.note)
    return lines + [f"not judged: {note}" for note in notes]


def receipt_lines(comparison: Comparison) -> list[str]:
    """What devices say of an artifact; and, if it did not run here, whether any has verified it."""
    lines = []
    if comparison.verdict == "unproven":
        proof = comparison.proof
        lines.append(
            f"{comparison.artifact}: in parity on {proof.device} (receipt of {proof.created[:10]})"
            if proof
            else f"{comparison.artifact}: no receipt, no claim: it ran neither here nor on a device"
        )
        return lines + [_receipt_text(comparison, receipt) for receipt in comparison.receipts if receipt != proof]
    return [_receipt_text(comparison, receipt) for receipt in comparison.receipts]


def batch_text(batch: BatchInvariance) -> str:
    """Whether the batch size changes the result."""
    sizes = ", ".join(map(str, batch.batches))
    return batch.problem or f"same logits in batches of {sizes}: within {batch.max_rel_error:.1e} of the largest"


def run_text(run: RunToRun) -> str:
    """How much two runs of the same batch differ."""
    differ = f"{run.differing:,} of {run.values:,} values differ, by {run.max_rel_error:.1e} of the largest"
    return run.problem or (f"run twice, {differ}" if run.differing else "run twice, the same bits")


def rebuild_line(again: Rebuild) -> str:
    """How much two builds of an engine differ."""
    versions = "" if again.built_by == again.rebuilt_by else f" ({again.built_by} then, {again.rebuilt_by} now)"
    if again.sha256 == again.rebuilt_sha256:
        found = "the same bytes"
    else:
        sizes = f"{again.size_bytes:,} and {again.rebuilt_size_bytes:,}"
        found = f"another file: {again.differing_bytes:,} bytes differ, of {sizes}"
    logits = f"logits within {again.logits.max_rel_error:.1e} of the largest" if again.logits else ""
    logits = "; ".join(again.problems) or logits or f"logits not compared: {again.reason}"
    return f"{again.artifact}, built again with {again.compiler}{versions}: {found}; {logits}"


def verification_checks(verification: Verification) -> list[Finding]:
    """Everything that was checked, as test cases."""
    report = verification.report
    count = len(verification.bundle.manifest.artifacts)
    checks = [Finding("digests", "manifest", "pass", f"{count} artifacts have the digests of the manifest")]
    checks += [_comparison_check(found, report.reference, verification.require_engine) for found in report.comparisons]
    for result in report.suites:
        name = f"{suite_name(result)}: {result.artifact} on {result.backend}"
        message = f"{name}{report.suites_against(result)}: {'; '.join(result.problems) or _error_text(result)}"
        checks.append(Finding("suite", name, "fail" if result.problems else "pass", message))
    if report.batch_invariance is not None:
        batch = report.batch_invariance
        outcome: Outcome = "fail" if batch.verdict == "fail" else "pass"
        checks.append(Finding("batch", batch.artifact, outcome, f"{batch.artifact}: {batch_text(batch)}"))
    for run in report.run_to_run:
        name = f"{run.artifact} on {run.backend}"
        checks.append(Finding("run_to_run", name, run.verdict, f"{name}: {run_text(run)}"))
    for again in report.rebuilds:
        outcome = "fail" if again.problems else "pass"
        checks.append(Finding("rebuild", again.artifact, outcome, rebuild_line(again)))
    for comparison in report.comparisons:
        for receipt in comparison.receipts:
            outcome = "fail" if receipt.verdict == "fail" else "pass"
            checks.append(Finding("receipt", receipt.path, outcome, _receipt_text(comparison, receipt)))
    return checks


def write_verification(verification: Verification, *, junit: Path | None, summary: Path | None) -> None:
    """The files that were asked for. Raises UsageError, IntegrityError if they cannot be written."""
    checks, verdict = verification_checks(verification), verification.verdict
    manifest, report = verification.bundle.manifest, verification.report
    if junit is not None:
        write_junit(junit, "skdeploy verify", checks, verification.seconds, verdict.text)
    if summary is None:
        return
    rows = []
    for comparison in report.comparisons:
        metrics, artifact = comparison.metrics, verification.bundle.artifact(comparison.artifact)
        figures = [f"{metrics.sqnr_db:.1f} dB", f"{metrics.max_rel_error:.1e}"] if metrics else ["", ""]
        digest = artifact.sha256[:12] if artifact else ""
        rows.append([comparison.artifact, comparison.precision, _verdict_text(comparison), *figures, digest])
    title = f"{manifest.model.name} {manifest.precision}: {verdict.text}"
    heads = columns("artifact", "precision", "parity", ">SQNR", ">max error", "sha256")
    shown = [check for check in checks if check.group != "suite" or check.outcome != "pass"]
    cells = tuple(tuple(map(Cell, row)) for row in rows)
    lead = f"reference: {report.reference}, on {report.images_text}"
    blocks: tuple[Block, ...] = (Table("", heads, cells), *shown, *map(Text, suite_lines(report)))
    write_markdown(summary, title, Section("parity", "Parity", lead, blocks))


def _comparison_check(comparison: Comparison, reference: str, required: bool) -> Finding:
    name = f"{comparison.artifact} on {comparison.backend}"
    if comparison.verdict == "unproven":
        outcome: Outcome = "pass" if comparison.proof else "fail" if required else "skip"
        return Finding("parity", name, outcome, receipt_lines(comparison)[0], comparison.reason)
    metrics = comparison.metrics
    figures = f"SQNR {metrics.sqnr_db:.1f} dB, max error {metrics.max_rel_error:.1e}" if metrics else ""
    said = "; ".join(comparison.problems) or f"in parity with {reference}, {figures}"
    return Finding("parity", name, comparison.verdict, f"{name}: {said}")


def _verdict_text(comparison: Comparison) -> str:
    proof = comparison.proof
    if comparison.verdict != "unproven":
        return comparison.verdict
    return f"pass on {proof.device} ({proof.created[:10]})" if proof else "unproven"


def _receipt_text(comparison: Comparison, receipt: ReceiptNote) -> str:
    verdict = {"pass": "passed", "fail": "failed", "recorded": "recorded"}[receipt.verdict]
    return f"{comparison.artifact}: {receipt.kind} {verdict} on {receipt.device} (receipt of {receipt.created[:10]})"


def _run_to_run_line(report: ParityReport) -> str:
    same = [run for run in report.run_to_run if not run.differing]
    other = [run for run in report.run_to_run if run.differing]
    parts = [f"{', '.join(run.artifact for run in same)}: the same bits"] if same else []
    parts += [
        f"{run.artifact}: {run.differing} of {run.values} values differ, by {run.max_rel_error:.1e} of the largest"
        for run in other
    ]
    return f"run twice, {'; '.join(parts)}"


def _suite_text(result: SuiteResult) -> str:
    return f"{result.artifact} {'; '.join(result.problems) or _error_text(result)}"


def _error_text(result: SuiteResult) -> str:
    if result.suite == MEMORY and not result.error:
        return "the same bits"
    words = f"within {result.error:.1e}" if result.error is not None else "finite"
    return f"{words}, not judged" if result.note else words
