"""Inputs that no data set holds, and what may be asked of a network on them.

The images are judged by the whole tolerance of the card: it is they that a network was made for. On the synthetic suites
(noise, zeros, extremes, tiny-contrast) the rule is another, for these reasons:

* Everywhere: logits of the right shape, and finite. A black frame from a covered camera must not become NaN.
* FP32 is the same function in the same type, whatever the image, so the card's ``max_rel_error`` holds. But an image of nothing
  may leave logits near zero while the tensors before them are as large as ever, and the rounding of these does not shrink: the
  error is therefore relative to the largest logit of the suite *or of the images*, whichever is larger. SQNR and cosine of a
  single image, which divide by that image's logits alone, are recorded and not judged.
* FP16 rounds what FP32 does not, and how much of that reaches the logits depends on the image. The card's tolerance was set on
  images, so images decide: the error on a synthetic suite informs, and is recorded.
* INT8 has ranges that were measured on images. What lies outside them is clipped by design: an error of any size is not a
  defect, and is recorded.
* No precision is excused from finite logits: FP16 and INT8 that answer NaN where the reference does not fail.

``memory`` gives the images as views of other memory (every second column, channels last, reversed) and asks for the same bits
as from contiguous memory, or, from a session that does not repeat its own bits, for the card's ``max_rel_error``. ``sizes``, of
graphs with dynamic height and width, gives the images at other sizes and asks for the whole tolerance; of INT8 again for finite
logits, since its ranges are of one size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from skdeploy.backends.base import Array, Session
from skdeploy.backends.logits import one_batch, run_images
from skdeploy.backends.metrics import Metrics, Outputs, largest, largest_difference
from skdeploy.core.errors import UsageError
from skdeploy.core.progress import Progress
from skdeploy.core.spec import ModelSpec, Precision, TensorSpec
from skdeploy.images.dataset import Dataset, Pixels
from skdeploy.images.samples import resized_rows, synthetic_rows
from skdeploy.parity.compare import Subject, unlike
from skdeploy.parity.measured import measured
from skdeploy.parity.reference import Reference
from skdeploy.parity.report import MEMORY, SuiteResult
from skdeploy.parity.task import Task
from skdeploy.parity.tasks import judged, task_of

PHOTOGRAPHS: Final = "photographs"  # the images: compared always, by prove itself
SYNTHETIC: Final = ("noise", "zeros", "extremes", "tiny-contrast")
SIZES: Final = "sizes"
ALL: Final = (*SYNTHETIC, MEMORY, SIZES)

SEED: Final = 0
BOARDS: Final = (1, 2, 8)  # pixels a square: the finest, the finest after one stride of 2, coarse ones
RESIZED: Final = 2  # images a size: the reference runs them too
RATIOS: Final = (
    (0.5, 0.5),
    (2.0, 2.0),
    (0.75, 1.5),
)  # of the card's height and width: an engine's profile, and not square
CLIPPED: Final = "{} clips values outside of its ranges, which were measured on {}s"
OVERFLOW: Final = (
    "{} ends at {:g}; keep tensors that exceed it with --keep-fp32, and find them with `skdeploy verify --blame`"
)
ROUNDED: Final = "{} is decided on {}s; synthetic inputs are for information"
NO_REFERENCE: Final = "the reference itself is not finite on it"


@dataclass(frozen=True)
class Prepared:
    """A suite's crops, uint8 (N, H, W, C), with the spec of their size and the reference's outputs, None where not finite."""

    suite: str
    case: str
    pixels: Pixels
    spec: ModelSpec
    expected: Outputs | None


def check_suites(names: Sequence[str]) -> tuple[str, ...]:
    """The suites that some names mean, each once and in their order: ``all`` means all. Raises UsageError."""
    unknown = [name for name in names if name not in (*ALL, PHOTOGRAPHS, "all")]
    if unknown:
        raise UsageError(
            f"there is no suite {unknown[0]!r}", advice=f"choose from: {', '.join((PHOTOGRAPHS, *ALL, 'all'))}"
        )
    return ALL if "all" in names else tuple(name for name in ALL if name in names)


def synthetic(suite: str, spec: ModelSpec, samples: Pixels | None = None, *, brief: bool = False) -> Pixels:
    """The crops of a synthetic suite, uint8 (N, H, W, C), the same in every run; only one of them if ``brief``.

    noise: each pixel uniform over 0..255. zeros: black. extremes: checkerboards of 0 and 255 with squares of 1, 2 and 8 pixels,
    and all 255. tiny-contrast: 127 and 128 at random, and a ramp over five grey levels. For a network that does not take
    images, the range of the ``samples`` takes the place of 0..255.
    """
    if not spec.takes_images:
        assert samples is not None  # the proof has loaded them
        rows: Pixels = synthetic_rows(suite, samples, np.random.default_rng(SEED))
        return rows[:1] if brief else rows
    channels, height, width = spec.input.shape
    shape = (height, width, channels)
    random = np.random.default_rng(SEED)
    rows, columns, _ = np.indices(shape)
    if suite == "noise":
        found = [random.integers(0, 256, shape) for _ in range(4)]
    elif suite == "zeros":
        found = [np.zeros(shape, np.int64)]
    elif suite == "extremes":
        found = [255 * ((rows // size + columns // size) % 2) for size in BOARDS] + [np.full(shape, 255)]
    else:
        found = [127 + random.integers(0, 2, shape), 125 + 5 * columns // width]
    return np.stack(found[:1] if brief else found).astype(np.uint8)


def prepare(
    names: Sequence[str],
    dataset: Dataset,
    spec: ModelSpec,
    reference: Reference,
    pixels: Pixels | None = None,
    *,
    brief: bool = False,
    dynamic_size: bool = False,
) -> list[Prepared]:
    """The suites of these names with the reference's outputs; ``sizes`` only if some graph takes other sizes.

    ``pixels``: what the data set holds, where it is loaded already.
    """
    wanted = [name for name in names if name in SYNTHETIC]
    loaded = pixels if pixels is not None or spec.takes_images else dataset.load(spec)
    stacks = [synthetic(name, spec, loaded, brief=brief) for name in wanted]
    found = []
    if stacks:  # in one run: the reference is slow to start
        outputs, _ = reference.tried(np.concatenate(stacks), spec)
        at = 0
        for name, stack in zip(wanted, stacks, strict=True):
            rows = slice(at, at + len(stack))
            expected = None if outputs is None else {key: value[rows] for key, value in outputs.items()}
            if outputs is None and len(stacks) > 1:  # whose fault it is
                expected, _ = reference.tried(stack, spec)
            found.append(Prepared(name, "", stack, spec, expected))
            at += len(stack)
    if SIZES in names and dynamic_size:
        for resized in other_sizes(spec):
            few = range(min(RESIZED, len(dataset)))
            if spec.takes_images:
                other = dataset.take(few).load(resized)
                case = f"{resized.input.height}x{resized.input.width}"
            else:
                other = resized_rows(dataset.take(few).load(spec), resized)
                case = ", ".join(f"{name} {size.usual}" for name, size in resized.sizes.items())
            found.append(Prepared(SIZES, case, other, resized, reference.tried(other, resized)[0]))
    return found


def other_sizes(spec: ModelSpec) -> list[ModelSpec]:
    """The card at other input sizes, within what ``stages.image_sizes`` builds engines for; of free dimensions the smallest and
    the largest.
    """
    if not spec.takes_images:
        ends = (
            {name: size.smallest for name, size in spec.sizes.items()},
            {n: s.largest for n, s in spec.sizes.items()},
        )
        return [spec.with_usual(sizes) for sizes in ends if sizes != spec.usual_sizes]
    found = []
    for tall, wide in RATIOS:
        height, width = max(1, int(spec.input.height * tall)), max(1, int(spec.input.width * wide))
        size = spec.input.model_copy(update={"height": height, "width": width})
        grown = max(height / spec.input.height, width / spec.input.width)
        # Images that are otherwise only cropped are resized here: the user's need not be larger than the network's own size.
        shorter = max(height, width, round((spec.preprocess.resize or 0) * grown))
        preprocess = spec.preprocess.model_copy(update={"resize": shorter})
        found.append(spec.model_copy(update={"input": size, "preprocess": preprocess}))
    return found


def has_dynamic_size(inputs: Sequence[TensorSpec]) -> bool:
    """Whether any dimension but the batch is free, such as height and width."""
    return any(isinstance(size, str) for each in inputs for size in each.shape[1:])


def run_suites(
    session: Session,
    prepared: Sequence[Prepared],
    scale: float,
    inputs: Sequence[TensorSpec],
    who: Subject,
    progress: Progress,
) -> list[SuiteResult]:
    """All suites that the artifact can take: other sizes only where its ``inputs`` have dynamic height and width."""
    found = []
    for suite in prepared:
        if suite.suite == SIZES and not has_dynamic_size(inputs):
            continue
        progress.update(f"{who.artifact} on {who.backend}, {suite.suite} {suite.case}".rstrip())
        found.append(run_suite(session, suite, scale, who))
    return found


def run_suite(session: Session, suite: Prepared, scale: float, who: Subject) -> SuiteResult:
    """One artifact on one suite; ``scale`` is the largest value that the reference has on the images."""
    task, outputs = task_of(suite.spec), run_images(session, suite.pixels, suite.spec)
    problems = task.check(outputs, len(suite.pixels), suite.spec)
    metrics = error = allowed = None
    note = ""
    words, end = who.precision.words, who.precision.largest
    if end is not None:
        problems = tuple(f"{problem}: {OVERFLOW.format(words, end)}" for problem in problems)
    if suite.expected is None:
        problems, note = (), NO_REFERENCE
    elif not problems and not (problems := unlike(suite.expected, outputs)):
        found = judged(suite.spec, outputs)
        metrics = measured(task, suite.expected, found, who.tolerance, suite.spec)
        error = _error(suite.expected, found, metrics, scale)
        if who.precision.integer:
            note = CLIPPED.format(words, suite.spec.sample_word)
        elif who.precision is not Precision.FP32 and suite.suite in SYNTHETIC:
            note = ROUNDED.format(words, suite.spec.sample_word)
        else:
            allowed = who.tolerance.max_rel_error
            whole = suite.suite == SIZES
            problems = task.violations(metrics, who.tolerance) if whole else _too_far(task, error, allowed)
    return SuiteResult(
        artifact=who.artifact,
        backend=who.backend,
        precision=who.precision,
        suite=suite.suite,
        case=suite.case,
        images=len(suite.pixels),
        verdict="fail" if problems else "recorded" if note else "pass",
        metrics=metrics,
        error=error,
        allowed=allowed,
        problems=problems,
        note=note,
    )


def run_memory(session: Session, pixels: Pixels, spec: ModelSpec, who: Subject) -> SuiteResult:
    """The same values from other memory: one batch of the images, as views that are not contiguous."""
    feeds = one_batch(session, pixels, spec)
    views = {name: layouts(array) for name, array in feeds.items()}
    task = task_of(spec)
    expected, again = (judged(spec, session.run(feeds)) for _ in range(2))
    same = all(np.array_equal(value, again[key]) for key, value in expected.items())
    allowed = 0.0 if same else who.tolerance.max_rel_error
    worst, problems = 0.0, []
    for words in next(iter(views.values())):
        fed = {name: layout[words] for name, layout in views.items()}
        difference = largest_difference(expected, session.run(fed))
        if difference > allowed:
            problems.append(
                f"{spec.sample_word}s {words} in memory give other {task.value}s, by {difference:.1e} of the largest"
            )
        worst = max(worst, min(difference, 1e9))  # JSON has no infinity
    return SuiteResult(
        artifact=who.artifact,
        backend=who.backend,
        precision=who.precision,
        suite=MEMORY,
        images=len(next(iter(feeds.values()))),
        verdict="fail" if problems else "pass",
        error=worst,
        allowed=allowed,
        problems=tuple(problems),
    )


def layouts(array: Array) -> dict[str, Array]:
    """Views with the values of ``array`` (N, ...) over memory that is not contiguous, with other values in the gaps."""
    wide = np.repeat(array, 2, axis=-1)
    wide[..., 1::2] = ~wide[..., 1::2] if array.dtype == bool else np.max(array) - wide[..., 1::2] + 1
    axis = min(1, array.ndim - 1)
    last = np.moveaxis(np.ascontiguousarray(np.moveaxis(array, axis, -1)), -1, axis)
    backwards = np.ascontiguousarray(array[..., ::-1])[..., ::-1]
    return {"in every second column": wide[..., ::2], "with the second axis last": last, "backwards": backwards}


def _error(expected: Outputs, found: Outputs, metrics: Metrics, scale: float) -> float:
    """The largest error of a float; where there is none, the share of integers that differ."""
    if metrics.max_abs_error is None:
        return largest_difference(expected, found)
    return metrics.max_abs_error / max(largest(expected), scale)


def _too_far(task: Task, error: float, allowed: float) -> tuple[str, ...]:
    return () if error <= allowed else (f"max error {error:.2e} of the largest {task.value}, allowed {allowed:.0e}",)
