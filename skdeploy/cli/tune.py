"""``skdeploy tune``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skdeploy.cli.arguments import AssumeImagenet, BundleFolder, ClassOrder, Json, Metric
from skdeploy.cli.flags import FlagsOf, flattened
from skdeploy.cli.shards import FreshParts
from skdeploy.core.panel import Panel
from skdeploy.shards.division import DivisionOptions

if TYPE_CHECKING:
    from skdeploy.core.progress import Progress
    from skdeploy.shards.part import Part
    from skdeploy.shards.shard import Shard


def _tune(
    bundle: BundleFolder,
    division: Annotated[dict[str, Any], FlagsOf(DivisionOptions)],
    data: Annotated[
        Path,
        typer.Option(
            help="With --max-drop, labelled images: class folders, a .txt list of `path,label`, an .npz with images and "
            "labels, or a folder with an evaluation.npz; for other tasks, and with --metric, pairs, as evaluate takes them. "
            "Without --max-drop, any inputs. One half chooses, the other half judges the choice.",
            rich_help_panel=Panel.INPUT,
        ),
    ],
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Largest allowed drop: percentage points of top-1, dB of PSNR, points of mIoU, or the unit of --metric. Exit "
            "0 if the drop is smaller, 10 if it is larger, or if there are too few images to tell, unless "
            "--allow-inconclusive. Needs labels or pairs.  [default: compare with FP32's outputs]",
            rich_help_panel=Panel.ACCURACY,
        ),
    ] = None,
    min_sqnr: Annotated[
        float | None,
        typer.Option(
            metavar="DB",
            help="Least allowed SQNR of the worst output against FP32's, for --data without labels or pairs. Exit codes as "
            "with --max-drop.  [default: no limit]",
            rich_help_panel=Panel.ACCURACY,
        ),
    ] = None,
    class_order: ClassOrder = None,
    metric: Metric = None,
    calib: Annotated[
        Path | None,
        typer.Option(
            help="Calibration images or samples: a folder, an .npz, .npy or .txt list.  [default: the calibration.npz in "
            "--data]",
            rich_help_panel=Panel.CALIBRATION,
        ),
    ] = None,
    calib_num: Annotated[
        int | None,
        typer.Option(help="Use at most this many of --calib.  [default: 512]", rich_help_panel=Panel.CALIBRATION),
    ] = None,
    calib_method: Annotated[
        list[str] | None,
        typer.Option(
            help="Try only this method; repeatable.  [default: all but entropy]", rich_help_panel=Panel.CALIBRATION
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="Predict latency for this device, such as orin-nano, and choose by it.", rich_help_panel=Panel.ENGINE
        ),
    ] = None,
    bench: Annotated[
        bool,
        typer.Option("--bench", help="Measure latency on this machine, as bench does.", rich_help_panel=Panel.ENGINE),
    ] = False,
    confidence: Annotated[
        float,
        typer.Option(
            help="Confidence in percent, for the bounds of a drop or an SQNR.", rich_help_panel=Panel.ACCURACY
        ),
    ] = 95.0,
    allow_inconclusive: Annotated[
        bool,
        typer.Option(
            "--allow-inconclusive",
            help="Exit with 0 where --data cannot decide on --max-drop or --min-sqnr.",
            rich_help_panel=Panel.ACCURACY,
        ),
    ] = False,
    assume_imagenet: AssumeImagenet = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print what would be tried, and run nothing.", rich_help_panel=Panel.OUTPUT),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Write the recipe to this .toml file. With --shard: the file of its part.  [default: MODEL-tuned.toml beside "
            "the calibration images]",
            rich_help_panel=Panel.OUTPUT,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a recipe that exists.", rich_help_panel=Panel.OUTPUT)
    ] = False,
    fresh: FreshParts = False,
    json: Json = False,
) -> None:
    """Try every way to calibrate INT8 on your images, and write the best as a recipe for `export --calib`.

    Labels or pairs judge with --max-drop. Without it, FP32's own outputs do: SQNR and cosine of each output.

    The bundle is not changed. Results are kept in ~/.cache/skdeploy: an interrupted run continues where it stopped.

    Examples:
        skdeploy tune build/mynet-int8 --data eval/ --calib calib/ --max-drop 1
        skdeploy tune build/mynet-fp16 --data eval --calib calib --min-sqnr 30 --force
    """
    from skdeploy.cli.console import conclude, write_json
    from skdeploy.cli.shards import check_division, require_no_gate, write_shard
    from skdeploy.core.errors import UsageError
    from skdeploy.report.progress import ConsoleProgress
    from skdeploy.report.terminal import Terminal
    from skdeploy.report.tuning import plan_findings, tune_findings
    from skdeploy.tuning.options import TuneOptions
    from skdeploy.tuning.report import TunePlan
    from skdeploy.tuning.tune import planned
    from skdeploy.tuning.tune import tune as run
    from skdeploy.tuning.tune_shards import Divided, collect_steps, tune_on, tune_shard

    divided = DivisionOptions(**division)
    check_division(divided, output, fresh=fresh, stepwise=True)
    options = TuneOptions(
        data=data,
        max_drop=max_drop,
        min_sqnr=min_sqnr,
        calib=calib,
        calib_num=calib_num,
        methods=tuple(calib_method or ()),
        class_order=class_order,
        device=device,
        bench=bench,
        confidence=confidence,
        output=None if divided.shard is not None else output,
        force=force,
        allow_inconclusive=allow_inconclusive,
        assume_imagenet=assume_imagenet,
        metric=metric,
    )
    terminal = Terminal()
    farm, mixed = divided.farm, divided.allow_mixed_cpus
    if dry_run and (farm is not None or divided.shard is not None or divided.parts):
        raise UsageError("--dry-run runs nothing", advice="leave --shard, --parts, --workers and --cluster out")
    if divided.shard is not None and output is not None:
        gate = {"--bench": bench, "--force": force, "--allow-inconclusive": allow_inconclusive}
        require_no_gate(gate)

        def make(one: Shard, tell: Progress, earlier: Part | None) -> Part:
            given = divided.parts
            collect = collect_steps(given, tell, allow_mixed_cpus=mixed) if given else None
            return tune_shard(bundle, options, one, tell, collect=collect, earlier=earlier)

        write_shard(divided, output, make, fresh=fresh, as_json=json)
        return
    if dry_run:
        plan: TunePlan = planned(bundle, options)
        if json:
            write_json(plan)
        else:
            terminal.section(plan_findings(plan))
        return
    with ConsoleProgress() as progress:
        if farm is not None:
            report = tune_on(bundle, options, progress, cluster=farm, fresh=fresh, allow_mixed_cpus=mixed)
        elif divided.parts:
            collect = collect_steps(divided.parts, progress, allow_mixed_cpus=mixed)
            report = run(bundle, options, progress, rounds=Divided(collect))
        else:
            report = run(bundle, options, progress)

    def show(advised: bool) -> None:
        del advised
        terminal.headline(report.headline, style="bold")
        terminal.section(tune_findings(report))

    conclude(
        lambda: report.check(allow_inconclusive=allow_inconclusive),
        show=show,
        content=lambda: report.model_dump(mode="json"),
        as_json=json,
    )


tune = flattened(_tune)
