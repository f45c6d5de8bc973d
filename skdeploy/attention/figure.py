"""The experiment as a figure: curves of each unit against scale, and channel profiles.

It is legible in grey and to the colour-blind. Matplotlib is optional, so its types are not asked for here.
"""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from skdeploy.attention.report import AttentionReport, UnitAttention, half_width
from skdeploy.core.errors import UsageError
from skdeploy.core.files import written_whole
from skdeploy.core.packages import require

Axes = Any
Figure = Any

SUFFIXES: Final = (".svg", ".png", ".pdf")
COLUMNS: Final = (3, 4)  # panels side by side, whichever leaves fewer places empty
PANEL: Final = (2.6, 2.0)  # inches
LETTERS: Final = 36  # of the heading, on the width of a panel
# Okabe and Ito's colours, from dark to light, so that they differ in grey too; dashes and markers differ as well.
STYLES: Final[tuple[dict[str, Any], ...]] = (
    {"color": "#000000", "linestyle": "-", "marker": "o", "markersize": 4.0, "linewidth": 1.2},
    {"color": "#0072B2", "linestyle": "--", "marker": "s", "markersize": 7.0, "linewidth": 1.2, "fillstyle": "none"},
    {"color": "#D55E00", "linestyle": ":", "marker": "x", "markersize": 6.0, "linewidth": 1.6},
    {"color": "#CC79A7", "linestyle": "-.", "marker": "^", "markersize": 6.0, "linewidth": 1.2, "fillstyle": "none"},
    {"color": "#E69F00", "linestyle": (0, (5, 1, 1, 1)), "marker": "D", "markersize": 5.0, "fillstyle": "none"},
)  # fmt: skip
SMALL: Final[dict[str, Any]] = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # names of folders and modules are no formulas
    "svg.hashsalt": "skdeploy",  # ids in the SVG are the same every time
    "svg.fonttype": "none",  # text stays text: searchable, and in the reader's font
}


@dataclass(frozen=True)
class Panel:
    """One branch of one unit against the unit's reference branch."""

    unit: UnitAttention
    branch: int

    @property
    def title(self) -> str:
        """The unit, and which branch where there is more than one to compare."""
        if len(self.unit.branches) == 2:
            return self.unit.title
        return f"{self.unit.title}\n{self.unit.branches[self.branch]}"


