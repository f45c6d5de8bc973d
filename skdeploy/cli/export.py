"""``skdeploy export``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from skdeploy.cli.flags import FlagsOf, flattened
from skdeploy.core.options import StationOptions
from skdeploy.line.calibration import CalibrationOptions
from skdeploy.line.int8_options import Int8Options
from skdeploy.line.options import ExportOptions
from skdeploy.line.rewrites import REWRITES
from skdeploy.line.stations.half import HalfOptions
from skdeploy.passes.trace_options import TraceOptions

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else there.")]
Imgsz = Annotated[int | None, typer.Option(help="Input height and width in pixels; default: the card's.")]


def _export(
    model: Annotated[
        str,
        typer.Argument(
            help="A card, by name or path; an .onnx file; or package.module:function that builds a network."
        ),
    ],
    *,
    fp16: Annotated[bool, typer.Option("--fp16", "--half", help="FP16 as a strongly typed graph.")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="INT8 by explicit Q/DQ, calibrated on --calib or from --ranges.")
    ] = False,
    options: Annotated[dict[str, Any], FlagsOf(ExportOptions)],
    trace: TraceOptions,
    half: HalfOptions,
    rewrites: dict[str, StationOptions],
    quantize: Int8Options,
    calibration: CalibrationOptions,
    min_batch: Annotated[int | None, typer.Option(help="The engine's smallest batch.  [default: 1]")] = None,
    opt_batch: Annotated[int | None, typer.Option(help="The batch that the engine is tuned for.  [default: 8]")] = None,
    max_batch: Annotated[int | None, typer.Option(help="The engine's largest batch.  [default: 32]")] = None,
    imgsz: Imgsz = None,
    workspace: Annotated[float | None, typer.Option(help="Limit of the builder's scratch memory, GiB.")] = None,
    json: Json = False,
) -> None:
    """Take a network through the whole line: ONNX, simplified, lower precision, engine, parity, bundle.

    Run it again and only what changed is done again.
    """
    from skdeploy.cli.console import ConsoleProgress, end_with, error_of, print_bundle, print_json
    from skdeploy.core.errors import UsageError
    from skdeploy.core.spec import Precision
    from skdeploy.line.building import gibibytes
    from skdeploy.line.export import run_line
    from skdeploy.line.options import DEFAULT_PROFILE

    if fp16 and int8:
        raise UsageError(
            "--fp16 and --int8 contradict each other", advice="--int8 keeps in FP16 what it does not quantize"
        )
    profile = None
    if (min_batch, opt_batch, max_batch) != (None, None, None):
        low, opt, high = (
            default if given is None else given
            for given, default in zip((min_batch, opt_batch, max_batch), DEFAULT_PROFILE, strict=True)
        )
        profile = (low, opt, high)
    asked = ExportOptions(
        model,
        **options,
        precision=Precision.INT8 if int8 else Precision.FP16 if fp16 else Precision.FP32,
        trace=trace,
        half=half,
        rewrites=rewrites,
        int8=quantize.model_copy(update={"calibration": calibration}),
        profile=profile,
        workspace_bytes=gibibytes("--workspace", workspace),
        image_size=None if imgsz is None else (imgsz, imgsz),
    )
    with ConsoleProgress() as progress:
        result = run_line(asked, progress)
    reused, seconds = result.reused, result.seconds
    if not json:
        print_bundle(result.bundle, result.parity, result.verdict, reused=reused, seconds=seconds)
        result.check()
        return
    error = error_of(result.check)
    print_json(result.bundle, result.parity, result.verdict, reused=reused, seconds=seconds, error=error)
    end_with(error)


export = flattened(_export, {"rewrites": {name: rewrite.options for name, rewrite in REWRITES.items()}})
