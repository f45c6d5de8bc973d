"""``skdeploy init``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skdeploy.core.panel import Panel


def init(
    model: Annotated[str, typer.Argument(help="An .onnx file, or package.module:function that returns a network.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Card to write.  [default: MODEL.toml in this folder]", rich_help_panel=Panel.OUTPUT
        ),
    ] = None,
    imgsz: Annotated[
        int | None, typer.Option(help="Input height and width of a module, in pixels.  [default: 224]")
    ] = None,
) -> None:
    """Write a card for an ONNX file or a module, for you to complete. Overwrites no file.

    Examples:
        skdeploy init mynet.onnx
        skdeploy init mynet.onnx -o cards/mynet.toml
    """
    from skdeploy.line.init_card import init_card
    from skdeploy.report.terminal import Terminal

    path, spec = init_card(model, output, None if imgsz is None else (imgsz, imgsz))
    terminal, given = Terminal(), spec.input
    gives = f"task {spec.task}" if spec.outputs else f"{spec.network.classes} classes"
    terminal.headline(f"{path}: {given.channels} x {given.height} x {given.width}, {gives}")
    terminal.say("fill in how the training code prepared images, then delete [assumed.preprocessing] from it")
    terminal.say(f"next: skdeploy export {model} --card {path}")
