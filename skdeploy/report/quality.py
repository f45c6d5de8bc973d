"""Quality on inputs and what should come out: each artifact's figures with intervals, and the paired gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from skdeploy.accuracy.quality import Figure, Quality, QualityDrop, number, with_unit
from skdeploy.parity.worst_image import WorstImage
from skdeploy.report.blocks import (
    Block,
    Cell,
    Finding,
    Pictures,
    Section,
    Table,
    Text,
    columns,
    counted,
    digest,
    name,
)
from skdeploy.report.drops import absent_findings, baseline_findings, drop_figure, drop_finding
from skdeploy.report.worst import worst_pictures

SOURCE: Final = "evidence/quality.json"


def quality_findings(quality: Quality, *, allow_inconclusive: bool = True, runs: bool = True) -> Section:
    """The decision of the gate, and the figures of each artifact. ``runs`` as of ``accuracy_findings``."""
    blocks: list[Block] = [_drop_finding(drop, allow_inconclusive) for drop in quality.drops]
    blocks += baseline_findings(quality.baseline)
    blocks.append(_figures_table(quality))
    if quality.untouched:
        units = {figure.name: figure.unit for report in quality.artifacts[:1] for figure in report.figures}
        values = [f"{what} {with_unit(number(value), units[what])}" for what, value in quality.untouched.items()]
        blocks.append(Text(f"the inputs themselves: {', '.join(values)}"))
    if quality.metric:
        blocks.append(Text(f"measured by your own code: {quality.metric} from {quality.metric_file}", "warn"))
    blocks += [Text(note, "warn") for note in quality.image_notes]
    blocks += absent_findings(quality.not_evaluated if runs else ())
    lead = f"{counted(quality.images, 'pair')} of {quality.dataset}; intervals at {quality.confidence:g} %"
    return Section("quality", "Accuracy", lead, tuple(blocks))


def quality_section(quality: Quality) -> Section:
    """The findings, with a drawing of the drops of the figure that has the budget."""
    section = quality_findings(quality)
    first = quality.artifacts[0].figures[0].name
    drops = [drop for drop in quality.drops if drop.figure == first]
    drawn: list[Block] = []
    if drops:
        drawn.append(drop_figure(drops, with_unit(first, drops[0].unit), "+.3g", "pairs"))
    if quality.worst is not None:
        drawn.append(_worst(quality.worst, drops))
    return replace(section, blocks=(*section.blocks, *drawn))


def _worst(worst: WorstImage, drops: Sequence[QualityDrop]) -> Pictures:
    """The pair that loses most by the first figure, as the drops say."""
    losses = [drop for drop in drops if drop.second == worst.found and drop.worst_drop is not None]
    lost = "".join(f" of {drop.figure}: {with_unit(f'{drop.worst_drop:+.3g}', drop.unit)}" for drop in losses[:1])
    said = f"has the largest drop{lost}. Between the two outputs: {worst.pictures.apart}"
    return worst_pictures(worst, "The pair that loses most", said)


def _drop_finding(drop: QualityDrop, allow_inconclusive: bool) -> Finding:
    detail = ""
    if drop.worst is not None and drop.worst_drop is not None:
        detail = f"most in {drop.worst}: {with_unit(f'{drop.worst_drop:+.3g}', drop.unit)}"
    where = f"{drop.figure} of {drop.second} against {drop.first}"
    return drop_finding(drop, where, detail, allow_inconclusive)


def _figures_table(quality: Quality) -> Table:
    names = [figure.name for figure in quality.artifacts[0].figures]
    heads = columns("artifact", "backend", "precision", *(f">{each}" for each in names), "sha256")
    rows = tuple(
        (
            name(report.artifact),
            Cell(report.backend),
            Cell(report.precision.words),
            *map(_cell, report.figures),
            digest(report.sha256),
        )
        for report in quality.artifacts
    )
    return Table("figures of each artifact", heads, rows, SOURCE, least=4, group="accuracy", case="{0} on {1}")


def _cell(figure: Figure) -> Cell:
    return Cell(figure.text, figure.value, note=f"{number(figure.low)} to {number(figure.high)}")
