"""``skdeploy attention``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skdeploy.cli.arguments import AssumeImagenet, BundleFolder, Finding, Json
from skdeploy.core.panel import Panel


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
    output: Finding = None,
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
    from skdeploy.attention.report import csv_text, findings
    from skdeploy.bundle.folder import load_bundle
    from skdeploy.cli.console import write_json
    from skdeploy.core.files import require_places, write_text
    from skdeploy.report.attention import attention_drawings, attention_findings, figure_title
    from skdeploy.report.figure import check_figure, write_figure
    from skdeploy.report.progress import ConsoleProgress
    from skdeploy.report.terminal import Terminal

    if figure is not None:
        check_figure(figure)
    require_places(csv, figure, output)
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
            output=output,
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
        return
    terminal = Terminal()
    terminal.section(attention_findings(report))
    for line in findings(report):
        terminal.brief(line)
