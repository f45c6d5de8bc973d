"""The headline figures of a report. What may be said of the bundle as a whole is decided in ``accuracy/verdict.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from skdeploy.accuracy.verdict import DECISIONS
from skdeploy.backends.metrics import decibels_text, figures_in_words
from skdeploy.bundle.runners import first_fp32_graph
from skdeploy.bundle.station_facts import INT8_FACTS
from skdeploy.parity.report import MIN_HEADROOM, Comparison, times_text
from skdeploy.parity.tasks import tolerance_of
from skdeploy.report.blocks import Tone, percent_text, size_text
from skdeploy.report.findings import Findings
from skdeploy.report.latency import benched

ArtifactState = Literal["pass", "receipt", "fail", "unproven", "not compared"]


@dataclass(frozen=True)
class Figure:
    """One of the figures that people ask for first."""

    label: str
    value: str
    note: str
    tone: Tone = ""


def comparisons_of(found: Findings, artifact: str) -> tuple[Comparison, ...]:
    """All comparisons of one artifact, one a backend."""
    return tuple(c for c in found.parity.comparisons if c.artifact == artifact) if found.parity else ()


def state_of(found: Findings, artifact: str) -> ArtifactState:
    """``pass`` if it ran and nothing that ran failed; ``receipt`` if a device has recorded that; else ``unproven``."""
    comparisons = comparisons_of(found, artifact)
    verdicts = {comparison.verdict for comparison in comparisons}
    if "fail" in verdicts or any(note.verdict == "fail" for c in comparisons for note in c.receipts):
        return "fail"
    if "pass" in verdicts:
        return "pass"
    if any(comparison.proof for comparison in comparisons):
        return "receipt"
    return "unproven" if comparisons else "not compared"


def key_figures(found: Findings) -> tuple[Figure, ...]:
    """Size, error, accuracy and headroom of the last graph, if they are known."""
    graphs = [a for a in found.graphs if a.format == "onnx"]
    if not graphs:
        return ()
    last, figures = graphs[-1], []
    base = first_fp32_graph(graphs)
    smaller = (
        f"{base.size_bytes / last.size_bytes:.1f}x smaller than FP32" if base and base.path != last.path else "FP32"
    )
    figures.append(Figure("Size", size_text(last.size_bytes), f"{last.path}, {smaller}"))
    metrics = next((c.metrics for c in comparisons_of(found, last.path) if c.metrics), None)
    if metrics is not None and last.precision is not None:
        allowed = tolerance_of(found.bundle.manifest.model, last.precision)
        word = found.bundle.manifest.model.sample_word
        at_least = f"worst {word}, at least {allowed.min_sqnr_db:g} dB"
        if metrics.min_sqnr_db is not None:
            figures.append(Figure("SQNR", decibels_text(metrics.min_sqnr_db), at_least))
        if metrics.same_class is not None:
            same = f"{metrics.same_class:,} / {metrics.images:,}"
            figures.append(Figure("Same class", same, f"{word}s, against torch FP32"))
        figures += [
            Figure(name, words, "against torch FP32") for name, words in figures_in_words(metrics.figures).items()
        ]
    figures += _accuracy_figures(found, last.path)
    figures += _latency_figure(found)
    # Of the network's own: what regrouping adds is work with zeros, and not counted.
    share = next((graph.facts.int8_macs for graph in reversed(graphs) if isinstance(graph.facts, INT8_FACTS)), None)
    if share is not None:
        figures.append(Figure("INT8", percent_text(share, 1), "of the multiply-accumulates"))
    if found.headroom is not None and found.headroom.tensors:
        least = found.headroom.tensors[0]
        figures.append(Figure("FP16 headroom", times_text(least.headroom), f"least, {MIN_HEADROOM:g}x needed"))
    return tuple(figures)


def _latency_figure(found: Findings) -> list[Figure]:
    """The newest latency of the artifact that is nearest to the device, with the smallest batch."""
    places = [artifact.path for artifact in found.graphs]
    known = [one for one in benched(found.receipts) if one.receipt.artifact in places]
    if not known:
        return []
    one = max(known, key=lambda one: (places.index(one.receipt.artifact), one.receipt.created))
    row = min(one.latency.batches, key=lambda row: row.batch)
    doubt = "; the machine was not at rest" if one.latency.doubts else ""
    return [Figure("Latency", f"{row.host_ms.p50:,.3g} ms", f"p50, batch {row.batch}, {one.place}{doubt}")]


def _quality_figures(found: Findings, last: str) -> list[Figure]:
    if found.quality is None:
        return []
    figures = []
    for report in found.quality.artifacts:
        if report.artifact == last:
            one = report.figures[0]
            figures.append(
                Figure(one.name, one.text, f"{one.low:.4g} to {one.high:.4g} at {found.quality.confidence:g} %")
            )
            break
    for drop in found.quality.drops[:1]:
        budget = "no budget" if drop.max_drop is None else f"budget {drop.max_drop:g}"
        tone: Tone = "" if drop.decision is None else DECISIONS[drop.decision][0]
        figures.append(
            Figure("Drop", f"{drop.drop:+.3g} {drop.unit}", f"at most {drop.drop_high:+.3g}, {budget}", tone)
        )
    return figures


def _accuracy_figures(found: Findings, last: str) -> list[Figure]:
    if found.accuracy is None:
        return _quality_figures(found, last)
    figures = []
    measured = next((a for a in found.accuracy.accuracies if a.artifact == last), None)
    if measured is not None:
        top1, confidence = measured.top1, found.accuracy.confidence
        interval = f"{100 * top1.low:.2f} to {100 * top1.high:.2f} at {confidence:g} %"
        figures.append(Figure("Top-1", percent_text(top1.accuracy), interval))
    for pair in found.accuracy.pairs[:1]:
        budget = "no budget" if pair.max_drop is None else f"budget {pair.max_drop:g}"
        tone: Tone = "" if pair.decision is None else DECISIONS[pair.decision][0]
        figures.append(Figure("Drop, points", f"{pair.drop:+.2f}", f"at most {pair.drop_high:+.2f}, {budget}", tone))
    return figures
