"""Arguments and options that several verbs take, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

BundleFolder = Annotated[Path, typer.Argument(help="The folder that an export made.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else there.")]
Imgsz = Annotated[int | None, typer.Option(help="Input height and width in pixels; default: the card's.")]
Junit = Annotated[Path | None, typer.Option(help="Write the checks as JUnit XML to this file.")]
Markdown = Annotated[Path | None, typer.Option(help="Write a summary for a job's page to this file.")]
Receipt = Annotated[
    bool, typer.Option("--receipt", help="Write what was measured here, on this device, to the bundle's receipts/.")
]
MinBatch = Annotated[int | None, typer.Option(help="The engine's smallest batch.  [default: 1]")]
OptBatch = Annotated[int | None, typer.Option(help="The batch that the engine is tuned for.  [default: 8]")]
MaxBatch = Annotated[int | None, typer.Option(help="The engine's largest batch.  [default: 32]")]
ClassOrder = Annotated[
    Literal["number", "name"] | None,
    typer.Option(
        help="How class folders are counted: by the number that is a folder's name, or by name, as torchvision's ImageFolder "
        "does.  [default: the card's labels, its class_order, or the only order there is]"
    ),
]
AssumeImagenet = Annotated[
    bool,
    typer.Option(
        "--assume-imagenet",
        help="Confirm that ImageNet's preprocessing is right, where neither card nor user gave one.",
    ),
]
