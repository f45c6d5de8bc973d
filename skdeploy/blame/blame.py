"""At which stage of the line the error enters, and inside it, at which tensor of which module.

Stages. Each is compared with the stage that it was made from, on outputs for the same crops, and fails if it is out of the
card's tolerance for the stage's own precision (``spec.tolerance``): that is what its rounding can explain. The first that fails
is to blame. What comes after it inherits the error, and is in parity with its own predecessor.

Preprocessing comes first of all: what each stage is fed with must be (p / 255 - mean) / std of the card, in float64, to the
SQNR that the card wants of FP32. Inside a graph that normalises by itself, the normalised image is a tensor like others.

Tensors. Errors travel: once one tensor is wrong, all after it are, and a difference of two good tensors may be poor. So each
tensor's own error is measured: the nodes between it and the tensors before it are run on the tensors that the stage before was
seen to make, which have no error. The first tensor, in the order of the graph, is blamed whose own SQNR is below the card's
``min_sqnr_db``: alone, it makes as much error as the whole network may. So is one that is not finite where what it is made of
is. Where no tensor alone is that bad, none is blamed: many small errors add up, or the network amplifies them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from skdeploy.backends import backend
from skdeploy.backends.base import Array
from skdeploy.backends.logits import run_images
from skdeploy.backends.metrics import Outputs, is_floating
from skdeploy.blame.fed import expected_input, explain_input
from skdeploy.blame.inside import Suspect, look_inside
from skdeploy.blame.layers import decibels
from skdeploy.blame.layers_graph import GraphStage
from skdeploy.blame.layers_torch import INPUT, TorchStage
from skdeploy.core.errors import DependencyError, UsageError
from skdeploy.core.progress import Progress, Silent
from skdeploy.core.spec import ModelSpec, Precision
from skdeploy.images.dataset import Inputs, Pixels
from skdeploy.parity.blame_report import BlamedTensor, BlameReport, StageResult
from skdeploy.parity.measured import measured
from skdeploy.parity.tasks import task_of, tolerance_of

PREPROCESSING: Final = "preprocessing"
YOURS: Final = "your own code"


@dataclass(frozen=True)
class EngineStage:
    """An engine: its outputs can be compared, nothing inside it can. Raises DependencyError where it cannot run."""

    name: str
    path: Path
    compiler: str
    sha256: str
    precision: Precision
    spec: ModelSpec
    before: str | None = None

    def outputs(self, pixels: Pixels) -> dict[str, Array]:
        """All outputs by name, (N, ...) each."""
        with backend(self.compiler).open_session(self.path, sha256=self.sha256) as session:
            return run_images(session, pixels, self.spec)


Stage = TorchStage | GraphStage | EngineStage


def blame(
    chain: Sequence[Stage],
    pixels: Pixels,
    spec: ModelSpec,
    *,
    fed: Inputs | None = None,
    dataset: str = "images",
    name_of: Callable[[int], str] = str,
    repro: Path | None = None,
    progress: Progress | None = None,
) -> BlameReport:
    """Finds the first stage that fails, and inside it the tensor: see above.

    ``chain``: the stages in order; each names the one it is made from, the first none. ``pixels``: crops, uint8 (N, H, W, C);
    inner tensors are compared on the worst. ``fed``: what the user's own code feeds for them, float32 (N, C, H, W). With
    ``repro``, a folder, the smallest graph that shows it is saved there.

    Raises UsageError for a chain of one stage, CardError for a card without the tolerance that a stage needs.
    """
    tell = progress or Silent()
    if len(chain) < 2:
        raise UsageError(
            "the bundle has only one stage, so there is nothing to compare it with", advice="export the model again"
        )
    report = BlameReport(
        model=spec.name, dataset=dataset, images=len(pixels), sample=spec.sample_word, first=chain[0].name, stages=()
    )
    wrongly_fed = _wrongly_fed(chain, pixels, fed, spec)
    stages, worst = _run_stages(chain, pixels, spec, tell)
    report = report.model_copy(update={"stages": stages})
    if wrongly_fed is not None:
        where, tensor = wrongly_fed
        return report.model_copy(update={"guilty": PREPROCESSING, "fed_to": where, "tensor": tensor})
    failed = next((row for row in stages if row.verdict == "fail"), None)
    if failed is None:
        return report
    by_name = {stage.name: stage for stage in chain}
    found, before = by_name[failed.stage], by_name[failed.before or ""]
    report = report.model_copy(
        update={
            "guilty": failed.stage,
            "image": name_of(worst[failed.stage]),
            "floor_db": tolerance_of(spec, found.precision).min_sqnr_db,
        }
    )
    if isinstance(found, EngineStage) or isinstance(before, EngineStage):
        return report.model_copy(update={"note": "skdeploy cannot see inside an engine"})
    tell.update(f"{found.name}, tensor by tensor")
    graphs = [stage for stage in chain[chain.index(found) :] if isinstance(stage, GraphStage)]
    suspect = Suspect(found, before, graphs[0] if graphs else None)
    return look_inside(report, suspect, pixels[[worst[failed.stage]]], spec, repro)


def _wrongly_fed(
    chain: Sequence[Stage], pixels: Pixels, fed: Inputs | None, spec: ModelSpec
) -> tuple[str, BlamedTensor] | None:
    """Find which stage, or the user's own code, gets another input than the card's, and how it differs.

    Nothing prepares samples of a network that takes arrays, so no stage can get another input.
    """
    if not spec.takes_images:
        return None
    limit = tolerance_of(spec, Precision.FP32).min_sqnr_db
    expected = expected_input(pixels, spec.preprocess)
    inputs = {} if fed is None else {YOURS: fed}
    for stage in chain:
        if not (isinstance(stage, EngineStage) or (isinstance(stage, GraphStage) and stage.takes_pixels)):
            inputs[stage.name] = stage.feed(pixels)
    for name, array in inputs.items():
        found = decibels(expected, array)
        if found is None or found < limit:
            cause = explain_input(pixels, array, spec.preprocess, limit)
            return name, BlamedTensor(
                tensor=INPUT,
                module=PREPROCESSING,
                own_db=found,
                run_db=found,
                inputs_db=None,
                reference=INPUT,
                node=PREPROCESSING,
                operator="normalise",
                cause=cause.kind,
                words=cause.words,
            )
    return None


def _run_stages(
    chain: Sequence[Stage], pixels: Pixels, spec: ModelSpec, progress: Progress
) -> tuple[tuple[StageResult, ...], dict[str, int]]:
    """The outputs of each stage against the one before; and by stage the image on which they are furthest apart."""
    task, outputs = task_of(spec), dict[str, dict[str, Array]]()
    rows: list[StageResult] = []
    worst: dict[str, int] = {}
    for stage in chain:
        progress.update(stage.name)
        row = StageResult(stage=stage.name, precision=stage.precision, verdict="reference", before=stage.before)
        try:
            made = stage.outputs(pixels)
        except DependencyError as error:
            if not isinstance(stage, EngineStage):
                raise
            rows.append(row.model_copy(update={"verdict": "unproven", "reason": error.message}))
            continue
        problems = task.check(
            {name: value.astype(np.float32) if is_floating(value) else value for name, value in made.items()},
            len(pixels),
            spec,
        )
        found = outputs[stage.name] = {wanted.name: made[wanted.name] for wanted in spec.given if wanted.name in made}
        before = outputs.get(stage.before or "")
        if before is None:
            verdict = "fail" if problems else "reference"
            rows.append(row.model_copy(update={"verdict": verdict, "problems": problems}))
            continue
        apart = _apart(before, found, len(pixels))
        worst[stage.name] = min(range(len(apart)), key=lambda image: -np.inf if (db := apart[image]) is None else db)
        if not problems and all(np.isfinite(value).all() for value in before.values()):
            tolerance = tolerance_of(spec, stage.precision)
            problems = task.violations(measured(task, before, found, tolerance, spec), tolerance)
        rows.append(
            row.model_copy(
                update={
                    "verdict": "fail" if problems else "pass",
                    "sqnr_before_db": _least(apart),
                    "sqnr_first_db": _least(_apart(outputs[chain[0].name], found, len(pixels))),
                    "problems": problems,
                }
            )
        )
    return tuple(rows), worst


def _apart(before: Outputs, found: Outputs, images: int) -> list[float | None]:
    """SQNR of each image, that of its worst output; None where there is none, or an output is missing.

    Of floating-point outputs; without any, the numbers of classes stand for them: what counts is which image differs most.
    """
    before = {name: value for name, value in before.items() if is_floating(value)} or before
    return [
        _least(
            [
                decibels(value[[image]], found[name][[image]]) if len(found.get(name, ())) == images else None
                for name, value in before.items()
            ]
        )
        for image in range(images)
    ]


def _least(values: Sequence[float | None]) -> float | None:
    return None if None in values else min(value for value in values if value is not None)
