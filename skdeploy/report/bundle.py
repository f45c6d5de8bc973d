"""A bundle in the terminal: its artifacts with their parity, and the findings that were made with them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from skdeploy.bundle import contents
from skdeploy.bundle.folder import Bundle
from skdeploy.bundle.station_facts import EngineFacts, RangesFacts, WeightOnlyFacts
from skdeploy.parity.report import HeadroomReport, ParityReport
from skdeploy.report.blocks import Block, Finding, Section, Text, size_text
from skdeploy.report.calibration import audit_facts
from skdeploy.report.headroom import headroom_findings
from skdeploy.report.int8 import int8_text, mixed_findings, weight_only_text
from skdeploy.report.parity import parity_findings, receipt_findings

if TYPE_CHECKING:
    from skdeploy.line.verification import Verification


def bundle_findings(
    bundle: Bundle,
    report: ParityReport | None,
    reused: Collection[str] = (),
    *,
    required: bool = False,
    evaluated: bool = False,
) -> Section:
    """The artifacts and what they were compared with, then notes, headroom, INT8 and engines.

    ``reused`` and ``required`` as of ``parity_findings``. ``evaluated``: findings on accuracy follow these.
    """
    parity = parity_findings(bundle, report, reused=reused, required=required)
    table, *compared = parity.blocks
    lead = f"{bundle.manifest.model.name} {bundle.manifest.precision.words}  ->  {bundle.folder}"
    against = () if report is None else (Text(f"reference: {report.reference}, on {report.images_text}"),)
    return Section("bundle", "Bundle", lead, (table, *against, *compared, *_made(bundle, evaluated=evaluated)))


def verification_findings(verification: Verification) -> Section:
    """The same as measured now, with the digests and what devices have recorded."""
    bundle, report = verification.bundle, verification.report
    found = bundle_findings(bundle, report, required=verification.require_engine)
    checked = f"{len(bundle.manifest.artifacts)} artifacts have the digests of the manifest"
    digests = Finding("digests", "manifest", "pass", checked)
    written = (Text(f"receipt written: {path}") for path in verification.written)
    return replace(found, blocks=(*found.blocks, digests, *receipt_findings(report), *written))


def _made(bundle: Bundle, *, evaluated: bool) -> Iterator[Block]:
    """Findings of the stations that made the artifacts."""
    graph, ranges = bundle.artifact(contents.INT8), bundle.artifact(contents.RANGES)
    if graph is not None and ranges is not None:
        yield Text(int8_text(graph))
    if (narrow := bundle.artifact(contents.WEIGHT_ONLY)) is not None:
        yield Text(weight_only_text(narrow.facts_as(WeightOnlyFacts)))
    if (mixed := bundle.artifact(contents.MIXED)) is not None:
        from skdeploy.quant.mixed import MixedPrecision

        found = bundle.read_report(mixed, MixedPrecision)
        yield from mixed_findings(found, evaluated=evaluated)
    yield from (Text(note, "warn") for note in bundle.manifest.notes)
    if (headroom := headroom_of(bundle)) is not None:
        yield from headroom_findings(headroom).blocks
    if graph is not None and ranges is not None and (audit := ranges.facts_as(RangesFacts).audit) is not None:
        yield audit_facts(audit)
    yield from engine_texts(bundle)


def headroom_of(bundle: Bundle) -> HeadroomReport | None:
    """The bundle's headroom report, if it has one."""
    artifact = next((a for a in bundle.manifest.artifacts if a.station == "headroom"), None)
    if artifact is None:
        return None
    return bundle.read_report(artifact, HeadroomReport)


def engine_texts(bundle: Bundle) -> Iterator[Text]:
    """Where each engine runs and the device memory that it needs, if its compiler reported it."""
    for engine in bundle.engines:
        facts = engine.facts_as(EngineFacts)
        needs = {"weights": facts.weights_memory_bytes, "activation": facts.activation_memory_bytes}
        memory = ", ".join(f"{word} {size_text(size)}" for word, size in needs.items() if size is not None)
        told = [f"for {'; '.join(facts.runs_on)}"] if facts.runs_on else []
        told += [f"device memory: {memory}"] if memory else []
        if told:
            yield Text(f"{engine.path}: {'; '.join(told)}")
