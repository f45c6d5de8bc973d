"""``skdeploy tune``: tries every way to make INT8, and writes the recipe of the best.

Ways are compared by right and wrong on labelled images, by the task's measure on pairs, or without a truth by how far their
outputs are from FP32's.

1. All ways are screened on a few images by SQNR, which tells more of each image than right or wrong does.
2. The best of each cost run on all images that choose. Only if none keeps the budget, units stay in the fallback: those that
   bring most noise for what they compute, 1, 2, 4 ... of them.
3. The cheapest that keeps the budget wins; of equal cost, that with the highest SQNR. Without a budget, all keep it.
4. The winner runs on images that chose nothing, and they alone decide (``split.py``): of many ways, the best on the images that
   chose it looks better than it is.
"""

from __future__ import annotations

import shlex
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from skdeploy.accuracy.evaluate import CONFIDENCE, open_whole
from skdeploy.backends.onnxruntime import load_graph
from skdeploy.bundle.folder import Bundle
from skdeploy.bundle.runners import fp32_graph
from skdeploy.bundle.station_facts import TrainedInt8Facts
from skdeploy.core.errors import CalibrationError, ParityError, PassError, SkdeployError, UsageError
from skdeploy.core.files import write_text
from skdeploy.core.progress import Progress, Silent
from skdeploy.core.spec import ClassOrder, ModelSpec
from skdeploy.images.dataset import check_count
from skdeploy.planning.devices import device_named
from skdeploy.planning.layers import fuse
from skdeploy.planning.plain import read_plain
from skdeploy.planning.recommend import WORTH, groups_left
from skdeploy.quant.units import Unit, all_but, units_of
from skdeploy.tuning.best import choose, holds, marked_best_first
from skdeploy.tuning.candidates import Candidate, candidates
from skdeploy.tuning.judges import Judge
from skdeploy.tuning.recipes import calibration_images, recipe_place, recipe_text, shared_images
from skdeploy.tuning.report import Tried, TunePlan, TuneReport
from skdeploy.tuning.truth import Asked, Truth, truth_in, without_truth
from skdeploy.tuning.workshop import Workshop
from skdeploy.zoo.assumed import require_preprocessing

SURVIVORS: Final = 3  # of each cost that run on all images that choose
MOST_SQNR_DB: Final = 150.0  # FP32 rounds at 2^-24: 144 dB


@dataclass(frozen=True)
class TuneOptions:
    """Options of ``skdeploy tune``, by the same names. ``max_drop`` needs labels or pairs in ``data``; without it FP32's
    outputs are the truth, and ``min_sqnr`` in dB may limit the error. ``calib`` None: the calibration.npz of ``data``;
    ``methods`` None: all but entropy; ``output`` None: ``<model>-tuned.toml`` beside the calibration images.
    """

    data: Path
    max_drop: float | None = None
    min_sqnr: float | None = None
    calib: Path | None = None
    calib_num: int | None = None
    methods: tuple[str, ...] = ()
    class_order: ClassOrder | None = None
    device: str | None = None
    bench: bool = False
    confidence: float = CONFIDENCE
    output: Path | None = None
    force: bool = False
    allow_inconclusive: bool = False
    assume_imagenet: bool = False
    metric: str | None = None

    def check(self) -> None:
        """Raises UsageError for numbers that make no sense."""
        if self.max_drop is not None and self.min_sqnr is not None:
            raise UsageError(
                "--max-drop and --min-sqnr cannot be used together: one is for labels or pairs, the other for data without",
                advice="give one of them",
            )
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise UsageError(f"--max-drop {self.max_drop:g}: must be from 0 to 100, in the unit measured")
        if self.min_sqnr is not None and not 0 < self.min_sqnr <= MOST_SQNR_DB:
            raise UsageError(
                f"--min-sqnr {self.min_sqnr:g}: must be above 0 and at most {MOST_SQNR_DB:g} dB, which is more than FP32 holds"
            )
        for option, given in (("--metric", self.metric), ("--class-order", self.class_order)):
            if given is not None and self.max_drop is None:
                raise UsageError(
                    f"{option} requires --max-drop: without it, ways are compared with FP32 and not with a truth",
                    advice=f"give --max-drop, or leave {option} out",
                )
        if not 50 < self.confidence <= 99.9999:
            raise UsageError(f"--confidence {self.confidence:g}: must be above 50 and at most 99.9999 percent")
        check_count(self.calib_num, "--calib-num")
        if self.device is not None:
            device_named(self.device)


