"""Results of the paper's attention experiment, as data: JSON for programs, rows for a CSV file."""

from __future__ import annotations

import csv
import io
import math
from functools import cache
from typing import Annotated, Final

from pydantic import Field

from skdeploy.core.precision import PRECISIONS
from skdeploy.core.spec import Frozen, Precision
from skdeploy.images.audit_report import Unreadable

CONFIDENCE: Final = 0.95
NORMAL: Final = 1.959963984540054  # the quantile that Student's t tends to
MANY: Final = 1000  # degrees of freedom from which two terms of the expansion are right to 3e-6
Numbers = Annotated[tuple[float, ...], Field(strict=False)]


class MeasuredGraph(Frozen):
    """A graph that was run. ``name`` is what curves refer to: its precision, and its bundle where that is not enough."""

    name: str
    bundle: str
    artifact: str
    precision: Precision
    sha256: str


class Growth(Frozen):
    """How much a difference of attention changes from the smallest to the largest scale, image by image.

    ``mean`` over the images, its standard error, how far its 95 % interval (Student's t) reaches to each side, and the share of
    the images in which it rises.
    """

    mean: float
    standard_error: float
    margin: float
    share: float

    @property
    def direction(self) -> str:
        """``grows`` or ``falls`` if zero is outside the 95 % interval of the mean, else ``same``."""
        if abs(self.mean) <= self.margin:
            return "same"
        return "grows" if self.mean > 0 else "falls"


class Profile(Frozen):
    """Mean attention of one branch for each channel, (C,), over the images at one scale."""

    scale: float
    attention: Numbers


class Curve(Frozen):
    """One branch of one unit in one graph, against scale: ``mean(a of branch) - mean(a of the reference branch)``.

    Means are over images and channels. ``standard_errors`` are those of the mean over images. ``profiles``, at the smallest and
    the largest scale, are there for chosen units only.
    """

    graph: str
    branch: int
    differences: Numbers
    standard_errors: Numbers
    growth: Growth
    profiles: Annotated[tuple[Profile, ...], Field(strict=False)] = ()


class Agreement(Frozen):
    """One curve against that of the FP32 graph: Pearson's correlation and the largest difference, over the scales.

    No correlation where there are fewer than three scales or a curve is flat.
    """

    graph: str
    branch: int
    correlation: float | None
    max_difference: float


class Activity(Frozen):
    """The attention of one unit in one graph.

    ``spread`` is its standard deviation over images at the smallest scale, averaged over branches and channels: a gate that no
    longer looks at the image has none. ``mean_abs_difference`` from FP32's is over scales, images, branches and channels.
    """

    graph: str
    spread: float
    mean_abs_difference: float


class UnitAttention(Frozen):
    """One selective kernel unit. ``paper_name`` is SK_stage_block as in the paper, if the card tells stages and blocks.

    ``branches`` say the kernels, in the order of the network; ``reference`` is the branch with the smallest effective kernel,
    which the others are compared with.
    """

    unit: str
    paper_name: str
    channels: int
    branches: Annotated[tuple[str, ...], Field(strict=False)]
    reference: int
    curves: Annotated[tuple[Curve, ...], Field(strict=False)]
    activity: Annotated[tuple[Activity, ...], Field(strict=False)]
    agreements: Annotated[tuple[Agreement, ...], Field(strict=False)]

    def curve(self, graph: str, branch: int) -> Curve:
        return next(curve for curve in self.curves if (curve.graph, curve.branch) == (graph, branch))

    @property
    def compared(self) -> tuple[int, ...]:
        """All branches but the reference."""
        return tuple(branch for branch in range(len(self.branches)) if branch != self.reference)

    @property
    def title(self) -> str:
        return f"{self.paper_name} ({self.unit})" if self.paper_name else self.unit


