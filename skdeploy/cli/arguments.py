"""Arguments and options that several verbs take, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

BundleFolder = Annotated[Path, typer.Argument(help="Folder that `skdeploy export` made.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Imgsz = Annotated[int | None, typer.Option(help="Input height and width in pixels.  [default: the card's]")]
Junit = Annotated[Path | None, typer.Option(help="Write the checks as JUnit XML to this file.")]
Markdown = Annotated[Path | None, typer.Option(help="Write a Markdown summary, for a CI job's page, to this file.")]
Receipt = Annotated[
    bool, typer.Option("--receipt", help="Save what was measured on this device in the bundle's receipts/.")
]
MinBatch = Annotated[int | None, typer.Option(help="Smallest batch that the engine takes.  [default: 1]")]
OptBatch = Annotated[int | None, typer.Option(help="Batch that the engine is tuned for.  [default: 8]")]
MaxBatch = Annotated[int | None, typer.Option(help="Largest batch that the engine takes.  [default: 32]")]
ClassOrder = Annotated[
    Literal["number", "name"] | None,
    typer.Option(
        help="Order of the class folders: by the number in their names, or by name as torchvision's ImageFolder does.  "
        "[default: from the card]"
    ),
]
AssumeImagenet = Annotated[
    bool,
    typer.Option(
        "--assume-imagenet",
        help="Confirm that ImageNet's preprocessing is right when no card gives one.",
    ),
]