class _Inside(Progress):
    """Tells of one candidate; each note once."""

    def __init__(self, tell: Progress) -> None:
        self.tell, self.prefix = tell, ""
        self._said: set[str] = set()

    def update(self, detail: str) -> None:
        self.tell.update(f"{self.prefix}: {detail}" if self.prefix else detail)

    def note(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self.tell.note(text)


@dataclass
class _Sweep:
    """The ways tried until now, and what they are judged by."""

    shop: Workshop
    judged_by: Judge
    options: TuneOptions
    tell: _Inside
    expected: int
    started: float = field(default_factory=time.perf_counter)
    rows: list[Tried] = field(default_factory=list)

    @property
    def spec(self) -> ModelSpec:
        return self.shop.spec

    def announce(self, words: str) -> None:
        """Says what is tried, and about how long the rest of this step takes."""
        done = len(self.rows)
        left = (time.perf_counter() - self.started) / done * (self.expected - done) if done else 0.0
        self.tell.prefix = f"{words}, about {left:,.0f} s left" if 0 < done < self.expected else words
        self.tell.update("makes the graph")

    def screen(self, candidate: Candidate, words: str) -> Tried:
        self.announce(words)
        made = self.shop.make(candidate)
        decibels = self.judged_by.screened(made, candidate.name)
        return Tried(candidate=candidate, name=candidate.name, sqnr_db=decibels, int8_mac_share=made.int8_mac_share)

    def judge(self, row: Tried, words: str) -> Tried:
        """The row with its figures on all images that choose."""
        self.tell.prefix = words
        made = self.shop.make(row.candidate)
        pair = self.judged_by.compared(made, "choosing", row.name)
        device = self.options.device
        predicted = None if device is None else self.shop.predicted_ms(made, device)
        return row.model_copy(update={"pair": pair, "predicted_ms": predicted})


def tune(folder: Path, options: TuneOptions, progress: Progress | None = None) -> TuneReport:
    """Tries every way, and writes the recipe of the best, unless it fails on the images that chose nothing.

    Nothing is judged here: ``TuneReport.check`` does. Measurements are kept, so that a run that is killed goes on where it was.
    Raises UsageError for a bundle, images or options that do not go together, and what an export and ``evaluate`` raise.
    """
    started = time.perf_counter()
    tell = progress or Silent()
    bundle, truth = _opened(folder, options, tell)
    spec = bundle.manifest.model
    calib = calibration_images(options.calib, options.data)
    place = recipe_place(options.output, calib, spec, force=options.force)
    if shared := shared_images(calib, truth.inputs, spec):
        tell.note(f"{shared:,} of the {truth.word}s calibrate, too, which flatters INT8: give others with --calib")
    tell.begin("tune")
    parts = truth.parts
    first = candidates(options.methods)
    reference = fp32_graph(bundle)
    assert reference is not None  # _opened
    with tempfile.TemporaryDirectory(prefix="skdeploy-") as scratch, reference.open() as session:
        inside = _Inside(tell)
        shop = Workshop(bundle, calib, options.calib_num, Path(scratch), inside)
        judge = truth.judge((reference, session), spec, inside)
        sweep = _Sweep(shop, judge, options, inside, len(first))
        winner = _best(sweep, first)
        sweep.tell.prefix = "the winner, on images that chose nothing"
        confirmed = judge.compared(shop.make(winner.candidate), "confirming", winner.name)
        if options.bench:
            _measure(sweep)
    rows = marked_best_first(sweep.rows, winner)
    written = None
    if confirmed.decision != "fail":
        write_text(place, recipe_text(bundle.manifest.model, winner, confirmed, calib, place, options.calib_num))
        written = str(place)
    seconds = time.perf_counter() - started
    tell.end("tune", seconds, reused=False)
    words = ["skdeploy", "export", bundle.manifest.model.name, "--int8"]
    words += winner.candidate.words(calib, options.calib_num) if written is None else ["--calib", written]
    return TuneReport(
        model=bundle.manifest.model.name,
        dataset=truth.inputs.name,
        dataset_sha256=truth.inputs.digest,
        images=len(truth.inputs),
        screening=len(parts.screening),
        choosing=len(parts.choosing),
        confirming=len(parts.confirming),
        max_drop=options.max_drop,
        min_sqnr_db=options.min_sqnr,
        confidence=options.confidence,
        device=options.device,
        tried=tuple(rows),
        winner=winner.name,
        confirmed=confirmed,
        recipe=written,
        export=shlex.join(words),
        seconds=round(seconds, 3),
        sample=truth.word,
    )


def planned(folder: Path, options: TuneOptions) -> TunePlan:
    """Return the ways that ``tune`` would try, and how many images it would use. Runs none. Raises as ``tune``."""
    bundle, truth = _opened(folder, options, Silent())
    calib = calibration_images(options.calib, options.data)
    recipe_place(options.output, calib, bundle.manifest.model, force=options.force)
    parts = truth.parts
    return TunePlan(
        candidates=tuple(candidate.name for candidate in candidates(options.methods)),
        screening=len(parts.screening),
        choosing=len(parts.choosing),
        confirming=len(parts.confirming),
        sample=truth.word,
    )


def _opened(folder: Path, options: TuneOptions, tell: Progress) -> tuple[Bundle, Truth]:
    """The bundle, if it can be tuned, and the samples. Raises UsageError and IntegrityError."""
    options.check()
    bundle = open_whole(folder)
    spec = bundle.manifest.model
    if fp32_graph(bundle) is None:
        raise UsageError(
            f"{folder} holds no model.onnx, the FP32 graph that INT8 is made from",
            advice="repeat its export with --int8 --calib DIR",
        )
    if any(isinstance(artifact.facts, TrainedInt8Facts) for artifact in bundle.manifest.artifacts):
        raise UsageError(
            f"{folder} has the scales that its network was trained with: there is nothing to choose",
            advice="export the network without Q/DQ, and tune that",
        )
    for note in require_preprocessing({str(folder): spec}, options.assume_imagenet):
        tell.note(note)
    if options.max_drop is None:
        return bundle, without_truth(options.data, spec, options.confidence, options.min_sqnr, tell)
    asked = Asked(options.data, options.max_drop, options.confidence, options.class_order, options.metric)
    return bundle, truth_in(asked, spec, tell)


def _best(sweep: _Sweep, first: Sequence[Candidate]) -> Tried:
    """Screens, judges what comes through, and goes on with kept units if nothing keeps the budget."""
    refusals: list[SkdeployError] = []
    for number, candidate in enumerate(first, 1):
        try:
            row = sweep.screen(candidate, f"{candidate.name}, {number} of {len(first)}")
        except (CalibrationError, PassError, ParityError) as error:  # FP16 holds no such step, or overflows
            refusals.append(error)
            row = Tried(
                candidate=candidate, name=candidate.name, sqnr_db=0.0, int8_mac_share=0.0, refused=error.message
            )
        sweep.rows.append(row)
    if len(refusals) == len(first):
        raise refusals[0]
    _judge(sweep, [place for place, row in enumerate(sweep.rows) if not row.refused])
    guessed = all(row.pair.guessing for row in sweep.rows if row.pair is not None)  # of FP32: units would not help
    if not guessed and not any(holds(row) for row in sweep.rows):
        base = max((row for row in sweep.rows if not row.refused), key=lambda row: row.sqnr_db)
        for count, candidate in enumerate(_with_units_kept(sweep, base.candidate), 1):
            sweep.rows.append(sweep.screen(candidate, f"{candidate.name}, step {count}"))
            _judge(sweep, [len(sweep.rows) - 1])
            if holds(sweep.rows[-1]):
                break
    return _regrouped(sweep, choose([row for row in sweep.rows if row.pair is not None]))


def _judge(sweep: _Sweep, places: Sequence[int]) -> None:
    """Runs the best of these on all images that choose: of each fallback, those with the highest SQNR."""
    by_cost: dict[tuple[object, ...], list[int]] = {}
    for place in places:
        candidate = sweep.rows[place].candidate
        by_cost.setdefault((candidate.fallback, candidate.keep), []).append(place)
    chosen = [
        place
        for group in by_cost.values()
        for place in sorted(group, key=lambda place: -sweep.rows[place].sqnr_db)[:SURVIVORS]
    ]
    for number, place in enumerate(chosen, 1):
        row = sweep.rows[place]
        sweep.rows[place] = sweep.judge(row, f"{row.name} on all that choose, {number} of {len(chosen)}")


def _with_units_kept(sweep: _Sweep, base: Candidate) -> Iterator[Candidate]:
    """The candidate with the 1, 2, 4 ... units kept that alone bring most noise for what they compute."""
    model = load_graph(sweep.shop.graph)
    units = units_of(model, sweep.spec)
    noise: dict[str, float] = {}
    for number, unit in enumerate(units, 1):
        others = all_but(model, unit)
        alone = base.model_copy(update={"keep": others, "units": tuple(u.name for u in units if u is not unit)})
        sweep.tell.prefix = f"noise of {unit.name}, {number} of {len(units)}"
        decibels = sweep.judged_by.screened(sweep.shop.make(alone), unit.name)
        noise[unit.name] = 10 ** (-decibels / 10)
    ranked: list[Unit] = sorted(units, key=lambda unit: noise[unit.name] / unit.macs, reverse=True)
    count = 1
    while count < len(ranked):
        kept = ranked[:count]
        yield base.model_copy(
            update={"keep": tuple(unit.pattern for unit in kept), "units": tuple(unit.name for unit in kept)}
        )
        count *= 2


def _regrouped(sweep: _Sweep, winner: Tried) -> Tried:
    """The winner with groups merged, if the planner finds that a tenth faster on the device: the function is the same."""
    device = sweep.options.device
    if device is None or winner.predicted_ms is None:
        return winner
    made = sweep.shop.make(winner.candidate)
    plain = read_plain(load_graph(made.path), made.path, 1, sweep.spec.one_size)
    best = winner
    for groups in groups_left(fuse(plain.model)):
        candidate = winner.candidate.model_copy(update={"regroup": groups})
        sweep.tell.prefix = candidate.name
        latency = sweep.shop.predicted_ms(sweep.shop.make(candidate), device)
        if latency < (1 - WORTH) * winner.predicted_ms and latency < (best.predicted_ms or latency):
            best = winner.model_copy(update={"candidate": candidate, "name": candidate.name, "predicted_ms": latency})
    if best is not winner:
        sweep.rows.append(best)
    return best


def _measure(sweep: _Sweep) -> None:
    """Adds the latency on this machine of what came through the screening."""
    places = [place for place, row in enumerate(sweep.rows) if row.pair is not None]
    sweep.tell.prefix = ""
    sweep.tell.update("measures latency")
    graphs = [sweep.shop.make(sweep.rows[place].candidate) for place in places]
    for place, latency in zip(places, sweep.shop.measured_ms(graphs), strict=True):
        sweep.rows[place] = sweep.rows[place].model_copy(update={"measured_ms": latency})
