"""``skdeploy evaluate``: which artifacts, on which images, and what their predictions come to."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from skdeploy.accuracy.facts import read_facts
from skdeploy.accuracy.gate import (
    TOP,
    AccuracyReport,
    Evaluation,
    NotEvaluated,
    accuracy_report,
    class_names,
    paired_report,
)
from skdeploy.accuracy.predictions import Predictions, logits_agreement, top_classes
from skdeploy.accuracy.reuse import predictions_of, tell_of_reuse
from skdeploy.accuracy.statistics import Decision
from skdeploy.accuracy.streaming import crop_kind, open_all, unreadable_in_any
from skdeploy.accuracy.verdict import decide_verdict
from skdeploy.backends import running
from skdeploy.bundle.evidence import keep_evidence
from skdeploy.bundle.folder import Bundle, load_bundle
from skdeploy.bundle.receipts import ReceiptVerdict, require_receipts, write_receipt
from skdeploy.bundle.runners import Runner, engines_of, fp32_graph, last_graph, runner_named, runner_on
from skdeploy.core.errors import DependencyError, UsageError
from skdeploy.core.progress import Progress, Silent
from skdeploy.core.spec import ClassOrder, ModelSpec
from skdeploy.images.dataset import EVALUATION, Dataset, check_count, open_dataset
from skdeploy.images.feeds import RUN_BATCH
from skdeploy.images.labels import as_the_network_counts
from skdeploy.parity.tasks import require_classes
from skdeploy.zoo.assumed import require_preprocessing

if TYPE_CHECKING:
    from skdeploy.accuracy.quality import QualityReport

CONFIDENCE: Final = 95.0  # per cent


@dataclass(frozen=True)
class EvaluationOptions:
    """Options of ``skdeploy evaluate``, by the same names.

    ``data``: labelled images, see ``images.dataset.open_dataset``; ``class_order``: how class folders are counted, see
    ``quant.labels``; ``num_images`` of them, evenly spread over the classes, None for all. ``max_drop`` is the budget in
    percentage points of top-1, None for no gate; ``confidence`` of its bounds, in per cent and one-sided. ``artifacts``:
    paths in the bundle, or ``torch``; none means the last graph and engines that run here. ``against``: what they are
    compared with, an artifact, ``torch`` or another bundle's folder; None means the FP32 graph. ``require_engine``: an
    engine that cannot run here is an error. ``fresh``: predict anew what an earlier run has predicted. ``receipt``: write a
    receipt of each artifact's accuracy on this device. ``backend``, in place of ``artifacts``: what of the bundle runs on
    that one, see ``runners.runner_on``; ``backend_options`` are its NAME=VALUE texts. ``metric``: ``module:function``, a
    figure of the user's own in place of the task's; ``data`` are then pairs, as for any task without classes, see
    ``images/pairs.py``, and ``max_drop`` is in the figure's unit. ``output``: file for the finding, in place of
    the bundle.
    """

    data: Path
    class_order: ClassOrder | None = None
    num_images: int | None = None
    max_drop: float | None = None
    confidence: float = CONFIDENCE
    artifacts: tuple[str, ...] = ()
    against: str | None = None
    batch: int = RUN_BATCH
    require_engine: bool = False
    fresh: bool = False
    receipt: bool = False
    backend: str | None = None
    backend_options: tuple[str, ...] = ()
    assume_imagenet: bool = False
    metric: str | None = None
    output: Path | None = None

    def check(self) -> None:
        """Raises UsageError for numbers and options that make no sense."""
        if self.backend is not None and self.artifacts:
            raise UsageError(
                "--backend and --artifact cannot be used together: both choose what runs", advice="give one of the two"
            )
        if self.backend_options and self.backend is None:
            raise UsageError("--backend-option requires --backend")
        check_count(self.num_images, "--num-images")
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise UsageError(
                f"--max-drop {self.max_drop:g}: must be from 0 to 100, in points of top-1 or the unit measured"
            )
        if not 50 < self.confidence <= 99.9999:
            raise UsageError(f"--confidence {self.confidence:g}: must be above 50 and at most 99.9999 percent")
        if self.batch < 1:
            raise UsageError(f"--batch {self.batch}: must be at least 1")


@dataclass(frozen=True)
class Chosen:
    """``bundle``'s artifacts to run, the reference first; ``optional`` ones only where they can."""

    bundle: Bundle
    reference: Runner | None
    wanted: list[Runner]
    optional: list[Runner]

    @property
    def runners(self) -> list[Runner]:
        return _distinct([*([] if self.reference is None else [self.reference]), *self.wanted])

    @property
    def specs(self) -> dict[str, ModelSpec]:
        """The networks by the folder of their bundle."""
        bundles = [self.bundle, *([] if self.reference is None else [self.reference.bundle])]
        return {str(bundle.folder): bundle.manifest.model for bundle in bundles}


