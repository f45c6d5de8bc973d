"""``skdeploy sensitivity``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skdeploy.cli.arguments import AssumeImagenet, ClassOrder, Finding, Json, Metric
from skdeploy.core.panel import Panel


def sensitivity(
    bundle: Annotated[Path, typer.Argument(help="Folder that `skdeploy export --int8` made.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Images: a folder, .npz, .npy or .txt; top-1 needs labels. For other tasks, and with --metric, pairs as for "
            "`evaluate`.  [default: the card's images]",
            rich_help_panel=Panel.INPUT,
        ),
    ] = None,
    class_order: ClassOrder = None,
    metric: Metric = None,
    assume_imagenet: AssumeImagenet = False,
    num_images: Annotated[
        int,
        typer.Option(help="Use at most this many images or pairs, balanced over classes.", rich_help_panel=Panel.INPUT),
    ] = 256,
    output: Finding = None,
    json: Json = False,
) -> None:
    """Measure how much accuracy each unit of the network loses in INT8: alone in INT8, and alone not in INT8.

    Examples:
        skdeploy sensitivity build/mynet-int8 --data eval/evaluation.npz
        skdeploy sensitivity build/mynet-int8 --num-images 8
    """
    import time

    from skdeploy.accuracy.sensitivity import sensitivity_of
    from skdeploy.bundle.folder import load_bundle
    from skdeploy.cli.console import write_json
    from skdeploy.core.files import require_places
    from skdeploy.report.int8 import sensitivity_findings, totals_text
    from skdeploy.report.progress import ConsoleProgress
    from skdeploy.report.terminal import Terminal

    require_places(output)
    with ConsoleProgress() as progress:
        started = time.perf_counter()
        opened = load_bundle(bundle)
        progress.begin("sensitivity")
        report = sensitivity_of(
            opened,
            data,
            num_images,
            progress,
            class_order=class_order,
            metric=metric,
            assume_imagenet=assume_imagenet,
            output=output,
        )
        progress.end("sensitivity", time.perf_counter() - started, reused=False)
    if json:
        write_json(report)
    else:
        Terminal().headline(totals_text(report), style="bold")
        Terminal().section(sensitivity_findings(report))
