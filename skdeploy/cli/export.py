"""``skdeploy export``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from skdeploy.cli.arguments import Imgsz, Json, MaxBatch, MinBatch, OptBatch
from skdeploy.cli.flags import FlagsOf, flattened
from skdeploy.core.options import StationOptions
from skdeploy.line.calibration import CalibrationOptions
from skdeploy.line.int8_options import Int8Options
from skdeploy.line.options import ExportOptions
from skdeploy.line.rewrites import REWRITES
from skdeploy.line.stations.half import HalfOptions
from skdeploy.passes.trace_options import TraceOptions


def _export(
    model: Annotated[
        str,
        typer.Argument(
            help="A checkpoint, or hf://owner/name; a card, by name or path; an .onnx file; or package.module:function."
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
    min_batch: MinBatch = None,
    opt_batch: OptBatch = None,
    max_batch: MaxBatch = None,
    imgsz: Imgsz = None,
    workspace: Annotated[float | None, typer.Option(help="Limit of the builder's scratch memory, GiB.")] = None,
    json: Json = False,
) -> None:
    """Take a network through the whole line: ONNX, simplified, lower precision, engine, parity, bundle.

    Run it again and only what changed is done again.
    """
    from skdeploy.cli.console import ConsoleProgress, bundle_json, conclude, print_bundle
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
    found, taken = (result.bundle, result.parity, result.verdict), (result.reused, result.seconds)
    conclude(
        result.check,
        show=lambda: print_bundle(*found, *taken),
        content=lambda: bundle_json(*found, *taken),
        as_json=json,
    )


export = flattened(_export, {"rewrites": {name: rewrite.options for name, rewrite in REWRITES.items()}})
