"""What a person sees: stages as they run, on stderr, and tables, on stdout. And what a machine reads: JSON on stdout."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Final

import typer
from pydantic import BaseModel

from skdeploy.accuracy.verdict import Verdict
from skdeploy.bundle import contents
from skdeploy.bundle.artifact import Artifact
from skdeploy.bundle.folder import Bundle
from skdeploy.bundle.station_facts import EngineFacts, Int8Facts, RangesFacts
from skdeploy.core.errors import SkdeployError
from skdeploy.images.audit_report import AuditReport, audit_of
from skdeploy.parity.report import Comparison, HeadroomReport, ParityReport
from skdeploy.quant.ranges import Ranges
from skdeploy.report.blocks import Cell, Table, Tone, columns, size_text
from skdeploy.report.terminal import STYLES, Terminal
from skdeploy.report.verify import batch_text
from skdeploy.report.voice import voice


def write_json(content: Any, indent: int | None = 2) -> None:
    """A result for machines: pydantic's models as they dump themselves, on stdout and nothing else there."""
    if isinstance(content, BaseModel):
        content = content.model_dump(mode="json")
    json.dump(content, sys.stdout, indent=indent)
    sys.stdout.write("\n")


def conclude(
    check: Callable[[], None],
    *,
    show: Callable[[], None],
    content: Callable[[], dict[str, Any]],
    as_json: bool,
    indent: int | None = 2,
) -> None:
    """Prints a result, and only then judges it: with JSON, what ``check`` raises is a key of the one object on stdout."""
    if not as_json:
        show()
        check()
        return
    found = content()
    try:
        check()
    except SkdeployError as error:
        failed = {"type": type(error).__name__, "message": error.message, "advice": error.advice}
        write_json(found | {"error": failed | {"exit_code": error.exit_code}}, indent)
        voice().error(error.message, error.advice)
        raise typer.Exit(error.exit_code) from error
    write_json(found, indent)


def print_verdict(verdict: Verdict) -> None:
    """The first line of a result, and what to do."""
    terminal = Terminal()
    terminal.headline(verdict.text, style=f"bold {STYLES[verdict.tone]}")
    for step in verdict.next:
        terminal.say(f"  -> {step}")


def print_steps(steps: Sequence[str]) -> None:
    """What to do next: where, then each command whole, to be copied."""
    terminal = Terminal()
    for number, step in enumerate(steps):
        terminal.say(step if number in (0, len(steps) - 1) else f"  {step}", style="" if number else "bold")


def print_bundle(
    bundle: Bundle,
    report: ParityReport | None,
    verdict: Verdict,
    reused: Collection[str] = (),
    seconds: float | None = None,
) -> None:
    """The verdict, the table of artifacts, and below it what is in parity and what did not run."""
    print_verdict(verdict)
    terminal, manifest = Terminal(), bundle.manifest
    terminal.title(f"{manifest.model.name} {manifest.precision}  ->  {bundle.folder}")
    measured = [c.metrics for c in report.comparisons if c.metrics is not None] if report else []
    last = manifest.model.task if any(metrics.same_class is None for metrics in measured) else "top-1"
    labels = ("artifact", "parity", ">SQNR", ">max error", f">{last}", "precision", ">size", ">time")
    rows = tuple(
        (
            Cell(artifact.path),
            *_parity_cells(report.of(artifact.path) if report else None),
            Cell(artifact.precision or ""),
            Cell(size_text(artifact.size_bytes)),
            Cell("kept" if artifact.path in reused else f"{artifact.provenance.seconds:.1f} s"),
        )
        for artifact in manifest.artifacts
        if artifact.format != "json"
    )
    terminal.show(Table("", columns(*labels), rows, least=2))
    mixed = bundle.artifact(contents.MIXED)
    if mixed is not None:
        from skdeploy.cli.sensitivity import print_mixed
        from skdeploy.quant.mixed import MixedPrecision

        print_mixed(MixedPrecision.model_validate_json(bundle.check(mixed).read_text(encoding="utf-8")))
    _print_summary(terminal, bundle, report)
    if seconds is not None:
        terminal.say(f"done in {seconds:.1f} s")


