"""``skdeploy init``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from skdeploy.cli.arguments import IMAGE_SIZE, image_size
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
        str | None,
        typer.Option(
            metavar=IMAGE_SIZE, help="Input size of a module in pixels: a side, or height x width.  [default: 224]"
        ),
    ] = None,
) -> None:
    """Write a card for an ONNX file or a module, for you to complete. Overwrites no file.

    Examples:
        skdeploy init mynet.onnx
        skdeploy init mynet.onnx -o cards/mynet.toml
    """
    from skdeploy.line.init_card import init_card
    from skdeploy.report.terminal import Terminal

    path, spec = init_card(model, output, image_size(imgsz))
    terminal = Terminal()
    gives = f"task {spec.task}" if spec.outputs else f"{spec.network.classes} classes"
    if spec.image is not None:
        size = f"{spec.image.channels} x {spec.image.height} x {spec.image.width}"
        terminal.headline(f"{path}: {size}, {gives}")
        terminal.say("fill in how the training code prepared images, then delete [assumed.preprocessing] from it")
    else:
        terminal.headline(f"{path}: {spec.shown_inputs}, {gives}")
        terminal.say("check the inputs" + (" and correct the sizes under [sizes]" if spec.sizes else ""))
    terminal.say(f"next: {shlex.join(['skdeploy', 'export', str(model), '--card', str(path)])}", whole=True)
