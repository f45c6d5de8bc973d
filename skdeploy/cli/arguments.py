"""Arguments and options that several verbs take, each declared once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final, Literal

import typer

from skdeploy.core.errors import UsageError
from skdeploy.core.panel import Panel

BundleFolder = Annotated[Path, typer.Argument(help="Folder that `skdeploy export` made.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.", rich_help_panel=Panel.OUTPUT)]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print only the verdict and errors.", rich_help_panel=Panel.OUTPUT)
]
Finding = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Write the result to this file, and nothing to the bundle, which may be read-only.  [default: the bundle's "
        "evidence/]",
        rich_help_panel=Panel.OUTPUT,
    ),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", help="Print every detail, and where an error came from.", rich_help_panel=Panel.OUTPUT
    ),
]
LogFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Append everything that --verbose prints, with times, to this file.",
        rich_help_panel=Panel.OUTPUT,
    ),
]
IMAGE_SIZE: Final = "N|HxW"  # what --imgsz takes, as help shows it
Imgsz = Annotated[
    str | None,
    typer.Option(
        metavar=IMAGE_SIZE,
        help="Input size in pixels: both sides, or height x width, such as 480x640.  [default: the card's]",
        rich_help_panel=Panel.INPUT,
    ),
]
Junit = Annotated[
    Path | None, typer.Option(help="Write the checks as JUnit XML to this file.", rich_help_panel=Panel.OUTPUT)
]
Markdown = Annotated[
    Path | None,
    typer.Option(help="Write a Markdown summary, for a CI job's page, to this file.", rich_help_panel=Panel.OUTPUT),
]
Receipt = Annotated[
    bool,
    typer.Option(
        "--receipt",
        help="Save what was measured on this device in the bundle's receipts/.",
        rich_help_panel=Panel.OUTPUT,
    ),
]
MinBatch = Annotated[
    int | None, typer.Option(help="Smallest batch that the engine takes.  [default: 1]", rich_help_panel=Panel.ENGINE)
]
OptBatch = Annotated[
    int | None, typer.Option(help="Batch that the engine is tuned for.  [default: 8]", rich_help_panel=Panel.ENGINE)
]
MaxBatch = Annotated[
    int | None, typer.Option(help="Largest batch that the engine takes.  [default: 32]", rich_help_panel=Panel.ENGINE)
]
ClassOrder = Annotated[
    Literal["number", "name"] | None,
    typer.Option(
        help="Order of the class folders: by the number in their names, or by name as torchvision's ImageFolder does.  "
        "[default: from the card]",
        rich_help_panel=Panel.INPUT,
    ),
]
Metric = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:FUNCTION",
        help="Measure with a function of yours: `metric(outputs, target)` of one sample. Runs your code.",
        rich_help_panel=Panel.ACCURACY,
    ),
]
AssumeImagenet = Annotated[
    bool,
    typer.Option(
        "--assume-imagenet",
        help="Confirm that ImageNet's preprocessing is right when no card gives one.",
        rich_help_panel=Panel.INPUT,
    ),
]


def image_size(text: str | None) -> tuple[int, int] | None:
    """Height and width of ``--imgsz``. Raises UsageError."""
    if text is None:
        return None
    height, cross, width = text.lower().partition("x")
    sides = (height, width if cross else height)
    if not all(re.fullmatch(r"-?\d{1,9}", side) for side in sides):
        raise UsageError(
            f"--imgsz {text}: this is not a size", advice="give both sides as one number, or HEIGHTxWIDTH: 480x640"
        )
    size = int(sides[0]), int(sides[1])
    if min(size) < 1:
        raise UsageError(
            f"--imgsz {text}: an image has at least 1 pixel", advice="give the size that the network takes"
        )
    return size


Sizes = Annotated[
    list[str] | None,
    typer.Option(
        "--size",
        metavar="NAME=N",
        help="Size of a free dimension of an input that is not an image; repeatable.  [default: the card's usual]",
    ),
]


def free_sizes(given: list[str] | None) -> dict[str, int]:
    """The sizes of ``--size NAME=N``, by name. Raises UsageError."""
    sizes: dict[str, int] = {}
    for text in given or ():
        name, _, number = text.partition("=")
        if not name or not re.fullmatch(r"\d{1,9}", number) or int(number) < 1:
            raise UsageError(f"--size {text}: this is not a size", advice="write NAME=N, such as --size frames=200")
        if name in sizes:
            raise UsageError(f"--size {name} is given twice")
        sizes[name] = int(number)
    return sizes
