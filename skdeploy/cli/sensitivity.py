"""``skdeploy sensitivity``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from skdeploy.cli.arguments import AssumeImagenet, ClassOrder, Json, Metric
from skdeploy.cli.flags import FlagsOf, flattened
from skdeploy.cli.shards import FreshParts, PartOutput
from skdeploy.core.panel import Panel
from skdeploy.shards.division import DivisionOptions


def _sensitivity(
    bundle: Annotated[Path, typer.Argument(help="Folder that `skdeploy export --int8` made.")],
    division: Annotated[dict[str, Any], FlagsOf(DivisionOptions)],
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
    output: PartOutput = None,
    fresh: FreshParts = False,
    json: Json = False,
) -> None:
    """Measure how much accuracy each unit of the network loses in INT8: alone in INT8, and alone not in INT8.

    Examples:
        skdeploy sensitivity build/mynet-int8 --data eval/evaluation.npz
        skdeploy sensitivity build/mynet-int8 --num-images 8
    """
    import time

    from skdeploy.accuracy.sensitivity import SensitivityOptions, sensitivity_of
    from skdeploy.accuracy.sensitivity_shards import merge_sensitivity, sensitivity_on, sensitivity_shard
    from skdeploy.bundle.folder import load_bundle
    from skdeploy.cli.console import write_json
    from skdeploy.cli.shards import check_division, collector, write_shard
    from skdeploy.core.files import require_places
    from skdeploy.report.int8 import sensitivity_findings, totals_text
    from skdeploy.report.progress import ConsoleProgress
    from skdeploy.report.terminal import Terminal

    options = SensitivityOptions(data, num_images, class_order, metric, assume_imagenet)
    divided = DivisionOptions(**division)
    check_division(divided, output, fresh=fresh)
    if divided.shard is not None and output is not None:
        write_shard(
            divided,
            output,
            lambda one, tell, earlier: sensitivity_shard(bundle, options, one, tell, earlier=earlier),
            fresh=fresh,
            as_json=json,
        )
        return
    require_places(output)
    mixed = divided.allow_mixed_cpus
    with ConsoleProgress() as progress:
        if divided.parts:
            found = collector(divided, progress)
            report = merge_sensitivity(bundle, options, progress, collect=found, output=output)
        elif divided.farm is not None:
            farm = divided.farm
            report = sensitivity_on(
                bundle, options, progress, cluster=farm, fresh=fresh, allow_mixed_cpus=mixed, output=output
            )
        else:
            started = time.perf_counter()
            progress.begin("sensitivity")
            report = sensitivity_of(load_bundle(bundle), options, progress, output=output)
            progress.end("sensitivity", time.perf_counter() - started, reused=False)
    if json:
        write_json(report)
    else:
        Terminal().headline(totals_text(report), style="bold")
        Terminal().section(sensitivity_findings(report))


sensitivity = flattened(_sensitivity)