def choose(folder: Path, options: EvaluationOptions) -> Chosen:
    """The artifacts that the options name, or those that are deployed. Raises UsageError, IntegrityError."""
    options.check()
    bundle = open_whole(folder)
    if options.receipt:
        require_receipts(folder)
    wanted = [runner_named(bundle, name) for name in options.artifacts] or [last_graph(bundle)]
    if options.backend is not None:
        wanted = [runner_on(bundle, options.backend, options.backend_options)]
    engines = engines_of(bundle)
    if options.require_engine:
        if not engines:
            raise UsageError(f"{folder} holds no engine, but --require-engine needs one", advice="export with --target")
        wanted += engines
    reference = fp32_graph(bundle) if options.against is None else _reference(bundle, options.against)
    optional = () if options.artifacts or options.backend or options.require_engine else engines
    return Chosen(bundle, reference, wanted, _distinct(optional))


def evaluate(folder: Path, options: EvaluationOptions, progress: Progress | None = None) -> Evaluation:
    """Accuracy of a bundle's artifacts on labelled images, each compared with a reference on the same images.

    Nothing is judged here: ``Evaluation.check`` does. Kept as the evidence ``accuracy``; no artifact changes.

    Raises UsageError for data without labels, with other labels, or of which more than 1 % cannot be read; DependencyError for
    an engine that is required and cannot run; IntegrityError, ParityError.
    """
    tell = progress or Silent()
    chosen = prepared(folder, options, tell)
    return concluded(chosen, _run(chosen.runners, chosen.optional, options, tell), options, tell)


def prepared(folder: Path, options: EvaluationOptions, tell: Progress) -> Chosen:
    """The artifacts, once it is sure that they can be compared on labelled images; notes what is assumed. Raises UsageError."""
    chosen = choose(folder, options)
    reference, wanted = chosen.reference, chosen.wanted
    for spec in chosen.specs.values():
        require_classes(spec, "evaluate")
    assumed = require_preprocessing(chosen.specs, options.assume_imagenet)
    if reference is not None:
        check_same_classes(reference, wanted[0])
    for note in assumed:
        tell.note(note)
    if reference is not None and reference.bundle is not chosen.bundle:
        _tell_of_release(reference, wanted[0], tell)
    return chosen


def concluded(chosen: Chosen, found: Evaluation, options: EvaluationOptions, tell: Progress) -> Evaluation:
    """The evaluation, kept as evidence, and as receipts if they are asked for."""
    bundle = chosen.bundle
    measured = {accuracy.artifact for accuracy in found.accuracies}
    about = [artifact for artifact in bundle.manifest.artifacts if artifact.path in measured]
    keep_evidence(bundle, "accuracy", found, about, tell, options.output)
    if options.receipt:
        decisions = {pair.second: pair.decision for pair in found.pairs}
        for path in write_receipts(bundle, found.accuracies, decisions):
            tell.note(f"receipt: {path}")
    return found


def write_receipts(
    bundle: Bundle, reports: Sequence[AccuracyReport | QualityReport], decisions: Mapping[str, Decision | None]
) -> list[Path]:
    """A receipt of each artifact's accuracy on this device; its verdict is that of the budget, where there was one."""
    paths = []
    for accuracy in reports:
        artifact = bundle.artifact(accuracy.artifact)
        if artifact is None:  # torch, or another bundle's
            continue
        decision = decisions.get(accuracy.shown)
        verdict: ReceiptVerdict = decision if decision in ("pass", "fail") else "recorded"
        paths.append(write_receipt(bundle, artifact, "accuracy", accuracy, backend=accuracy.backend, verdict=verdict))
    return paths


