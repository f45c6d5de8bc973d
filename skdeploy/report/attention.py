"""The paper's experiment in the report: does attention to the larger kernel follow the object's size, in each precision?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from skdeploy.attention.report import AttentionReport, Curve, UnitAttention, findings, half_width, shown
from skdeploy.report.blocks import (
    Block,
    Cell,
    Fold,
    Legend,
    Panels,
    Section,
    Table,
    Text,
    Trusted,
    columns,
    name,
    number,
    percent,
)
from skdeploy.report.findings import Findings
from skdeploy.report.plots import PANEL, Axis, Reference, Series, line_chart

SOURCE = "evidence/attention.json"
HEIGHT = 200
PROFILES = "Channel profiles"
CHANNELS = 128  # markers in a panel: more than that do not stand apart
Pair = tuple[UnitAttention, int]  # a unit and a branch that is compared with the reference


def attention_findings(report: AttentionReport) -> Section:
    """The conclusions, FP32's curves, and how far each precision is from them."""
    graphs = ", ".join(shown(graph.name) for graph in report.graphs)
    lead = (
        f"attention of {report.model} as the central object is enlarged from {report.scales[0]:g}x to {report.scales[-1]:g}x, "
        f"on {report.images:,} images of {report.dataset}, in {graphs}"
    )
    blocks: list[Block] = [*map(Text, findings(report)), _curves_table(report)]
    blocks.append(
        Text(
            "mean attention of the larger kernel less that of the reference, in the FP32 graph; change: from the smallest "
            "scale to the largest, with its 95 % interval; images: the share in which it rises"
        )
    )
    if len(report.graphs) > 1:
        blocks.append(_agreements(report))
        blocks.append(
            Text(
                "against the FP32 graph: the largest distance of the curves, and their correlation; the mean distance of "
                "single weights; how much attention varies from image to image, in per cent of what it does in FP32"
            )
        )
    return Section("attention", "Attention", lead, tuple(blocks))


def attention_section(found: Findings) -> Section:
    """The findings, with curves per unit, channel profiles of chosen units and what lower precision changes as drawings."""
    report = found.attention
    if report is None:
        command = f"skdeploy attention {found.shell_folder}"
        return found.absent("attention", "Attention", "Attention against object size was not measured.", command)
    section, said = attention_findings(report), len(findings(report))
    curves, *others = attention_drawings(report)
    drawings = [Fold(drawing.title, (drawing,)) if drawing.title == PROFILES else drawing for drawing in others]
    figures = Fold("Figures of every unit and precision", section.blocks[said:])
    return replace(section, blocks=(*section.blocks[:said], curves, *drawings, figures))


def figure_title(report: AttentionReport) -> str:
    return f"Attention of {report.model} against object size: {report.images:,} images of {report.dataset}"


def attention_drawings(report: AttentionReport) -> tuple[Panels, ...]:
    """FP32's curves, what lower precision changes in them, and the channels of the chosen units, if there are any."""
    pairs = list(_compared(report))
    drawings = [_curves(report, pairs)]
    if len(report.graphs) > 1:
        drawings.append(_changes(report, pairs))
    profiled = [(unit, branch) for unit, branch in pairs if unit.curve(report.graphs[0].name, branch).profiles]
    if profiled:
        drawings.append(_profiles(report, profiled))
    return tuple(drawings)


def _compared(report: AttentionReport) -> Iterator[Pair]:
    for unit in report.units:
        for branch in unit.compared:
            yield unit, branch


def _heading(unit: UnitAttention, branch: int) -> str:
    return unit.title if len(unit.branches) == 2 else f"{unit.title}, {unit.branches[branch]}"


def _curves(report: AttentionReport, pairs: list[Pair]) -> Panels:
    """The first graph's, which is FP32. Others lie on it, and are drawn as what they change."""
    first = report.graphs[0].name
    panels = []
    for unit, branch in pairs:
        curve = unit.curve(first, branch)
        panels.append([_band(report, curve, curve.differences), Series(0, report.scales, curve.differences)])
    label = f"a({_larger(report)}) − a({_reference(report)})"  # noqa: RUF001 - a minus sign, for people
    caption = (
        "How much more attention the larger kernel gets than the smallest, mean over images and channels. "
        "Band: 95 % interval of that mean. "
        "Heights compare between units."
    )
    legend = (Legend(0, shown(first)),)
    return Panels("Attention against object size", caption, _against_scale(report, pairs, panels, label), legend)


def _changes(report: AttentionReport, pairs: list[Pair]) -> Panels:
    first, *others = (graph.name for graph in report.graphs)
    panels = []
    for unit, branch in pairs:
        usual = unit.curve(first, branch)
        series = [_band(report, usual, [0.0] * len(report.scales))]
        for style, graph in enumerate(others, 1):
            curve = unit.curve(graph, branch)
            change = [one - other for one, other in zip(curve.differences, usual.differences, strict=True)]
            series.append(Series(style, report.scales, change))
        panels.append(series)
    caption = (
        f"Each curve less {shown(first)}'s, on an axis of its own. Band: the 95 % interval of {shown(first)}'s mean, "
        "for comparison: what stays within it is less than another choice of images changes."
    )
    legend = tuple(Legend(style, shown(graph)) for style, graph in enumerate(others, 1))
    drawn = _against_scale(report, pairs, panels, f"change from {shown(first)}")
    return Panels("What lower precision changes", caption, drawn, legend)


