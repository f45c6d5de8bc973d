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
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from skdeploy.accuracy.evaluate import open_whole
from skdeploy.bundle.folder import Bundle
from skdeploy.bundle.runners import fp32_graph
from skdeploy.bundle.station_facts import TrainedInt8Facts
from skdeploy.core.errors import UsageError
from skdeploy.core.files import write_text
from skdeploy.core.progress import Progress, Silent
from skdeploy.shards.held import scratch_folder
from skdeploy.tuning.best import marked_best_first
from skdeploy.tuning.candidates import candidates
from skdeploy.tuning.options import TuneOptions
from skdeploy.tuning.recipes import calibration_images, recipe_place, recipe_text, shared_images
from skdeploy.tuning.report import TunePlan, TuneReport
from skdeploy.tuning.sweep import Inside, Rounds, Sweep, best_of, measure_latency
from skdeploy.tuning.truth import Asked, Truth, truth_in, without_truth
from skdeploy.tuning.workshop import Workshop
from skdeploy.zoo.assumed import require_preprocessing


def tune(
    folder: Path, options: TuneOptions, progress: Progress | None = None, *, rounds: Rounds | None = None
) -> TuneReport:
    """Tries every way, and writes the recipe of the best, unless it fails on the images that chose nothing.

    Nothing is judged here: ``TuneReport.check`` does. Measurements are kept, so that a run that is killed goes on where it was.
    ``rounds``: who does the long steps, if not this process. Raises UsageError for a bundle, images or options that do not go
    together, and what an export and ``evaluate`` raise.
    """
    started = time.perf_counter()
    tell = progress or Silent()
    bundle, truth = opened(folder, options, tell)
    spec = bundle.manifest.model
    calib = calibration_images(options.calib, options.data)
    place = recipe_place(options.output, calib, spec, force=options.force)
    if shared := shared_images(calib, truth.inputs, spec):
        tell.note(f"{shared:,} of the {truth.word}s calibrate, too, which flatters INT8: give others with --calib")
    tell.begin("tune")
    parts = truth.parts
    with swept(bundle, truth, options, tell) as sweep:
        winner = best_of(sweep, candidates(options.methods), rounds or Rounds())
        sweep.tell.prefix = "the winner, on images that chose nothing"
        confirmed = sweep.judged_by.compared(sweep.shop.make(winner.candidate), "confirming", winner.name)
        if options.bench:
            measure_latency(sweep)
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


@contextmanager
def swept(bundle: Bundle, truth: Truth, options: TuneOptions, tell: Progress) -> Iterator[Sweep]:
    """A sweep that has tried nothing yet, with FP32 open."""
    reference = fp32_graph(bundle)
    assert reference is not None  # opened
    calib = calibration_images(options.calib, options.data)
    with scratch_folder() as scratch, reference.open() as session:
        inside = Inside(tell)
        shop = Workshop(bundle, calib, options.calib_num, scratch, inside)
        yield Sweep(shop, truth, truth.judge((reference, session), bundle.manifest.model, inside), options, inside)


def planned(folder: Path, options: TuneOptions) -> TunePlan:
    """Return the ways that ``tune`` would try, and how many images it would use. Runs none. Raises as ``tune``."""
    bundle, truth = opened(folder, options, Silent())
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


def opened(folder: Path, options: TuneOptions, tell: Progress) -> tuple[Bundle, Truth]:
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
