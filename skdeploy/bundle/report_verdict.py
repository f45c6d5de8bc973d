"""What may be said of a bundle as a whole: no more than was shown, artifact by artifact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from skdeploy.bundle.report_blocks import Tone, counted, decibels_text, percent_text, size_text
from skdeploy.bundle.report_findings import PARITY, Findings
from skdeploy.parity.report import MIN_HEADROOM, Comparison
from skdeploy.parity.statistics import Decision
from skdeploy.spec import Precision

ArtifactState = Literal["pass", "receipt", "fail", "unproven", "not compared"]
State = Literal["verified", "partial", "failed", "unproven", "incomplete"]

HEADLINES: Final[dict[State, str]] = {
    "verified": "Verified",
    "partial": "Verified in part",
    "failed": "Failed",
    "unproven": "Not verified",
    "incomplete": "Incomplete",
}
TONES: Final[dict[State, Tone]] = {
    "verified": "good",
    "partial": "warn",
    "failed": "bad",
    "unproven": "warn",
    "incomplete": "warn",
}
DECISIONS: Final[dict[Decision, tuple[Tone, str]]] = {
    "pass": ("good", "Accuracy within budget"),
    "fail": ("bad", "Accuracy beyond budget"),
    "inconclusive": ("warn", "Undecided"),
}


@dataclass(frozen=True)
class Point:
    """One thing that is shown, or not, and of what."""

    tone: Tone
    label: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """The headline, the sentence below it, and what it rests on."""

    state: State
    sentence: str
    points: tuple[Point, ...]

    @property
    def headline(self) -> str:
        return HEADLINES[self.state]

    @property
    def tone(self) -> Tone:
        return TONES[self.state]


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


def verdict_of(found: Findings) -> Verdict:
    """Parity, the accuracy gate and the headroom taken together: the worst of them, and what was not run."""
    manifest, parity = found.bundle.manifest, found.parity
    points = list(_parity_points(found))
    points += _accuracy_points(found)
    points += _other_points(found)
    bad = any(point.tone == "bad" for point in points)
    passed = [a.path for a in found.graphs if state_of(found, a.path) == "pass"]
    open_ends = [point for point in points if point.label in ("Not run here", "Not compared", "Undecided")]
    if bad:
        return Verdict("failed", "Something is out of its tolerance or budget: do not ship this.", tuple(points))
    if manifest.verdict == "failed":
        return Verdict("failed", "The export failed parity: do not ship this.", tuple(points))
    if manifest.verdict == "incomplete":
        text = "The export did not come to its end, so nothing of this bundle is proven. Run the same export again."
        return Verdict("incomplete", text, tuple(points))
    if parity is None or not passed:
        why = "its parity report is of other artifacts" if PARITY in found.outdated else "there is no parity that holds"
        return Verdict("unproven", f"The export called this bundle verified, but {why}.", tuple(points))
    images = f"{counted(parity.images, 'image')} of {parity.dataset}"
    if open_ends:
        text = f"What ran computes the same as {parity.reference}, on {images}. Nothing is claimed of the rest."
        return Verdict("partial", text, tuple(points))
    text = f"Every graph computes the same as {parity.reference}, within the card's tolerances, on {images}."
    return Verdict("verified", text, tuple(points))


def _parity_points(found: Findings) -> list[Point]:
    points = []
    parity = found.parity
    if parity is not None:
        for backend in dict.fromkeys(c.backend for c in parity.comparisons if c.verdict == "pass"):
            passed = [c.artifact for c in parity.comparisons if c.verdict == "pass" and c.backend == backend]
            points.append(Point("good", "Verified", f"{', '.join(passed)} on {backend}"))
        points += [Point("bad", "Failed", failure) for failure in parity.failures]
        for c in parity.comparisons:
            if c.verdict == "unproven" and c.proof is not None:
                text = f"{c.artifact} on {c.proof.device}, says the receipt of {c.proof.created[:10]}"
                points.append(Point("good", "Verified by receipt", text))
            elif c.verdict == "unproven":
                points.append(Point("warn", "Not run here", f"{c.artifact} on {c.backend}: {c.reason}"))
    absent = [a.path for a in found.graphs if state_of(found, a.path) == "not compared"]
    if absent:
        points.append(Point("warn", "Not compared", ", ".join(absent)))
    return points


def _accuracy_points(found: Findings) -> list[Point]:
    if found.accuracy is None:
        return []
    return [Point(*DECISIONS[p.decision], p.sentence) for p in found.accuracy.pairs if p.decision is not None]


def _other_points(found: Findings) -> list[Point]:
    points = []
    manifest = found.bundle.manifest
    if found.blame is not None and found.blame.guilty is not None:
        points.append(Point("bad", "Blame", found.blame.verdict))
    if found.headroom is not None and found.headroom.tensors and found.headroom.tensors[0].headroom < MIN_HEADROOM:
        least = found.headroom.tensors[0]
        points.append(
            Point("bad", "FP16 headroom", f"{least.tensor} has {least.headroom:.2f}x, {MIN_HEADROOM:g}x is least")
        )
    if manifest.weights.source == "random":
        text = f"random, seed {manifest.weights.seed}: the network is untrained, so only its arithmetic is shown"
        points.append(Point("warn", "Weights", text))
    if found.ranges is not None and found.ranges.data.random:
        points.append(Point("warn", "Calibration", "on noise: fit for timing only"))
    if found.outdated:
        text = f"{', '.join(found.outdated)}: measured on other artifacts than these, so not shown"
        points.append(Point("warn", "Outdated", text))
    if found.not_measured:
        points.append(Point("", "Not measured", ", ".join(found.not_measured)))
    return points


def key_figures(found: Findings) -> tuple[Figure, ...]:
    """Size, error, accuracy and headroom of the last graph, as far as they are known."""
    graphs = [a for a in found.graphs if a.format == "onnx"]
    if not graphs:
        return ()
    last, figures = graphs[-1], []
    base = next((a for a in graphs if a.precision is Precision.FP32), None)
    smaller = (
        f"{base.size_bytes / last.size_bytes:.1f}x smaller than FP32" if base and base.path != last.path else "FP32"
    )
    figures.append(Figure("Size", size_text(last.size_bytes), f"{last.path}, {smaller}"))
    metrics = next((c.metrics for c in comparisons_of(found, last.path) if c.metrics), None)
    if metrics is not None and last.precision is not None:
        allowed = found.bundle.manifest.model.tolerance.get(last.precision)
        at_least = f", at least {allowed.min_sqnr_db:g} dB" if allowed else ""
        figures.append(Figure("SQNR", decibels_text(metrics.min_sqnr_db), f"worst image{at_least}"))
        same = round(metrics.top1_agreement * metrics.images)
        figures.append(Figure("Same class", f"{same:,} / {metrics.images:,}", "images, against torch FP32"))
    figures += _accuracy_figures(found, last.path)
    # Of the network's own: what regrouping adds is work with zeros, and not counted.
    share = next((graph.details["int8_macs"] for graph in reversed(graphs) if "int8_macs" in graph.details), None)
    if isinstance(share, float):
        figures.append(Figure("INT8", percent_text(share, 1), "of the multiply-accumulates"))
    if found.headroom is not None and found.headroom.tensors:
        least = found.headroom.tensors[0]
        figures.append(Figure("FP16 headroom", f"{least.headroom:,.0f}x", f"least, {MIN_HEADROOM:g}x needed"))
    return tuple(figures)


def _accuracy_figures(found: Findings, last: str) -> list[Figure]:
    if found.accuracy is None:
        return []
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