class AttentionReport(Frozen):
    """The experiment. ``sizes`` are pixels of the resized shorter side at each scale; ``enlargement`` says how it is done.

    ``interpolated`` is the share of images with fewer pixels than the largest scale shows. They are blurred, and a gate that
    sees blur cannot be told from one that sees size. The first of ``graphs`` is the FP32 graph, which the others are compared
    with.
    """

    model: str
    dataset: str
    dataset_sha256: str
    images: int
    unreadable: Annotated[tuple[Unreadable, ...], Field(strict=False)]
    enlargement: str
    interpolation: str
    interpolated: float
    scales: Numbers
    sizes: Annotated[tuple[int, ...], Field(strict=False)]
    graphs: Annotated[tuple[MeasuredGraph, ...], Field(strict=False)]
    units: Annotated[tuple[UnitAttention, ...], Field(strict=False)]


COLUMNS = (
    "model", "unit", "paper_name", "branch", "kernel", "reference_kernel", "graph", "precision", "scale", "resized_to",
    "images", "difference", "standard_error",
)  # fmt: skip


def csv_text(report: AttentionReport) -> str:
    """One row for each unit, compared branch, graph and scale, under ``COLUMNS``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    precisions = {graph.name: graph.precision for graph in report.graphs}
    for unit in report.units:
        for curve in unit.curves:
            who = (report.model, unit.unit, unit.paper_name, curve.branch)
            what = (unit.branches[curve.branch], unit.branches[unit.reference], curve.graph, precisions[curve.graph])
            points = zip(report.scales, report.sizes, curve.differences, curve.standard_errors, strict=True)
            for scale, size, difference, error in points:
                writer.writerow((*who, *what, scale, size, report.images, difference, error))
    return text.getvalue()


def findings(report: AttentionReport) -> list[str]:
    """In sentences: where attention to the larger kernel grows with the object, and whether each precision says the same.

    With three branches or more, each larger kernel of a unit counts by itself.
    """
    directions = [
        [unit.curve(graph.name, branch).growth.direction for unit in report.units for branch in unit.compared]
        for graph in report.graphs
    ]
    titles = [unit.title for unit in report.units for _ in unit.compared]
    words = {"grows": "grows with the object", "falls": "falls", "same": "does not change beyond chance (95 %)"}
    lines = []
    for direction, text in words.items():
        units = [title for title, found in zip(titles, directions[0], strict=True) if found == direction]
        if units:
            named = ", ".join(dict.fromkeys(units))
            lines.append(f"attention to the larger kernel {text} in {len(units)} of {len(titles)}: {named}")
    for graph, found in zip(report.graphs[1:], directions[1:], strict=True):
        same = sum(one == other for one, other in zip(found, directions[0], strict=True))
        lines.append(f"{shown(graph.name)} agrees in {same} of {len(titles)}")
    if report.interpolated:
        lines.append(
            f"at {report.scales[-1]:g}x, {report.interpolated:.0%} of the images are enlarged beyond their own "
            "pixels, so they are also blurred, and units may respond to the blur; use larger photographs to "
            "tell these apart"
        )
    return lines


@cache
def half_width(images: int) -> float:
    """How many standard errors the 95 % interval of a mean over ``images`` reaches to each side: 12.7 for two, 1.96 for many.

    Abramowitz and Stegun, 26.7.3, 26.7.4 and, for many images, 26.7.5.
    """
    degrees = images - 1
    if degrees < 1:
        raise ValueError("one image does not show how images differ")
    if degrees > MANY:
        return NORMAL + (NORMAL**3 + NORMAL) / (4 * degrees)
    low, high = NORMAL, 13.0  # 12.7 with one degree of freedom
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < CONFIDENCE else (low, middle)
    return low


def _within(t: float, degrees: int) -> float:
    """The probability of -t..t."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(2 + odd, degrees - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def shown(graph: str) -> str:
    """fp32 is FP32 to people; the name of a bundle stays."""
    precision, _, bundle = graph.partition(" ")
    return f"{PRECISIONS[precision].words if precision in PRECISIONS else precision} {bundle}".strip()