def _print_summary(terminal: Terminal, bundle: Bundle, report: ParityReport | None) -> None:
    """What is proven, by what, and what is not, in sentences."""
    for note in bundle.manifest.notes:
        terminal.warn(note)
    headroom = headroom_of(bundle)
    if headroom is not None:
        least = headroom.tensors[0]
        terminal.say(
            f"FP16 headroom: least {least.headroom:,.0f}x, at {least.tensor}, on {headroom.images} images "
            f"({headroom.dataset})"
        )
    for line in (*int8_lines(bundle), *map(engine_text, bundle.engines)):
        terminal.say(line)
    if report is None:
        return
    terminal.say(f"reference: {report.reference}, on {report.images_text}")
    if report.batch_invariance is not None:
        terminal.say(batch_text(report.batch_invariance))
    passed = [c for c in report.comparisons if c.verdict == "pass"]
    if passed:
        names = [c.artifact if c is report.of(c.artifact) else f"{c.artifact} on {c.backend}" for c in passed]
        terminal.say(("in parity here:", "green"), f" {', '.join(names)}")
    for comparison in report.comparisons:
        if comparison.verdict == "unproven":
            terminal.warn(f"{comparison.artifact}: {comparison.reason}", "not run here:")


def int8_lines(bundle: Bundle) -> list[str]:
    """What is INT8 and what is not, and the images that it was calibrated on."""
    graph = bundle.artifact(contents.INT8)
    ranges = bundle.artifact(contents.RANGES)
    if graph is None or ranges is None:
        return []
    facts, audit = graph.facts_as(Int8Facts), ranges.facts_as(RangesFacts).audit
    weights, reasons = len(facts.int8_weights), Counter(facts.kept.values())
    stayed = "; ".join(f"{count} {reason}" for reason, count in reasons.items())
    return [
        *audit_lines(audit),
        (
            f"INT8: {weights} of {weights + len(facts.kept)} layers with weights, {facts.int8_macs:.1%} of the MACs; "
            f"in {str(facts.fallback or '').upper()}: {stayed or 'none'}"
        ),
    ]


def engine_text(engine: Artifact) -> str:
    """Where an engine runs and the device memory that it needs."""
    facts = engine.facts_as(EngineFacts)
    needs = {"weights": facts.weights_memory_bytes, "activation": facts.activation_memory_bytes}
    memory = [f"{name} {size_text(size)}" for name, size in needs.items() if size is not None]
    return f"{engine.path}: for {'; '.join(facts.runs_on)}" + (
        f"; device memory: {', '.join(memory)}" if memory else ""
    )


def ranges_json(ranges: Ranges, path: Path) -> dict[str, Any]:
    """A finished calibration: the images, the tensors, where the file is."""
    return {
        "ranges": str(path),
        "model": ranges.model,
        "model_sha256": ranges.model_sha256,
        "images": ranges.data.images,
        "random": ranges.data.random,
        "algorithm": ranges.algorithm.model_dump(mode="json"),
        "tensors": len(ranges.tensors),
        "audit": ranges.audit,
    }


def print_ranges(ranges: Ranges, path: Path) -> None:
    """The same for people."""
    terminal = Terminal()
    algorithm, data = ranges.algorithm, ranges.data
    terminal.headline(f"{ranges.model} ranges  ->  {path}", style="italic")
    for line in audit_lines(audit_of(ranges.audit)):
        terminal.say(line)
    percentile = f" {algorithm.percentile:g} %" if algorithm.percentile is not None else ""
    switches = {
        "equalized": algorithm.equalize,
        "biases corrected": algorithm.bias_correction,
        "shifted": algorithm.shift,
        "pixels exact": algorithm.exact_input,
    }
    on = ", ".join(name for name, given in switches.items() if given) or "nothing else"
    terminal.say(f"{len(ranges.tensors)} tensors by {algorithm.method}{percentile} on {data.images} images; {on}")


