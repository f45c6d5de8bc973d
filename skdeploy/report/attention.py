"""The paper's experiment in the report: does attention to the larger kernel follow the object's size, in each precision?"""

from __future__ import annotations

import math
from collections.abc import Iterator

from skdeploy.attention.report import AttentionReport, Curve, UnitAttention, findings, half_width
from skdeploy.report.blocks import (
    Block,
    Bullets,
    Cell,
    Fold,
    Legend,
    Panels,
    Section,
    Table,
    Trusted,
    columns,
    name,
    number,
    sentence,
)
from skdeploy.report.findings import Findings
from skdeploy.report.plots import PANEL, Axis, Reference, Series, line_chart

SOURCE = "evidence/attention.json"
HEIGHT = 200
CHANNELS = 128  # markers in a panel: more than that do not stand apart


def attention_section(found: Findings) -> Section:
    """Curves per unit, channel profiles of chosen units, and how far each precision is from FP32."""
    report, title = found.attention, "Attention"
    if report is None:
        command = f"skdeploy attention {found.shell_folder}"
        return found.absent("attention", title, "Attention against object size was not measured.", command)
    names = ", ".join(_shown(graph.name) for graph in report.graphs)
    lead = (
        f"The central object enlarged from {report.scales[0]:g}x to {report.scales[-1]:g}x on {report.images:,} images of "
        f"{report.dataset}, in {names}: does attention move to the larger kernel, and does lower precision keep that?"
    )
    blocks: list[Block] = [Bullets(tuple(map(sentence, findings(report))))]
    pairs = list(_compared(report))
    if pairs:
        blocks.append(_curves(report, pairs))
    profiled = [(unit, branch) for unit, branch in pairs if unit.curve(report.graphs[0].name, branch).profiles]
    if profiled:
        blocks.append(_profiles(report, profiled))
    if len(report.graphs) > 1:
        blocks.append(Fold("Each precision against FP32", (_agreements(report),)))
    return Section("attention", title, lead, tuple(blocks))


def _compared(report: AttentionReport) -> Iterator[tuple[UnitAttention, int]]:
    for unit in report.units:
        for branch in unit.compared:
            yield unit, branch


def _shown(graph: str) -> str:
    """fp32 is FP32 to people; the name of a bundle stays."""
    precision, _, bundle = graph.partition(" ")
    return f"{precision.upper()} {bundle}".strip()


def _heading(unit: UnitAttention, branch: int) -> str:
    return unit.title if len(unit.branches) == 2 else f"{unit.title}, {unit.branches[branch]}"


def _curves(report: AttentionReport, pairs: list[tuple[UnitAttention, int]]) -> Panels:
    """All panels on the same axes."""
    reach = half_width(report.images)
    bounds = [0.0]
    for unit, branch in pairs:
        for graph in report.graphs:
            curve = unit.curve(graph.name, branch)
            bounds += [
                d + sign * reach * e
                for d, e in zip(curve.differences, curve.standard_errors, strict=True)
                for sign in (-1, 1)
            ]
    vertical = Axis.linear(bounds, "difference of attention")
    horizontal = Axis(report.scales[0], report.scales[-1], "size of the central object")
    ticks = [(scale, f"{scale:g}x") for scale in report.scales]
    if len(ticks) > 5:
        ticks = [ticks[0], ticks[len(ticks) // 2], ticks[-1]]
    panels = []
    for unit, branch in pairs:
        series = [
            _series(index, unit.curve(graph.name, branch), report, reach if index == 0 else 0.0)
            for index, graph in enumerate(report.graphs)
        ]
        panels.append(
            line_chart(
                f"Attention of {_heading(unit, branch)} against scale", series, horizontal, vertical, PANEL, HEIGHT,
                references=[Reference(0.0, "")], heading=_heading(unit, branch), ticks=ticks,
            )
        )  # fmt: skip
    legend = tuple(Legend(index, _shown(graph.name)) for index, graph in enumerate(report.graphs))
    caption = (
        "Mean attention to the larger kernel less that to the smallest. Band: 95 % interval of the first graph's mean. "
        "Positions on the upright axis compare between units."
    )
    return Panels("Attention against object size", caption, tuple(panels), legend)


def _series(style: int, curve: Curve, report: AttentionReport, reach: float) -> Series:
    errors = curve.standard_errors if reach else ()
    centre = curve.differences[: len(errors)]
    return Series(
        style,
        report.scales,
        curve.differences,
        low=[c - reach * e for c, e in zip(centre, errors, strict=True)],
        high=[c + reach * e for c, e in zip(centre, errors, strict=True)],
    )


def _profiles(report: AttentionReport, profiled: list[tuple[UnitAttention, int]]) -> Panels:
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
    vertical = Axis.linear([0.0, *values], "mean attention")
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
                Axis(0.0, end, "channel, sorted"),
                vertical,
                PANEL,
                HEIGHT,
                references=[level],
                heading=heading,
                ticks=ticks,
            )
        )
    ends = f"{report.scales[0]:g}x", f"{report.scales[-1]:g}x"
    legend = [Legend(0, f"{_shown(first)}, {ends[0]}"), Legend(1, f"{_shown(first)}, {ends[1]}", line=False)]
    if last != first:
        legend.append(Legend(4, f"{_shown(last)}, {ends[1]}", line=False))
    caption = (
        f"Mean attention of each channel to the larger kernel; of more than {CHANNELS}, evenly chosen ones. "
        "The level line is no preference."
    )
    return Panels("Channel profiles", caption, tuple(panels), tuple(legend))


def _agreements(report: AttentionReport) -> Table:
    heads = columns(
        "Unit",
        "Graph",
        (">Curves differ by", "Largest difference over the scales"),
        (">Correlation", "Pearson's, of the two curves"),
        (">Weights differ by", "Mean over scales, images, branches and channels"),
        (">Spread", "How much attention varies from image to image, in per cent of what it does in FP32"),
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
                    Cell(_shown(agreement.graph)),
                    number(agreement.max_difference, ".1e"),
                    Cell("" if math.isnan(correlation) else f"{correlation:.5f}", correlation),
                    number(found.mean_abs_difference, ".1e"),
                    Cell("" if math.isnan(spread) else f"{100 * spread:.1f} %", spread),
                )
            )
    return Table("Attention of each unit against FP32's", heads, tuple(rows), SOURCE)
