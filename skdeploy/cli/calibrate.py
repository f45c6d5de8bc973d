"""``skdeploy calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skdeploy.cli.accuracy import AssumeImagenet
from skdeploy.cli.calibration import (
    AllowRandom,
    BiasCorrection,
    CalibBatch,
    CalibImages,
    CalibMethod,
    CalibNum,
    CalibPercentile,
    CalibSeed,
    Equalize,
    ExactInput,
    Shift,
    WeightScales,
)


def calibrate(
    model: Annotated[
        str,
        typer.Argument(help="A card, by name or path; a bundle's folder; an .onnx file; or package.module:function."),
    ],
    card: Annotated[
        str | None, typer.Option(help="The card of an .onnx file or a module: preprocessing, labels, tolerances, size.")
    ] = None,
    assume_imagenet: AssumeImagenet = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The ranges file; default: MODEL.ranges.json.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Checkpoint of any known layout, or hf://owner/name; default: the card's own.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random weights that a card without weights gets.")] = 0,
    imgsz: Annotated[int | None, typer.Option(help="Input height and width in pixels; default: the card's.")] = None,
    calib: CalibImages = None,
    calib_method: CalibMethod = None,
    calib_percentile: CalibPercentile = None,
    calib_num: CalibNum = None,
    calib_batch: CalibBatch = 8,
    calib_seed: CalibSeed = None,
    allow_random_calib: AllowRandom = False,
    equalize: Equalize = None,
    bias_correction: BiasCorrection = None,
    shift: Shift = None,
    exact_input: ExactInput = None,
    weight_scales: WeightScales = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else there.")
    ] = False,
) -> None:
    """Measure the ranges of a network's tensors on images, into a file to review, commit and give to `export --ranges`."""
    from skdeploy.cli.console import ConsoleProgress, print_ranges
    from skdeploy.core.spec import CalibrationMethod
    from skdeploy.line.export import calibrate as run
    from skdeploy.line.int8_options import CalibrationOptions, Int8Options
    from skdeploy.line.options import ExportOptions

    options = ExportOptions(
        model=model,
        weights=weights,
        card=card,
        assume_imagenet=assume_imagenet,
        seed=seed,
        image_size=None if imgsz is None else (imgsz, imgsz),
        int8=Int8Options(
            calibration=CalibrationOptions(
                images=calib,
                allow_random=allow_random_calib,
                method=None if calib_method is None else CalibrationMethod(calib_method),
                percentile=calib_percentile,
                number=calib_num,
                seed=calib_seed,
                batch=calib_batch,
                equalize=equalize,
                bias_correction=bias_correction,
                shift=shift,
                exact_input=exact_input,
                weight_scales=weight_scales,
            )
        ),
    )
    name = Path(model).stem if Path(model).exists() else model.replace("/", "-").replace(":", "-")
    path = output or Path(f"{name}.ranges.json")
    with ConsoleProgress() as progress:
        ranges = run(options, path, progress)
    print_ranges(ranges, path, as_json=json)