def audit_lines(report: AuditReport | None) -> list[str]:
    """The audit of calibration images in sentences; what is wrong with them comes as notes."""
    if report is None:
        return []
    classes = report.classes
    covered = (
        f", {classes.covered} of {classes.total} classes ({classes.fewest} to {classes.most} images each)"
        if classes
        else ", no labels"
    )
    pairs = f"{report.exact.count} duplicates, {report.near.count} near duplicates"
    overlap = (
        f"; {report.overlap.exact.count + report.overlap.near.count} shared with {report.overlap.dataset}"
        if report.overlap
        else ""
    )
    counts = (
        f"{report.constant.count} of one colour, {report.clipped.count} clipped, {len(report.unreadable)} unreadable"
    )
    source = f"calibration images: {report.used} of {report.asked} asked for, from {report.dataset}{covered}"
    return [f"{source}; {pairs}{overlap}; {counts}"]


def bundle_json(
    bundle: Bundle,
    report: ParityReport | None,
    verdict: Verdict,
    reused: Collection[str] = (),
    seconds: float | None = None,
) -> dict[str, Any]:
    """The same content as print_bundle, for machines."""
    manifest = bundle.manifest
    headroom = headroom_of(bundle)
    rows: list[dict[str, Any]] = []
    for artifact in manifest.artifacts:
        comparison = report.of(artifact.path) if report else None
        rows.append(
            artifact.model_dump(mode="json", include={"path", "format", "precision", "size_bytes", "sha256"})
            | {
                "details": artifact.facts.dump(),
                "seconds": artifact.provenance.seconds,
                "reused": artifact.path in reused,
                "parity": comparison.model_dump(mode="json") if comparison else None,
            }
        )
    return {
        "bundle": str(bundle.folder),
        "model": manifest.model.name,
        "precision": manifest.precision,
        "weights": manifest.weights.model_dump(mode="json"),
        "verdict": verdict.json(),
        "unproven": [c.artifact for c in report.comparisons if c.verdict == "unproven"] if report else [],
        "notes": list(manifest.notes),
        "assumptions": [assumption.model_dump(mode="json") for assumption in manifest.assumptions],
        "seconds": seconds,
        "artifacts": rows,
        "least_headroom": headroom.tensors[0].model_dump(mode="json") if headroom else None,
        "parity": report.model_dump(mode="json") if report else None,
    }


def headroom_of(bundle: Bundle) -> HeadroomReport | None:
    """The bundle's headroom report, if it has one."""
    artifact = next((a for a in bundle.manifest.artifacts if a.station == "headroom"), None)
    if artifact is None:
        return None
    return HeadroomReport.model_validate_json(bundle.check(artifact).read_text(encoding="utf-8"))


def _parity_cells(comparison: Comparison | None) -> tuple[Cell, Cell, Cell, Cell]:
    """Verdict, SQNR of all images, largest error relative to the largest value, and images with the same top class, or what
    the task measures in its place.
    """
    if comparison is None:
        return Cell(""), Cell(""), Cell(""), Cell("")
    tones: Final[dict[str, Tone]] = {"pass": "good", "fail": "bad", "unproven": "warn"}
    verdict = Cell(comparison.verdict, tone=tones[comparison.verdict])
    metrics = comparison.metrics
    if metrics is None:
        return verdict, Cell(""), Cell(""), Cell("")
    same = metrics.figures_text if metrics.same_class is None else f"{metrics.same_class}/{metrics.images}"
    return verdict, Cell(f"{metrics.sqnr_db:.1f} dB"), Cell(f"{metrics.max_rel_error:.1e}"), Cell(same)
