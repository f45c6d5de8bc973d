"""Accuracy against a committed baseline: how many images each artifact had right, once, on the same images.

``evaluate --max-drop`` pairs two artifacts of today, and asks what is true of images like these. A baseline asks less, of an
earlier day: are these very images still recognised? They are the same images, so nothing is sampled and no interval is needed:
what changed is the weights, the calibration, the passes or the runtime. It has a budget of its own, since it needs no room for
chance, only for the last: another processor adds in another order, and an image whose two best classes are nearly equal may go
over.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import Field, ValidationError

from skdeploy.accuracy.quality_baseline import QualityBaseline, quality_baseline_of, require_all
from skdeploy.core.errors import UsageError, first_problem
from skdeploy.core.files import read_file, write_text
from skdeploy.core.spec import Frozen
from skdeploy.core.version import __version__

if TYPE_CHECKING:
    from skdeploy.accuracy.gate import Evaluation
    from skdeploy.accuracy.quality import Quality

MAX_BYTES: Final = 1 << 20  # a few lines an artifact
BASELINE_DROP: Final = 0.2  # percentage points, a budget and no measurement: 4 of 2,000 images
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class BaselineArtifact(Frozen):
    """How many images one artifact had right; ``artifact`` is its path and backend, as reports show them."""

    artifact: str
    precision: str
    correct: Annotated[int, Field(ge=0)]


class Baseline(Frozen):
    """The committed file. ``dataset_sha256`` and ``labels_sha256`` say which images and labels the counts are of."""

    schema_version: Annotated[Literal[1], Field(alias="schema")] = 1
    skdeploy: str
    dataset: str
    dataset_sha256: Sha256
    labels_sha256: Sha256
    images: Annotated[int, Field(gt=0)]
    artifacts: Annotated[tuple[BaselineArtifact, ...], Field(strict=False)]


class BaselineRow(Frozen):
    """One artifact then and now; ``drop`` in percentage points of top-1."""

    artifact: str
    images: int
    then: int
    now: int
    drop: float
    verdict: Literal["pass", "fail"]


class BaselineReport(Frozen):
    """All artifacts of a baseline; ``max_drop`` in percentage points."""

    file: str
    max_drop: float
    rows: Annotated[tuple[BaselineRow, ...], Field(strict=False)]

    def sentence(self, row: BaselineRow) -> str:
        """One artifact then and now, in words."""
        share = f"top-1 {100 * row.now / row.images:.2f} %, in the baseline {100 * row.then / row.images:.2f} %"
        side = "within" if row.verdict == "pass" else "beyond"
        return f"{row.artifact}: {share} of the same {row.images:,} images: {side} the budget of {self.max_drop:g}"

    @property
    def said(self) -> tuple[tuple[str, Literal["pass", "fail"], str], ...]:
        """Each artifact, its verdict, and both in words."""
        return tuple((row.artifact, row.verdict, self.sentence(row)) for row in self.rows)

    @property
    def failures(self) -> tuple[str, ...]:
        """The artifacts that dropped by more than the budget, in words."""
        return tuple(text for _, verdict, text in self.said if verdict == "fail")


def write_baseline(path: Path, evaluation: Evaluation | Quality) -> None:
    """Replaces ``path`` by the counts of an evaluation, or its figures. Raises UsageError, IntegrityError if it cannot be
    written.
    """
    write_text(path, baseline_text(evaluation))


def baseline_text(evaluation: Evaluation | Quality) -> str:
    """The file of an evaluation's counts, or of the first figure of pairs."""
    from skdeploy.accuracy.quality import Quality

    made = quality_baseline_of(evaluation) if isinstance(evaluation, Quality) else _counts(evaluation)
    return made.model_dump_json(by_alias=True, indent=1) + "\n"


def _counts(evaluation: Evaluation) -> Baseline:
    return Baseline(
        skdeploy=__version__,
        dataset=evaluation.dataset,
        dataset_sha256=evaluation.dataset_sha256,
        labels_sha256=evaluation.labels_sha256,
        images=evaluation.images,
        artifacts=tuple(
            BaselineArtifact(artifact=report.shown, precision=report.precision, correct=report.top1.correct)
            for report in evaluation.accuracies
        ),
    )


def read_baseline(path: Path) -> Baseline | QualityBaseline:
    """A committed baseline. Raises UsageError: not there, or not what ``write_baseline`` writes."""
    advice = "`skdeploy evaluate --save-baseline FILE` writes one"
    try:
        text = read_file(path, MAX_BYTES)
        return (QualityBaseline if b'"figure"' in text else Baseline).model_validate_json(text)
    except OSError as error:
        raise UsageError(f"cannot read the baseline {path}: {error.strerror}", advice=advice) from error
    except ValidationError as error:
        raise UsageError(f"{path} is not a baseline: {first_problem(error)}", advice=advice) from error


def compare_with_baseline(evaluation: Evaluation, baseline: Baseline, max_drop: float, path: Path) -> BaselineReport:
    """Each artifact of the baseline, then and now; ``max_drop`` in percentage points, ``path`` is the baseline's, for messages.

    Raises UsageError for other images or labels, images that could not be read, and for an artifact of the baseline that was
    not evaluated: a gate that passes because nothing was compared is none.
    """
    for what, then, now in (
        ("images", baseline.dataset_sha256, evaluation.dataset_sha256),
        ("labels", baseline.labels_sha256, evaluation.labels_sha256),
    ):
        if then != now:
            raise UsageError(
                f"{path} was measured on other {what}: its sha256 is {then}, these have {now}",
                advice=f"give the {baseline.images:,} images of {baseline.dataset}, or make a new one with --save-baseline",
            )
    if baseline.images != evaluation.images:
        raise UsageError(
            f"{path} counts {baseline.images:,} images, but only {evaluation.images:,} could be read now",
            advice="the images that cannot be read are listed above",
        )
    found = {report.shown: report.top1.correct for report in evaluation.accuracies}
    require_all(path, baseline, found)
    rows = []
    for artifact in baseline.artifacts:
        correct = found[artifact.artifact]
        drop = 100 * (artifact.correct - correct) / baseline.images
        rows.append(
            BaselineRow(
                artifact=artifact.artifact,
                images=baseline.images,
                then=artifact.correct,
                now=correct,
                drop=drop,
                verdict="pass" if drop <= max_drop else "fail",
            )
        )
    return BaselineReport(file=path.name, max_drop=max_drop, rows=tuple(rows))
