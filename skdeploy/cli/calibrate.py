"""``skdeploy calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from skdeploy.cli.arguments import Imgsz, Json, image_size
from skdeploy.cli.flags import FlagsOf, flattened
from skdeploy.core.panel import Panel
from skdeploy.line.calibration import CalibrationOptions
from skdeploy.line.options import SourceOptions


def _calibrate(
    model: Annotated[
        str,
        typer.Argument(
            help="A checkpoint, a card (name or path), a bundle, an .onnx file, or package.module:function."
        ),
    ],
    source: Annotated[dict[str, Any], FlagsOf(SourceOptions)],
    calibration: Annotated[dict[str, Any], FlagsOf(CalibrationOptions)],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Ranges file to write.  [default: MODEL.ranges.json]", rich_help_panel=Panel.OUTPUT
        ),
    ] = None,
    imgsz: Imgsz = None,
    json: Json = False,
) -> None:
    """Measure a network's tensor ranges on images and write them to a file for `export --ranges`.

    Examples:
        skdeploy calibrate build/mynet-fp16 --calib calib/ -o ranges.json
        skdeploy calibrate mynet.onnx --card mynet.toml --calib calib/
    """
    from skdeploy.cli.console import ranges_json, write_json
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
    name = Path(model).stem if Path(model).exists() else model.replace("/", "-").replace(":", "-")
    path = output or Path(f"{name}.ranges.json")
    with ConsoleProgress() as progress:
        ranges = run(options, CalibrationOptions(**calibration), path, progress)
    if json:
        write_json(ranges_json(ranges, path))
        return
    terminal = Terminal()
    terminal.headline(f"{ranges.model} ranges  ->  {path}")
    terminal.section(calibration_findings(ranges))


calibrate = flattened(_calibrate)
