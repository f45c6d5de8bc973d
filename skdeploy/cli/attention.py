"""``skdeploy attention``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skdeploy.cli.accuracy import AssumeImagenet

if TYPE_CHECKING:
    from rich.table import Table

    from skdeploy.attention.report import AttentionReport


def attention(
    bundle: Annotated[Path, typer.Argument(help="The folder that an export made.")],
    data: Annotated[
        Path | None, typer.Option(help="Images: a folder, .npz, .npy or .txt. Default: the card's own.")
    ] = None,
    assume_imagenet: AssumeImagenet = False,
    scales: Annotated[str, typer.Option(help="Sizes of the central object, from 1 to 4.")] = "1.0,1.25,1.5,1.75,2.0",
    num_images: Annotated[int, typer.Option(help="How many of them at most, a balanced choice.")] = 500,
    also: Annotated[
        list[Path] | None,
        typer.Option(help="A bundle of the same network in another precision, to measure beside it; may be repeated."),
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            help="A unit whose channels to show, such as stages.1.3 or SK_3_4. Default: the last of each stage."
        ),
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the curves to this file.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw curves and channels: .svg, .png or .pdf.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON on stdout, and nothing else there.")] = False,
) -> None:
    """Measure whether units choose larger kernels for larger objects, as the paper's experiment does, in each precision."""
    import time

    from skdeploy.attention.enlarge import read_scales
    from skdeploy.attention.experiment import attention_of
    from skdeploy.attention.figure import check_figure, write_figure
    from skdeploy.attention.report import csv_text
    from skdeploy.bundle.folder import load_bundle
    from skdeploy.cli.console import ConsoleProgress
    from skdeploy.core.files import require_places, write_text

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
        write_figure(report, figure)
    if json:
        print(report.model_dump_json(indent=2))
    else:
        print_attention(report)


def print_attention(report: AttentionReport) -> None:
    """The FP32 curves, how far the other precisions are from them, and what follows."""
    from rich.markup import escape

    from skdeploy.attention.report import findings
    from skdeploy.cli.console import output_console

    console = output_console()
    console.print(
        f"Attention of {escape(report.model)} against object size, on {report.images} images of {escape(report.dataset)}",
        style="italic",
        soft_wrap=True,
    )
    console.print(_curves(report))
    console.print(
        "mean attention of the larger kernel less that of the reference, in the FP32 graph; change: from "
        f"{report.scales[0]:g}x to {report.scales[-1]:g}x, with its 95 % interval; images: the share in which it rises",
        soft_wrap=True,
    )
    if len(report.graphs) > 1:
        console.print(_precisions(report))
        console.print(
            "against the FP32 graph: the largest distance of the curves, and their correlation; the mean distance of single "
            "weights; how much attention varies from image to image, in per cent of what it does in FP32",
            soft_wrap=True,
        )
    for line in findings(report):
        console.print(escape(line), soft_wrap=True)


def _curves(report: AttentionReport) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("unit", overflow="fold")
    table.add_column("larger - reference", overflow="fold")
    for scale in report.scales:
        table.add_column(f"{scale:g}x", justify="right")
    table.add_column("change", justify="right")
    table.add_column("images", justify="right")
    for unit in report.units:
        for branch in unit.compared:
            curve = unit.curve(report.graphs[0].name, branch)
            change = curve.growth
            table.add_row(
                escape(unit.title),
                escape(f"{_short(unit.branches[branch])} - {_short(unit.branches[unit.reference])}"),
                *(f"{difference:+.3f}" for difference in curve.differences),
                f"{change.mean:+.3f} ± {change.margin:.3f}",
                f"{change.share:.0%}",
            )
    return table


def _precisions(report: AttentionReport) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("unit", overflow="fold")
    table.add_column("graph", overflow="fold")
    for column in ("curve differs by", "correlation", "weights differ by", "spread"):
        table.add_column(column, justify="right")
    for unit in report.units:
        activity = {found.graph: found for found in unit.activity}
        usual = activity[report.graphs[0].name].spread
        for agreement in unit.agreements:
            found = activity[agreement.graph]
            table.add_row(
                escape(unit.title),
                escape(agreement.graph),
                f"{agreement.max_difference:.1e}",
                "-" if agreement.correlation is None else f"{agreement.correlation:.5f}",
                f"{found.mean_abs_difference:.1e}",
                f"{found.spread / usual:.1%}" if usual else "-",
            )
    return table


def _short(label: str) -> str:
    """5x5 of "5x5 (3x3, dilation 2)"."""
    return label.partition(" (")[0]
