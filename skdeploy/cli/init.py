"""``skdeploy init``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def init(
    model: Annotated[str, typer.Argument(help="An .onnx file, or package.module:function that builds a network.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The card to write; default: MODEL.toml in this folder.")
    ] = None,
    imgsz: Annotated[
        int | None, typer.Option(help="Height and width in pixels at which a module is run; default: 224.")
    ] = None,
) -> None:
    """Write a card to fill in for an ONNX file or a module. No file is overwritten."""
    from rich.markup import escape

    from skdeploy.cli.console import output_console
    from skdeploy.line.init_card import init_card

    path, spec = init_card(model, output, None if imgsz is None else (imgsz, imgsz))
    console = output_console()
    console.print(
        f"{escape(str(path))}: {spec.input.channels} x {spec.input.height} x {spec.input.width}, "
        f"{spec.network.classes} classes",
        soft_wrap=True,
    )
    console.print(
        "fill in how the training code prepared images, then delete \\[assumed.preprocessing] from it", soft_wrap=True
    )
    console.print(f"next: skdeploy export {escape(model)} --card {escape(str(path))}", soft_wrap=True)
