"""``skdeploy calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from skdeploy.cli.arguments import Imgsz, Json, image_size
from skdeploy.cli.flags import FlagsOf, flattened
from skdeploy.cli.shards import FreshParts
from skdeploy.core.panel import Panel
from skdeploy.line.calibration import CalibrationOptions
from skdeploy.line.options import SourceOptions
from skdeploy.shards.division import DivisionOptions


def _calibrate(
    model: Annotated[
        str,
        typer.Argument(
            help="A checkpoint, a card (name or path), a bundle, an .onnx file, or package.module:function."
        ),
    ],
    source: Annotated[dict[str, Any], FlagsOf(SourceOptions)],
    calibration: Annotated[dict[str, Any], FlagsOf(CalibrationOptions)],
    division: Annotated[dict[str, Any], FlagsOf(DivisionOptions)],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Ranges file to write. With --shard: the file of its part.  [default: MODEL.ranges.json]",
            rich_help_panel=Panel.OUTPUT,
        ),
    ] = None,
    imgsz: Imgsz = None,
    fresh: FreshParts = False,
    json: Json = False,
) -> None:
    """Measure a network's tensor ranges on images and write them to a file for `export --ranges`.

    Examples:
        skdeploy calibrate build/mynet-fp16 --calib calib/ -o ranges.json
        skdeploy calibrate mynet.onnx --card mynet.toml --calib calib/
    """
    from skdeploy.cli.console import ranges_json, write_json
    from skdeploy.cli.shards import check_division, collector, write_shard
    from skdeploy.line.calibrate_shards import calibrate_on, calibrate_shard, merge_calibration
    from skdeploy.line.export import calibrate as run
    from skdeploy.line.options import ExportOptions
    from skdeploy.report.calibration import calibration_findings
    from skdeploy.report.progress import ConsoleProgress
    from skdeploy.report.terminal import Terminal

    options = ExportOptions(
        model,
        **source,
        image_size=image_size(imgsz),
    )
    asked, divided = CalibrationOptions(**calibration), DivisionOptions(**division)
    check_division(divided, output, fresh=fresh)
    if divided.shard is not None and output is not None:
        write_shard(
            divided,
            output,
            lambda one, tell, earlier: calibrate_shard(options, asked, one, tell, earlier=earlier),
            fresh=fresh,
            as_json=json,
        )
        return
    name = Path(model).stem if Path(model).exists() else model.replace("/", "-").replace(":", "-")
    path = output or Path(f"{name}.ranges.json")
    mixed = divided.allow_mixed_cpus
    with ConsoleProgress() as progress:
        if divided.parts:
            ranges = merge_calibration(
                options, asked, path, progress, collect=collector(divided, progress, computes=True)
            )
        elif divided.farm is not None:
            ranges = calibrate_on(
                options, asked, path, progress, cluster=divided.farm, fresh=fresh, allow_mixed_cpus=mixed
            )
        else:
            ranges = run(options, asked, path, progress)
    if json:
        write_json(ranges_json(ranges, path))
        return
    terminal = Terminal()
    terminal.headline(f"{ranges.model} ranges  ->  {path}")
    terminal.section(calibration_findings(ranges))


calibrate = flattened(_calibrate)
