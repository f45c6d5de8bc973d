"""The options of a calibration, as ``export`` and ``calibrate`` both take them. Each is None until it is given."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

CalibImages = Annotated[
    Path | None,
    typer.Option(
        "--calib", help="Calibration images: a folder, .npz, .npy or .txt list of raw images, or a recipe (.toml)."
    ),
]
CalibMethod = Annotated[
    Literal["mse", "minmax", "percentile", "entropy"] | None,
    typer.Option(help="How a tensor's range is chosen.  [default: mse]"),
]
CalibPercentile = Annotated[
    float | None, typer.Option(help="Of magnitudes, for --calib-method percentile.  [default: 99.99]")
]
CalibNum = Annotated[int | None, typer.Option(help="How many images at most, balanced over classes.  [default: 512]")]
CalibBatch = Annotated[int, typer.Option(help="Images that are fed at a time; changes no result.")]
CalibSeed = Annotated[int | None, typer.Option(help="Which images are chosen, of more.  [default: 0]")]
AllowRandom = Annotated[
    bool,
    typer.Option("--allow-random-calib", help="Calibrate on noise, for timing only: the bundle says so everywhere."),
]
Equalize = Annotated[
    bool | None,
    typer.Option("--equalize/--no-equalize", help="Scale channels to equal ranges first.  [default: equalize]"),
]
BiasCorrection = Annotated[
    bool | None,
    typer.Option(
        "--bias-correction/--no-bias-correction",
        help="Make up in biases for the mean error of rounded weights.  [default: bias-correction]",
    ),
]
Shift = Annotated[
    bool | None,
    typer.Option(
        "--shift/--no-shift", help="Use all 256 levels for tensors without negative values.  [default: shift]"
    ),
]
ExactInput = Annotated[
    bool | None,
    typer.Option("--exact-input/--no-exact-input", help="Quantize 8-bit pixels without error.  [default: exact-input]"),
]
WeightScales = Annotated[
    Literal["mse", "max"] | None,
    typer.Option(help="Each channel's scale: least squared error, or its largest weight.  [default: mse]"),
]
