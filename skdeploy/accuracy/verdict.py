"""The verdict on a bundle: one function decides it and words it, and every output prints that text.

The states, worst first:

* ``incomplete``: the export did not come to its end.
* ``failed``: a measurement is out of its limit: parity, the accuracy budget, a baseline, FP16 headroom, a receipt.
* ``unproven``: there is no measurement of these artifacts.
* ``undecided``: parity holds, and the accuracy gate had too few images, or labels that FP32 itself only guesses, or
  inputs that it does not improve.
* ``here``: all that ran is in parity; an engine could not run on this machine, and no receipt stands for it.
* ``verified``: every artifact is in parity.

A verdict is about the network as skdeploy built it: what was assumed of it is said in the same line, and so is a reference
other than torch, and that the weights are random.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from skdeploy.accuracy.facts import Facts
from skdeploy.accuracy.statistics import Decision
from skdeploy.accuracy.untouched import CHECK as PAIRS_CHECK
from skdeploy.backends.metrics import decibels_text
from skdeploy.bundle.contents import PARITY
from skdeploy.bundle.manifest import Manifest
from skdeploy.bundle.station_facts import GraphFacts
from skdeploy.core.architecture import ModuleSpec
from skdeploy.core.spec import Precision
from skdeploy.images.chance import CHECK
from skdeploy.parity.reference import TORCH_REFERENCE
from skdeploy.parity.report import Comparison, ParityReport

if TYPE_CHECKING:
    from skdeploy.accuracy.gate import PairedReport
    from skdeploy.accuracy.quality import QualityDrop

SHOWN: Final = 3  # assumptions in the line itself; all of them are among the points

Tone = Literal["", "good", "warn", "bad"]
DECISIONS: Final[dict[Decision, tuple[Tone, str]]] = {
    "pass": ("good", "Accuracy within budget"),
    "fail": ("bad", "Accuracy beyond budget"),
    "inconclusive": ("warn", "Accuracy undecided"),
}


class State(StrEnum):
    """The verdict on a bundle."""

    VERIFIED = "verified"
    HERE = "verified here"
    UNDECIDED = "accuracy undecided"
    FAILED = "failed"
    UNPROVEN = "not verified"
    INCOMPLETE = "not finished"

    @property
    def tone(self) -> Tone:
        """How it is coloured: ``warn`` is for what needs somebody to act. An engine that waits for its device does not."""
        return "good" if self in (State.VERIFIED, State.HERE) else "bad" if self is State.FAILED else "warn"


@dataclass(frozen=True)
class Point:
    """One fact that the verdict rests on."""

    tone: Tone
    label: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """``text`` is one line that begins with the state; ``points`` are what it rests on, ``next`` what to do."""

    state: State
    text: str
    points: tuple[Point, ...]
    next: tuple[str, ...]

    @property
    def tone(self) -> Tone:
        return self.state.tone

    def json(self) -> dict[str, object]:
        """The verdict as it stands in ``--json``."""
        points = [{"label": point.label, "text": point.text} for point in self.points]
        return {"state": self.state.value, "text": self.text, "points": points, "next": list(self.next)}


def decide_verdict(facts: Facts) -> Verdict:
    """Weigh parity, receipts, accuracy, headroom and blame together. The worst of them is the verdict."""
    manifest, parity = facts.manifest, facts.parity
    failures = failures_of(facts)
    absent = _unproven_artifacts(parity)
    gap = _what_is_not_compared(facts)
    doubtful = _undecided(facts)
    if manifest.verdict == "incomplete":
        state, text = State.INCOMPLETE, f"{State.INCOMPLETE}: run the same export again"
    elif failures:
        more = f", and {len(failures) - 1} more" if len(failures) > 1 else ""
        state, text = State.FAILED, f"{State.FAILED}: {failures[0]}{more}"
    elif gap:
        state, text = State.UNPROVEN, f"{State.UNPROVEN}: {gap}"
    elif doubtful:
        why = _guessing(doubtful) or _what_would_decide(doubtful)
        state, text = State.UNDECIDED, f"{State.UNDECIDED}: {why}{_qualified(facts, '; ')}"
    elif absent:
        engines = "the engine has" if len(absent) == 1 else f"{len(absent)} engines have"
        state, text = State.HERE, f"{State.HERE}; {engines} not run yet{_qualified(facts, '; ')}"
    else:
        state, text = State.VERIFIED, f"{State.VERIFIED}{_against(parity)}{_qualified(facts, ', ')}"
    return Verdict(state, " ".join(text.split()), tuple(_points(facts)), _next(state, facts, doubtful))


def failures_of(facts: Facts) -> tuple[str, ...]:
    """Everything that is out of its limit: the artifact, the figure and the limit."""
    found = list(facts.parity.failures) if facts.parity is not None else []
    if facts.manifest.verdict == "failed" and not found:
        found.append("the export of this bundle found no parity")
    found += [pair.sentence for pair in _judged(facts) if pair.decision == "fail"]
    if facts.accuracy is not None:
        found += facts.accuracy.baseline.failures if facts.accuracy.baseline is not None else ()
    if facts.quality is not None:
        found += facts.quality.baseline.failures if facts.quality.baseline is not None else ()
    if facts.headroom is not None and facts.headroom.is_short:
        found.append(facts.headroom.sentence)
    if facts.blame is not None and facts.blame.guilty is not None:
        found.append(f"{facts.blame.guilty}, by `verify --blame`")
    return tuple(found)


def next_after_failed_parity(
    manifest: Manifest, folder: Path, parity: ParityReport | None, *, evaluated: bool = False
) -> tuple[str, ...]:
    """Commands and changes that help where logits are out of tolerance. ``evaluated``: accuracy was measured already."""
    bundle = shlex.quote(str(folder))
    if parity is not None and parity.likely_cause:
        return (
            f"likely cause: {parity.likely_cause}",
            "correct that, and export again; `skdeploy convert` writes a card to start from",
        )
    failed = {c.precision for c in parity.comparisons if c.verdict == "fail"} if parity is not None else set()
    steps = [f"`skdeploy verify {bundle} --blame` shows where the error enters"]
    if parity is not None and parity.mend is not None:
        steps.insert(
            0,
            f"export again with {parity.mend.flags}: tried here, it passes, with {decibels_text(parity.mend.sqnr_db)}",
        )
    if Precision.FP32 not in failed and not evaluated:
        steps.append(
            f"`skdeploy evaluate {bundle} --data LABELLED_IMAGES --max-drop 0.5` shows what it costs in accuracy"
        )
    beside_fp16 = any(
        isinstance(a.facts, GraphFacts) and a.facts.fallback is Precision.FP16 for a in manifest.artifacts
    )
    if any(precision.beside for precision in failed) and beside_fp16:
        steps.append("export with --int8-fallback fp32, or keep sensitive layers with --int8-keep")
    if parity is not None and parity.chosen in ("card", "photographs"):
        steps.append("judge on your own images: --images DIR")
    named = " and ".join(f"[tolerance.{precision}]" for precision in sorted(failed))
    if named:
        steps.append(f"if the error is fine for your use, widen {named} in the card, with the reason, and export again")
    return tuple(steps)


def _unproven_artifacts(parity: ParityReport | None) -> list[Comparison]:
    """Name the artifacts that could not run here and have no receipt."""
    return [c for c in parity.comparisons if c.verdict == "unproven" and c.proof is None] if parity is not None else []


def _what_is_not_compared(facts: Facts) -> str:
    parity = facts.parity
    if parity is None:
        return "its parity report is about other artifacts" if PARITY in facts.outdated else "it has no parity report"
    compared = {comparison.artifact for comparison in parity.comparisons}
    absent = [artifact.path for artifact in facts.graphs if artifact.path not in compared]
    if absent:
        return f"{', '.join(absent)} {'was' if len(absent) == 1 else 'were'} not compared"
    if not any(comparison.verdict == "pass" for comparison in parity.comparisons):
        return "nothing of it ran here"
    return ""


def _judged(facts: Facts) -> list[PairedReport | QualityDrop]:
    """Each comparison of two artifacts that had a budget, or might have had."""
    return [
        *(facts.accuracy.pairs if facts.accuracy is not None else ()),
        *(facts.quality.drops if facts.quality is not None else ()),
    ]


def _undecided(facts: Facts) -> list[PairedReport | QualityDrop]:
    return [pair for pair in _judged(facts) if pair.decision == "inconclusive"]


def _guessing(pairs: list[PairedReport | QualityDrop]) -> str:
    """Why these labels show nothing; empty if they do."""
    return next((pair.guessing for pair in pairs if pair.guessing), "")


def _what_would_decide(pairs: list[PairedReport | QualityDrop]) -> str:
    """How many images more would decide all pairs at the observed rates, and which budget they would pass now."""
    budget = max(pair.passing_budget for pair in pairs)
    more = _images_more(pairs)
    return (
        f"a budget of {budget:g} would pass"
        if more is None
        else f"{more:,} images more, or a budget of {budget:g} would pass"
    )


def _images_more(pairs: list[PairedReport | QualityDrop]) -> int | None:
    """How many would decide all pairs; None if a drop is its budget."""
    counts = [pair.images_more for pair in pairs]
    known = [count for count in counts if count is not None]
    return max(1, *known) if len(known) == len(pairs) else None


def _against(parity: ParityReport | None) -> str:
    return "" if parity is None or parity.reference == TORCH_REFERENCE else f" against {parity.reference}"


def _qualified(facts: Facts, before: str) -> str:
    """Name the limits of a verdict: assumptions, untrained weights, ranges without images."""
    texts = [assumption.text for assumption in facts.manifest.assumptions]
    said = []
    if texts:
        shown = [*texts[:SHOWN], *([f"{len(texts) - SHOWN} more"] if len(texts) > SHOWN else [])]
        listed = shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
        said.append(f"assuming {listed}")
    if facts.manifest.weights.source == "random":
        of_module = isinstance(facts.manifest.model.network, ModuleSpec)
        said.append("with the weights that its code builds" if of_module else "untrained: the weights are random")
    if facts.ranges is not None and facts.ranges.data.random:
        said.append("fit for timing only: INT8 is calibrated on noise")
    return before + "; ".join(said) if said else ""


def _points(facts: Facts) -> list[Point]:
    points = _parity_points(facts)
    points += [Point(*DECISIONS[p.decision], p.sentence) for p in _judged(facts) if p.decision is not None]
    for measured in (facts.accuracy, facts.quality):
        if measured is not None and measured.baseline is not None:
            points += [Point("bad", "Baseline", failure) for failure in measured.baseline.failures]
    if facts.blame is not None and facts.blame.guilty is not None:
        points.append(Point("bad", "Blame", facts.blame.verdict))
    if facts.headroom is not None and facts.headroom.is_short:
        points.append(Point("bad", "Failed", facts.headroom.sentence))
    manifest = facts.manifest
    if manifest.weights.source == "random":
        text = f"random, seed {manifest.weights.seed}: the network is untrained, so only its arithmetic is shown"
        if isinstance(manifest.model.network, ModuleSpec):
            text = f"those that the module's code builds, with torch's seed {manifest.weights.seed}; no file was given"
        points.append(Point("warn", "Weights", text))
    points += [Point("warn", "Assumed", f"{a.text} (from {a.source})") for a in manifest.assumptions]
    if facts.ranges is not None and facts.ranges.data.random:
        points.append(Point("warn", "Calibration", "on noise: fit for timing only"))
    if facts.outdated:
        text = f"{', '.join(facts.outdated)}: measured on other artifacts than these, so not counted"
        points.append(Point("warn", "Outdated", text))
    return points


def _parity_points(facts: Facts) -> list[Point]:
    parity, points = facts.parity, []
    if parity is not None:
        for backend in dict.fromkeys(c.backend for c in parity.comparisons if c.verdict == "pass"):
            passed = [c.artifact for c in parity.comparisons if c.verdict == "pass" and c.backend == backend]
            points.append(Point("good", "In parity", f"{', '.join(passed)} on {backend}"))
        points += [Point("bad", "Failed", failure) for failure in parity.failures]
        for c in parity.comparisons:
            if c.verdict == "unproven" and c.proof is not None:
                points.append(Point("good", "In parity by receipt", f"{c.artifact} on {c.proof.place}"))
            elif c.verdict == "unproven":
                points.append(Point("", "Not run yet", f"{c.place}: {c.reason}"))
        points.append(Point("", "Measured", f"against {parity.reference}, on {parity.images_text}"))
    compared = {c.artifact for c in parity.comparisons} if parity is not None else set()
    absent = [artifact.path for artifact in facts.graphs if artifact.path not in compared]
    if absent:
        points.append(Point("warn", "Not compared", ", ".join(absent)))
    return points


def _next(state: State, facts: Facts, doubtful: list[PairedReport | QualityDrop]) -> tuple[str, ...]:
    bundle = shlex.quote(str(facts.folder))
    if state is State.INCOMPLETE:
        return ("run the same export again: finished stages are kept",)
    if state is State.UNPROVEN:
        return (f"`skdeploy verify {bundle}` measures parity, and the same export again records it",)
    if state is State.UNDECIDED and _guessing(doubtful):
        paired = facts.quality is not None and any(drop.guessing for drop in facts.quality.drops)
        return (PAIRS_CHECK if paired else CHECK,)
    if state is State.UNDECIDED:
        above = [pair for pair in doubtful if pair.max_drop is not None and pair.drop > pair.max_drop]
        likely = f"; the measured drop of {above[0].drop:.2f} is above the budget, so expect a failure" if above else ""
        more = "" if _images_more(doubtful) is None else "more --data, or "
        return (f"`skdeploy evaluate {bundle}` with {more}a wider --max-drop{likely}",)
    if state is State.HERE:
        return (f"`skdeploy verify {bundle} --receipt` on the device, then copy receipts/ back",)
    if state is State.FAILED and (facts.manifest.verdict == "failed" or (facts.parity and facts.parity.failures)):
        evaluated = facts.accuracy is not None or facts.quality is not None
        return next_after_failed_parity(facts.manifest, facts.folder, facts.parity, evaluated=evaluated)
    if state is State.FAILED:
        from skdeploy.accuracy.gate import less_drop

        return (less_drop(facts.manifest.precision),)
    return ()