def check_figure(path: Path) -> None:
    """Before anything is measured: UsageError for a format that is none, DependencyError without Matplotlib."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"--figure {path}: the format is none of {', '.join(SUFFIXES)}", advice="name it attention.svg"
        )
    require("matplotlib.figure", extra="report")


def write_figure(report: AttentionReport, path: Path) -> None:
    """Writes SVG, PNG or PDF, by the suffix, whole or not at all. Raises as ``check_figure``, and for a path not writable."""
    check_figure(path)
    matplotlib = require("matplotlib", extra="report")
    kind = path.suffix.lower().removeprefix(".")
    with matplotlib.rc_context(SMALL), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")  # boxes, or the reader's own font
        figure = draw(report)
        undated = {"Date": None} if kind == "svg" else {"CreationDate": None} if kind == "pdf" else None
        with written_whole(path) as partial:
            figure.savefig(partial, format=kind, dpi=150, metadata=undated)


def draw(report: AttentionReport) -> Figure:
    """Above, one panel a unit and compared branch, all on one scale; below, the channel profiles of the chosen units."""
    panels = [Panel(unit, branch) for unit in report.units for branch in unit.compared]
    profiled = [panel for panel in panels if panel.unit.curve(report.graphs[0].name, panel.branch).profiles]
    columns = min(len(panels), min(COLUMNS, key=lambda count: (-len(panels) % count, -count)))
    rows, profile_rows = -(-len(panels) // columns), -(-len(profiled) // columns)
    height = PANEL[1] * (rows + profile_rows) + 1.1 * (1 + bool(profiled))
    figure = require("matplotlib.figure", extra="report").Figure(
        figsize=(PANEL[0] * columns + 0.4, height), layout="constrained"
    )
    figure.get_layout_engine().set(hspace=0.06, wspace=0.04)
    parts = figure.subfigures(
        1 + bool(profiled), 1, height_ratios=[rows, profile_rows] if profiled else None, squeeze=False
    )[:, 0]
    parts[0].suptitle(_heading(report, columns), fontsize=9)
    axes = parts[0].subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axis, panel in zip(axes, panels, strict=False):
        _draw_curves(axis, panel, report)
    _finish(parts[0], axes, len(panels), columns, "size of the central object", _difference_label(report))
    if profiled:
        axes = parts[1].subplots(profile_rows, columns, squeeze=False, sharey=True).ravel()
        for axis, panel in zip(axes, profiled, strict=False):
            _draw_profile(axis, panel, report)
        sorted_by = f"channel, sorted by {_name(report.graphs[0].name)} at {report.scales[0]:g}x"
        _finish(parts[1], axes, len(profiled), columns, sorted_by, f"mean attention to {_larger(report)}")
    return figure


def _draw_curves(axis: Axes, panel: Panel, report: AttentionReport) -> None:
    axis.axhline(0, color="0.75", linewidth=0.8, zorder=0)
    for index, graph in enumerate(report.graphs):
        curve = panel.unit.curve(graph.name, panel.branch)
        if index == 0:
            points, margin = np.array(curve.differences), half_width(report.images) * np.array(curve.standard_errors)
            axis.fill_between(
                report.scales,
                points - margin,
                points + margin,
                color="0.85",
                linewidth=0,
                label="95 % interval of the mean",
            )
        axis.plot(report.scales, curve.differences, label=_name(graph.name), **STYLES[index % len(STYLES)])
    axis.set_title(panel.title, fontsize=8)
    axis.set_xticks(report.scales, [f"{scale:g}x" for scale in report.scales])


def _draw_profile(axis: Axes, panel: Panel, report: AttentionReport) -> None:
    """The FP32 graph as a line at the smallest scale and as points at the largest; there, the last graph on top."""
    first = panel.unit.curve(report.graphs[0].name, panel.branch)
    least, most = (np.array(profile.attention) for profile in first.profiles)
    order = np.argsort(least, kind="stable")
    channels = np.arange(len(order))
    axis.axhline(1 / len(panel.unit.branches), color="0.75", linewidth=0.8, zorder=0)
    name = _name(report.graphs[0].name)
    small, large = (f"{profile.scale:g}x" for profile in first.profiles)
    axis.plot(channels, least[order], color="#000000", linewidth=1.4, label=f"{name}, {small}")
    axis.plot(
        channels, most[order], linestyle="", marker="o", markersize=3.2, fillstyle="none", color="#0072B2",
        markeredgewidth=0.7, label=f"{name}, {large}",
    )  # fmt: skip
    if len(report.graphs) > 1:
        last = np.array(panel.unit.curve(report.graphs[-1].name, panel.branch).profiles[1].attention)
        axis.plot(
            channels, last[order], linestyle="", marker="x", markersize=2.6, color="#D55E00",
            markeredgewidth=0.7, label=f"{_name(report.graphs[-1].name)}, {large}",
        )  # fmt: skip
    axis.set_title(panel.title, fontsize=8)


def _finish(part: Figure, axes: Sequence[Axes], used: int, columns: int, label: str, side: str) -> None:
    """Empty places show nothing; the lowest panel of each column gets the label, and the tick labels that sharing took away."""
    for axis in axes[used:]:
        axis.set_visible(False)
    for axis in axes[max(0, used - columns) : used]:
        axis.tick_params(labelbottom=True)
        axis.set_xlabel(label)
    part.supylabel(side, fontsize=8)
    handles, labels = axes[0].get_legend_handles_labels()
    part.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)


def _heading(report: AttentionReport, columns: int) -> str:
    """Broken into lines here: where Matplotlib does it, it takes dollar signs for formulas whatever one tells it."""
    text = f"Attention of {report.model} against object size: {report.images:,} images of {report.dataset}"
    return "\n".join(textwrap.wrap(text, width=LETTERS * columns))


def _difference_label(report: AttentionReport) -> str:
    references = {unit.branches[unit.reference] for unit in report.units}
    reference = references.pop() if len(references) == 1 else "the smallest"
    return f"mean a({_larger(report)}) − mean a({reference})"  # noqa: RUF001 - a minus sign, for people


def _larger(report: AttentionReport) -> str:
    """The kernel that is compared, where it is one and the same in all units."""
    labels = {unit.branches[branch] for unit in report.units for branch in unit.compared}
    return labels.pop().split(" (")[0] if len(labels) == 1 else "the larger kernel"


def _name(graph: str) -> str:
    """fp32 is FP32 to people; the name of a bundle stays."""
    precision, _, bundle = graph.partition(" ")
    return f"{precision.upper()} {bundle}".strip()
