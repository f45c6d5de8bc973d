"""Output of verbs: progress on stderr, tables or JSON on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from pydantic import BaseModel

from skdeploy.accuracy.verdict import Verdict
from skdeploy.bundle.folder import Bundle
from skdeploy.cli.encoding import JSON_SCHEMA
from skdeploy.core.errors import SkdeployError
from skdeploy.parity.report import ParityReport
from skdeploy.quant.ranges import Ranges
from skdeploy.report.terminal import STYLES, Terminal
from skdeploy.report.voice import voice

if TYPE_CHECKING:
    from skdeploy.accuracy.gate import Evaluation
    from skdeploy.accuracy.quality import Quality


def write_json(content: Any, indent: int | None = 2) -> None:
    """A result for machines, with its version: pydantic's models as they dump themselves, on stdout and nothing else there."""
    if isinstance(content, BaseModel):
        content = content.model_dump(mode="json")
    json.dump({"schema": JSON_SCHEMA} | content, sys.stdout, indent=indent)
    sys.stdout.write("\n")


def conclude(
    check: Callable[[], None],
    *,
    show: Callable[[bool], None],
    content: Callable[[], dict[str, Any]],
    as_json: bool,
    indent: int | None = 2,
) -> None:
    """Prints a result, and only then judges it: with JSON, what ``check`` raises is a key of the one object on stdout.

    ``show`` is given whether the error that follows says what to do next.
    """
    if not as_json:
        try:
            check()
        except SkdeployError as error:
            show(bool(error.advice))
            raise
        show(False)
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


def print_verdict(verdict: Verdict, *, advised: bool = False) -> None:
    """The first line of a result, and what to do, unless that is ``advised`` by the error that follows."""
    terminal = Terminal()
    terminal.headline(verdict.text, style=f"bold {STYLES[verdict.tone]}")
    for step in () if advised else verdict.next:
        terminal.say(f"  -> {step}")


def print_steps(steps: Sequence[str]) -> None:
    """Print what to do next: where, then each command whole, to copy."""
    terminal = Terminal()
    for number, step in enumerate(steps):
        is_command = number not in (0, len(steps) - 1)
        terminal.say(f"  {step}" if is_command else step, style="" if number else "bold", whole=is_command)


def print_bundle(
    bundle: Bundle,
    report: ParityReport | None,
    verdict: Verdict,
    reused: Collection[str] = (),
    accuracy: Evaluation | Quality | None = None,
    *,
    advised: bool = False,
) -> None:
    """The verdict, and the findings on the bundle; with ``accuracy``, those that were made with it.

    ``advised`` as of ``print_verdict``.
    """
    from skdeploy.accuracy.quality import Quality
    from skdeploy.report.accuracy import accuracy_findings
    from skdeploy.report.bundle import bundle_findings
    from skdeploy.report.quality import quality_findings

    print_verdict(verdict, advised=advised)
    terminal = Terminal()
    terminal.section(bundle_findings(bundle, report, reused, evaluated=accuracy is not None))
    if isinstance(accuracy, Quality):
        terminal.section(quality_findings(accuracy, runs=False))
    elif accuracy is not None:
        terminal.section(accuracy_findings(accuracy, runs=False))


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


def bundle_json(
    bundle: Bundle,
    report: ParityReport | None,
    verdict: Verdict,
    reused: Collection[str] = (),
    seconds: float | None = None,
) -> dict[str, Any]:
    """The same content as print_bundle, for machines."""
    from skdeploy.report.bundle import headroom_of

    manifest, headroom = bundle.manifest, headroom_of(bundle)
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
        "parity": report.model_dump(mode="json", exclude={"worst"}) if report else None,
    }
