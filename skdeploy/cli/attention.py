"""``skdeploy attention``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skdeploy.cli.arguments import AssumeImagenet, BundleFolder, Json
from skdeploy.core.panel import Panel

if TYPE_CHECKING:
    from skdeploy.attention.report import AttentionReport


def attention(
    bundle: BundleFolder,
    data: Annotated[
        Path | None,
        typer.Option(help="Images: a folder, .npz, .npy or .txt.  [default: the card's]", rich_help_panel=Panel.INPUT),
    ] = None,
    assume_imagenet: AssumeImagenet = False,
    scales: Annotated[
        str, typer.Option(help="Factors by which to enlarge the central object, from 1 to 4.")
    ] = "1.0,1.25,1.5,1.75,2.0",
    num_images: Annotated[
        int, typer.Option(help="Use at most this many images, balanced over classes.", rich_help_panel=Panel.INPUT)
    ] = 500,
    also: Annotated[
        list[Path] | None,
        typer.Option(help="Bundle of the same network in another precision, to measure too; repeatable."),
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            help="SK unit whose channels to show, such as stages.1.3 or SK_3_4; repeatable.  [default: the last of each stage]"
        ),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(help="Write the curves to this file.", rich_help_panel=Panel.OUTPUT)
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(help="Draw curves and channels to this .svg file.", rich_help_panel=Panel.OUTPUT),
    ] = None,
    json: Json = False,
) -> None:
    """Repeat the paper's experiment in each precision: do units choose larger kernels for larger objects?

    Examples:
        skdeploy attention build/mynet-fp16 --data calib/
        skdeploy attention build/mynet-fp16 --also build/mynet-int8 --csv curves.csv
    """
    import time

    from skdeploy.attention.enlarge import read_scales
    from skdeploy.attention.experiment import attention_of
    from skdeploy.attention.report import csv_text
    from skdeploy.bundle.folder import load_bundle
    from skdeploy.cli.console import write_json
    from skdeploy.core.files import require_places, write_text
    from skdeploy.report.attention import attention_drawings, figure_title
    from skdeploy.report.figure import check_figure, write_figure
    from skdeploy.report.progress import ConsoleProgress

    if figure is not None:
        check_figure(figure)
    require_places(csv, figure)
    with ConsoleProgress() as progress:
        started = time.perf_counter()
        opened = load_bundle(bundle)
        progress.begin("attention")
        report = attention_of(
            opened,
            data,
            scales=read_scales(scales),
            num_images=num_images,
            profile=profile or (),
            assume_imagenet=assume_imagenet,
            also=[load_bundle(folder) for folder in also or ()],
            progress=progress,
        )
        progress.end("attention", time.perf_counter() - started, reused=False)
    if csv is not None:
        write_text(csv, csv_text(report))
    if figure is not None:
        write_figure(figure, figure_title(report), attention_drawings(report))
    if json:
        write_json(report)
    else:
        _show(report)


def _show(report: AttentionReport) -> None:
    """The FP32 curves, how far the other precisions are from them, and what follows."""
    from skdeploy.attention.report import findings
    from skdeploy.report.terminal import Terminal

    terminal = Terminal()
    terminal.title(f"Attention of {report.model} against object size, on {report.images} images of {report.dataset}")
    scales = [f">{scale:g}x" for scale in report.scales]
    terminal.table(["unit", "larger - reference", *scales, ">change", ">images"], _curves(report))
    terminal.say(
        "mean attention of the larger kernel less that of the reference, in the FP32 graph; change: from "
        f"{report.scales[0]:g}x to {report.scales[-1]:g}x, with its 95 % interval; images: the share in which it rises"
    )
    if len(report.graphs) > 1:
        columns = ("unit", "graph", ">curve differs by", ">correlation", ">weights differ by", ">spread")
        terminal.table(columns, _precisions(report))
        terminal.say(
            "against the FP32 graph: the largest distance of the curves, and their correlation; the mean distance of single "
            "weights; how much attention varies from image to image, in per cent of what it does in FP32"
        )
    for line in findings(report):
        terminal.headline(line)


def _curves(report: AttentionReport) -> Iterator[list[str]]:
    for unit in report.units:
        for branch in unit.compared:
            curve = unit.curve(report.graphs[0].name, branch)
            kernels = f"{_short(unit.branches[branch])} - {_short(unit.branches[unit.reference])}"
            change, share = f"{curve.growth.mean:+.3f} ± {curve.growth.margin:.3f}", f"{curve.growth.share:.0%}"
            yield [unit.title, kernels, *(f"{difference:+.3f}" for difference in curve.differences), change, share]


def _precisions(report: AttentionReport) -> Iterator[list[str]]:
    for unit in report.units:
        activity = {found.graph: found for found in unit.activity}
        usual = activity[report.graphs[0].name].spread
        for agreement in unit.agreements:
            found = activity[agreement.graph]
            yield [
                unit.title,
                agreement.graph,
                f"{agreement.max_difference:.1e}",
                "-" if agreement.correlation is None else f"{agreement.correlation:.5f}",
                f"{found.mean_abs_difference:.1e}",
                f"{found.spread / usual:.1%}" if usual else "-",
            ]


def _short(label: str) -> str:
    """5x5 of "5x5 (3x3, dilation 2)"."""
    return label.partition(" (")[0]