def _against_scale(
    report: AttentionReport, pairs: list[Pair], panels: Sequence[Sequence[Series]], label: str
) -> tuple[Trusted, ...]:
    """One panel a unit and compared branch, all on the same axes."""
    bounds = [value for series in panels for one in series for value in (0.0, *one.ys, *one.low, *one.high)]
    vertical = Axis.linear(bounds, label)
    horizontal = Axis(report.scales[0], report.scales[-1], "size of the central object")
    ticks = [(scale, f"{scale:g}x") for scale in report.scales]
    if len(ticks) > 5:
        ticks = [ticks[0], ticks[len(ticks) // 2], ticks[-1]]
    return tuple(
        line_chart(
            f"{_heading(unit, branch)}: {label}", series, horizontal, vertical, PANEL, HEIGHT,
            references=[Reference(0.0, "")], heading=_heading(unit, branch), ticks=ticks,
        )
        for (unit, branch), series in zip(pairs, panels, strict=True)
    )  # fmt: skip


def _band(report: AttentionReport, curve: Curve, centre: Sequence[float]) -> Series:
    """The interval of a curve's mean around ``centre``."""
    reach = half_width(report.images)
    low, high = ([c + sign * reach * e for c, e in zip(centre, curve.standard_errors, strict=True)] for sign in (-1, 1))
    return Series(0, report.scales, centre, low=low, high=high, markers=False, line=False)


def _larger(report: AttentionReport) -> str:
    """The kernel that is compared, where it is one and the same in all units."""
    labels = {unit.branches[branch] for unit in report.units for branch in unit.compared}
    return labels.pop().split(" (")[0] if len(labels) == 1 else "larger"


def _reference(report: AttentionReport) -> str:
    references = {unit.branches[unit.reference] for unit in report.units}
    return references.pop().split(" (")[0] if len(references) == 1 else "smallest"


def _profiles(report: AttentionReport, profiled: list[Pair]) -> Panels:
    """Channels sorted by the first graph at the smallest scale; the last graph beside it at the largest."""
    panels: list[Trusted] = []
    first, last = report.graphs[0].name, report.graphs[-1].name
    values = [
        a
        for unit, branch in profiled
        for g in {first, last}
        for p in unit.curve(g, branch).profiles
        for a in p.attention
    ]
    vertical = Axis.linear([0.0, *values], f"mean attention to {_larger(report)}")
    ends = f"{report.scales[0]:g}x", f"{report.scales[-1]:g}x"
    for unit, branch in profiled:
        small, large = unit.curve(first, branch).profiles
        order = sorted(range(len(small.attention)), key=small.attention.__getitem__)
        order = order[:: -(-len(order) // CHANNELS)]
        places = [float(place) for place in range(len(order))]
        series = [
            Series(0, places, [small.attention[channel] for channel in order], markers=False),
            Series(1, places, [large.attention[channel] for channel in order], line=False, small=True),
        ]
        if last != first:
            there = unit.curve(last, branch).profiles[1]
            series.append(Series(4, places, [there.attention[channel] for channel in order], line=False, small=True))
        heading, end = _heading(unit, branch), float(max(1, len(order) - 1))
        level = Reference(1 / len(unit.branches), "")
        ticks = [(0.0, "1"), (end, str(len(small.attention)))]
        panels.append(
            line_chart(
                f"Attention of each channel of {heading}",
                series,
                Axis(0.0, end, f"channel, sorted by {shown(first)} at {ends[0]}"),
                vertical,
                PANEL,
                HEIGHT,
                references=[level],
                heading=heading,
                ticks=ticks,
            )
        )
    legend = [Legend(0, f"{shown(first)}, {ends[0]}"), Legend(1, f"{shown(first)}, {ends[1]}", line=False)]
    if last != first:
        legend.append(Legend(4, f"{shown(last)}, {ends[1]}", line=False))
    caption = (
        f"Mean attention of each channel to the larger kernel; of more than {CHANNELS}, evenly chosen ones. "
        "The level line means no preference."
    )
    return Panels(PROFILES, caption, tuple(panels), tuple(legend))


def _curves_table(report: AttentionReport) -> Table:
    heads = columns("unit", ">change", ">images", "larger - reference", *(f">{scale:g}x" for scale in report.scales))
    rows = []
    for unit, branch in _compared(report):
        curve = unit.curve(report.graphs[0].name, branch)
        kernels = " - ".join(unit.branches[place].partition(" (")[0] for place in (branch, unit.reference))
        growth = curve.growth
        change = Cell(f"{growth.mean:+.3f} ± {growth.margin:.3f}", growth.mean)
        differences = (number(difference, "+.3f") for difference in curve.differences)
        rows.append((name(unit.title), change, percent(growth.share), Cell(kernels), *differences))
    return Table("attention of each unit in FP32", heads, tuple(rows), SOURCE, least=3)


def _agreements(report: AttentionReport) -> Table:
    heads = columns(
        "unit",
        "graph",
        (">curves differ by", "Largest difference over the scales"),
        (">correlation", "Pearson's, of the two curves"),
        (">weights differ by", "Mean over scales, images, branches and channels"),
        (">spread", "How much attention varies from image to image, in per cent of what it does in FP32"),
    )
    rows = []
    for unit in report.units:
        activity = {found.graph: found for found in unit.activity}
        usual = activity[report.graphs[0].name].spread
        for agreement in unit.agreements:
            found = activity[agreement.graph]
            correlation = math.nan if agreement.correlation is None else agreement.correlation
            spread = found.spread / usual if usual else math.nan
            rows.append(
                (
                    name(unit.title),
                    Cell(shown(agreement.graph)),
                    number(agreement.max_difference, ".1e"),
                    Cell("" if math.isnan(correlation) else f"{correlation:.5f}", correlation),
                    number(found.mean_abs_difference, ".1e"),
                    Cell("" if math.isnan(spread) else f"{100 * spread:.1f} %", spread),
                )
            )
    return Table("attention of each unit against FP32's", heads, tuple(rows), SOURCE)