def _tell_of_release(old: Runner, new: Runner, tell: Progress) -> None:
    """Notes what a comparison of two bundles should not hide: a failed verdict, and that nothing has changed."""
    for bundle in (old.bundle, new.bundle):
        if bundle.manifest.verdict == "failed":
            tell.note(f"{bundle.folder}: {decide_verdict(read_facts(bundle)).text}")
    if old.artifact.sha256 == new.artifact.sha256:
        tell.note(f"both bundles end in the same file, sha256 {old.artifact.sha256[:12]}")


def labelled_images(data: Path, spec: ModelSpec, number: int | None, order: ClassOrder | None = None) -> Dataset:
    """Labelled images as the network counts its classes; ``number`` of them, evenly spread over the classes.

    Counted off in the order of their classes: where ten classes take turns in a file, every tenth image has the same one.
    """
    dataset = as_the_network_counts(open_dataset(data, archive=EVALUATION, spec=spec), spec, order)
    if number is None or number >= len(dataset) or dataset.labels is None:
        return dataset if number is None else dataset.take(range(min(number, len(dataset))))
    by_class = np.argsort(dataset.labels, kind="stable")
    return dataset.take(np.sort(by_class[np.arange(number) * len(dataset) // number]).tolist())


def check_same_classes(first: Runner, second: Runner) -> None:
    """Raises UsageError unless two networks tell apart the same classes, in the same order, if their labels are known."""
    one, other = first.spec, second.spec
    if one.network.classes != other.network.classes:
        raise UsageError(
            f"{first.name} has {one.network.classes} classes, but {second.name} has {other.network.classes}",
            advice="only networks with the same classes can be compared",
        )
    if one.labels and other.labels and one.labels != other.labels:
        at = next(n for n, (a, b) in enumerate(zip(one.labels, other.labels, strict=True)) if a != b)
        raise UsageError(
            f"{first.name} and {second.name} have different labels: class {at} is {one.labels[at]!r} and "
            f"{other.labels[at]!r}",
            advice="compare networks with the same labels in the same order",
        )


def open_whole(folder: Path) -> Bundle:
    """A bundle whose export came to its end. Raises UsageError, IntegrityError."""
    bundle = load_bundle(folder)
    bundle.check_complete()
    return bundle


def _reference(bundle: Bundle, against: str) -> Runner:
    if against in running("module") or bundle.artifact(against) is not None:
        return runner_named(bundle, against)
    if Path(against).is_dir():
        return last_graph(open_whole(Path(against)), _prefix(Path(against), bundle.folder))
    raise UsageError(
        f"--against {against} is neither an artifact of {bundle.folder} nor the folder of another bundle",
        advice=f"artifacts: {', '.join(a.path for a in bundle.manifest.artifacts)}",
    )


def _prefix(folder: Path, other: Path) -> str:
    """A prefix that tells the artifacts of two bundles apart: the folder's name, or its path if both have the same name."""
    name, known = folder.resolve().name, other.resolve().name
    return f"{folder if name == known else name}/"


def _distinct(runners: Sequence[Runner]) -> list[Runner]:
    """Each once, in the order in which they come first."""
    once: dict[tuple[Path, str, str], Runner] = {}
    for runner in runners:
        once.setdefault((runner.bundle.folder.resolve(), runner.artifact.path, runner.backend), runner)
    return list(once.values())


def _run(
    wanted: list[Runner],
    optional: list[Runner],
    options: EvaluationOptions,
    tell: Progress,
) -> Evaluation:
    started = time.perf_counter()
    tell.begin("evaluate")
    spec = naming_spec(wanted)
    dataset = labelled_images(options.data, spec, options.num_images, options.class_order)
    tell.update("opening the artifacts")
    with open_all(wanted, optional) as (opened, absent):
        require_pair(options.max_drop, [runner for runner, _ in opened], absent)
        runners = [runner for runner, _ in opened]
        predictions, each = predictions_of(
            opened,
            dataset,
            options.batch,
            tell,
            fresh=options.fresh,
            found=lambda done: tell_of_reuse(runners, done, len(dataset), tell, "image"),
        )
    reused = min(each)
    seconds = time.perf_counter() - started
    tell.end("evaluate", seconds, reused=reused == len(dataset))
    return evaluation_of(runners, absent, predictions, dataset, options, reused=reused, seconds=seconds)


def naming_spec(runners: Sequence[Runner]) -> ModelSpec:
    """The network that names the classes: the first with labels."""
    return next((runner.spec for runner in runners if runner.spec.labels), runners[0].spec)


def require_pair(max_drop: float | None, runners: Sequence[Runner], absent: Sequence[NotEvaluated]) -> None:
    """Raises where a drop is asked for and there is nothing to compare with."""
    if max_drop is not None and len(runners) < 2:
        raise _nothing_to_compare(runners[0], absent)


def _nothing_to_compare(alone: Runner, absent: Sequence[NotEvaluated]) -> UsageError | DependencyError:
    if absent:
        return DependencyError(
            f"--max-drop needs two artifacts, but apart from {alone.name} none runs here: "
            f"{absent[0].artifact}: {absent[0].reason}",
            advice="give --against torch or another bundle",
        )
    return UsageError(
        f"--max-drop needs two artifacts, but {alone.name} is the only one",
        advice="give --against torch or another bundle",
    )


def evaluation_of(
    runners: Sequence[Runner],
    absent: Sequence[NotEvaluated],
    predictions: Sequence[Predictions],
    dataset: Dataset,
    options: EvaluationOptions,
    *,
    reused: int,
    seconds: float,
    digest: str | None = None,
) -> Evaluation:
    """The evaluation that the predictions of all images give. ``digest``: that of the images, if it is known already."""
    assert dataset.labels is not None  # labelled_images
    spec = naming_spec(runners)
    readable = np.logical_and.reduce([of.readable for of in predictions])
    labels = dataset.labels[readable]
    logits = [of.logits[readable] for of in predictions]
    top = [top_classes(one, runner.spec) for one, runner in zip(logits, runners, strict=True)]
    names = class_names(spec.labels, spec.network.classes)
    confidence = options.confidence / 100
    counts = np.bincount(labels, minlength=len(names))
    return Evaluation(
        kind="evaluation" if len({runner.bundle.folder for runner in runners}) == 1 else "comparison",
        dataset=dataset.name,
        dataset_sha256=digest or dataset.digest,
        labels_sha256=hashlib.sha256(dataset.labels.astype("<i8").tobytes()).hexdigest(),
        images=len(labels),
        sample=spec.sample_word,
        reused=reused,
        unreadable=tuple(unreadable_in_any(predictions)),
        classes=names,
        missing_classes=tuple(name for name, count in zip(names, counts, strict=True) if not count),
        accuracies=tuple(
            accuracy_report(classes, labels, names, confidence, runner)
            for runner, classes in zip(runners, top, strict=True)
        ),
        pairs=tuple(
            paired_report(
                top[0],
                top[n],
                labels,
                confidence,
                options.max_drop,
                names=(runners[0].shown, runners[n].shown),
                logits=logits_agreement(logits[0], logits[n])
                if _have_same_logits(runners[0].spec, runners[n].spec)
                else None,
                sample=spec.sample_word,
            )
            for n in range(1, len(runners))
        ),
        not_evaluated=tuple(absent),
        image_notes=(*dataset.notes, *_notes_on_outputs(runners[-1].spec)),
        confidence=options.confidence,
        seconds=round(seconds, 3),
    )


def _have_same_logits(one: ModelSpec, other: ModelSpec) -> bool:
    """Whether both see the same pixels and give logits."""
    return crop_kind(one) == crop_kind(other) and not (one.gives_numbers or other.gives_numbers)


def _notes_on_outputs(spec: ModelSpec) -> tuple[str, ...]:
    """Say which of several outputs is judged, and that class numbers have no top-5."""
    name = spec.class_tensor.name
    which = (f"the classes are those of the output {name}",) if len(spec.given) > 1 else ()
    numbers = spec.gives_numbers and spec.network.classes > TOP
    return (*which, *((f"no top-5: {name} has class numbers, only the best class of each",) if numbers else ()))
